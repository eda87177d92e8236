"""Everything that goes wrong between a program and its object store, one row each, and a place to try it on.

A `Stage` is a directory with one good checkpoint, behind a proxy that fails on request. A `FaultCase`
makes one kind of trouble there, and says how each operation ends.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import ckptstore as ck
from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Storage
from ckptstore.storage.object_store.attempts import RetryBudget, RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate, use_wrapper
from tests.servers.certificates import make_certificates, make_service_account
from tests.servers.fault_proxy import FaultProxy, Request, _When
from tests.servers.gcs import GcsServer
from tests.servers.process import free_port
from tests.servers.s3 import S3Server

__all__ = [
    "COMMANDS",
    "COUNTED",
    "FAULT_CASES",
    "OPERATIONS",
    "FaultCase",
    "Stage",
    "flags",
    "impatient",
    "save",
    "texts_of",
    "values_of",
]

Options: TypeAlias = dict[str, Any]

# Attempts are counted and pauses short; or, where nothing is counted, time is.
COUNTED = RetryPolicy(deadline_s=30.0, attempt_s=15.0, pause_scale=0.001)
_TIMED = RetryPolicy(deadline_s=0.6, attempt_s=0.3)


@contextmanager
def impatient(policy: RetryPolicy) -> Iterator[None]:
    """Let every object store give up when `policy` says."""

    def hurry(storage: Storage) -> Storage:
        if isinstance(storage, ObjectStorage):
            storage.service.policy = policy
            storage.service.budget = RetryBudget(1e9)
        return storage

    with use_wrapper(hurry):
        yield


def values_of(step: int) -> dict[str, np.ndarray]:
    """Return arrays, each of which shows the save that it belongs to."""
    return {"big": np.full((300, 100), step, np.float32), "small": np.array([step], np.int64)}


@dataclass
class Stage:
    """A directory with the checkpoint ``model-1``.

    Attributes
    ----------
    server : S3Server or GcsServer
    scheme : str
    bucket : str
    proxy : FaultProxy
        In front of the server; `options` lead to it.
    directory : Path
        For files on this machine.
    options : dict
        Storage options with which all is well, past the proxy.
    """

    server: S3Server | GcsServer
    scheme: str
    bucket: str
    proxy: FaultProxy
    directory: Path
    options: Options

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/some/run"

    @property
    def port(self) -> int:
        """Of the server itself."""
        if isinstance(self.server, S3Server):
            return self.server.process.port
        return self.server.processes[-1].port

    def at(self, endpoint: str, **more: Any) -> Options:
        """Return the good options with another endpoint."""
        return {**self.options, "endpoint_url": endpoint, **more}

    def as_owner(self) -> Options:
        """Return the options of the owner, who may do everything."""
        return {**self.server.options, "endpoint_url": self.proxy.url}

    def refuse(self, when: _When, status: int, code: str, message: str, **arguments: Any) -> None:
        """Have the proxy answer so, in the words of the service."""
        if self.scheme == "s3":
            when.answer(status, code, message, **arguments)
            return
        error = {"code": status, "message": message, "errors": [{"reason": code, "message": message}]}
        when.answer(status, body=json.dumps({"error": error}).encode(), **arguments)

    def restricted(self, *actions: str, below: str = "*") -> Options:
        """Return options of a user of S3 who may do no more than `actions`, below a name."""
        assert isinstance(self.server, S3Server)
        return self.at(self.proxy.url, **self.server.user_with(actions, self.bucket, below))


Expected: TypeAlias = type[ck.CkptStoreError] | None
Trouble: TypeAlias = Callable[[Stage], AbstractContextManager[Options]]


@dataclass(frozen=True)
class FaultCase:
    """One kind of trouble.

    Attributes
    ----------
    name : str
    schemes : tuple of str
    trouble : callable
        Makes it for as long as its block runs; yields the storage options of the one affected.
    expected : mapping
        Operation, perhaps with the scheme → the class of the error, None where all is well. ``""`` stands for
        all others.
    says : str
        What every message holds.
    policy : RetryPolicy
    """

    name: str
    schemes: tuple[str, ...]
    trouble: Trouble
    expected: Mapping[str, Expected]
    says: str = ""
    policy: RetryPolicy = COUNTED

    def expected_of(self, operation: str, scheme: str) -> Expected:
        """Return how `operation` ends."""
        for name in (f"{operation} {scheme}", operation):
            if name in self.expected:
                return self.expected[name]
        return self.expected[""]


# ------------------------------------------------------------------------------------------ what is tried


def save(stage: Stage, options: Options) -> object:
    """Save a second checkpoint; last of all, because the first one goes then."""
    saver = ck.Saver(max_to_keep=1)
    return saver.save(values_of(2), f"{stage.url}/model", 2, storage_options=options)


def _restore(stage: Stage, options: Options) -> object:
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, f"{stage.url}/model-1", storage_options=options)
    assert int(values["small"][0]) == 1
    return values


def _latest(stage: Stage, options: Options) -> object:
    return ck.latest_checkpoint(stage.url, storage_options=options)


def _exists(stage: Stage, options: Options) -> object:
    # False would be a lie.
    assert ck.checkpoint_exists(f"{stage.url}/model-1", storage_options=options)
    return True


def _names(stage: Stage, options: Options) -> object:
    found = ck.list_variables(f"{stage.url}/model-1", storage_options=options)
    assert [name for name, _ in found] == ["big", "small"]
    return found


def _slice(stage: Stage, options: Options) -> object:
    with ck.open_checkpoint(f"{stage.url}/model-1", storage_options=options) as opened:
        assert opened.read("big", np.s_[7:9, ::2]).tolist() == [[1.0] * 50] * 2
    return True


OPERATIONS: dict[str, Callable[[Stage, Options], object]] = {
    "latest": _latest,
    "restore": _restore,
    "slice": _slice,
    "exists": _exists,
    "names": _names,
}

COMMANDS = {
    "ls": ("ls", ""),
    "verify": ("verify", "/model-1"),
    "doctor": ("doctor", ""),
    "gc": ("gc", ""),
}
"""Name → the subcommand, and what follows the URL of the directory."""


def flags(options: Mapping[str, Any]) -> list[str]:
    """Return storage options as words of a command line."""
    return [
        word
        for name, value in options.items()
        for word in ("--storage-option", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
    ]


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield all that can be read of an error and of what lies behind it."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield from getattr(error, "__notes__", ())
        if isinstance(error, ck.CkptStoreError):
            yield pickle.dumps(error).decode("latin-1")
        error = error.__cause__ or error.__context__


# ------------------------------------------------------------------------------------------ the trouble


def _answering(status: int, codes: Mapping[str, str], message: str, **more: Any) -> Trouble:
    """Return trouble: every request is answered so; `codes` by scheme."""

    @contextmanager
    def trouble(stage: Stage) -> Iterator[Options]:
        stage.refuse(stage.proxy.when(), status, codes[stage.scheme], message, **more)
        yield stage.at(stage.proxy.url)

    return trouble


@contextmanager
def _denied(stage: Stage) -> Iterator[Options]:
    if stage.scheme == "s3":
        yield stage.restricted("GetObject", below="elsewhere/*")
        return
    stage.refuse(stage.proxy.when(), 403, "forbidden", "you do not have storage.objects.get access")
    yield stage.at(stage.proxy.url)


@contextmanager
def _wrong_key(stage: Stage) -> Iterator[Options]:
    yield stage.at(stage.proxy.url, secret="n0t-the-s3cret")


@contextmanager
def _forged_session(stage: Stage) -> Iterator[Options]:
    options = stage.restricted("*")
    head, _, tail = options["token"].rpartition(".")
    yield options | {"token": f"{head}.{tail[::-1]}"}


@contextmanager
def _refused_renewal(stage: Stage) -> Iterator[Options]:
    refused = b'{"error": "invalid_grant", "error_description": "the account is disabled"}'
    stage.proxy.when("POST", "/token").answer(400, body=refused)
    yield stage.at(stage.proxy.url, token=make_service_account(f"{stage.proxy.url}/token"))


@contextmanager
def _no_bucket(stage: Stage) -> Iterator[Options]:
    bucket, stage.bucket = stage.bucket, "no-such-bucket-anywhere"
    try:
        yield stage.as_owner()
    finally:
        stage.bucket = bucket


@contextmanager
def _no_server(stage: Stage) -> Iterator[Options]:
    yield stage.at(f"http://127.0.0.1:{free_port()}")


@contextmanager
def _no_such_host(stage: Stage) -> Iterator[Options]:
    yield stage.at("https://no-such-host.invalid")


def _a_web_server(status: int) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[Options]:
        page = b"<html><body>It works!</body></html>"
        stage.proxy.when().answer(status, body=page, headers={"Content-Type": "text/html"})
        yield stage.at(stage.proxy.url)

    return trouble


@contextmanager
def _unknown_authority(stage: Stage) -> Iterator[Options]:
    _, context = make_certificates(stage.directory)
    with FaultProxy(stage.port, tls=context) as proxy:
        yield stage.at(proxy.url)
        assert proxy.requests == []


@contextmanager
def _plain_to_tls(stage: Stage) -> Iterator[Options]:
    _, context = make_certificates(stage.directory)
    with FaultProxy(stage.port, tls=context) as proxy:
        yield stage.at(proxy.url.replace("https:", "http:"))
        assert proxy.requests == []


@contextmanager
def _tls_to_plain(stage: Stage) -> Iterator[Options]:
    yield stage.at(stage.proxy.url.replace("http:", "https:"))


@contextmanager
def _silent(stage: Stage) -> Iterator[Options]:
    stage.proxy.when().stall()
    yield stage.at(stage.proxy.url)


def _full(status: int, code: str, message: str) -> Trouble:
    """Return trouble: reading works, and whatever would take room is refused."""

    @contextmanager
    def trouble(stage: Stage) -> Iterator[Options]:
        options = stage.at(stage.proxy.url)
        place = locate(f"{stage.url}/x", options)
        assert isinstance(place.storage, ProbesCapabilities)
        place.storage.probe(place.key)
        for method in ("PUT", "POST"):
            stage.refuse(stage.proxy.when(method, r"^(?!/batch|.*\?delete)"), status, code, message)
        yield options

    return trouble


def _throttled(times: int | None) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[Options]:
        code = {"s3": "SlowDown", "gs": "backendError"}[stage.scheme]
        stage.refuse(stage.proxy.when(), 503, code, "Please reduce your request rate.", times=times)
        yield stage.at(stage.proxy.url)

    return trouble


@contextmanager
def _ignores_ranges(stage: Stage) -> Iterator[Options]:
    stage.proxy.when("GET", header="Range").rewrite(_without_range, sign=stage.scheme == "s3")
    # The proxy signs anew what it changes, for the owner.
    yield stage.as_owner()


def _without_range(request: Request) -> Request:
    return request.without("Range")


def _cut(times: int | None) -> Trouble:
    @contextmanager
    def trouble(stage: Stage) -> Iterator[Options]:
        stage.proxy.when("GET").cut_body(0, times=times)
        yield stage.at(stage.proxy.url)

    return trouble


@contextmanager
def _no_listing(stage: Stage) -> Iterator[Options]:
    if stage.scheme == "s3":
        yield stage.restricted("GetObject", "PutObject", "DeleteObject")
        return
    stage.refuse(stage.proxy.when("GET", r"/o\?"), 403, "forbidden", "no storage.objects.list access")
    yield stage.at(stage.proxy.url)


@contextmanager
def _no_listing_and_no_record(stage: Stage) -> Iterator[Options]:
    name = "some/run/checkpoint"
    record = stage.server.get(stage.bucket, name)
    assert record is not None
    stage.server.remove(stage.bucket, name)
    with _no_listing(stage) as options:
        yield options
    stage.server.put(stage.bucket, name, record)


@contextmanager
def _no_deleting(stage: Stage) -> Iterator[Options]:
    if stage.scheme == "s3":
        yield stage.restricted("GetObject", "PutObject", "ListBucket")
        return
    stage.refuse(stage.proxy.when("DELETE"), 403, "forbidden", "no storage.objects.delete access")
    stage.refuse(stage.proxy.when("POST", "^/batch"), 403, "forbidden", "no storage.objects.delete access")
    yield stage.at(stage.proxy.url)


# ------------------------------------------------------------------------------------------ the table

_BOTH = ("s3", "gs")
_ACCESS: dict[str, Expected] = {"": ck.AccessError}
_TRANSIENT: dict[str, Expected] = {"": ck.TransientError}
_FINE: Mapping[str, Expected] = {"": None}
_FULL: Mapping[str, Expected] = {"": None, "save": ck.StorageFullError, "doctor": ck.StorageFullError}
_NO_RECORD: Mapping[str, Expected] = {
    "": None,
    "latest": ck.AccessError,
    "ls": ck.AccessError,
    "gc": ck.AccessError,
}

FAULT_CASES = (
    FaultCase("access denied", _BOTH, _denied, _ACCESS),
    FaultCase("wrong secret", ("s3",), _wrong_key, _ACCESS, "SignatureDoesNotMatch"),
    FaultCase("forged session", ("s3",), _forged_session, _ACCESS, "token"),
    FaultCase(
        "expired credentials",
        _BOTH,
        _answering(401, {"s3": "ExpiredToken", "gs": "authError"}, "The provided token has expired."),
        _ACCESS,
        "Renew the credentials",
    ),
    FaultCase("credentials that are not renewed", ("gs",), _refused_renewal, _ACCESS, "cannot be renewed"),
    FaultCase("no bucket", _BOTH, _no_bucket, _ACCESS | {"doctor": ck.NotFoundError}, "Create the bucket"),
    FaultCase("no server", _BOTH, _no_server, _TRANSIENT, "Check the endpoint"),
    FaultCase("no such host", _BOTH, _no_such_host, _TRANSIENT, "no-such-host.invalid"),
    FaultCase("a web server, 200", _BOTH, _a_web_server(200), _TRANSIENT, "endpoint"),
    FaultCase(
        "a web server, 404", _BOTH, _a_web_server(404), _ACCESS | {"doctor gs": ck.NotFoundError}, "endpoint"
    ),
    FaultCase("unknown authority", _BOTH, _unknown_authority, _ACCESS, "certificate authority"),
    FaultCase("http to a TLS port", _BOTH, _plain_to_tls, _TRANSIENT, "endpoint"),
    FaultCase("https to a plain port", _BOTH, _tls_to_plain, _TRANSIENT, "endpoint"),
    FaultCase("silence", _BOTH, _silent, {"": ck.DeadlineError}, "progress within", _TIMED),
    FaultCase("disk full, 507", _BOTH, _full(507, "XMinioStorageFull", "no room"), _FULL),
    FaultCase("disk full, 500", _BOTH, _full(500, "InternalError", "cause(no space left on device)"), _FULL),
    FaultCase("throttled for a while", _BOTH, _throttled(2), _FINE),
    FaultCase("throttled without end, attempts", _BOTH, _throttled(None), _TRANSIENT, "after 10 attempts"),
    FaultCase("throttled without end, time", _BOTH, _throttled(None), {"": ck.DeadlineError}, "", _TIMED),
    FaultCase(
        "ranges ignored",
        _BOTH,
        _ignores_ranges,
        {"": None, "slice": ck.UnsupportedError, "doctor": ck.UnsupportedError},
    ),
    FaultCase("bodies cut for a while", _BOTH, _cut(2), _FINE),
    FaultCase("bodies cut without end", _BOTH, _cut(None), _TRANSIENT, "after 8 attempts"),
    FaultCase("listing denied", _BOTH, _no_listing, {"": None, "gc": ck.AccessError}),
    FaultCase("listing denied, no record", _BOTH, _no_listing_and_no_record, _NO_RECORD),
    # gc looks for unfinished uploads, too.
    FaultCase("deleting denied", _BOTH, _no_deleting, {"": None, "gc s3": ck.AccessError}),
)
