"""boto3's transfer manager; and the boto3 client that others use to move their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Place
from benchmarks.contenders.raw import PART, THREADS, MemoryFile, RawClient


class Bucket:
    """A boto3 client for one place, with as many threads as the plain sockets have."""

    def __init__(self, place: Place) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.place = place
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=place.endpoint,
            aws_access_key_id=place.key,
            aws_secret_access_key=place.secret,
            region_name=place.region,
            verify=place.authority or None,
            config=Config(max_pool_connections=2 * THREADS),
        )
        self.config = TransferConfig(
            multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=THREADS, io_chunksize=2**20
        )

    def upload(self, key: str, data: Any) -> None:
        self.client.upload_fileobj(data, self.place.bucket, key, Config=self.config)

    def download(self, key: str, target: Any) -> None:
        self.client.download_fileobj(self.place.bucket, key, target, Config=self.config)

    def upload_files(self, directory: Path, prefix: str) -> None:
        for path in sorted(directory.iterdir()):
            self.client.upload_file(str(path), self.place.bucket, f"{prefix}/{path.name}", Config=self.config)

    def download_files(self, prefix: str, directory: Path) -> None:
        found = self.client.list_objects_v2(Bucket=self.place.bucket, Prefix=prefix + "/")
        for item in found["Contents"]:
            path = directory / item["Key"].rpartition("/")[2]
            self.client.download_file(self.place.bucket, item["Key"], str(path), Config=self.config)


class Boto3(RawClient):
    """``upload_fileobj`` and ``download_fileobj`` over the arrays' memory."""

    libraries = ("boto3", "s3transfer", "numpy")

    def load(self) -> None:
        import boto3.s3.transfer  # noqa: F401

    def connect(self) -> None:
        self.bucket = Bucket(self.place)

    def upload(self, key: str, data: memoryview) -> None:
        self.bucket.upload(key, MemoryFile(data))

    def download(self, key: str, into: memoryview) -> None:
        self.bucket.download(key, MemoryFile(into))
