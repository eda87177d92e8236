"""Values of S3's requests and answers that several modules read or write."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

__all__ = ["answer_of", "encoded_crc32c", "is_repeated", "whole_crc32c"]


def answer_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what the headers of an answer to a PUT say, by the names that botocore gives it."""
    named = {
        "ETag": headers.get("ETag"),
        "ChecksumCRC32C": headers.get("x-amz-checksum-crc32c"),
        "ChecksumType": headers.get("x-amz-checksum-type"),
    }
    return {name: value for name, value in named.items() if value is not None}


def encoded_crc32c(crc32c: int) -> str:
    """Return a checksum as the headers hold it: big-endian, base64."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def whole_crc32c(answer: Mapping[str, Any]) -> int | None:
    """Return the CRC32C of the whole object in an answer; None if there is none, or one of checksums only."""
    text = answer.get("ChecksumCRC32C")
    if not text or "-" in text or answer.get("ChecksumType") == "COMPOSITE":
        return None
    return int.from_bytes(base64.b64decode(text), "big")


def is_repeated(answer: Mapping[str, Any]) -> bool:
    """Return whether the client says that it sent the request more than once."""
    return bool(answer.get("ResponseMetadata", {}).get("RetryAttempts"))
