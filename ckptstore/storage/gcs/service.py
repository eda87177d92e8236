"""Google Cloud Storage as one set of options reaches it: its requests, copies, and what a refusal means."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ckptstore.storage.bucket_names import check_endpoint_names_no_bucket
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.gcs.errors import fault_of
from ckptstore.storage.gcs.messages import (
    RESOURCE_FIELDS,
    info_of,
    json_of,
    object_path,
    resource,
    with_query,
)
from ckptstore.storage.gcs.options import resolve_options
from ckptstore.storage.gcs.plain_reads import NotPlain, PlainReads
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.crc32c_text import crc32c_of_text
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutRequest, PutResult
from ckptstore.storage.values import ObjectInfo
from ckptstore.storage.wire.exchange import Accept, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from ckptstore.storage.gcs.client import GcsClient

__all__ = [
    "BATCH_API",
    "JSON_API",
    "MEDIA_API",
    "UPLOAD_API",
    "GcsService",
    "bucket_url",
    "condition",
    "info_in",
    "json_request",
    "no_bucket",
    "object_url",
    "result_in",
]

JSON_API = "/storage/v1"
UPLOAD_API = "/upload/storage/v1"
MEDIA_API = "/download/storage/v1"
BATCH_API = "/batch/storage/v1"

# How long a bucket that answered counts as existing when an object in it is missing.
_BELIEVED_S = 60.0


class GcsService:
    """The service as one set of options reaches it.

    Parameters
    ----------
    options : mapping
        See `options.GCS_OPTIONS`.

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
        if self._options.get("session_kwargs"):
            # On use, as the client itself: aiohttp knows the names.
            from ckptstore.storage.gcs.client import check_session

            check_session(self._options["session_kwargs"])
        self._wants_direct = bool(options.get("direct", True))
        self._locks = ForkSafeLocks()
        self._client: GcsClient | None = None
        self._client_pid = 0
        self._plain: PlainReads | None = None
        self._plain_pid = 0
        self._asked_last: PlainReads | GcsClient | None = None
        self._is_renewed = False
        # The parent's, in a forked child: when collected, they would close connections of the parent.
        self._inherited: list[GcsClient] = []
        self._answered_s: dict[str, float] = {}  # bucket → when it last proved that it exists

    @property
    def skew_s(self) -> float:
        """How far the server's clock is ahead of ours, by its last answer."""
        return 0.0 if self._asked_last is None else self._asked_last.skew_s

    def client(self) -> GcsClient:
        """Return the client of this process; a forked child makes its own."""
        if self._client is not None and self._client_pid == os.getpid() and not self._is_renewed:
            return self._client
        from ckptstore.storage.gcs.client import GcsClient

        with self._locks[0]:
            if self._client is None or self._client_pid != os.getpid():
                if self._client is not None:
                    self._inherited.append(self._client)
                self._client = None
                self._client = GcsClient(self._options, self._wants_direct)
                self._client_pid = os.getpid()
            elif self._is_renewed:
                self._client.renew(self._options["token"])
            self._is_renewed = False
            return self._client

    def plain_reads(self) -> PlainReads:
        """Return what makes reads without the client, or says why it does not; of this process."""
        with self._locks[0]:
            if self._plain is None or self._plain_pid != os.getpid():
                plain = PlainReads(self._options, self.endpoint, wants_direct=self._wants_direct)
                self._plain, self._plain_pid = plain, os.getpid()
            return self._plain

    def _is_anonymous(self) -> bool:
        plain = self.plain_reads()
        return self.client().is_anonymous if plain.refusal else plain.is_anonymous

    def renew(self, options: Mapping[str, Any]) -> None:
        """Use the credentials in `options` from the next request on; the other options stay the same."""
        with self._locks[0]:
            if options["token"] != self._options["token"]:
                self._options["token"] = options["token"]
                self._is_renewed = True
                self._plain = None

    def ask(self, request: HttpRequest, attempts: Attempts, accept: Accept | None = None) -> HttpResponse:
        """Send one request as an attempt; see `GcsClient.exchange`."""
        if request.method == "GET" and "://" not in request.target:
            plain = self.plain_reads()
            if not plain.refusal:
                self._asked_last = plain
                try:
                    return plain.exchange(request, attempts, accept)
                except NotPlain as reason:
                    # gcsfs may find another token, and has the word if it does not.
                    plain.refusal = str(reason)
        self._asked_last = client = self.client()
        return client.exchange(request, attempts, accept)

    def note(self, bucket: str) -> None:
        """Record that a bucket exists."""
        self._answered_s[bucket] = time.monotonic()

    def fault(self, answer: HttpResponse, bucket: str, attempts: Attempts) -> Fault:
        """Return what a refusal means; a 404 counts for the object only after the bucket answered."""
        fault = fault_of(*answer)
        if fault.kind is Kind.ABSENT:
            check_endpoint_names_no_bucket(self.endpoint, bucket, self.endpoint)
            return self._missing(bucket, attempts) or fault
        if fault.kind in (Kind.PRECONDITION, Kind.BAD_RANGE, Kind.UNCHANGED):
            self.note(bucket)
        elif fault.kind is Kind.FORBIDDEN and self._is_anonymous():
            text = f"{fault.text} (the request carried no credentials)"
            fault = Fault(fault.kind, text, code=fault.code, hint=fault.hint)
        return fault

    def copy(self, request: PutRequest, source: ObjectInfo, attempts: Attempts) -> PutResult:
        """Copy an object by a rewrite, in as many requests as the service wants; see `Transport.copy`."""
        bucket, _, name = source.key.partition("/")
        target = request.target
        url = f"{object_url(JSON_API, ObjectName(bucket, name))}/rewriteTo{object_path(*target)}"
        description = resource(target.name, request.write_id)
        query = {
            "ifSourceGenerationMatch": source.version,
            "fields": f"done,rewriteToken,totalBytesRewritten,resource({RESOURCE_FIELDS})",
            **condition(request.precondition),
        }
        token: str | None = None
        copied_bytes = -1
        while True:
            # A large one between locations takes several requests, each of which resumes the last.
            path = with_query(url, {**query, "rewriteToken": token})
            answer = self.ask(json_request(path, description), attempts)
            if answer.status != 200:
                fault = self.fault(answer, target.bucket, attempts)
                if fault.kind in (Kind.ABSENT, Kind.BAD_REQUEST, Kind.FORBIDDEN):
                    raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code)
                raise fault
            fields = json_of(answer.body)
            if not isinstance(fields, dict):
                raise garbled(answer.status)
            if fields.get("done", True):
                return result_in(fields.get("resource"), answer.status)
            token = str(fields.get("rewriteToken"))
            total = str(fields.get("totalBytesRewritten"))
            before_bytes, copied_bytes = copied_bytes, int(total) if total.isdecimal() else 0
            if copied_bytes <= before_bytes:
                raise Fault(Kind.GARBLED, "the server copies, and gets no further")
            # As bytes of a body: a server that copies one with each request makes no progress.
            attempts.record_received(copied_bytes - max(before_bytes, 0))

    def _missing(self, bucket: str, attempts: Attempts) -> Fault | None:
        """Find out whether the bucket exists: a missing object and a missing bucket have the same answer."""
        answered_s = self._answered_s.get(bucket)
        if answered_s is not None and time.monotonic() - answered_s < _BELIEVED_S:
            return None
        for path, query in (
            (bucket_url(bucket) + "/o", {"maxResults": "1", "fields": "kind"}),
            # Where listing is denied. A 403 here proves that the bucket exists.
            (bucket_url(bucket), {"fields": "name"}),
        ):
            answer = self.ask(HttpRequest("GET", with_query(path, query)), attempts)
            if answer.status == 404:
                return no_bucket(bucket)
            if answer.status not in (401, 403):
                break
        if answer.status not in (200, 401, 403):
            return fault_of(*answer)
        self.note(bucket)
        return None


def info_in(bucket: str, fields: Any) -> ObjectInfo:
    """Return what an object resource describes; raises `Fault` if it is not one."""
    try:
        return info_of(bucket, fields)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise garbled(200) from None


def result_in(fields: Any, status: int) -> PutResult:
    """Return version and checksum in the resource of a new object; raises `Fault` if it is not one."""
    try:
        return PutResult(str(int(fields["generation"])), crc32c_of_text(fields.get("crc32c")))
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
    """Return the parameters of a write that has this condition."""
    if precondition is None:
        return {}
    return {"ifGenerationMatch": "0" if precondition.version is None else precondition.version}


def bucket_url(bucket: str, api: str = JSON_API) -> str:
    """Return the path of a bucket."""
    # A bucket with a name that is not Unicode cannot exist; let the server answer.
    return f"{api}/b/{quote(bucket, safe='', errors='replace')}"


def object_url(api: str, object_name: ObjectName) -> str:
    """Return the path of an object."""
    return api + object_path(object_name.bucket, object_name.name)


def json_request(
    path: str, description: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> HttpRequest:
    """Return the POST of a description, with more `headers` than that of its type."""
    headers = {"Content-Type": "application/json; charset=UTF-8", **(headers or {})}
    return HttpRequest("POST", path, headers, (json.dumps(description).encode(),))
