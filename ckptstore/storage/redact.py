"""Keep secrets out of messages, logs and reprs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Redactor"]

_SECRET_NAMES = re.compile(
    r"key$|secret|token|password|passwd|username|credential|ssecustomerkey|access_key|private", re.IGNORECASE
)
_SHOWN = "***"

# In a URL: user and password, and everything after the question mark (a signature in presigned URLs).
_URL_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE)
_URL_QUERY = re.compile(r"(?P<url>\b[a-z][a-z0-9+.-]*://[^\s?'\"]+)\?[^\s'\"]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(?P<word>Bearer|Signature=|Credential=)\s*[^\s,'\"]+", re.IGNORECASE)

# In what a server or a proxy repeats: a header, or a field of a form.
_FIELD = re.compile(
    r"\b(?P<name>x-amz-security-token|assertion|client_secret|refresh_token|access_token)"
    r"(?P<sign>['\"]?\s*[:=]\s*['\"]?)[^\s,;&'\"<>]+",
    re.IGNORECASE,
)

# A shorter value would be found inside ordinary words.
_SHORTEST = 4


class Redactor:
    """Removes the secrets of one set of storage options from texts.

    Parameters
    ----------
    options : mapping
        A value whose name sounds like a secret is one, at any depth.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        values = sorted(set(_secrets_in(options)), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, values))) if values else None

    def __call__(self, text: str) -> str:
        """Return `text` without the secrets."""
        if self._values is not None:
            text = self._values.sub(_SHOWN, text)
        text = _URL_USER.sub(rf"\g<scheme>{_SHOWN}@", text)
        text = _URL_QUERY.sub(rf"\g<url>?{_SHOWN}", text)
        text = _FIELD.sub(rf"\g<name>\g<sign>{_SHOWN}", text)
        return _BEARER.sub(rf"\g<word> {_SHOWN}", text)

    def __repr__(self) -> str:
        return "<Redactor>"


def _secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif _SECRET_NAMES.search(str(name)):
            secret = value.decode(errors="replace") if isinstance(value, bytes) else value
            if isinstance(secret, str) and len(secret) >= _SHORTEST:
                yield secret
