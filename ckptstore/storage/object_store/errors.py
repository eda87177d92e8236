"""The exception for a fault that was not overcome."""

from __future__ import annotations

from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    DeadlineError,
    NotFoundError,
    StorageFullError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind

__all__ = ["error_of"]

_ERRORS: dict[Kind, tuple[type[CkptStoreError], str]] = {
    Kind.ABSENT: (NotFoundError, "Check the path."),
    Kind.UNPROVED: (
        AccessError,
        "The object may be missing or hidden: check the bucket, the endpoint and the permissions.",
    ),
    Kind.NO_BUCKET: (
        AccessError,
        "Create the bucket, or check its name, the endpoint and the account; ckptstore never creates one.",
    ),
    Kind.FORBIDDEN: (AccessError, "Check the credentials, and the permissions that they carry."),
    Kind.UNTRUSTED: (
        AccessError,
        "Name the certificate authority of the server, and check the host name of the endpoint.",
    ),
    Kind.MISPLACED: (UsageError, "Choose another directory, or remove the object in the way."),
    Kind.BAD_REQUEST: (UsageError, "Check the path and the storage options."),
    # Where nobody asked whether it changed.
    Kind.UNCHANGED: (UsageError, "Check the path and the storage options."),
    Kind.UNSUPPORTED: (UnsupportedError, "Use another server, or reach it without the proxy in between."),
    Kind.FULL: (StorageFullError, "Make room or raise the quota; what was there before is untouched."),
    Kind.PRECONDITION: (NotFoundError, "Start again from the record or the index."),
    Kind.UPLOAD_GONE: (
        TransientError,
        "A clean-up or a restart of the server took the upload away; save again.",
    ),
    Kind.BAD_RANGE: (TruncatedFileError, "The file was cut short; take another checkpoint."),
    Kind.BAD_CHECKSUM: (ChecksumError, "The bytes changed on their way; save again, and check the network."),
    Kind.THROTTLED: (TransientError, "The server asks for fewer requests: try again later."),
    Kind.SERVER: (TransientError, "Try again; if it stays, look at the server's log."),
    Kind.NOT_SENT: (
        TransientError,
        "Check the endpoint, the network, and that the server runs.",
    ),
    Kind.GARBLED: (
        TransientError,
        "Check that the endpoint is the object store, and that no proxy answers for it.",
    ),
}


def error_of(fault: Fault, what: str, url: str, attempts: Attempts | None = None) -> CkptStoreError:
    """Return the exception for a fault that was not overcome.

    Parameters
    ----------
    fault : Fault
    what : str
        What was being done, e.g. ``"cannot read the object"``.
    url : str
        The object concerned.
    attempts : Attempts, optional
        Their number and the time allowed go into the message.
    """
    kind, hint = _ERRORS.get(
        fault.kind,
        (TransientError, "Try again; if it stays, check the endpoint, the network and the server."),
    )
    hint = fault.hint or hint
    text = f"{what}: {fault}"
    if attempts is not None and attempts.tries > 1:
        text += f" (after {attempts.tries} attempts)"
    if attempts is not None and attempts.is_out_of_time and kind is TransientError:
        return DeadlineError(text, url=url, expected=attempts.time_allowed, hint=hint)
    return kind(text, url=url, hint=hint)
