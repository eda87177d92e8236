"""Values of S3's requests and answers that several modules read or write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.storage.object_store.crc32c_text import crc32c_of_text
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import Precondition

__all__ = ["answer_of", "condition_headers", "etag_of", "is_repeated", "whole_crc32c"]


def answer_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the headers of an answer to a PUT, under the names that botocore uses."""
    named = {
        "ETag": headers.get("ETag"),
        "ChecksumCRC32C": headers.get("x-amz-checksum-crc32c"),
        "ChecksumType": headers.get("x-amz-checksum-type"),
    }
    return {name: value for name, value in named.items() if value is not None}


def whole_crc32c(answer: Mapping[str, Any]) -> int | None:
    """Return the CRC32C of the whole object in an answer; None without one, or with one of checksums."""
    text = answer.get("ChecksumCRC32C")
    if not text or "-" in text or answer.get("ChecksumType") == "COMPOSITE":
        return None
    return crc32c_of_text(text)


def is_repeated(answer: Mapping[str, Any]) -> bool:
    """Return whether the client sent the request more than once, by its own count."""
    return bool(answer.get("ResponseMetadata", {}).get("RetryAttempts"))


def condition_headers(precondition: Precondition | None) -> dict[str, str]:
    """Return the header of a write that has this condition."""
    if precondition is None:
        return {}
    if precondition.version is None:
        return {"If-None-Match": "*"}
    return {"If-Match": precondition.version}


def etag_of(answer: Mapping[str, Any]) -> str:
    """Return the version in an answer.

    Raises
    ------
    Fault
        `Kind.GARBLED` if it contains none.
    """
    etag = answer.get("ETag")
    if not etag:
        raise Fault(Kind.GARBLED, "the answer contains no ETag: this is not the object store")
    return str(etag)
