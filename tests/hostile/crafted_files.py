"""Files that no writer makes: tables, entries and bundles put together by hand, with every checksum right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptstore.format.block import TABLE_MAGIC
from ckptstore.format.coding import (
    encode_bytes_field,
    encode_fixed32,
    encode_fixed64,
    encode_tag,
    encode_varint,
    encode_varint_field,
)
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.slices import encode_slice_key
from ckptstore.types import Slice

__all__ = [
    "HEADER",
    "block",
    "block_item",
    "entry",
    "extent",
    "footer",
    "handle",
    "header",
    "index",
    "index_of_items",
    "shape",
    "sliced",
    "stored",
    "table",
    "write_bundle",
]

HEADER = bytes.fromhex("08011a020801")
"""One shard, little-endian, producer 1."""

Items = Iterable[tuple[bytes, bytes]]


def handle(offset: int, size: int) -> bytes:
    """Return a block handle."""
    return encode_varint(offset) + encode_varint(size)


def footer(metaindex: bytes, index_handle: bytes, *, magic: int = TABLE_MAGIC) -> bytes:
    """Return the last 48 bytes of a table."""
    return (metaindex + index_handle).ljust(40, b"\x00") + encode_fixed64(magic)


def block_item(shared: int, unshared: bytes, value: bytes, *, value_size: int | None = None) -> bytes:
    """Return an entry of a block; its lengths may lie."""
    size = len(value) if value_size is None else value_size
    return encode_varint(shared) + encode_varint(len(unshared)) + encode_varint(size) + unshared + value


def block(entries: bytes, restarts: Sequence[int] = (0,), *, count: int | None = None) -> bytes:
    """Return a block without its trailer."""
    number = len(restarts) if count is None else count
    return entries + b"".join(encode_fixed32(offset) for offset in restarts) + encode_fixed32(number)


def stored(contents: bytes, kind: int = 0) -> bytes:
    """Return a block with its trailer, checksum right."""
    typed = contents + bytes((kind,))
    return typed + encode_fixed32(mask(crc32c(typed)))


def table(
    blocks: Sequence[tuple[bytes, bytes]], *, kind: int = 0, handles: Sequence[bytes] | None = None
) -> bytes:
    """Return a table of ``(index key, block)``; `handles` take the place of the right ones in its index."""
    parts: list[bytes] = []
    index_items: list[bytes] = []
    at = 0
    for number, (key, contents) in enumerate(blocks):
        where = handle(at, len(contents)) if handles is None else handles[number]
        index_items.append(block_item(0, key, where))
        parts.append(stored(contents, kind))
        at += len(parts[-1])
    empty = block(b"")
    parts.append(stored(empty))
    index_block = block(b"".join(index_items), _restarts(index_items))
    metaindex = handle(at, len(empty))
    at += len(parts[-1])
    parts += [stored(index_block), footer(metaindex, handle(at, len(index_block)))]
    return b"".join(parts)


def _restarts(items: Sequence[bytes]) -> list[int]:
    offsets = [0]
    for item in items[:-1]:
        offsets.append(offsets[-1] + len(item))
    return offsets


def index_of_items(items: Items) -> bytes:
    """Return a table of one block with these items as they come: unsorted and doubled ones too."""
    entries = b"".join(block_item(0, key, value) for key, value in items)
    return table([(b"\xff\xff\xff\xff", block(entries))])


def header(num_shards: int = 1, *, endianness: int = 0, version: bytes = b"\x08\x01") -> bytes:
    """Return a header's value; numbers may be negative or too large."""
    return (
        encode_varint_field(1, num_shards)
        + encode_varint_field(2, endianness)
        + encode_bytes_field(3, version)
    )


def index(entries: dict[str | bytes, bytes], *, head: bytes = HEADER) -> bytes:
    """Return an index with these entries, sorted."""
    raw = {name.encode() if isinstance(name, str) else name: value for name, value in entries.items()}
    return index_of_items([(b"", head), *sorted(raw.items())])


def shape(*sizes: int) -> bytes:
    """Return a TensorShapeProto; sizes may be negative."""
    return b"".join(encode_bytes_field(2, encode_varint_field(1, size)) for size in sizes)


def extent(start: int, length: int | None) -> bytes:
    """Return one extent of a TensorSliceProto, as its field 1."""
    inner = encode_varint_field(1, start) if start else b""
    if length is not None:
        inner += encode_varint_field(2, length)
    return encode_bytes_field(1, inner)


def entry(
    dtype: int,
    sizes: Sequence[int] | bytes,
    *,
    shard: int = 0,
    offset: int = 0,
    size: int = 0,
    data: bytes | None = None,
    crc: int | None = None,
    slices: Sequence[bytes] = (),
) -> bytes:
    """Return a BundleEntryProto; `data` gives size and checksum."""
    if data is not None:
        size = len(data)
    masked = mask(crc32c(data or b"")) if crc is None else crc
    out = encode_varint_field(1, dtype)
    out += encode_bytes_field(2, sizes if isinstance(sizes, bytes) else shape(*sizes))
    for number, value in ((3, shard), (4, offset), (5, size)):
        if value:
            out += encode_varint_field(number, value)
    out += encode_tag(6, 5) + encode_fixed32(masked)
    return out + b"".join(encode_bytes_field(7, box) for box in slices)


def sliced(
    name: str, sizes: Sequence[int], boxes: Sequence[Sequence[tuple[int, int]]], *, item_size: int = 4
) -> tuple[dict[str | bytes, bytes], bytes]:
    """Return the entries of a float32 tensor stored in `boxes`, and a data file of zeros for them."""
    entries: dict[str | bytes, bytes] = {}
    at = 0
    for box in boxes:
        lengths = [length for _, length in box]
        size = item_size
        for length in lengths:
            size *= length
        key = encode_slice_key(name, Slice(tuple(box)))
        entries[key] = entry(1, lengths, offset=at, data=bytes(size))
        at += size
    slices = [b"".join(extent(start, length) for start, length in box) for box in boxes]
    entries[name] = entry(1, sizes, slices=slices)
    return entries, bytes(at)


def write_bundle(directory: Path, index_bytes: bytes, data: bytes = b"", prefix: str = "model") -> str:
    """Write an index and one data file; return the prefix."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{prefix}.index").write_bytes(index_bytes)
    (directory / f"{prefix}.data-00000-of-00001").write_bytes(data)
    return str(directory / prefix)
