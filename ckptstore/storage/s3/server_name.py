"""What tells one S3 server from another, whichever way its endpoint was found and written."""

from __future__ import annotations

import hashlib
import re
from urllib.parse import urlsplit

__all__ = ["server_name"]

# Buckets have one name in all of its regions.
_AMAZON = re.compile(r"s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com")

_PORTS = {"http": 80, "https": 443}


def server_name(endpoint: str, shown: str) -> str:
    """Return the name of the server at `endpoint`; empty: Amazon's own.

    Parameters
    ----------
    endpoint : str
        The URL that requests go to.
    shown : str
        The same without secrets. Tenants of one gateway may differ just in what is left out there, so what
        `endpoint` says is added as a digest.
    """
    parts = urlsplit(endpoint)
    if not endpoint or _AMAZON.fullmatch(parts.hostname or ""):
        return "Amazon"
    name = _normal(endpoint)
    if shown == endpoint:
        return name
    return f"{_normal(shown)} {hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def _normal(endpoint: str) -> str:
    scheme, colon, rest = endpoint.partition("://")
    place, slash, path = rest.partition("/")
    scheme, place = scheme.lower(), place.lower().removesuffix(f":{_PORTS.get(scheme.lower())}")
    return f"{scheme}{colon}{place}{slash}{path}".rstrip("/")
