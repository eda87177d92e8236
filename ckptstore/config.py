"""Identity of the process and its host; the only module that reads the environment."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import uuid
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

__all__ = [
    "GcsEnvironment",
    "Launcher",
    "aws_environment",
    "aws_session",
    "client_environment",
    "completion_request",
    "gcs_environment",
    "host_id",
    "host_name",
    "launcher_environment",
    "process_run",
    "proxy_for",
    "terminal_style",
]


def host_name() -> str:
    """Return the host name of this machine."""
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
    """Return the run id of this process: the same for all its Savers, a new one after a fork."""
    return _RUNS.setdefault(os.getpid(), uuid.uuid4().hex)


class GcsEnvironment(NamedTuple):
    """Settings of Google Cloud Storage from the environment variables of Google's own libraries.

    Attributes
    ----------
    emulator_host : str
        ``STORAGE_EMULATOR_HOST``: host and port, or URL, of an emulator; empty if unset.
    credentials_file : str
        ``GOOGLE_APPLICATION_CREDENTIALS``; empty if unset.
    universe_domain : str
        ``GOOGLE_CLOUD_UNIVERSE_DOMAIN``, by default ``googleapis.com``.
    certificates : tuple of str
        Names of variables that are set and concern certificates that a machine shows.
    authorities : str
        ``REQUESTS_CA_BUNDLE`` or ``CURL_CA_BUNDLE``: whom those trust who ask for tokens; empty if unset.
    """

    emulator_host: str
    credentials_file: str
    universe_domain: str
    certificates: tuple[str, ...] = ()
    authorities: str = ""


_CERTIFICATES = "GOOGLE_API_"


def gcs_environment() -> GcsEnvironment:
    """Return the present settings of Google Cloud Storage."""
    emulator_host = os.environ.get("STORAGE_EMULATOR_HOST", "")
    return GcsEnvironment(
        emulator_host="" if emulator_host == "default" else emulator_host,
        credentials_file=os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", ""),
        universe_domain=os.environ.get("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "") or "googleapis.com",
        certificates=tuple(sorted(name for name in os.environ if name.startswith(_CERTIFICATES))),
        authorities=os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE", ""),
    )


_CLIENT_VARIABLES = (
    "AWS_",
    "BOTO_",
    "GOOGLE_",
    "GCLOUD_",
    "STORAGE_EMULATOR_HOST",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def proxy_for(url: str) -> str | None:
    """Return the proxy that ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` name for `url`, or None."""
    parts = urlsplit(url)
    if sys.platform == "linux" and not any(name.lower() == f"{parts.scheme}_proxy" for name in os.environ):
        # What the environment does not say, nothing else says there. The module takes its time to load.
        return None
    # As botocore does for s3://.
    from urllib.request import getproxies, proxy_bypass

    found = getproxies().get(parts.scheme)
    return None if not found or proxy_bypass(parts.netloc.rpartition("@")[2]) else found


def terminal_style() -> Literal["colour", "plain", "dumb"]:
    """Return what the terminal may be sent, by the environment.

    ``"plain"``: no colours, because ``NO_COLOR`` is set and not empty (https://no-color.org). ``"dumb"``:
    no control codes at all, because ``TERM`` says so.
    """
    if os.environ.get("TERM") == "dumb":
        return "dumb"
    return "plain" if os.environ.get("NO_COLOR") else "colour"


def completion_request() -> str:
    """Return what a shell asks the command to complete, in click's form; empty if it does not."""
    return os.environ.get("_CKPTSTORE_COMPLETE", "")


# As botocore reads them.
_AWS_TOKENS = ("AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


_AWS_EXPIRATION = "AWS_CREDENTIAL_EXPIRATION"


def aws_session() -> tuple[str, str, str] | None:
    """Return key, secret and session token of the environment.

    None without a session token, and with the time when it runs out: then botocore reads them again itself.
    """
    return None if os.environ.get(_AWS_EXPIRATION) else _aws_session()


def _aws_session() -> tuple[str, str, str] | None:
    token = next((os.environ[name] for name in _AWS_TOKENS if os.environ.get(name)), "")
    key, secret = (os.environ.get(name, "") for name in _AWS_KEYS)
    return (key, secret, token) if key and secret and token else None


def aws_environment() -> dict[str, str]:
    """Return the variables by which the clients of AWS are told something, besides those of proxies."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("AWS_", "BOTO")) or name == "REQUESTS_CA_BUNDLE"
    }


def client_environment() -> str:
    """Return a digest of the variables that the clients of object stores read; it reveals no secret.

    Of a session's key, secret and token it says nothing: they are renewed while everything else stays.
    """
    renewed = {*_AWS_TOKENS, *_AWS_KEYS, _AWS_EXPIRATION} if _aws_session() else set()
    found = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.upper().startswith(_CLIENT_VARIABLES) and name not in renewed
    )
    return hashlib.sha256(repr(found).encode()).hexdigest()


class Launcher(NamedTuple):
    """What the program that started the processes of a job says of this one.

    Attributes
    ----------
    rank, size : int or None
        None where it says nothing.
    attempt : str or None
        Names this start of the job.
    """

    rank: int | None = None
    size: int | None = None
    attempt: str | None = None


# Rank, size, and what together names a start of the job. The first launcher that has set the rank counts:
# torchrun may run below SLURM.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
    ("SLURM_PROCID", "SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")),
    ("PMI_RANK", "PMI_SIZE", ("PMI_JOBID",)),
    # An indexed job of Kubernetes does not say how many indices it has.
    ("JOB_COMPLETION_INDEX", "", ()),
)


def launcher_environment() -> Launcher:
    """Return what torchrun, Open MPI, SLURM, PMI or Kubernetes has set for this process."""
    for rank, size, attempt in _LAUNCHERS:
        if os.environ.get(rank, "").isdigit():
            number_of_ranks = os.environ.get(size, "")
            # The last ones need not be set, the first has to be.
            words = [os.environ.get(name, "") for name in attempt]
            return Launcher(
                int(os.environ[rank]),
                int(number_of_ranks) if number_of_ranks.isdigit() else None,
                ".".join(filter(None, words)) if words and words[0] else None,
            )
    return Launcher()
