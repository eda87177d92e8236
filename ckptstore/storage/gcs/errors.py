"""The `Fault` for an answer of Google Cloud Storage that is not a success: by status and reason code.

gcsfs's own translation is not used: it makes a plain OSError of a 403, a FileExistsError of every 412, an
HttpError (no OSError) of a 5xx and a ValueError of whatever has "invalid" in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ckptstore.storage.gcs.messages import json_of
from ckptstore.storage.object_store.faults import PROXY_HINT, Fault, Kind
from ckptstore.storage.redact import Redactor
from ckptstore.storage.url import host_of

__all__ = ["fault_of", "redacted"]

_KINDS = {
    304: Kind.UNCHANGED,
    400: Kind.BAD_REQUEST,
    401: Kind.FORBIDDEN,
    403: Kind.FORBIDDEN,
    404: Kind.ABSENT,
    405: Kind.UNSUPPORTED,
    407: Kind.FORBIDDEN,
    408: Kind.CUT,
    409: Kind.CONFLICT,
    410: Kind.UPLOAD_GONE,
    412: Kind.PRECONDITION,
    416: Kind.BAD_RANGE,
    429: Kind.THROTTLED,
    499: Kind.UPLOAD_GONE,
    500: Kind.SERVER,
    501: Kind.UNSUPPORTED,
    502: Kind.SERVER,
    503: Kind.THROTTLED,
    504: Kind.SERVER,
    507: Kind.FULL,
}

# "Usage limits" in the JSON API's list of errors: refused for now, not for ever.
_THROTTLING_REASONS = {"rateLimitExceeded", "userRateLimitExceeded"}

# One object takes one write a second.
_THROTTLED_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0

_XML_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REDACT = Redactor({})
# A session's id is as good as a token, and Google's tokens begin like this.
_TOKENS = re.compile(r"((?:access_token|upload_id)=|\bya29\.)[^\s\"'&<>]+")
_LONGEST_TEXT = 300


def fault_of(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Return what an answer with this status means, whatever the request was.

    A 404 is `Kind.ABSENT` here; the caller knows what else may be missing, a bucket or a session.
    """
    error = _error_in(body)
    text = redacted(_message_in(error, body) or f"the server answered {status}")
    reason = _reason_in(error)
    code = f"{status} {reason}" if reason else str(status)
    kind = _KINDS.get(status)
    if kind is None:
        kind = Kind.SERVER if status >= 500 else Kind.BAD_REQUEST if 300 <= status < 500 else Kind.GARBLED
    if 300 <= status < 400 and status != 304:
        # It may lead anywhere: credentials must not follow it.
        text = f"the request is redirected to {host_of(headers.get('Location', ''))}, which is not followed"
    lowered = text.lower()
    if reason in _THROTTLING_REASONS:
        kind = Kind.THROTTLED
    elif status == 400 and "match calculated" in lowered:
        # It has no reason code.
        kind = Kind.BAD_CHECKSUM
    elif status >= 500 and "no space left" in lowered:
        kind = Kind.FULL
    retry_after_s = _retry_after(headers)
    if kind is Kind.THROTTLED and status != 503:
        retry_after_s = max(retry_after_s, _THROTTLED_PAUSE_S)
    hint = {401: "Renew the credentials.", 407: PROXY_HINT}.get(status)
    return Fault(kind, text, code=code, retry_after_s=retry_after_s, hint=hint)


def redacted(text: str) -> str:
    """Return the beginning of `text` without what could be a token."""
    return _TOKENS.sub(r"\1***", _REDACT(text.strip()))[:_LONGEST_TEXT]


def _error_in(body: bytes) -> Any:
    answer = json_of(body)
    return answer.get("error") if isinstance(answer, dict) else None


def _message_in(error: Any, body: bytes) -> str:
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        return str(error.get("message") or "")
    text = body[: 4 * _LONGEST_TEXT].decode("utf-8", "replace")
    message = _XML_MESSAGE.search(text)
    return message[1] if message else text


def _reason_in(error: Any) -> str:
    if not isinstance(error, dict):
        return ""
    details = error.get("errors")
    first = details[0] if isinstance(details, list) and details else None
    return str(first.get("reason") or "") if isinstance(first, dict) else ""


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), _LONGEST_PAUSE_S) if text.isdecimal() else 0.0
