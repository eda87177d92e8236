"""Directories on every backend; a test takes them by the fixture `run_url` and knows nothing but the URL."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ckptstore.storage.registry import locate

_numbers = itertools.count(1)

BACKENDS = ("local", "memory", "minio", "versitygw", "gcs")

# For what is done once for each storage call: to it the two servers of S3 are the same.
AT_EVERY_CALL = pytest.mark.parametrize("backend", ["local", "memory", "minio", "gcs"], indirect=True)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Return the name of the backend; the server behind it runs by then."""
    return str(request.param)


@pytest.fixture
def run_url(backend: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a directory that does not exist yet, reached by environment variables alone."""
    if backend == "local":
        return f"{request.getfixturevalue('tmp_path')}/run"
    if backend == "memory":
        return f"memory://backends-{next(_numbers)}/run"
    server = request.getfixturevalue("gcs_server" if backend == "gcs" else backend)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    scheme = "gs" if backend == "gcs" else "s3"
    return f"{scheme}://{server.make_bucket()}/some/run"


def names_in(url: str) -> list[str]:
    """Return the names of the files in a directory, the lock of the local backend left out."""
    if "://" not in url:
        return sorted(p.name for p in Path(url).iterdir() if not p.name.startswith("."))
    directory = locate(url)
    return [info.key.rpartition("/")[2] for info in directory.storage.list(directory.child("").key)]
