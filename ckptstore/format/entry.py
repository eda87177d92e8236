"""The values of an index: one header, and one entry per tensor or slice.

Format
------
Mirrors TensorFlow `tensorflow/core/protobuf/tensor_bundle.proto` (BundleHeaderProto, BundleEntryProto) with
the shape, slice and version messages it uses, and the checks of
`tensorflow/core/util/tensor_bundle/tensor_bundle.cc`, as measured on TensorFlow 2.21. Fields are in
ascending order, defaults are left out, the shape is always there. Unknown fields are skipped.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

from ckptstore.errors import FormatError, UsageError
from ckptstore.format import dtypes
from ckptstore.format.coding import (
    WIRE_BYTES,
    WIRE_FIXED32,
    WIRE_VARINT,
    BytesLike,
    as_int32,
    decode_packed_varints,
    decode_varint,
    encode_bytes_field,
    encode_fixed32,
    encode_varint,
    encode_varint_field,
    iter_fields,
    wire_type_error,
)
from ckptstore.format.shape_proto import (
    check_slice,
    decode_shape,
    decode_slice,
    encode_shape,
    encode_slice,
)
from ckptstore.types import DType, Slice

__all__ = [
    "CURRENT_VERSION",
    "HEADER_KEY",
    "BundleEntry",
    "BundleHeader",
    "check_entry",
    "decode_entry",
    "decode_header",
    "decode_usual_entry",
    "element_count",
    "encode_entry",
    "encode_entry_head",
    "encode_header",
    "key_to_name",
    "name_to_key",
]

HEADER_KEY = b""
"""The header's key; it sorts before every name."""

CURRENT_VERSION = 1
"""Version of the format that is written, and the newest that is understood."""

_INT32_MAX = (1 << 31) - 1
_INT64_MAX = (1 << 63) - 1
_ENTRY_WIRE_TYPES = (
    -1,
    WIRE_VARINT,
    WIRE_BYTES,
    WIRE_VARINT,
    WIRE_VARINT,
    WIRE_VARINT,
    WIRE_FIXED32,
    WIRE_BYTES,
)


def name_to_key(name: str) -> bytes:
    """Return the key of a tensor's entry: its name in UTF-8.

    Raises
    ------
    UsageError
        If `name` is empty (it would be the header's key) or not text that UTF-8 can express.
    """
    if not name:
        raise UsageError("a tensor needs a name", hint="The empty name belongs to the header of the index.")
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            "a tensor name holds half a surrogate pair, which UTF-8 cannot express", tensor=name
        ) from error


def key_to_name(key: bytes) -> str:
    """Return the tensor name of a key.

    TensorFlow accepts any bytes: those that are not UTF-8 become lone surrogates; `name_to_key` turns them
    back.
    """
    return key.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """The header entry, which describes the whole bundle.

    Attributes
    ----------
    num_shards : int
        Number of data files in their names. Not to be trusted as a size: only shards that entries name need
        exist.
    big_endian : bool
        Whether the data files hold big-endian numbers.
    producer, min_consumer : int
        Version of the writer, and the oldest reader that it allows.
    bad_consumers : tuple of int
        Reader versions that it refuses.
    """

    num_shards: int
    big_endian: bool = False
    producer: int = CURRENT_VERSION
    min_consumer: int = 0
    bad_consumers: tuple[int, ...] = ()


class BundleEntry(NamedTuple):
    """Where the bytes of a tensor or slice are, and what they are.

    Attributes
    ----------
    dtype_enum : int
        TensorFlow's number, see `dtypes.by_enum`; not checked when decoded, so that one unknown tensor does
        not hide the others.
    offset, size_bytes : int
        Place in the data file, in bytes.
    masked_crc32c : int
        Over the bytes as they are in the file.
    slices : tuple of Slice
        The stored boxes in save order. Not empty: the bytes are in the entries of these slices, and the
        fields above (but dtype and shape) mean nothing.
    """

    dtype_enum: int
    shape: tuple[int, ...]
    shard_id: int = 0
    offset: int = 0
    size_bytes: int = 0
    masked_crc32c: int = 0
    slices: tuple[Slice, ...] = ()


def encode_header(header: BundleHeader) -> bytes:
    """Return the value of the header entry."""
    version = b""
    if header.producer:
        version += encode_varint_field(1, header.producer)
    if header.min_consumer:
        version += encode_varint_field(2, header.min_consumer)
    if header.bad_consumers:
        packed = b"".join(encode_varint(n % (1 << 64)) for n in header.bad_consumers)
        version += encode_bytes_field(3, packed)
    out = b""
    if header.num_shards:
        out += encode_varint_field(1, header.num_shards)
    if header.big_endian:
        out += encode_varint_field(2, 1)
    return out + encode_bytes_field(3, version)


def decode_header(data: bytes, *, source: str) -> BundleHeader:
    """Return the header, after checking that this reader may read the bundle.

    Raises
    ------
    FormatError
        If the bytes are not a header, or it asks for a newer reader or refuses this one. A missing version is
        accepted: TensorFlow wrote none before September 2016.
    """
    numbers = {1: 0, 2: 0}
    version: tuple[int, int, list[int]] = (0, 0, [])
    for number, wire_type, value in iter_fields(data, source=source):
        if number in numbers:
            numbers[number] = _int32(value, "the header", number, wire_type, source)
        elif number == 3:
            if isinstance(value, int):
                raise wire_type_error("the header", number, wire_type, source=source)
            version = _decode_version(value, version, source)
    num_shards, endianness = numbers.values()
    producer, min_consumer, bad_consumers = version
    if num_shards < 0:
        raise FormatError("the header has a negative number of shards", url=source, actual=num_shards)
    if endianness not in (0, 1):
        raise FormatError(
            "the header has an unknown endianness", url=source, expected="0 or 1", actual=endianness
        )
    if min_consumer > CURRENT_VERSION:
        raise FormatError(
            f"Checkpoint min consumer version {min_consumer} above current version {CURRENT_VERSION}",
            url=source,
            hint="Please upgrade ckptstore.",
        )
    if CURRENT_VERSION in bad_consumers:
        raise FormatError(
            f"Checkpoint disallows consumer version {CURRENT_VERSION}",
            url=source,
            hint="Its writer names this version of the format as one with a fault. Please upgrade ckptstore.",
        )
    return BundleHeader(num_shards, endianness == 1, producer, min_consumer, tuple(bad_consumers))


def _int32(value: int | BytesLike, message: str, number: int, wire_type: int, source: str) -> int:
    if not isinstance(value, int) or wire_type != WIRE_VARINT:
        raise wire_type_error(message, number, wire_type, source=source)
    return as_int32(value)


def _decode_version(
    data: BytesLike, before: tuple[int, int, list[int]], source: str
) -> tuple[int, int, list[int]]:
    """Return producer, min_consumer and bad_consumers of a VersionDef, merged into what stood `before` it."""
    numbers = {1: before[0], 2: before[1]}
    bad_consumers = before[2]
    for number, wire_type, value in iter_fields(data, source=source):
        if number in numbers:
            numbers[number] = _int32(value, "the version", number, wire_type, source)
        elif number == 3 and not isinstance(value, int):
            bad_consumers += map(as_int32, decode_packed_varints(value, source=source))
        elif number == 3:
            bad_consumers.append(_int32(value, "the version", number, wire_type, source))
    return numbers[1], numbers[2], bad_consumers


def encode_entry(entry: BundleEntry) -> bytes:
    """Return the value of a tensor's or slice's entry."""
    dtype_enum, shape, shard_id, offset, size_bytes, masked_crc32c, slices = entry
    out = encode_entry_head(dtype_enum, shape)
    if shard_id:
        out += b"\x18" + encode_varint(shard_id)
    if offset:
        out += b"\x20" + encode_varint(offset)
    if size_bytes:
        out += b"\x28" + encode_varint(size_bytes)
    if masked_crc32c:
        out += b"\x35" + encode_fixed32(masked_crc32c)
    if slices:
        out += b"".join(map(_encode_slice_field, slices))
    return out


# Many tensors of a model are cut alike.
@functools.lru_cache(maxsize=16_384)
def _encode_slice_field(box: Slice) -> bytes:
    return encode_bytes_field(7, encode_slice(box))


# Few tensors of a model have a shape of their own.
@functools.lru_cache(maxsize=4096)
def encode_entry_head(dtype_enum: int, shape: tuple[int, ...]) -> bytes:
    """Return the first two fields of an entry: they are the same for many tensors."""
    return (encode_varint_field(1, dtype_enum) if dtype_enum else b"") + encode_bytes_field(
        2, encode_shape(shape)
    )


def decode_entry(data: bytes, *, source: str, tensor: str) -> BundleEntry:
    """Return the entry that `data` holds.

    Parameters
    ----------
    data : bytes
        The value of one item of the index.
    source : str
        URL for error messages.
    tensor : str
        Name for error messages.

    Raises
    ------
    FormatError
        If a field has a value that no writer produces: unknown rank, negative numbers, more elements than 63
        bits can count, slices outside the shape. Whether size and dtype agree is for `check_entry` to say.
    """
    try:
        return decode_usual_entry(data) or _decode_any_layout(data)
    except FormatError as error:
        error.url, error.tensor, error.offset = source, tensor, None
        raise


def decode_usual_entry(data: bytes) -> BundleEntry | None:
    """Return the entry if its fields come once and in ascending order, as TensorFlow writes them, else None.

    Several times faster than the general way, which alone decides what is an error. Whole indexes go through
    `entry_columns`.
    """
    dtype_enum = shard_id = offset = size_bytes = masked_crc32c = 0
    end = len(data)
    if end < 4 or data[0] != 0x08 or data[1] > 127 or data[2] != 0x12 or data[3] > 127:
        return None
    dtype_enum = data[1]
    pos = 4 + data[3]
    if pos > end:
        return None
    shape = _small_shape(data[4:pos])
    if pos < end and data[pos] == 0x18:
        shard_id, pos = decode_varint(data, pos + 1, source="")
    if pos < end and data[pos] == 0x20:
        offset, pos = decode_varint(data, pos + 1, source="")
    if pos < end and data[pos] == 0x28:
        size_bytes, pos = decode_varint(data, pos + 1, source="")
    if pos + 5 == end and data[pos] == 0x35:
        masked_crc32c = int.from_bytes(data[pos + 1 :], "little")
    elif pos != end:
        return None
    if shard_id > _INT32_MAX or offset + size_bytes > _INT64_MAX:
        return None
    return BundleEntry(dtype_enum, shape, shard_id, offset, size_bytes, masked_crc32c)


def _decode_any_layout(data: bytes) -> BundleEntry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] | None = None
    slices: list[Slice] = []
    for number, wire_type, value in iter_fields(data, source=""):
        if number > 7:
            continue
        if wire_type != _ENTRY_WIRE_TYPES[number]:
            raise wire_type_error("the entry", number, wire_type, source="")
        if isinstance(value, int):
            numbers[number] = value
        elif number == 7:
            slices.append(decode_slice(value, source=""))
        elif shape is not None:
            raise FormatError("the entry has two shapes")
        else:
            shape = decode_shape(value, source="")
    shape = shape or ()
    dtype_enum, shard_id, offset, size_bytes, masked_crc32c = numbers.values()
    if dtype_enum > _INT32_MAX or shard_id > _INT32_MAX or offset + size_bytes > _INT64_MAX:
        raise FormatError(
            "the entry has a number out of range",
            expected="dtype and shard below 2**31, offset + size below 2**63",
            actual=f"dtype {dtype_enum}, shard {shard_id}, offset {offset}, size {size_bytes}",
        )
    if slices and not shape:
        # Nothing can be cut; thousands of slices of two bytes each would only fill memory.
        raise FormatError("a scalar has no slices")
    for box in slices:
        check_slice(box, shape, source="")
    return BundleEntry(dtype_enum, shape, shard_id, offset, size_bytes, masked_crc32c, tuple(slices))


@functools.lru_cache(maxsize=4096)
def _small_shape(data: bytes) -> tuple[int, ...]:
    """`decode_shape` with a memory; for at most 127 bytes, so that no file can fill it with much."""
    return decode_shape(data, source="")


def element_count(shape: tuple[int, ...]) -> int:
    """Return the number of elements; 1 for a scalar."""
    return math.prod(shape)


def check_entry(entry: BundleEntry, *, source: str, tensor: str) -> DType:
    """Check that an entry's size can be that of its shape and type; return the type.

    Call it before anything is allocated for the tensor. For entries without slices of their own; for a sliced
    tensor only shape and type are checked.

    Raises
    ------
    FormatError
        If the element type is unknown, the size is not elements times item size, or (strings, variants) is
        too small for that many elements.
    UnsupportedError
        If the type has no values to read, or numpy cannot make an array of that shape.
    """
    dtype = dtypes.by_enum(entry.dtype_enum, source=source, tensor=tensor)
    item_size = dtypes.item_size_bytes(dtype)
    elements = element_count(entry.shape)
    if item_size:
        fits, expected = entry.size_bytes == elements * item_size, f"{elements * item_size}"
    elif dtype == dtypes.STRING:
        # A length of at least one byte an element, and one checksum; nothing at all is the other form of no
        # elements.
        least = elements + 4 if elements or entry.size_bytes else 0
        fits, expected = entry.size_bytes >= least, f"at least {least}"
    else:
        least = elements * 5
        fits, expected = entry.size_bytes >= least, f"at least {least}"
    if not fits and not entry.slices:
        raise FormatError(
            "Invalid size in bundle entry",
            url=source,
            tensor=tensor,
            expected=f"{expected} bytes for shape {list(entry.shape)} of {dtype.name}",
            actual=entry.size_bytes,
        )
    dtypes.check_array_shape(entry.shape, dtype, source=source, tensor=tensor)
    return dtype
