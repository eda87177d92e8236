"""What S3's refusals mean: by code and status, never by text.

The one exception is a server that reports its full disk as an internal error, recognisable by its text only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.storage.object_store.faults import PROXY_HINT, Fault, Kind
from ckptstore.storage.url import host_of

__all__ = ["fault_of_code", "fault_of_response", "one_line", "redirected"]

# The server's own code. AWS: the list of error responses; XMinio…: MinIO; the rest: versitygw.
_CODES = {
    "NoSuchKey": Kind.ABSENT,
    "NoSuchVersion": Kind.ABSENT,
    "NoSuchBucket": Kind.NO_BUCKET,
    "NoSuchUpload": Kind.UPLOAD_GONE,
    "InvalidPart": Kind.UPLOAD_GONE,
    "InvalidPartOrder": Kind.UPLOAD_GONE,
    "PreconditionFailed": Kind.PRECONDITION,
    "ConditionalRequestConflict": Kind.CONFLICT,
    "OperationAborted": Kind.CONFLICT,
    "ConcurrentModification": Kind.CONFLICT,
    "AccessDenied": Kind.FORBIDDEN,
    "AccountProblem": Kind.FORBIDDEN,
    "AllAccessDisabled": Kind.FORBIDDEN,
    "ExpiredToken": Kind.FORBIDDEN,
    "InvalidAccessKeyId": Kind.FORBIDDEN,
    "InvalidSecurity": Kind.FORBIDDEN,
    "InvalidToken": Kind.FORBIDDEN,
    "RequestTimeTooSkewed": Kind.FORBIDDEN,
    "SignatureDoesNotMatch": Kind.FORBIDDEN,
    "TokenRefreshRequired": Kind.FORBIDDEN,
    # versitygw answers an unknown access key with a 404.
    "XAdminUserNotFound": Kind.FORBIDDEN,
    "InsufficientStorage": Kind.FULL,
    "XMinioStorageFull": Kind.FULL,
    "XMinioAdminBucketQuotaExceeded": Kind.FULL,
    "QuotaExceeded": Kind.FULL,
    "BadDigest": Kind.BAD_CHECKSUM,
    "InvalidDigest": Kind.BAD_CHECKSUM,
    "XAmzContentChecksumMismatch": Kind.BAD_CHECKSUM,
    "XAmzContentSHA256Mismatch": Kind.BAD_CHECKSUM,
    "InvalidRange": Kind.BAD_RANGE,
    "SlowDown": Kind.THROTTLED,
    "SlowDownRead": Kind.THROTTLED,
    "SlowDownWrite": Kind.THROTTLED,
    "ServiceUnavailable": Kind.THROTTLED,
    "Throttling": Kind.THROTTLED,
    "ThrottlingException": Kind.THROTTLED,
    "TooManyRequests": Kind.THROTTLED,
    "RequestLimitExceeded": Kind.THROTTLED,
    "InternalError": Kind.SERVER,
    "RequestTimeout": Kind.CUT,
    "IncompleteBody": Kind.CUT,
    "NotImplemented": Kind.UNSUPPORTED,
    "MethodNotAllowed": Kind.UNSUPPORTED,
    "ExistingObjectIsDirectory": Kind.MISPLACED,
    "ObjectParentIsFile": Kind.MISPLACED,
    "XMinioObjectExistsAsDirectory": Kind.MISPLACED,
    "XMinioParentIsObject": Kind.MISPLACED,
}

_STATUSES = {
    304: Kind.UNCHANGED,
    401: Kind.FORBIDDEN,
    403: Kind.FORBIDDEN,
    404: Kind.UNPROVED,
    405: Kind.UNSUPPORTED,
    407: Kind.FORBIDDEN,
    408: Kind.CUT,
    409: Kind.CONFLICT,
    412: Kind.PRECONDITION,
    416: Kind.BAD_RANGE,
    429: Kind.THROTTLED,
    501: Kind.UNSUPPORTED,
    503: Kind.THROTTLED,
    507: Kind.FULL,
}

_HINTS = {
    "RequestTimeTooSkewed": "Set the clock of this machine: requests are signed with the time.",
    "ExpiredToken": "Renew the credentials.",
    "TokenRefreshRequired": "Renew the credentials.",
    "InvalidAccessKeyId": "Check the access key, and that the endpoint is the one it belongs to.",
    "XAdminUserNotFound": "Check the access key, and that the endpoint is the one it belongs to.",
    "SignatureDoesNotMatch": "Check the secret key.",
    "AuthorizationHeaderMalformed": "Name the region of the bucket.",
}
_REDIRECTED = "Name the region of the bucket, or its endpoint, in the storage options."

_LONGEST_TEXT = 65_536
_LONGEST_LINE = 500


def fault_of_code(code: str, text: str, redact: Callable[[str], str]) -> Fault:
    """Return the fault for one entry of an answer that lists several."""
    return Fault(_CODES.get(code, Kind.SERVER), one_line(text, redact), code=code)


def redirected(url: str) -> Fault:
    """Return the fault of a request that would go on to `url`."""
    return Fault(
        Kind.BAD_REQUEST,
        f"the request is redirected to {host_of(url)}, which is not followed",
        hint=_REDIRECTED,
    )


def fault_of_response(response: Mapping[str, Any], redact: Callable[[str], str]) -> Fault:
    """Return the fault that a refusal means, as botocore parsed it."""
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    code = str(error.get("Code") or "")
    text = str(error.get("Message") or "")
    status = int(metadata.get("HTTPStatusCode") or 0)
    kind = _CODES.get(code)
    if kind is None:
        kind = _STATUSES.get(status)
    if kind is None:
        kind = Kind.SERVER if status >= 500 else Kind.BAD_REQUEST
        if code.startswith("KMS."):
            kind = Kind.FORBIDDEN
    if kind is Kind.SERVER and "no space left" in text:
        kind = Kind.FULL
    hint = PROXY_HINT if status == 407 else _HINTS.get(code)
    headers = metadata.get("HTTPHeaders", {})
    if 300 <= status < 400 and status != 304:
        place = headers.get("location") or f"//{error.get('Endpoint') or ''}"
        text = f"{redirected(place).text}: {text}"
        hint = _REDIRECTED
    try:
        retry_after_s = float(headers.get("retry-after", 0))
    except ValueError:
        retry_after_s = 0.0
    return Fault(
        kind,
        one_line(text, redact) or "no further explanation",
        code=code or str(status),
        retry_after_s=retry_after_s,
        hint=hint,
    )


def one_line(text: str, redact: Callable[[str], str]) -> str:
    """Return a text of a server or a client as it may stand in a message."""
    # Shortened last: half a secret would not be recognised.
    return redact(" ".join(text[:_LONGEST_TEXT].split()))[:_LONGEST_LINE]
