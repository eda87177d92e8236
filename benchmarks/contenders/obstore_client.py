"""obstore: the Rust crate object_store, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.contenders.raw import PART, THREADS, RawClient, part_ranges


class Obstore(RawClient):
    """Its own multipart upload; ranges fetched by threads and copied into place."""

    libraries = ("obstore", "numpy")

    def load(self) -> None:
        import obstore
        from obstore.store import S3Store

        self.obstore, self.make_store = obstore, S3Store
        self.pool = ThreadPoolExecutor(THREADS)

    def connect(self) -> None:
        self.store: Any = self.make_store(
            self.place.bucket,
            endpoint=self.place.endpoint,
            access_key_id=self.place.key,
            secret_access_key=self.place.secret,
            region=self.place.region,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": "120s"},
        )

    def upload(self, key: str, data: memoryview) -> None:
        self.obstore.put(self.store, key, data, chunk_size=PART, max_concurrency=THREADS)

    def download(self, key: str, into: memoryview) -> None:
        def fetch(part: tuple[int, int]) -> None:
            start, stop = part
            piece = self.obstore.get_range(self.store, key, start=start, end=stop)
            np.copyto(np.frombuffer(into[start:stop], np.uint8), np.frombuffer(piece, np.uint8))

        for _ in self.pool.map(fetch, part_ranges(len(into))):
            pass

    def read_one(self, where: str) -> Mapping[str, Any]:
        if not hasattr(self, "store"):
            self.connect()
        name = self.data.single
        start = 4 * self.data.starts[name]
        length = 4 * int(np.prod(self.data.shapes[name]))
        piece = self.obstore.get_range(self.store, self.key(where), start=start, length=length)
        return {name: np.frombuffer(piece, np.float32).reshape(self.data.shapes[name])}

    def close(self) -> None:
        self.pool.shutdown()
