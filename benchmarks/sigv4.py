"""AWS's signature of a request, version 4, with an unsigned payload: enough for the plain sockets."""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import quote, urlencode

UNSIGNED = "UNSIGNED-PAYLOAD"


def signed_headers(
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    *,
    key: str,
    secret: str,
    region: str,
    now: datetime.datetime,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the headers that sign a request to S3, `extra` among them; names in lower case."""
    time = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    headers = {"host": host, "x-amz-content-sha256": UNSIGNED, "x-amz-date": time, **(extra or {})}
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        (
            method,
            quote(path),
            canonical_query(query),
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            UNSIGNED,
        )
    )
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"
    signing = f"AWS4{secret}".encode()
    for part in (time[:8], region, "s3", "aws4_request"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    signature = hmac.digest(signing, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def canonical_query(query: Mapping[str, str]) -> str:
    """Return the query in the order and form that is signed, and sent."""
    return urlencode(sorted(query.items()), quote_via=quote, safe="-_.~")
