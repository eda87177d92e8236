"""The signature of a request to S3: version 4, of the head of the request and not of its body.

botocore's own signer takes a fifth of a second to import. `tests/wire/test_s3_signature.py` compares the two.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import SplitResult

from ckptstore.storage.credentials import SessionKeys

__all__ = ["signed_headers"]

# Balancers and proxies on the way may change these.
_NOT_SIGNED = {"authorization", "expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"}

_PAYLOAD = "UNSIGNED-PAYLOAD"


def signed_headers(
    method: str,
    url: SplitResult,
    headers: Mapping[str, str],
    keys: SessionKeys,
    region: str,
    now_s: float | None = None,
) -> dict[str, str]:
    """Return `headers` with date, session token and signature.

    Parameters
    ----------
    url : SplitResult
        Percent-encoded as it is sent.
    headers : mapping
        With ``Host``; those that this function adds are not among them.
    now_s : float, optional
        Seconds since the epoch; by default the present.

    Format
    ------
    AWS, "Create a signed AWS API request", with the exceptions of S3: the path is encoded once, and dot
    segments stay.
    """
    time_text = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    given = {**headers, "X-Amz-Date": time_text, "X-Amz-Content-SHA256": _PAYLOAD}
    if keys.token:
        given["X-Amz-Security-Token"] = keys.token
    signed = {name.lower(): " ".join(value.split()) for name, value in given.items()}
    names = sorted(signed.keys() - _NOT_SIGNED)
    pairs = sorted(pair.partition("=")[::2] for pair in url.query.split("&")) if url.query else ()
    query = "&".join(f"{name}={value}" for name, value in pairs)
    lines = [method, url.path, query, *(f"{name}:{signed[name]}" for name in names)]
    request = "\n".join([*lines, "", ";".join(names), _PAYLOAD])
    scope = f"{time_text[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{keys.secret}".encode()
    for text in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{time_text}\n{scope}\n{digest}"):
        key = hmac.digest(key, text.encode(), "sha256")
    given["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.key}/{scope}, "
        f"SignedHeaders={';'.join(names)}, Signature={key.hex()}"
    )
    return given
