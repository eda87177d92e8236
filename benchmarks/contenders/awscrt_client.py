"""awscrt: the C client of AWS, from Python."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.contenders.raw import PART, MemoryFile, RawClient


class Awscrt(RawClient):
    """Its own splitting into parts; the body through a stream over the arrays' memory."""

    libraries = ("awscrt", "numpy")

    def load(self) -> None:
        from awscrt import auth, http, io, s3

        self.auth, self.http, self.io, self.s3 = auth, http, io, s3

    def connect(self) -> None:
        group = self.io.EventLoopGroup()
        bootstrap = self.io.ClientBootstrap(group, self.io.DefaultHostResolver(group))
        credentials = self.auth.AwsCredentialsProvider.new_static(self.place.key, self.place.secret)
        tls: dict[str, Any] = {"tls_mode": self.s3.S3RequestTlsMode.DISABLED}
        if self.place.authority:
            options = self.io.TlsContextOptions()
            options.override_default_trust_store_from_path(None, self.place.authority)
            context = self.io.ClientTlsContext(options)
            tls = {
                "tls_mode": self.s3.S3RequestTlsMode.ENABLED,
                "tls_connection_options": context.new_connection_options(),
            }
        self.client = self.s3.S3Client(
            bootstrap=bootstrap,
            region=self.place.region,
            signing_config=self.s3.create_default_s3_signing_config(
                region=self.place.region, credential_provider=credentials
            ),
            part_size=PART,
            throughput_target_gbps=10.0,
            **tls,
        )

    def request(self, method: str, key: str, **fields: Any) -> Any:
        headers = self.http.HttpHeaders(
            [("host", urlsplit(self.place.endpoint).netloc), *fields.pop("headers", [])]
        )
        return self.http.HttpRequest(method, quote(f"/{self.place.bucket}/{key}"), headers, **fields)

    def upload(self, key: str, data: memoryview) -> None:
        request = self.request(
            "PUT", key, headers=[("content-length", str(len(data)))], body_stream=MemoryFile(data)
        )
        self.client.make_request(
            type=self.s3.S3RequestType.PUT_OBJECT, request=request
        ).finished_future.result()

    def download(self, key: str, into: memoryview) -> None:
        target = np.frombuffer(into, np.uint8)

        def take(chunk: Any, offset: int, **_: Any) -> None:
            target[offset : offset + len(chunk)] = np.frombuffer(chunk, np.uint8)

        self.client.make_request(
            type=self.s3.S3RequestType.GET_OBJECT, request=self.request("GET", key), on_body=take
        ).finished_future.result()
