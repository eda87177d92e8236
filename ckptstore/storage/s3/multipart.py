"""One multipart upload to S3: parts with their checksums, completed in a single attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import (
    WRITE_ID,
    ObjectName,
    Precondition,
    PutResult,
    UploadSession,
)
from ckptstore.storage.s3.client import S3Client, SentBody
from ckptstore.storage.s3.direct import NotDirect, S3Direct
from ckptstore.storage.s3.headers import answer_of, encoded_crc32c, is_repeated, whole_crc32c
from ckptstore.storage.values import ObjectInfo

__all__ = ["WITHOUT_CHECKSUMS", "MultipartUpload", "begin_multipart"]

# What a server may know, best first: a CRC32C of the whole object, one of each part, none.
_WHOLE, _PARTS, _NONE = 0, 1, 2
WITHOUT_CHECKSUMS = _NONE
_CREATE: dict[int, dict[str, str]] = {
    _WHOLE: {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"},
    _PARTS: {"ChecksumAlgorithm": "CRC32C"},
    _NONE: {},
}


def begin_multipart(
    client: S3Client,
    direct: S3Direct,
    object_name: ObjectName,
    attempts: Attempts,
    write_id: str,
    precondition: Precondition | None,
    mode: int,
) -> tuple[MultipartUpload, int]:
    """Begin an upload with the best checksums that the server takes; return it and what that is.

    Parameters
    ----------
    mode : int
        What the last upload found out; 0 at first.
    """
    while True:
        try:
            answer = client.request(
                "create_multipart_upload",
                attempts,
                Bucket=object_name.bucket,
                Key=object_name.name,
                Metadata={WRITE_ID: write_id},
                **_CREATE[mode],
            )
        except Fault as fault:
            if mode == _NONE or fault.kind not in (Kind.BAD_REQUEST, Kind.UNSUPPORTED):
                raise
            mode += 1
        else:
            return MultipartUpload(client, direct, object_name, answer["UploadId"], precondition, mode), mode


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
        object_name: ObjectName,
        upload_id: str,
        precondition: Precondition | None,
        mode: int,
    ) -> None:
        self._client = client
        self._direct = direct
        self._upload_id = upload_id
        self._names = {"Bucket": object_name.bucket, "Key": object_name.name, "UploadId": upload_id}
        self._precondition = precondition
        self._mode = mode
        self._parts: dict[int, dict[str, Any]] = {}

    @property
    def upload_id(self) -> str:
        return self._upload_id

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        encoded = encoded_crc32c(crc32c)
        checksum = {} if self._mode == _NONE else {"ChecksumCRC32C": encoded}
        try:
            reply = self._direct.request(
                "upload_part",
                self._names["Bucket"],
                self._names["Key"],
                attempts,
                query=f"partNumber={number + 1}&uploadId={quote(self._upload_id, safe='')}",
                headers={"x-amz-checksum-crc32c": encoded} if checksum else {},
                body=pieces,
            )
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
        if not answer.get("ETag"):
            raise Fault(Kind.GARBLED, "the answer names no ETag: this is not the object store")
        if answer.get("ChecksumCRC32C", encoded) != encoded:
            raise Fault(Kind.BAD_CHECKSUM, f"part {number + 1} arrived with another checksum")
        # The checksums of the parts must be listed at the end, or servers refuse to complete.
        self._parts[number] = {"PartNumber": number + 1, "ETag": answer["ETag"], **checksum}

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        return self.finish(crc32c, attempts)

    def finish(self, crc32c: int | None, attempts: Attempts) -> PutResult:
        """Complete it; `crc32c` of the whole object is None where nobody knows it."""
        arguments: dict[str, Any] = {}
        if self._mode == _WHOLE and crc32c is not None:
            arguments = {"ChecksumType": "FULL_OBJECT", "ChecksumCRC32C": encoded_crc32c(crc32c)}
        if self._precondition is not None:
            if self._precondition.version is None:
                arguments["IfNoneMatch"] = "*"
            else:
                arguments["IfMatch"] = self._precondition.version
        parts = [self._parts[number] for number in sorted(self._parts)]
        answer = self._client.request(
            "complete_multipart_upload",
            attempts,
            MultipartUpload={"Parts": parts},
            **self._names,
            **arguments,
        )
        if not answer.get("ETag"):
            raise Fault(Kind.GARBLED, "the answer names no ETag: this is not the object store")
        return PutResult(answer["ETag"], whole_crc32c(answer), is_repeated(answer))

    def copy_part(self, number: int, start: int, stop: int, source: ObjectInfo, attempts: Attempts) -> None:
        """Bring a part from another object, as it is inside the service."""
        bucket, _, name = source.key.partition("/")
        answer = self._client.request(
            "upload_part_copy",
            attempts,
            PartNumber=number + 1,
            CopySource={"Bucket": bucket, "Key": name},
            CopySourceIfMatch=source.version,
            CopySourceRange=f"bytes={start}-{stop - 1}",
            **self._names,
        )
        attempts.record_progress()
        result = answer.get("CopyPartResult", {})
        if not result.get("ETag"):
            raise Fault(Kind.GARBLED, "the answer names no ETag: this is not the object store")
        part = {"PartNumber": number + 1, "ETag": result["ETag"]}
        if result.get("ChecksumCRC32C"):
            part["ChecksumCRC32C"] = result["ChecksumCRC32C"]
        self._parts[number] = part

    def abort(self, attempts: Attempts) -> None:
        try:
            self._client.request("abort_multipart_upload", attempts, **self._names)
        except Fault as fault:
            if fault.kind not in (Kind.UPLOAD_GONE, Kind.ABSENT):
                raise
