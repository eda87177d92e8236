"""Google Cloud Storage, over gcsfs.

Versions are generations: a new number for every write of an object, so no version ever comes back.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from ckptstore.storage.base import Capabilities, ObjectInfo
from ckptstore.storage.faults import Fault, Kind
from ckptstore.storage.gcs_client import GcsClient
from ckptstore.storage.gcs_errors import fault_of
from ckptstore.storage.gcs_messages import (
    RESOURCE_FIELDS,
    Accept,
    Answer,
    Request,
    batch_body,
    crc32c_value,
    info_of,
    json_of,
    object_path,
    related_body,
    resource,
    split_batch,
    with_query,
)
from ckptstore.storage.gcs_options import resolve_options
from ckptstore.storage.gcs_session import ResumableSession
from ckptstore.storage.locks import ForkSafeLocks
from ckptstore.storage.object_store import ObjectStorage
from ckptstore.storage.probe import verdicts_known
from ckptstore.storage.retry import Operation
from ckptstore.storage.transport import (
    Heading,
    Page,
    Place,
    Precondition,
    Session,
    Sink,
    StaleUpload,
    Stored,
    Transport,
    Way,
)

__all__ = ["GcsTransport", "open_gcs"]

_JSON_API = "/storage/v1"
_UPLOAD_API = "/upload/storage/v1"
_MEDIA_API = "/download/storage/v1"
_BATCH_API = "/batch/storage/v1"

# What the service takes in one batch.
_BATCH_SIZE = 100

# How long a bucket that answered is taken to exist when an object in it is missing.
_BELIEVED_S = 60.0


def open_gcs(**options: Any) -> ObjectStorage:
    """Return the storage of ``gs://`` URLs; nothing is connected before the first request.

    Parameters
    ----------
    **options
        Parameters of gcsfs's file system; ``allow_http=True`` lets credentials travel over plain http,
        ``direct=False`` sends large bodies through gcsfs as well.

    Raises
    ------
    UsageError
        If the endpoint is not a URL, or credentials would travel in the clear.
    """
    return ObjectStorage(GcsTransport(options))


class GcsTransport(Transport):
    """The requests of the JSON API.

    Parameters
    ----------
    options : mapping
        Parameters of ``gcsfs.core.GCSFileSystem``, ``allow_http`` and ``direct``.
    """

    scheme = "gs"
    nominal = Capabilities(
        backend="gcs",
        create_if_absent=True,
        compare_and_swap=True,
        conditional_delete=True,
        durable_when_acknowledged=True,
        checksum_proved_by_store=True,
        several_hosts=True,
    )
    batch_size = _BATCH_SIZE
    bogus_version = "1"
    part_unit_bytes = 256 * 1024
    most_parts = 1_000_000
    # Chunks go one after the other, each for the price of a round trip.
    part_size_bytes = 32 * 1024 * 1024
    parallel_reads = 8

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options, self._endpoint = resolve_options(options)
        self._wants_direct = bool(options.get("direct", True))
        self._locks = ForkSafeLocks()
        self._client: GcsClient | None = None
        self._client_pid = 0
        # Of the parent, in a forked child: dropped, they would close connections that are not theirs.
        self._inherited: list[GcsClient] = []
        self._answered_s: dict[str, float] = {}  # bucket → when it last proved that it exists

    def __repr__(self) -> str:
        return f"GcsTransport({self._endpoint!r})"

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @property
    def skew_s(self) -> float:  # type: ignore[override]
        return 0.0 if self._client is None else self._client.skew_s

    # ----------------------------------------------------------------------------------------------- reading

    def head(self, place: Place, operation: Operation) -> ObjectInfo:
        answer = self._ask("GET", _object_url(_JSON_API, place), operation, {"fields": RESOURCE_FIELDS})
        if answer.status != 200:
            raise self._fault(answer, place.bucket, operation)
        self._note(place.bucket)
        return self._info(place.bucket, json_of(answer.body))

    def get(
        self,
        place: Place,
        operation: Operation,
        *,
        byte_range: str | None,
        version: str | None,
        accept: Callable[[Heading], Sink],
    ) -> None:
        # The bytes as they are stored: a compressed answer has another length.
        headers = {"Accept-Encoding": "identity"}
        if byte_range is not None:
            headers["Range"] = byte_range

        def take(status: int, head: Mapping[str, str]) -> Sink:
            self._note(place.bucket)
            length = head.get("Content-Length", "")
            return accept(
                Heading(
                    status=status,
                    version=head.get("X-Goog-Generation", ""),
                    size_bytes=int(length) if length.isdecimal() else None,
                    content_range=head.get("Content-Range"),
                    encoding=head.get("Content-Encoding"),
                )
            )

        query = {"alt": "media", "generation": version}
        answer = self._ask("GET", _object_url(_MEDIA_API, place), operation, query, headers, accept=take)
        if answer.status not in (200, 206):
            raise self._fault(answer, place.bucket, operation)

    def list_page(self, bucket: str, prefix: str, token: str | None, operation: Operation) -> Page:
        query = {
            "prefix": prefix,
            "delimiter": "/",
            "pageToken": token,
            "maxResults": "1000",
            "fields": f"items({RESOURCE_FIELDS}),nextPageToken",
        }
        answer = self._ask("GET", _bucket_url(bucket) + "/o", operation, query)
        if answer.status != 200:
            fault = fault_of(*answer)
            raise _no_bucket(bucket) if fault.kind is Kind.ABSENT else fault
        self._note(bucket)
        page = json_of(answer.body)
        items = page.get("items", ()) if isinstance(page, dict) and "error" not in page else None
        if not isinstance(items, list | tuple):
            raise Fault(Kind.GARBLED, "the answer is not a listing", code=str(answer.status))
        return Page([self._info(bucket, item) for item in items], page.get("nextPageToken") or None)

    # ----------------------------------------------------------------------------------------------- writing

    def put(
        self,
        place: Place,
        pieces: Sequence[memoryview],
        operation: Operation,
        *,
        crc32c: int,
        write_id: str,
        precondition: Precondition | None,
    ) -> Stored:
        # no-store: what anybody may read is cached for an hour otherwise, the record too.
        description = resource(place.name, write_id, crc32c=crc32c, cache_control="no-store")
        content_type, body = related_body(description, pieces)
        query = {"uploadType": "multipart", "fields": RESOURCE_FIELDS, **_condition(precondition)}
        answer = self._ask(
            "POST",
            _bucket_url(place.bucket, _UPLOAD_API) + "/o",
            operation,
            query,
            {"Content-Type": content_type},
            body,
        )
        if answer.status != 200:
            raise self._fault(answer, place.bucket, operation)
        self._note(place.bucket)
        return self._stored(answer)

    def begin(
        self,
        place: Place,
        operation: Operation,
        *,
        size_bytes: int | None,
        write_id: str,
        precondition: Precondition | None,
    ) -> Session:
        description = resource(place.name, write_id)
        query = {"uploadType": "resumable", "fields": RESOURCE_FIELDS, **_condition(precondition)}
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "X-Upload-Content-Type": description["contentType"],
        }
        answer = self._ask(
            "POST",
            _bucket_url(place.bucket, _UPLOAD_API) + "/o",
            operation,
            query,
            headers,
            (_json_bytes(description),),
        )
        if answer.status not in (200, 201):
            raise self._fault(answer, place.bucket, operation)
        self._note(place.bucket)
        url = answer.headers.get("Location", "")
        if urlsplit(url).scheme not in ("http", "https"):
            raise Fault(Kind.GARBLED, "the answer names no session", code=str(answer.status))

        return ResumableSession(url, self._of_process().exchange, self._stored)

    def copy(
        self,
        source: ObjectInfo,
        target: Place,
        operation: Operation,
        *,
        write_id: str,
        precondition: Precondition | None,
    ) -> Stored:
        verdicts = verdicts_known(self, target.bucket)
        if verdicts is not None and not verdicts.cond_delete:
            # The service keeps the conditions of every request; who drops one may drop that of the target.
            raise Fault(Kind.UNSUPPORTED, "the server does not keep every condition")
        bucket, _, name = source.key.partition("/")
        url = (
            _object_url(_JSON_API, Place(bucket, name))
            + "/rewriteTo"
            + object_path(target.bucket, target.name)
        )
        body = (_json_bytes(resource(target.name, write_id)),)
        query = {
            "ifSourceGenerationMatch": source.version,
            "fields": f"done,rewriteToken,resource({RESOURCE_FIELDS})",
            **_condition(precondition),
        }
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        token: str | None = None
        while True:
            # A large one between places takes several requests, each of which goes on where the last ended.
            answer = self._ask("POST", url, operation, {**query, "rewriteToken": token}, headers, body)
            if answer.status != 200:
                fault = self._fault(answer, target.bucket, operation)
                if fault.kind in (Kind.ABSENT, Kind.BAD_REQUEST, Kind.FORBIDDEN):
                    raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code)
                raise fault
            fields = json_of(answer.body)
            if not isinstance(fields, dict):
                raise _garbled(answer.status)
            if fields.get("done", True):
                return _stored_of(fields.get("resource"), answer.status)
            token = str(fields.get("rewriteToken"))
            operation.progress()

    def way(self, bucket: str, operation: Operation) -> Way:
        return self._of_process().way

    def delete(self, place: Place, operation: Operation, *, version: str | None) -> None:
        answer = self._ask("DELETE", _object_url(_JSON_API, place), operation, {"ifGenerationMatch": version})
        if answer.status not in (200, 204):
            # A 404 is as good as done, whatever is missing.
            raise fault_of(*answer)

    def delete_many(self, bucket: str, names: Sequence[str], operation: Operation) -> dict[str, Fault]:
        client = self._of_process()
        targets = [
            with_query(_object_url(_JSON_API, Place(bucket, name)), client.parameters({})) for name in names
        ]
        content_type, body = batch_body("DELETE", targets)
        answer = self._ask("POST", _BATCH_API, operation, {}, {"Content-Type": content_type}, (body,))
        if answer.status in (404, 405, 501):
            raise Fault(Kind.UNSUPPORTED, "the server knows no batches", code=str(answer.status))
        if answer.status != 200:
            raise fault_of(*answer)
        try:
            parts = split_batch(answer.headers.get("Content-Type", ""), answer.body, len(names))
        except ValueError as error:
            raise Fault(Kind.GARBLED, f"the answer to a batch: {error}") from None
        return {
            name: fault_of(part.status, {}, part.body)
            for name, part in zip(names, parts, strict=True)
            if part.status not in (200, 204, 404)
        }

    def list_uploads(self, bucket: str, prefix: str, operation: Operation) -> list[StaleUpload]:
        # Sessions cannot be listed. The service forgets them after a week.
        return []

    def abort_upload(self, place: Place, upload_id: str, operation: Operation) -> None:
        pass

    # ---------------------------------------------------------------------------------------------- requests

    def _of_process(self) -> GcsClient:
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

    def _ask(
        self,
        method: str,
        path: str,
        operation: Operation,
        query: Mapping[str, str | None],
        headers: Mapping[str, str] | None = None,
        body: Sequence[bytes | memoryview] = (),
        accept: Accept | None = None,
    ) -> Answer:
        request = Request(method, path, query, headers or {}, body)
        return self._of_process().exchange(request, operation, accept)

    def _note(self, bucket: str) -> None:
        self._answered_s[bucket] = time.monotonic()

    def _fault(self, answer: Answer, bucket: str, operation: Operation) -> Fault:
        """Return what a refusal means; a 404 is not believed before the bucket answered."""
        fault = fault_of(*answer)
        if fault.kind is Kind.ABSENT:
            return self._missing(bucket, operation) or fault
        if fault.kind in (Kind.PRECONDITION, Kind.BAD_RANGE):
            self._note(bucket)
        elif fault.kind is Kind.FORBIDDEN and self._of_process().is_anonymous:
            fault = Fault(fault.kind, f"{fault.text} (the request carried no credentials)", code=fault.code)
        return fault

    def _missing(self, bucket: str, operation: Operation) -> Fault | None:
        """Find out whether the bucket is there: objects and buckets are missed in the same words."""
        answered_s = self._answered_s.get(bucket)
        if answered_s is not None and time.monotonic() - answered_s < _BELIEVED_S:
            return None
        for path, query in (
            (_bucket_url(bucket) + "/o", {"maxResults": "1", "fields": "kind"}),
            # Where listing is denied. If this is denied too, somebody is there who denies it.
            (_bucket_url(bucket), {"fields": "name"}),
        ):
            answer = self._ask("GET", path, operation, query)
            if answer.status == 404:
                return _no_bucket(bucket)
            if answer.status not in (401, 403):
                break
        if answer.status not in (200, 401, 403):
            return fault_of(*answer)
        self._note(bucket)
        return None

    def _stored(self, answer: Answer) -> Stored:
        return _stored_of(json_of(answer.body), answer.status)

    @staticmethod
    def _info(bucket: str, fields: Any) -> ObjectInfo:
        try:
            return info_of(bucket, fields)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _garbled(200) from None


def _stored_of(fields: Any, status: int) -> Stored:
    try:
        return Stored(str(int(fields["generation"])), crc32c_value(fields.get("crc32c")))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _garbled(status) from None


def _garbled(status: int) -> Fault:
    return Fault(
        Kind.GARBLED, "the answer describes no object: this is not Google Cloud Storage", code=str(status)
    )


def _no_bucket(bucket: str) -> Fault:
    return Fault(Kind.NO_BUCKET, f"there is no bucket {bucket!r}", code="404")


def _condition(precondition: Precondition | None) -> dict[str, str | None]:
    if precondition is None:
        return {}
    return {"ifGenerationMatch": "0" if precondition.version is None else precondition.version}


def _bucket_url(bucket: str, api: str = _JSON_API) -> str:
    # A name that is not Unicode is nobody's bucket, and the server shall say so.
    return f"{api}/b/{quote(bucket, safe='', errors='replace')}"


def _object_url(api: str, place: Place) -> str:
    return api + object_path(place.bucket, place.name)


def _json_bytes(description: Mapping[str, Any]) -> bytes:
    return json.dumps(description).encode()
