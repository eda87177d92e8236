"""Plain sockets: the standard library's HTTP client, a connection for each thread, no copies, no checksum."""

from __future__ import annotations

import datetime
import http.client
import re
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.contenders.raw import THREADS, RawClient, part_ranges
from benchmarks.sigv4 import canonical_query, signed_headers

_MOST_IDLE_S = 5.0


class Sockets(RawClient):
    """Unsigned payload, parts straight out of the arrays, ranges straight into them."""

    libraries = ("numpy",)

    def load(self) -> None:
        self.local = threading.local()
        self.pool = ThreadPoolExecutor(THREADS)

    def connect(self) -> None:
        # One request on each connection, as those that pool them have after a save.
        together = threading.Barrier(THREADS)

        def greet(_: int) -> None:
            self.call("GET", "", {"location": ""})
            together.wait(60)

        for _ in self.pool.map(greet, range(THREADS)):
            pass

    def close(self) -> None:
        self.pool.shutdown()

    def connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self.local, "connection", None)
        idle_s = time.monotonic() - getattr(self.local, "used_at_s", 0.0)
        # Servers close connections that nobody used for a while.
        if connection is None or idle_s > _MOST_IDLE_S:
            if connection is not None:
                connection.close()
            url = urlsplit(self.place.endpoint)
            assert url.hostname
            if url.scheme == "https":
                context = ssl.create_default_context(cafile=self.place.authority or None)
                connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=60, context=context)
            else:
                connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
            connection.connect()
            self.local.connection = connection
        self.local.used_at_s = time.monotonic()
        return connection

    def call(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: memoryview | bytes = b"",
        into: memoryview | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self.connection()
        path = f"/{self.place.bucket}/{key}"
        headers = signed_headers(
            method,
            urlsplit(self.place.endpoint).netloc,
            path,
            query,
            key=self.place.key,
            secret=self.place.secret,
            region=self.place.region,
            now=datetime.datetime.now(datetime.UTC),
            extra=extra,
        )
        target = quote(path) + (f"?{canonical_query(query)}" if query else "")
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("content-length", str(len(body)))
        connection.endheaders()
        if body:
            connection.sock.sendall(body)
        answer = connection.getresponse()
        if answer.status >= 300:
            raise RuntimeError(f"{method} answered {answer.status}: {answer.read()[:200]!r}")
        if into is None:
            return answer, answer.read()
        done = 0
        while done < len(into):
            count = answer.readinto(into[done:])
            if not count:
                raise RuntimeError(f"the body ends after {done} of {len(into)} bytes")
            done += count
        return answer, answer.read()

    def upload(self, key: str, data: memoryview) -> None:
        _, text = self.call("POST", key, {"uploads": ""})
        match = re.search(rb"<UploadId>(.*?)</UploadId>", text)
        assert match
        upload = match[1].decode()

        def send(numbered: tuple[int, tuple[int, int]]) -> str:
            number, (start, stop) = numbered
            query = {"partNumber": str(number), "uploadId": upload}
            return str(self.call("PUT", key, query, data[start:stop])[0].headers["ETag"])

        tags = list(self.pool.map(send, enumerate(part_ranges(len(data)), 1)))
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
        self.call("POST", key, {"uploadId": upload}, body.encode())

    def fetch(self, key: str, start: int, into: memoryview) -> None:
        self.call("GET", key, {}, into=into, extra={"range": f"bytes={start}-{start + len(into) - 1}"})

    def download(self, key: str, into: memoryview) -> None:
        for _ in self.pool.map(
            lambda part: self.fetch(key, part[0], into[part[0] : part[1]]), part_ranges(len(into))
        ):
            pass

    def read_one(self, where: str) -> Mapping[str, Any]:
        """One range, its place known: no index is read."""
        name = self.data.single
        array = np.empty(self.data.shapes[name], np.float32)
        self.fetch(self.key(where), 4 * self.data.starts[name], array.data.cast("B"))
        return {name: array}
