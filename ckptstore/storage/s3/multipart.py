"""Multipart uploads to S3: parts with their checksums, or copied from another object, completed at once.

Objects are copied in parts, not with CopyObject: fewer servers keep its condition on the target than that of
a completed upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import (
    WRITE_ID,
    ObjectName,
    Precondition,
    PutRequest,
    PutResult,
    UploadSession,
)
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.direct import NotDirect, S3Direct, object_target
from ckptstore.storage.s3.headers import answer_of, condition_headers, etag_of, is_repeated, whole_crc32c
from ckptstore.storage.s3.sent_body import SentBody
from ckptstore.storage.values import ObjectInfo
from ckptstore.storage.wire.exchange import HttpRequest

__all__ = ["MultipartUpload", "begin_multipart", "copy_in_parts"]

# What a server may support, best first: a CRC32C of the whole object, one of each part, none.
_WHOLE, _PARTS, _NONE = 0, 1, 2
_CREATE: dict[int, dict[str, str]] = {
    _WHOLE: {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"},
    _PARTS: {"ChecksumAlgorithm": "CRC32C"},
    _NONE: {},
}

# At most 5 GiB may be copied with one request; less is answered sooner.
_COPIED_BYTES = 1024 * 1024 * 1024

# Answers of a server that does not copy, or not this object any more.
_NO_COPY = {
    *(Kind.UNSUPPORTED, Kind.BAD_REQUEST, Kind.FORBIDDEN, Kind.PRECONDITION, Kind.ABSENT, Kind.UNPROVED),
    *(Kind.BAD_RANGE, Kind.NO_BUCKET),
}


def begin_multipart(
    client: S3Client, direct: S3Direct, request: PutRequest, mode: int, attempts: Attempts
) -> tuple[MultipartUpload, int]:
    """Begin an upload with the best checksums that the server takes; return it and what that is.

    Parameters
    ----------
    mode : int
        What the last upload found out; 0 at first.
    """
    target = request.target
    while True:
        try:
            answer = client.request(
                "create_multipart_upload",
                attempts,
                Bucket=target.bucket,
                Key=target.name,
                Metadata={**client.additional.metadata, WRITE_ID: request.write_id},
                **_CREATE[mode],
            )
        except Fault as fault:
            if mode == _NONE or fault.kind not in (Kind.BAD_REQUEST, Kind.UNSUPPORTED):
                raise
            mode += 1
        else:
            upload_id = answer["UploadId"]
            return MultipartUpload(client, direct, target, upload_id, request.precondition, mode), mode


def copy_in_parts(
    client: S3Client, direct: S3Direct, request: PutRequest, source: ObjectInfo, attempts: Attempts
) -> PutResult:
    """Copy an object; see `Transport.copy`."""
    if not source.size_bytes:
        raise Fault(Kind.UNSUPPORTED, "an empty object is not copied in parts")
    # MinIO calculates no checksums of copied parts, and refuses them in an upload that wants some.
    modes = [_WHOLE, _NONE] if source.crc32c is not None else [_NONE]
    for wanted in modes:
        session, mode = begin_multipart(client, direct, request, wanted, attempts)
        try:
            for number, start in enumerate(range(0, source.size_bytes, _COPIED_BYTES)):
                stop = min(start + _COPIED_BYTES, source.size_bytes)
                session.copy_part(number, start, stop, source, attempts)
        except Fault as fault:
            with suppress(Fault):
                session.abort(attempts)
            if fault.kind is Kind.BAD_REQUEST and mode != _NONE:
                continue
            if fault.kind in _NO_COPY:
                raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code) from None
            raise
        try:
            return session.finish(source.crc32c, attempts)
        except Fault:
            # If it landed nevertheless, nothing is left to abort.
            with suppress(Fault):
                session.abort(attempts)
            raise
    raise Fault(Kind.UNSUPPORTED, "the server copies no parts")


class MultipartUpload(UploadSession):
    """See `UploadSession`.

    Threads
    -------
    `send` may be called from several threads.
    """

    sends_last_part = True

    def __init__(
        self,
        client: S3Client,
        direct: S3Direct,
        target: ObjectName,
        upload_id: str,
        precondition: Precondition | None,
        mode: int,
    ) -> None:
        self._client = client
        self._direct = direct
        self._upload_id = upload_id
        self._names = {"Bucket": target.bucket, "Key": target.name, "UploadId": upload_id}
        self._precondition = precondition
        self._mode = mode
        self._parts: dict[int, dict[str, Any]] = {}

    @property
    def upload_id(self) -> str:
        return self._upload_id

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        encoded = crc32c_text(crc32c)
        checksum = {} if self._mode == _NONE else {"ChecksumCRC32C": encoded}
        try:
            query = f"partNumber={number + 1}&uploadId={quote(self._upload_id, safe='')}"
            headers = {"x-amz-checksum-crc32c": encoded} if checksum else {}
            request = HttpRequest("PUT", object_target(self._names["Key"], query), headers, pieces)
            reply = self._direct.request("upload_part", self._names["Bucket"], request, attempts)
            answer = answer_of(reply.headers)
        except NotDirect:
            answer = self._client.request(
                "upload_part",
                attempts,
                PartNumber=number + 1,
                Body=SentBody(pieces, attempts),
                **self._names,
                **checksum,
            )
        etag = etag_of(answer)
        if answer.get("ChecksumCRC32C", encoded) != encoded:
            raise Fault(Kind.BAD_CHECKSUM, f"part {number + 1} arrived with another checksum")
        # The checksums of the parts must be listed at the end, or servers refuse to complete.
        self._parts[number] = {"PartNumber": number + 1, "ETag": etag, **checksum}

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        return self.finish(crc32c, attempts)

    def finish(self, crc32c: int | None, attempts: Attempts) -> PutResult:
        """Complete it; `crc32c` of the whole object is None where unknown."""
        arguments: dict[str, Any] = {}
        if self._mode == _WHOLE and crc32c is not None:
            arguments = {"ChecksumType": "FULL_OBJECT", "ChecksumCRC32C": crc32c_text(crc32c)}
        for header, value in condition_headers(self._precondition).items():
            arguments[header.replace("-", "")] = value
        answer = self._client.request(
            "complete_multipart_upload",
            attempts,
            MultipartUpload={"Parts": [self._parts[number] for number in sorted(self._parts)]},
            **self._names,
            **arguments,
        )
        return PutResult(etag_of(answer), whole_crc32c(answer), is_repeated(answer))

    def copy_part(self, number: int, start: int, stop: int, source: ObjectInfo, attempts: Attempts) -> None:
        """Copy bytes ``[start, stop)`` of another object into a part, inside the service."""
        bucket, _, name = source.key.partition("/")
        answer = self._client.request(
            "upload_part_copy",
            attempts,
            PartNumber=number + 1,
            CopySource={"Bucket": bucket, "Key": name},
            CopySourceIfMatch=source.version,
            CopySourceRange=f"bytes={start}-{stop - 1}",
            **self._client.additional.source_key,
            **self._names,
        )
        attempts.record_progress()
        result = answer.get("CopyPartResult", {})
        part = {"PartNumber": number + 1, "ETag": etag_of(result)}
        if result.get("ChecksumCRC32C"):
            part["ChecksumCRC32C"] = result["ChecksumCRC32C"]
        self._parts[number] = part

    def abort(self, attempts: Attempts) -> None:
        try:
            self._client.request("abort_multipart_upload", attempts, **self._names)
        except Fault as fault:
            if fault.kind not in (Kind.UPLOAD_GONE, Kind.ABSENT):
                raise
