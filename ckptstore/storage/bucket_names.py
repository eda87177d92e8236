"""Other ways in which people name a bucket: ARNs, web addresses, and endpoints that hold it already."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ckptstore.errors import UsageError

__all__ = ["check_endpoint_names_no_bucket", "split_arn", "url_for_web_address"]

# botocore takes ":" and "/" between the parts of the resource alike (`botocore.handlers`).
_ARN = re.compile(
    r"(?P<service>arn:aws[a-z-]*:(?:s3|s3-outposts|s3-object-lambda):[a-z0-9-]*:[0-9]{12}:)"
    r"(?P<resource>(?:outpost[:/][A-Za-z0-9-]+[:/])?(?:accesspoint|bucket)[:/][A-Za-z0-9.-]+)"
    r"(?P<rest>/.*)?",
    re.DOTALL,
)
_BUCKET_ARN = re.compile(r"arn:aws[a-z-]*:s3:::(?P<path>[^/]+.*)", re.DOTALL)

_AMAZON = re.compile(r"(?:(?P<bucket>.+)\.)?s3[.-](?:[a-z0-9.-]+\.)?amazonaws\.com(?:\.cn)?")
_GOOGLE = re.compile(r"(?:(?P<bucket>.+)\.)?(?:storage\.googleapis\.com|storage\.cloud\.google\.com)")


def split_arn(rest: str, shown: str) -> tuple[str, str]:
    """Return an ARN that an S3 URL begins with, as one segment, and what follows it.

    Parameters
    ----------
    rest : str
        The URL behind ``s3://``.
    shown : str
        The whole URL without secrets, for messages.

    Returns
    -------
    arn : str
        With ``:`` for the slashes in it; empty if there is none.
    rest : str
        Empty, or beginning with a slash.

    Raises
    ------
    UsageError
        If it begins like an ARN and is none that holds objects.
    """
    if not rest.startswith("arn:"):
        return "", rest
    match = _ARN.fullmatch(rest)
    if match is not None:
        return match["service"] + match["resource"].replace("/", ":"), match["rest"] or ""
    bucket = _BUCKET_ARN.fullmatch(rest)
    raise UsageError(
        "this is not the ARN of an access point",
        url=shown,
        expected="s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/path",
        hint=f"Pass s3://{bucket['path']}" if bucket else "Pass s3://bucket/path, or the whole ARN.",
    )


def url_for_web_address(text: str) -> str:
    """Return the sentence that says what to pass in place of an ``http://`` or ``https://`` URL."""
    parts = urlsplit(text)
    for pattern, scheme in ((_AMAZON, "s3"), (_GOOGLE, "gs")):
        match = pattern.fullmatch(parts.hostname or "")
        if match is not None:
            bucket = match["bucket"]
            place = f"{bucket}{parts.path}" if bucket else parts.path.lstrip("/")
            return f"Pass {scheme}://{place or 'bucket/path'}"
    return (
        "Of a server with the interface of S3 pass s3://bucket/path, and its address as endpoint_url in the "
        "storage options or in AWS_ENDPOINT_URL. Files of a web server have to be downloaded first."
    )


def check_endpoint_names_no_bucket(endpoint: str, bucket: str, shown: str) -> None:
    """Refuse an endpoint that holds the bucket: requests would name it twice, and find other objects.

    A host that only begins with the same word may be that of a server: ``minio.example`` and a bucket
    ``minio``.

    Parameters
    ----------
    endpoint : str
        The URL of the server.
    bucket : str
    shown : str
        The endpoint without secrets, for the message.

    Raises
    ------
    UsageError
    """
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    rest = host.removeprefix(f"{bucket.lower()}.")
    is_host = rest != host and (
        rest == "localhost" or any(known.fullmatch(rest) for known in (_AMAZON, _GOOGLE))
    )
    if is_host or parts.path.strip("/").rpartition("/")[2] == bucket:
        port = f":{parts.port}" if parts.port else ""
        server = f"{parts.scheme}://{rest if is_host else host}{port}"
        raise UsageError(
            f"the endpoint holds the bucket {bucket!r}, which the URL names too",
            url=shown,
            expected=server,
            hint="Pass the endpoint without the bucket.",
        )
