"""S3 and compatible servers: single requests, tried once; those on one object directly, others through s3fs.

*version* is the ETag, quotes included. It is a hash of the content on most servers: equal bytes have equal
versions, and A, B, A gives the first one back. A compare-and-swap therefore needs unique bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlencode

from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.listing import PageGuard, following_of
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import (
    WRITE_ID,
    DataPath,
    ObjectName,
    Page,
    PutRequest,
    PutResult,
    ResponseHead,
    Sink,
    StaleUpload,
    Transport,
    UploadSession,
    copy_into,
)
from ckptstore.storage.object_store.whole_body import WholeBody
from ckptstore.storage.s3.answers import info_of, page_of
from ckptstore.storage.s3.bulk_delete import delete_request, refused_in
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.direct import NotDirect, S3Direct, object_target
from ckptstore.storage.s3.headers import answer_of, condition_headers, etag_of, is_repeated, whole_crc32c
from ckptstore.storage.s3.refusals import fault_of_code
from ckptstore.storage.s3.sent_body import SentBody
from ckptstore.storage.values import Capabilities, ObjectInfo
from ckptstore.storage.wire.exchange import HttpRequest

__all__ = ["S3Transport", "open_s3"]

_READ_BYTES = 256 * 1024


def open_s3(**options: Any) -> ObjectStorage:
    """Return the storage for one set of options; no request is made.

    Raises
    ------
    ModuleNotFoundError
        If s3fs is not installed; it is loaded only when something needs it.
    """
    if find_spec("s3fs") is None:
        raise ModuleNotFoundError("No module named 's3fs'", name="s3fs")
    return ObjectStorage(S3Transport(S3Client(options)))


class S3Transport(Transport):
    """The requests of S3; see `Transport`."""

    scheme = "s3"
    nominal = Capabilities(
        backend="s3",
        create_if_absent=True,
        compare_and_swap=True,
        conditional_delete=True,
        durable_when_acknowledged=True,
        checksum_proved_by_store=True,
        several_hosts=True,
    )
    batch_size = 1000
    bogus_version = '"00000000000000000000000000000000"'
    most_parts = 10_000
    part_size_bytes = 16 * 1024 * 1024
    parallel_parts = 8
    parallel_reads = 8
    object_hides_directory = True
    explains_head = False

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self._direct = S3Direct(client, client.wants_direct)
        self._checksum_mode = 0

    def renew(self, options: Mapping[str, Any]) -> None:
        self._client.keys.renew(options)

    @property
    def skew_s(self) -> float:  # type: ignore[override]
        return self._client.skew_s

    @property
    def deletes_in_two_steps(self) -> bool:  # type: ignore[override]
        # Its file backend locks an object while it replaces it, and not while it deletes it.
        return self._client.server.upper().startswith("VERSITYGW")

    @property
    def endpoint(self) -> str:
        return self._client.endpoint(Attempts(RetryPolicy(), RetryBudget()))

    @property
    def server(self) -> str:
        plain = self._direct.plain_server()
        return plain or self._client.server_name(Attempts(RetryPolicy(), RetryBudget()))

    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        head = HttpRequest("HEAD", object_target(object_name.name), {"x-amz-checksum-mode": "ENABLED"})
        with suppress(NotDirect):
            return info_of(
                object_name, self._direct.request("head_object", object_name.bucket, head, attempts)
            )
        answer = self._client.request(
            "head_object", attempts, Bucket=object_name.bucket, Key=object_name.name, ChecksumMode="ENABLED"
        )
        return ObjectInfo(
            object_name.key,
            int(answer["ContentLength"]),
            etag_of(answer),
            answer["LastModified"].timestamp(),
            answer.get("Metadata", {}).get(WRITE_ID),
            whole_crc32c(answer),
        )

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
        headers: dict[str, str] = {}
        arguments: dict[str, Any] = {"Bucket": object_name.bucket, "Key": object_name.name}
        if byte_range is not None:
            headers["Range"] = arguments["Range"] = byte_range
        if version is not None:
            headers["If-Match"] = arguments["IfMatch"] = version
        if unless_version is not None:
            headers["If-None-Match"] = arguments["IfNoneMatch"] = unless_version
        try:
            self._direct.request(
                "get_object",
                object_name.bucket,
                HttpRequest("GET", object_target(object_name.name), headers),
                attempts,
                lambda status, head: accept(ResponseHead.of_headers(status, head, "ETag")),
            )
            return
        except NotDirect:
            pass

        from ckptstore.storage.s3.s3fs_client import call_s3

        async def use(fs: Any) -> None:
            answer = await call_s3(fs, "get_object", **arguments)
            body = answer["Body"]
            # s3fs does not repeat the reading of the body; `Attempts` does. Not `as body`: with aiobotocore 2
            # that would be aiohttp's response, whose read() takes no size.
            async with body:
                sink = accept(
                    ResponseHead(
                        answer["ResponseMetadata"]["HTTPStatusCode"],
                        answer.get("ETag", ""),
                        answer.get("ContentLength"),
                        answer.get("ContentRange"),
                        answer.get("ContentEncoding"),
                    )
                )
                while piece := await body.read(_READ_BYTES):
                    copy_into(piece, sink)
                    attempts.record_received(len(piece))

        self._client.call(use, attempts, object_name.bucket)

    def put(self, request: PutRequest, pieces: Sequence[memoryview], attempts: Attempts) -> PutResult:
        target = request.target
        conditions = condition_headers(request.precondition)
        encoded = None if request.crc32c is None else crc32c_text(request.crc32c)
        headers = {f"x-amz-meta-{WRITE_ID}": request.write_id, **conditions}
        if encoded is not None:
            headers["x-amz-checksum-crc32c"] = encoded
        with suppress(NotDirect):
            put = HttpRequest("PUT", object_target(target.name), headers, pieces)
            reply = self._direct.request("put_object", target.bucket, put, attempts)
            answer = answer_of(reply.headers)
            return PutResult(etag_of(answer), whole_crc32c(answer))
        arguments = {header.replace("-", ""): value for header, value in conditions.items()}
        if encoded is not None:
            arguments["ChecksumCRC32C"] = encoded
        answer = self._client.request(
            "put_object",
            attempts,
            Bucket=target.bucket,
            Key=target.name,
            Body=SentBody(pieces, attempts),
            Metadata={**self._client.additional.metadata, WRITE_ID: request.write_id},
            **arguments,
        )
        return PutResult(etag_of(answer), whole_crc32c(answer), is_repeated(answer))

    def copy(self, request: PutRequest, source: ObjectInfo, attempts: Attempts) -> PutResult:
        from ckptstore.storage.s3.multipart import copy_in_parts

        return copy_in_parts(self._client, self._direct, request, source, attempts)

    def data_path(self, bucket: str, attempts: Attempts) -> DataPath:
        return self._direct.data_path(bucket, attempts)

    def read_path(self, bucket: str) -> DataPath:
        return self._direct.read_path(bucket)

    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        bucket, name = object_name
        headers = {} if version is None else {"If-Match": version}
        with suppress(NotDirect):
            delete = HttpRequest("DELETE", object_target(name), headers)
            self._direct.request("delete_object", bucket, delete, attempts)
            return
        arguments = {} if version is None else {"IfMatch": version}
        self._client.request("delete_object", attempts, Bucket=bucket, Key=name, **arguments)

    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        try:
            refused = self._refused_deletes(bucket, names, attempts)
        except Fault as fault:
            if fault.kind is Kind.BAD_REQUEST:
                # A server that knows this request only in another form.
                raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code) from None
            raise
        return {
            error["Key"]: fault_of_code(
                str(error.get("Code")), str(error.get("Message")), self._client.redact
            )
            for error in refused
        }

    def _refused_deletes(
        self, bucket: str, names: Sequence[str], attempts: Attempts
    ) -> Sequence[Mapping[str, str]]:
        body, headers = delete_request(names)
        reply = WholeBody()
        with suppress(NotDirect):
            request = HttpRequest("POST", "?delete", headers, (body,))
            self._direct.request("delete_object", bucket, request, attempts, lambda *_: reply)
            return refused_in(reply.data())
        wanted = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        answer = self._client.request("delete_objects", attempts, Bucket=bucket, Delete=wanted)
        errors: Sequence[Mapping[str, str]] = answer.get("Errors", ())
        return errors

    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        arguments = {} if token is None else {"ContinuationToken": token}
        query = {"list-type": "2", "prefix": prefix, "delimiter": "/", "encoding-type": "url"}
        if token is not None:
            query["continuation-token"] = token
        request = HttpRequest("GET", "?" + urlencode(sorted(query.items()), safe="~", quote_via=quote))
        body = WholeBody()
        with suppress(NotDirect):
            self._direct.request("list_objects_v2", bucket, request, attempts, lambda *_: body)
            return page_of(bucket, body.data())
        answer = self._client.request(
            "list_objects_v2", attempts, Bucket=bucket, Prefix=prefix, Delimiter="/", **arguments
        )
        objects = [
            ObjectInfo(
                f"{bucket}/{item['Key']}", int(item["Size"]), item["ETag"], item["LastModified"].timestamp()
            )
            for item in answer.get("Contents", ())
        ]
        following = following_of(
            answer.get("NextContinuationToken"), is_truncated=bool(answer.get("IsTruncated"))
        )
        return Page(objects, following, len(answer.get("CommonPrefixes", ())))

    def begin(self, request: PutRequest, attempts: Attempts) -> UploadSession:
        # On use, as the client itself: readers start without them.
        from ckptstore.storage.s3.multipart import begin_multipart

        session, self._checksum_mode = begin_multipart(
            self._client, self._direct, request, self._checksum_mode, attempts
        )
        return session

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        found: list[StaleUpload] = []
        asked = prefix
        marker: dict[str, Any] = {}
        guard = PageGuard()
        while True:
            try:
                answer = self._client.request(
                    "list_multipart_uploads", attempts, Bucket=bucket, Prefix=asked, **marker
                )
            except Fault as fault:
                if fault.kind is not Kind.BAD_REQUEST or not marker.pop("UploadIdMarker", None):
                    raise
                # versitygw refuses its own marker; the key alone continues the list too.
                continue
            server = answer["ResponseMetadata"]["HTTPHeaders"].get("server", "")
            if asked and server.startswith("MinIO"):
                # MinIO takes the prefix for a whole key, unless it is empty.
                asked, marker = "", {}
                continue
            # By the server's own clock: ages must not depend on ours.
            now_s = time.time() + self.skew_s
            found.extend(
                StaleUpload(item["Key"], item["UploadId"], now_s - item["Initiated"].timestamp())
                for item in answer.get("Uploads", ())
                if item["Key"].startswith(prefix)
            )
            if not answer.get("IsTruncated"):
                return found
            marker = {
                "KeyMarker": answer.get("NextKeyMarker", ""),
                "UploadIdMarker": answer.get("NextUploadIdMarker", ""),
            }
            guard.check(tuple(marker.values()), is_empty=not answer.get("Uploads"))

    def upload_size(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> int:
        total = 0
        marker: dict[str, Any] = {}
        guard = PageGuard()
        while True:
            names = {"Bucket": object_name.bucket, "Key": object_name.name, "UploadId": upload_id}
            try:
                answer = self._client.request("list_parts", attempts, **names, **marker)
            except Fault as fault:
                if fault.kind in (Kind.UPLOAD_GONE, Kind.ABSENT):
                    return total
                raise
            total += sum(int(part["Size"]) for part in answer.get("Parts", ()))
            if not answer.get("IsTruncated"):
                return total
            marker = {"PartNumberMarker": answer.get("NextPartNumberMarker")}
            guard.check(marker["PartNumberMarker"], is_empty=not answer.get("Parts"))

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        from ckptstore.storage.s3.multipart import MultipartUpload

        MultipartUpload(self._client, self._direct, object_name, upload_id, None, 0).abort(attempts)
