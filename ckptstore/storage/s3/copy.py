"""Copies inside S3: parts of one object become another one, with the condition on the last request.

Not CopyObject: fewer servers keep its condition on the target than that of a completed upload.
"""

from __future__ import annotations

from contextlib import suppress

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutResult
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.direct import S3Direct
from ckptstore.storage.s3.multipart import WITHOUT_CHECKSUMS, begin_multipart
from ckptstore.storage.values import ObjectInfo

__all__ = ["copied"]

# At most 5 GiB may be copied with one request; less is answered sooner.
_COPIED_BYTES = 1024 * 1024 * 1024

# What a server says that does not copy, or not this object any more.
_NO_COPY = {
    *(Kind.UNSUPPORTED, Kind.BAD_REQUEST, Kind.FORBIDDEN, Kind.PRECONDITION, Kind.ABSENT, Kind.UNPROVED),
    *(Kind.BAD_RANGE, Kind.NO_BUCKET),
}


def copied(
    client: S3Client,
    direct: S3Direct,
    source: ObjectInfo,
    target: ObjectName,
    attempts: Attempts,
    write_id: str,
    precondition: Precondition | None,
) -> PutResult:
    """Copy an object; see `Transport.copy`."""
    if not source.size_bytes:
        raise Fault(Kind.UNSUPPORTED, "an empty object is not copied in parts")
    # MinIO calculates no checksums of copied parts, and refuses them in an upload that wants some.
    modes = [0, WITHOUT_CHECKSUMS] if source.crc32c is not None else [WITHOUT_CHECKSUMS]
    for mode in modes:
        session, mode = begin_multipart(client, direct, target, attempts, write_id, precondition, mode)
        try:
            for number, start in enumerate(range(0, source.size_bytes, _COPIED_BYTES)):
                stop = min(start + _COPIED_BYTES, source.size_bytes)
                session.copy_part(number, start, stop, source, attempts)
        except Fault as fault:
            with suppress(Fault):
                session.abort(attempts)
            if fault.kind is Kind.BAD_REQUEST and mode != WITHOUT_CHECKSUMS:
                continue
            if fault.kind in _NO_COPY:
                raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code) from None
            raise
        try:
            return session.finish(source.crc32c, attempts)
        except Fault:
            # If it landed all the same there is nothing left to abort.
            with suppress(Fault):
                session.abort(attempts)
            raise
    raise Fault(Kind.UNSUPPORTED, "the server copies no parts")
