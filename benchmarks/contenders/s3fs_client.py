"""s3fs, tuned: whole parts, many connections, no listing cache."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.raw import THREADS, RawClient, part_ranges


class S3fs(RawClient):
    """A multipart upload and ranged reads through its own calls, all in flight at once."""

    libraries = ("s3fs", "aiobotocore", "numpy")

    def load(self) -> None:
        import s3fs

        self.s3fs = s3fs

    def connect(self) -> None:
        client: dict[str, Any] = {"region_name": self.place.region}
        if self.place.authority:
            client["verify"] = self.place.authority
        self.files: Any = self.s3fs.S3FileSystem(
            key=self.place.key,
            secret=self.place.secret,
            endpoint_url=self.place.endpoint,
            client_kwargs=client,
            config_kwargs={
                "max_pool_connections": 2 * THREADS,
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
            use_listings_cache=False,
        )

    def upload(self, key: str, data: memoryview) -> None:
        from fsspec.asyn import sync

        sync(self.files.loop, self._upload, key, data)

    async def _upload(self, key: str, data: memoryview) -> None:
        import asyncio

        bucket = self.place.bucket
        started = await self.files._call_s3("create_multipart_upload", Bucket=bucket, Key=key)
        limit = asyncio.Semaphore(THREADS)

        async def send(number: int, start: int, stop: int) -> dict[str, Any]:
            async with limit:
                answer = await self.files._call_s3(
                    "upload_part",
                    Bucket=bucket,
                    Key=key,
                    UploadId=started["UploadId"],
                    PartNumber=number,
                    Body=bytes(data[start:stop]),
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        parts = await asyncio.gather(
            *(send(number, start, stop) for number, (start, stop) in enumerate(part_ranges(len(data)), 1))
        )
        await self.files._call_s3(
            "complete_multipart_upload",
            Bucket=bucket,
            Key=key,
            UploadId=started["UploadId"],
            MultipartUpload={"Parts": parts},
        )

    def download(self, key: str, into: memoryview) -> None:
        path = f"{self.place.bucket}/{key}"
        parts = part_ranges(len(into))
        # So many at a time, or all parts lie in memory twice.
        for first in range(0, len(parts), THREADS):
            wave = parts[first : first + THREADS]
            starts, ends = [start for start, _ in wave], [stop for _, stop in wave]
            pieces = self.files.cat_ranges([path] * len(wave), starts, ends, on_error="raise")
            for (start, stop), piece in zip(wave, pieces, strict=True):
                into[start:stop] = piece
