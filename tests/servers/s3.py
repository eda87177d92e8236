"""The S3 servers of the tests: MinIO, versitygw, moto. They differ where it matters; see each."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.build import ROOT, binary
from tests.servers.process import ServerProcess, free_port

__all__ = ["S3Server", "minio", "moto", "versitygw"]

_KEY = _SECRET = "testtest"
_numbers = itertools.count(1)


@dataclass
class S3Server:
    """A running S3 server and who may use it.

    Attributes
    ----------
    process : ServerProcess
    url : str
        Endpoint; that of a proxy in front of it, for `through`.
    """

    process: ServerProcess
    url: str
    key: str = _KEY
    secret: str = _SECRET
    _clients: dict[int, Any] = field(default_factory=dict, repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """``storage_options`` for it."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def raw(self) -> Any:
        """A boto3 client that owes nothing to ckptstore."""
        if os.getpid() not in self._clients:
            import boto3

            self._clients[os.getpid()] = boto3.client(
                "s3",
                endpoint_url=self.process.url,
                aws_access_key_id=_KEY,
                aws_secret_access_key=_SECRET,
                region_name="us-east-1",
            )
        return self._clients[os.getpid()]

    def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket, by default one that no other test has, and return its name."""
        name = name or f"bucket-{os.getpid()}-{next(_numbers)}"
        self.raw.create_bucket(Bucket=name)
        return name

    def through(self, url: str) -> S3Server:
        """Return the same server behind a proxy at `url`."""
        return S3Server(self.process, url, self.key, self.secret)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return every key there is, ascending."""
        pages = self.raw.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))

    def get(self, bucket: str, key: str) -> bytes | None:
        """Return an object, None if it is not there."""
        try:
            return bytes(self.raw.get_object(Bucket=bucket, Key=key)["Body"].read())
        except self.raw.exceptions.NoSuchKey:
            return None

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Put an object."""
        self.raw.put_object(Bucket=bucket, Key=key, Body=data)

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self.raw.delete_object(Bucket=bucket, Key=key)

    def user_with(self, actions: Sequence[str], bucket: str, below: str = "*") -> dict[str, str]:
        """Return the credentials of a user who may do these actions of S3 in a bucket, and nothing else.

        Parameters
        ----------
        actions : sequence of str
            Without ``s3:``.
        bucket : str
        below : str
            Pattern of the names that they hold for.

        Returns
        -------
        dict
            ``key``, ``secret`` and ``token`` of the storage options.
        """
        import boto3

        place = f"arn:aws:s3:::{bucket}"
        allowed = {
            "Effect": "Allow",
            "Action": [f"s3:{action}" for action in actions],
            "Resource": [place, f"{place}/{below}"],
        }
        tokens = boto3.client(
            "sts",
            endpoint_url=self.process.url,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
        )
        given = tokens.assume_role(
            RoleArn="arn:aws:iam::123456789012:role/x",
            RoleSessionName="test",
            Policy=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
        )["Credentials"]
        names = {"key": "AccessKeyId", "secret": "SecretAccessKey", "token": "SessionToken"}
        return {option: str(given[name]) for option, name in names.items()}

    def counted(self) -> Counter[str]:
        """Return how many requests of each kind MinIO itself has counted since its start."""
        with urllib.request.urlopen(
            f"{self.process.url}/minio/metrics/v3/api/requests", timeout=10
        ) as answer:
            text = answer.read().decode()
        found = re.findall(
            r'^minio_api_requests_total\{name="(\w+)".*type="s3".*\} (\d+)$', text, re.MULTILINE
        )
        return Counter({name: int(number) for name, number in found})

    def uploads(self, bucket: str, key: str = "") -> list[str]:
        """Return the keys of unfinished uploads; some servers take only a whole key."""
        answer = self.raw.list_multipart_uploads(Bucket=bucket, Prefix=key)
        return sorted(item["Key"] for item in answer.get("Uploads", ()))


def _server(process: ServerProcess) -> S3Server:
    return S3Server(process, process.url)


def minio(directory: Path, program: str = "minio") -> S3Server | None:
    """Return MinIO, not started; None if it was not built. It ignores conditions on DELETE."""
    path = binary(program)
    if path is None:
        return None
    (directory / "data").mkdir(parents=True, exist_ok=True)
    port = free_port()
    return _server(
        ServerProcess(
            [str(path), "server", "--quiet", "--address", f"127.0.0.1:{port}", str(directory / "data")],
            port,
            "/minio/health/ready",
            directory / "log",
            {
                "MINIO_ROOT_USER": _KEY,
                "MINIO_ROOT_PASSWORD": _SECRET,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                "MINIO_PROMETHEUS_AUTH_TYPE": "public",
            },
        )
    )


def versitygw(directory: Path) -> S3Server | None:
    """Return versitygw, not started; None if it was not built.

    It keeps conditions on DELETE in two steps, has other error codes, and answers a bad key with 404.
    """
    path = binary("versitygw")
    if path is None:
        return None
    (directory / "data").mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(path), "--quiet", "--keep-alive", "--access", _KEY, "--secret", _SECRET]
    command += ["--port", f"127.0.0.1:{port}", "--health", "/health", "posix", str(directory / "data")]
    return _server(ServerProcess(command, port, "/health", directory / "log"))


def moto(directory: Path) -> S3Server | None:
    """Return moto, not started; None if it is not installed. It verifies no checksum and no credentials.

    It looks at a condition and acts in two steps. In an environment of its own, because it asks for another
    botocore than s3fs does.
    """
    places = (
        ROOT / ".cache" / "venv-moto" / "bin" / "moto_server",
        Path(sys.executable).parent / "moto_server",
    )
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    return _server(
        ServerProcess([str(path), "-H", "127.0.0.1", "-p", str(port)], port, "/moto-api/", directory / "log")
    )
