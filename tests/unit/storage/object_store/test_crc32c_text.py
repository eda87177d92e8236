"""CRC32C as text, as S3 and Google Cloud Storage write it."""

from __future__ import annotations

import pytest

from ckptstore.storage.object_store.crc32c_text import crc32c_of_text, crc32c_text


def test_a_crc32c_is_four_bytes_big_endian_in_base64() -> None:
    # crc32c of b"0123456789", as gsutil prints it.
    assert crc32c_text(0x280C069E) == "KAwGng=="
    assert crc32c_of_text("KAwGng==") == 0x280C069E
    assert crc32c_of_text("AAAAAA==") == 0


@pytest.mark.parametrize("text", [None, "", "KAwGng", "!!!!", "KAwGngAA", "é"])
def test_text_that_is_not_a_crc32c_is_none(text: str | None) -> None:
    assert crc32c_of_text(text) is None
