"""The MinIO of a run: over HTTP, or over HTTPS with a certificate of its own; and the bucket in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Place
from tests.servers import s3
from tests.servers.s3_tls import TlsS3Server, minio_tls

BUCKET = "benchmarks"


class NoServerError(Exception):
    """MinIO was not built, or did not start."""


class Minio:
    """A running MinIO and a client that cleans up in it."""

    def __init__(self, place: Place) -> None:
        import boto3

        self.place = place
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=place.endpoint,
            aws_access_key_id=place.key,
            aws_secret_access_key=place.secret,
            region_name=place.region,
            verify=place.authority or None,
        )

    def clear(self, prefix: str) -> None:
        """Delete every object below a key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        for page in pages:
            keys = [{"Key": item["Key"]} for item in page.get("Contents", ())]
            if keys:
                self.client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys, "Quiet": True})


@contextmanager
def minio(directory: Path, *, tls: bool) -> Iterator[Minio]:
    """Run MinIO with an empty bucket while the block runs.

    Raises
    ------
    NoServerError
        If it was not built.
    """
    server = minio_tls(directory) if tls else s3.minio(directory)
    if server is None:
        raise NoServerError("MinIO is not built: `make servers` (needs Go)")
    authority = server.authority if isinstance(server, TlsS3Server) else ""
    try:
        server.process.start()
    except RuntimeError as error:
        raise NoServerError(str(error)) from error
    try:
        place = Place("", BUCKET, server.url, server.key, server.secret, authority)
        running = Minio(place)
        running.client.create_bucket(Bucket=BUCKET)
        yield running
    finally:
        server.process.stop()
