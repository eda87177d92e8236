"""Requests and answers of Google Cloud Storage's JSON API: bodies, headers, resources. Pure.

Format
------
"Cloud Storage JSON API": Objects: insert (``uploadType=multipart``), Batch requests, Resumable uploads. Lines
in multipart bodies end in CRLF: the service also takes LF, other servers do not.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from ckptstore.storage.object_store.crc32c_text import crc32c_of_text, crc32c_text
from ckptstore.storage.object_store.transport import WRITE_ID
from ckptstore.storage.values import ObjectInfo
from ckptstore.storage.wire.exchange import HttpResponse

__all__ = [
    "RESOURCE_FIELDS",
    "batch_body",
    "cut",
    "info_of",
    "json_of",
    "next_byte",
    "object_path",
    "related_body",
    "resource",
    "slices",
    "split_batch",
    "with_query",
]

# Access control lists would be most of an answer.
RESOURCE_FIELDS = "name,size,generation,updated,crc32c,metadata"

_BATCH_PART = re.compile(rb"response-(?:[^>\r\n]*\+)?(\d+)", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ (\d{3})")
_RECEIVED = re.compile(r"bytes[= ]0-(\d+)")


def object_path(bucket: str, name: str) -> str:
    """Return the path of an object below an API's root; every character of the name is itself."""
    return f"/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"


def with_query(url: str, query: Mapping[str, str | None]) -> str:
    """Return `url` with the parameters that are not None."""
    text = urlencode({name: value for name, value in query.items() if value is not None}, quote_via=quote)
    if not text:
        return url
    return f"{url}{'&' if '?' in url else '?'}{text}"


def resource(
    name: str, write_id: str, *, crc32c: int | None = None, cache_control: str | None = None
) -> dict[str, Any]:
    """Return the description that goes with a new object."""
    fields: dict[str, Any] = {
        "name": name,
        "contentType": "application/octet-stream",
        "metadata": {WRITE_ID: write_id},
    }
    if crc32c is not None:
        # Not in the header X-Goog-Hash: only here every server compares it with the bytes.
        fields["crc32c"] = crc32c_text(crc32c)
    if cache_control is not None:
        fields["cacheControl"] = cache_control
    return fields


def related_body(
    description: Mapping[str, Any], pieces: Sequence[memoryview]
) -> tuple[str, list[bytes | memoryview]]:
    """Return content type and pieces of a ``uploadType=multipart`` request; nothing is copied."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        f"{json.dumps(description)}\r\n"
        f"--{boundary}\r\nContent-Type: {description['contentType']}\r\n\r\n"
    )
    return f'multipart/related; boundary="{boundary}"', [
        head.encode(),
        *pieces,
        f"\r\n--{boundary}--\r\n".encode(),
    ]


def batch_body(method: str, targets: Sequence[str]) -> tuple[str, bytes]:
    """Return content type and body of a batch of requests without bodies.

    Parameters
    ----------
    targets : sequence of str
        Path and query of each, percent-encoded.
    """
    boundary = uuid.uuid4().hex
    lines = []
    for number, target in enumerate(targets):
        lines += [
            f"--{boundary}",
            "Content-Type: application/http",
            "Content-Transfer-Encoding: binary",
            f"Content-ID: <{boundary}+{number}>",
            "",
            f"{method} {target} HTTP/1.1",
            "Content-Length: 0",
            "",
            "",
        ]
    lines += [f"--{boundary}--", ""]
    return f'multipart/mixed; boundary="{boundary}"', "\r\n".join(lines).encode()


def split_batch(content_type: str, body: bytes, count: int) -> list[HttpResponse]:
    """Return the answers of a batch in the order of its requests.

    Raises
    ------
    ValueError
        If it does not have one answer for each request.
    """
    boundary = re.search(r'boundary="?([^";\s]+)', content_type)
    if boundary is None:
        raise ValueError("no boundary in the content type")
    parts: dict[int, HttpResponse] = {}
    for position, piece in enumerate(body.split(b"--" + boundary[1].encode())[1:-1]):
        envelope, _, answer = piece.lstrip(b"\r\n").partition(b"\r\n\r\n")
        status = _STATUS_LINE.match(answer)
        if status is None:
            raise ValueError("a part is not an HTTP answer")
        numbered = _BATCH_PART.search(envelope)
        number = int(numbered[1]) if numbered else position
        parts[number] = HttpResponse(int(status[1]), {}, answer.partition(b"\r\n\r\n")[2].strip())
    if sorted(parts) != list(range(count)):
        raise ValueError(f"{len(parts)} answers to {count} requests")
    return [parts[number] for number in range(count)]


def json_of(body: bytes) -> Any:
    """Return the value of `body` as JSON, an empty dict if it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return {}


def info_of(bucket: str, fields: Mapping[str, Any]) -> ObjectInfo:
    """Return what an object resource describes.

    Raises
    ------
    ValueError, KeyError, TypeError
        If it is not an object resource.
    """
    metadata = fields.get("metadata") or {}
    return ObjectInfo(
        key=f"{bucket}/{fields['name']}",
        size_bytes=int(fields["size"]),
        version=str(int(fields["generation"])),
        mtime_s=datetime.fromisoformat(fields["updated"]).timestamp(),
        write_id=metadata.get(WRITE_ID),
        crc32c=crc32c_of_text(fields.get("crc32c")),
    )


def next_byte(received: str | None) -> int:
    """Return how many bytes a resumable session has, from the ``Range`` header of its answer 308.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if not received:
        return 0
    found = _RECEIVED.fullmatch(received)
    if found is None:
        raise ValueError(f"a session answered with Range: {received}")
    return int(found[1]) + 1


def cut(pieces: Sequence[memoryview], start: int, stop: int) -> list[memoryview]:
    """Return the bytes ``[start, stop)`` of all `pieces` together, as views."""
    found = []
    for piece in pieces:
        if start < len(piece) and stop > 0:
            found.append(piece[max(start, 0) : stop])
        start -= len(piece)
        stop -= len(piece)
    return found


def slices(pieces: Sequence[bytes | memoryview], size_bytes: int) -> Iterator[bytes | memoryview]:
    """Yield `pieces` in slices of at most `size_bytes`, so that progress is recorded between them."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), size_bytes):
            yield view[start : start + size_bytes]
