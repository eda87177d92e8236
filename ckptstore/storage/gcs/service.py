"""Asking Google Cloud Storage: one request of a process's client, and what a refusal means there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.gcs.client import GcsClient
from ckptstore.storage.gcs.errors import fault_of
from ckptstore.storage.gcs.messages import (
    Accept,
    Answer,
    Request,
    crc32c_value,
    info_of,
    object_path,
)
from ckptstore.storage.gcs.options import resolve_options
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutResult
from ckptstore.storage.values import ObjectInfo

__all__ = [
    "BATCH_API",
    "JSON_API",
    "MEDIA_API",
    "UPLOAD_API",
    "GcsService",
    "bucket_url",
    "condition",
    "garbled",
    "info_in",
    "json_bytes",
    "no_bucket",
    "object_url",
    "result_in",
]

JSON_API = "/storage/v1"
UPLOAD_API = "/upload/storage/v1"
MEDIA_API = "/download/storage/v1"
BATCH_API = "/batch/storage/v1"

# How long a bucket that answered is taken to exist when an object in it is missing.
_BELIEVED_S = 60.0


class GcsService:
    """The service as one set of options reaches it.

    Parameters
    ----------
    options : mapping
        See `gcs_options.GCS_OPTIONS`.

    Attributes
    ----------
    endpoint : str
        Root URL of the server.

    Threads
    -------
    Safe for concurrent use, and after a fork: a child connects anew.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options, self.endpoint = resolve_options(options)
        self._wants_direct = bool(options.get("direct", True))
        self._locks = ForkSafeLocks()
        self._client: GcsClient | None = None
        self._client_pid = 0
        # Of the parent, in a forked child: dropped, they would close connections that are not theirs.
        self._inherited: list[GcsClient] = []
        self._answered_s: dict[str, float] = {}  # bucket → when it last proved that it exists

    @property
    def skew_s(self) -> float:
        """How far the server's clock is ahead of ours, by its last answer."""
        return 0.0 if self._client is None else self._client.skew_s

    def client(self) -> GcsClient:
        """Return the client of this process; a forked child makes its own."""
        if self._client is not None and self._client_pid == os.getpid():
            return self._client
        with self._locks[0]:
            if self._client is None or self._client_pid != os.getpid():
                if self._client is not None:
                    self._inherited.append(self._client)
                self._client = None
                self._client = GcsClient(self._options, self._wants_direct)
                self._client_pid = os.getpid()
            return self._client

    def ask(
        self,
        method: str,
        path: str,
        attempts: Attempts,
        query: Mapping[str, str | None],
        headers: Mapping[str, str] | None = None,
        body: Sequence[bytes | memoryview] = (),
        accept: Accept | None = None,
    ) -> Answer:
        """Send one request as an attempt of `attempts`; see `GcsClient.exchange`."""
        request = Request(method, path, query, headers or {}, body)
        return self.client().exchange(request, attempts, accept)

    def note(self, bucket: str) -> None:
        """Hear that a bucket exists."""
        self._answered_s[bucket] = time.monotonic()

    def fault(self, answer: Answer, bucket: str, attempts: Attempts) -> Fault:
        """Return what a refusal means; a 404 is not believed before the bucket answered."""
        fault = fault_of(*answer)
        if fault.kind is Kind.ABSENT:
            return self._missing(bucket, attempts) or fault
        if fault.kind in (Kind.PRECONDITION, Kind.BAD_RANGE):
            self.note(bucket)
        elif fault.kind is Kind.FORBIDDEN and self.client().is_anonymous:
            fault = Fault(fault.kind, f"{fault.text} (the request carried no credentials)", code=fault.code)
        return fault

    def _missing(self, bucket: str, attempts: Attempts) -> Fault | None:
        """Find out whether the bucket is there: objects and buckets are missed in the same words."""
        answered_s = self._answered_s.get(bucket)
        if answered_s is not None and time.monotonic() - answered_s < _BELIEVED_S:
            return None
        for path, query in (
            (bucket_url(bucket) + "/o", {"maxResults": "1", "fields": "kind"}),
            # Where listing is denied. If this is denied too, somebody is there who denies it.
            (bucket_url(bucket), {"fields": "name"}),
        ):
            answer = self.ask("GET", path, attempts, query)
            if answer.status == 404:
                return no_bucket(bucket)
            if answer.status not in (401, 403):
                break
        if answer.status not in (200, 401, 403):
            return fault_of(*answer)
        self.note(bucket)
        return None


def info_in(bucket: str, fields: Any) -> ObjectInfo:
    """Return what an object resource says; a `Fault` if it is none."""
    try:
        return info_of(bucket, fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise garbled(200) from None


def result_in(fields: Any, status: int) -> PutResult:
    """Return what the resource of a new object says; a `Fault` if it is none."""
    try:
        return PutResult(str(int(fields["generation"])), crc32c_value(fields.get("crc32c")))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise garbled(status) from None


def garbled(status: int) -> Fault:
    """Return the fault of an answer that is not the service's."""
    return Fault(
        Kind.GARBLED, "the answer describes no object: this is not Google Cloud Storage", code=str(status)
    )


def no_bucket(bucket: str) -> Fault:
    """Return the fault of a bucket that does not exist."""
    return Fault(Kind.NO_BUCKET, f"there is no bucket {bucket!r}", code="404")


def condition(precondition: Precondition | None) -> dict[str, str | None]:
    """Return the parameters that ask for `precondition` of the object that is written."""
    if precondition is None:
        return {}
    return {"ifGenerationMatch": "0" if precondition.version is None else precondition.version}


def bucket_url(bucket: str, api: str = JSON_API) -> str:
    """Return the path of a bucket."""
    # A name that is not Unicode is nobody's bucket, and the server shall say so.
    return f"{api}/b/{quote(bucket, safe='', errors='replace')}"


def object_url(api: str, object_name: ObjectName) -> str:
    """Return the path of an object."""
    return api + object_path(object_name.bucket, object_name.name)


def json_bytes(description: Mapping[str, Any]) -> bytes:
    """Return the body that says this."""
    return json.dumps(description).encode()
