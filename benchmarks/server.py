"""The MinIO of a run: over HTTP, or over HTTPS with a certificate of its own; and the bucket in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Place
from tests.servers import s3
from tests.servers.certificates import make_certificates
from tests.servers.process import ServerProcess

BUCKET = "benchmarks"
_KEY = _SECRET = "testtest"


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
    server = s3.minio(directory)
    if server is None:
        raise NoServerError("MinIO is not built: `make servers` (needs Go)")
    process, authority = server.process, ""
    if tls:
        authority = str(_write_certificates(directory))
        process = _with_tls(process, directory)
    try:
        process.start()
    except RuntimeError as error:
        raise NoServerError(str(error)) from error
    try:
        place = Place("", BUCKET, process.url, _KEY, _SECRET, authority)
        running = Minio(place)
        running.client.create_bucket(Bucket=BUCKET)
        yield running
    finally:
        process.stop()


def _write_certificates(directory: Path) -> Path:
    """Write key and certificate in the two files that MinIO looks for; return that of the authority."""
    authority, _ = make_certificates(directory / "made")
    text = (directory / "made" / "server.pem").read_text()
    end = "-----END PRIVATE KEY-----\n"
    key, _, certificate = text.partition(end)
    place = directory / "certificates"
    place.mkdir(parents=True, exist_ok=True)
    (place / "private.key").write_text(key + end)
    (place / "public.crt").write_text(certificate)
    return authority


class _TlsProcess(ServerProcess):
    """Ready when its port takes connections: the usual question would need the certificate."""

    def _is_ready(self) -> bool:
        import socket

        with socket.socket() as probe:
            probe.settimeout(2)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _with_tls(process: ServerProcess, directory: Path) -> ServerProcess:
    command = [*process.command[:2], "--certs-dir", str(directory / "certificates"), *process.command[2:]]
    made = _TlsProcess(
        command,
        process.port,
        "",
        directory / "log",
        {"MINIO_ROOT_USER": _KEY, "MINIO_ROOT_PASSWORD": _SECRET},
    )
    made.url = f"https://127.0.0.1:{process.port}"
    return made
