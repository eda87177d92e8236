"""What the index block of a table says, read by hand."""

from __future__ import annotations

from ckptstore.format.block import FOOTER_SIZE_BYTES, decode_handle, read_block


def index_keys(table: bytes) -> list[bytes]:
    """Return the key of each data block: its last key, or a short one above that."""
    _, pos = decode_handle(table[-FOOTER_SIZE_BYTES:], 0, source="s")
    handle, _ = decode_handle(table[-FOOTER_SIZE_BYTES:], pos, source="s")
    return [key for key, _ in read_block(table, handle, source="s").items()]


def block_count(table: bytes) -> int:
    """Return the number of data blocks."""
    return len(index_keys(table))
