"""Which process this is, where it runs, and the only place that reads the environment."""

from __future__ import annotations

import functools
import hashlib
import os
import uuid
from pathlib import Path
from typing import NamedTuple

__all__ = ["GcsEnvironment", "client_environment", "gcs_environment", "host_id", "host_name", "process_run"]


def host_name() -> str:
    """Return the name by which people know this machine."""
    return os.uname().nodename


@functools.cache
def host_id() -> str:
    """Return 8 hex digits that name this machine until its next boot.

    Two processes with the same id run under one kernel, so a `flock` of the one is visible to the other.
    """
    try:
        # Not the machine id: clones of one disk image share it, and containers under one kernel need not.
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        name = os.uname().nodename.encode()
    return hashlib.sha256(name).hexdigest()[:8]


_RUNS: dict[int, str] = {}


def process_run() -> str:
    """Return the run of this process: one for all its Savers, another one after a fork."""
    return _RUNS.setdefault(os.getpid(), uuid.uuid4().hex)


class GcsEnvironment(NamedTuple):
    """What the environment says of Google Cloud Storage, in the variables of Google's own libraries.

    Attributes
    ----------
    emulator_host : str
        ``STORAGE_EMULATOR_HOST``: host and port, or URL, of a stand-in; empty if there is none.
    credentials_file : str
        ``GOOGLE_APPLICATION_CREDENTIALS``; empty if there is none.
    universe_domain : str
        ``GOOGLE_CLOUD_UNIVERSE_DOMAIN``, by default ``googleapis.com``.
    """

    emulator_host: str
    credentials_file: str
    universe_domain: str


def gcs_environment() -> GcsEnvironment:
    """Return what the environment says of Google Cloud Storage now."""
    emulator_host = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return GcsEnvironment(
        emulator_host="" if emulator_host == "default" else emulator_host,
        credentials_file=os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", ""),
        universe_domain=os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "") or "googleapis.com",
    )


_CLIENT_VARIABLES = (
    "AWS_",
    "BOTO_",
    "GOOGLE_",
    "GCLOUD_",
    "STORAGE_EMULATOR_HOST",
    "HTTP_PROXY",
    "HTTPS_PROXY",
)


def client_environment() -> str:
    """Return a digest of what the clients of object stores read from the environment; it tells no secret."""
    found = sorted(
        (name, value) for name, value in os.environ.items() if name.upper().startswith(_CLIENT_VARIABLES)
    )
    return hashlib.sha256(repr(found).encode()).hexdigest()
