"""Google Cloud Storage, over gcsfs.

Versions are generations: a new number for every write of an object, so no version ever comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from ckptstore.storage.gcs.compose import (
    ComposeSession,
    delete_names,
    is_nameable,
    parts_prefix,
    unfinished_uploads,
)
from ckptstore.storage.gcs.errors import fault_of
from ckptstore.storage.gcs.messages import (
    RESOURCE_FIELDS,
    batch_body,
    json_of,
    related_body,
    resource,
    split_batch,
    with_query,
)
from ckptstore.storage.gcs.resumable import ResumableSession
from ckptstore.storage.gcs.service import (
    BATCH_API,
    JSON_API,
    MEDIA_API,
    UPLOAD_API,
    GcsService,
    bucket_url,
    condition,
    info_in,
    json_request,
    no_bucket,
    object_url,
    result_in,
)
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.listing import all_pages
from ckptstore.storage.object_store.probe import compose_verdict_for, verdicts_known
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import (
    DataPath,
    ObjectName,
    Page,
    Parts,
    PutRequest,
    PutResult,
    ResponseHead,
    Sink,
    StaleUpload,
    Transport,
    UploadSession,
)
from ckptstore.storage.url import host_of, is_within
from ckptstore.storage.values import Capabilities, ObjectInfo
from ckptstore.storage.wire.exchange import HttpRequest

__all__ = ["GcsTransport", "open_gcs"]

# The most that the service takes in one batch.
_BATCH_SIZE = 100

# Two parts side by side save a round trip, and cost two: to compose them, and to delete them.
_SERIAL_PARTS = 2

# Why uploads are not sent in parallel parts.
_NO_PARTS = {
    "ignored": "the server does not keep the conditions of compose",
    "refused": "the server does not compose objects",
    "kept": "the bucket keeps parts: a retention policy, holds, or no permission to delete",
}


def open_gcs(**options: Any) -> ObjectStorage:
    """Return the storage of ``gs://`` URLs; nothing is connected before the first request.

    Parameters
    ----------
    **options
        Parameters of gcsfs's file system; ``allow_http=True`` lets credentials travel over plain http,
        ``direct=False`` sends large bodies through gcsfs as well, ``parallel_uploads=False`` large objects
        in one stream.

    Raises
    ------
    UsageError
        If the endpoint is not a URL, or credentials would travel in the clear.
    """
    if find_spec("gcsfs") is None:
        # It is loaded only when something needs it.
        raise ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs")
    return ObjectStorage(GcsTransport(options))


class GcsTransport(Transport):
    """The requests of the JSON API.

    Parameters
    ----------
    options : mapping
        See `options.GCS_OPTIONS`.
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
    most_parts = 1_000_000
    # In one stream each chunk costs a round trip; side by side each part costs three requests' fees.
    part_size_bytes = 32 * 1024 * 1024
    parallel_parts = 8
    parallel_reads = 8

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._service = GcsService(options)
        self._wants_parts = bool(options.get("parallel_uploads", True))

    def __repr__(self) -> str:
        return f"GcsTransport({self.endpoint!r})"

    @property
    def endpoint(self) -> str:
        return self._service.endpoint

    def renew(self, options: Mapping[str, Any]) -> None:
        self._service.renew(options)

    @property
    def skew_s(self) -> float:  # type: ignore[override]
        return self._service.skew_s

    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        path = with_query(object_url(JSON_API, object_name), {"fields": RESOURCE_FIELDS})
        answer = self._service.ask(HttpRequest("GET", path), attempts)
        if answer.status != 200:
            raise self._service.fault(answer, object_name.bucket, attempts)
        self._service.note(object_name.bucket)
        return info_in(object_name.bucket, json_of(answer.body))

    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        byte_range: str | None,
        version: str | None,
        unless_version: str | None = None,
        accept: Callable[[ResponseHead], Sink],
    ) -> None:
        # The bytes as they are stored: a compressed answer has another length.
        headers = {"Accept-Encoding": "identity"}
        if byte_range is not None:
            headers["Range"] = byte_range

        def take(status: int, head: Mapping[str, str]) -> Sink:
            self._service.note(object_name.bucket)
            return accept(ResponseHead.of_headers(status, head, "X-Goog-Generation"))

        query = {"alt": "media", "generation": version, "ifGenerationNotMatch": unless_version}
        path = with_query(object_url(MEDIA_API, object_name), query)
        answer = self._service.ask(HttpRequest("GET", path, headers), attempts, take)
        if answer.status not in (200, 206):
            raise self._service.fault(answer, object_name.bucket, attempts)

    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        return self._page(bucket, prefix, token, attempts, delimiter="/")

    def _page(
        self, bucket: str, prefix: str, token: str | None, attempts: Attempts, *, delimiter: str | None
    ) -> Page:
        query = {
            "prefix": prefix,
            "delimiter": delimiter,
            "pageToken": token,
            "maxResults": "1000",
            "fields": f"items({RESOURCE_FIELDS}),prefixes,nextPageToken",
        }
        path = with_query(bucket_url(bucket) + "/o", query)
        answer = self._service.ask(HttpRequest("GET", path), attempts)
        if answer.status != 200:
            fault = fault_of(*answer)
            raise no_bucket(bucket) if fault.kind is Kind.ABSENT else fault
        self._service.note(bucket)
        page = json_of(answer.body)
        items = page.get("items", ()) if isinstance(page, dict) and "error" not in page else None
        if not isinstance(items, list | tuple):
            raise Fault(Kind.GARBLED, "the answer is not a listing", code=str(answer.status))
        objects = [info_in(bucket, item) for item in items]
        return Page(objects, page.get("nextPageToken") or None, len(page.get("prefixes") or ()))

    def _below(self, bucket: str, prefix: str, attempts: Attempts) -> Iterator[ObjectInfo]:
        """Return every object whose name begins with `prefix`, whatever follows it."""
        return all_pages(lambda token: self._page(bucket, prefix, token, attempts, delimiter=None))

    def put(self, request: PutRequest, pieces: Sequence[memoryview], attempts: Attempts) -> PutResult:
        target = request.target
        # no-store: objects that anybody may read are cached for an hour otherwise, the record too.
        description = resource(target.name, request.write_id, crc32c=request.crc32c, cache_control="no-store")
        content_type, body = related_body(description, pieces)
        query = {"uploadType": "multipart", "fields": RESOURCE_FIELDS, **condition(request.precondition)}
        path = with_query(bucket_url(target.bucket, UPLOAD_API) + "/o", query)
        answer = self._service.ask(HttpRequest("POST", path, {"Content-Type": content_type}, body), attempts)
        if answer.status != 200:
            raise self._service.fault(answer, target.bucket, attempts)
        self._service.note(target.bucket)
        return result_in(json_of(answer.body), answer.status)

    def begin(self, request: PutRequest, attempts: Attempts) -> UploadSession:
        if request.size_bytes is not None and request.size_bytes > _SERIAL_PARTS * self.part_size_bytes:
            return ComposeSession(self, request)
        target = request.target
        description = resource(target.name, request.write_id)
        headers = {"X-Upload-Content-Type": description["contentType"]}
        query = {"uploadType": "resumable", "fields": RESOURCE_FIELDS, **condition(request.precondition)}
        path = with_query(bucket_url(target.bucket, UPLOAD_API) + "/o", query)
        answer = self._service.ask(json_request(path, description, headers), attempts)
        if answer.status not in (200, 201):
            raise self._service.fault(answer, target.bucket, attempts)
        self._service.note(target.bucket)
        url = answer.headers.get("Location", "")
        if urlsplit(url).scheme not in ("http", "https"):
            raise Fault(Kind.GARBLED, "the answer contains no session", code=str(answer.status))
        if not is_within(url, self.endpoint):
            raise Fault(
                Kind.BAD_REQUEST,
                f"the server sends the upload to {host_of(url)}, which is not followed",
                hint="Name the endpoint as the server knows itself, or set the external URL of the server.",
            )
        return ResumableSession(
            url,
            self._service.client().exchange,
            lambda answer: result_in(json_of(answer.body), answer.status),
        )

    def parts(self, object_name: ObjectName, size_bytes: int | None, attempts: Attempts) -> Parts:
        if (
            size_bytes is None
            or size_bytes <= _SERIAL_PARTS * self.part_size_bytes
            or not is_nameable(object_name)
        ):
            return Parts(1)
        if not self._wants_parts:
            return Parts(1, "one after the other: parallel_uploads=False in the storage options")
        verdict = compose_verdict_for(self, object_name, attempts)
        if verdict != "yes":
            return Parts(1, f"one after the other: {_NO_PARTS[verdict]}", is_wanted=False)
        return Parts(self.parallel_parts, f"{self.parallel_parts} at a time, composed at the end")

    def compose(
        self, request: PutRequest, sources: Sequence[tuple[str, str]], attempts: Attempts
    ) -> ObjectInfo:
        target = request.target
        description = {
            "destination": resource(target.name, request.write_id),
            "sourceObjects": [
                {"name": name, "objectPreconditions": {"ifGenerationMatch": version}}
                for name, version in sources
            ],
        }
        query = {"fields": RESOURCE_FIELDS, **condition(request.precondition)}
        path = with_query(object_url(JSON_API, target) + "/compose", query)
        answer = self._service.ask(json_request(path, description), attempts)
        if answer.status != 200:
            raise self._service.fault(answer, target.bucket, attempts)
        return info_in(target.bucket, json_of(answer.body))

    def copy(self, request: PutRequest, source: ObjectInfo, attempts: Attempts) -> PutResult:
        verdicts = verdicts_known(self, request.target.bucket)
        if verdicts is not None and not verdicts.cond_delete:
            # The service keeps all conditions; a server that ignores one may ignore that of the target.
            raise Fault(Kind.UNSUPPORTED, "the server does not keep every condition")
        return self._service.copy(request, source, attempts)

    def data_path(self, bucket: str, attempts: Attempts) -> DataPath:
        return self._service.client().data_path

    def read_path(self, bucket: str) -> DataPath:
        refusal = self._service.plain_reads().refusal
        if refusal:
            return DataPath(False, f"through gcsfs: {refusal}")
        return DataPath(True, f"over {urlsplit(self.endpoint).scheme.upper()}")

    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        path = with_query(object_url(JSON_API, object_name), {"ifGenerationMatch": version})
        answer = self._service.ask(HttpRequest("DELETE", path), attempts)
        if answer.status not in (200, 204):
            # A 404 is as good as done, whatever is missing.
            raise fault_of(*answer)

    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        client = self._service.client()
        targets = [
            with_query(object_url(JSON_API, ObjectName(bucket, name)), client.parameters({}))
            for name in names
        ]
        content_type, body = batch_body("DELETE", targets)
        request = HttpRequest("POST", BATCH_API, {"Content-Type": content_type}, (body,))
        answer = self._service.ask(request, attempts)
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

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        # Sessions cannot be listed; the service forgets them after a week. Parts can.
        found = list(self._below(bucket, parts_prefix(prefix), attempts))
        # By the server's own clock: ages must not depend on ours.
        return unfinished_uploads(found, bucket, prefix, time.time() + self.skew_s)

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        below = f"{parts_prefix(object_name.name)}/{upload_id}/"
        names = [info.key.partition("/")[2] for info in self._below(object_name.bucket, below, attempts)]
        for fault in delete_names(self, object_name.bucket, names, attempts).values():
            raise fault
