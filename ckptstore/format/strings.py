"""The bytes of string and variant tensors.

Format
------
Mirrors TensorFlow `tensorflow/core/util/tensor_bundle/tensor_bundle.cc` (WriteStringTensor,
WriteVariantTensor), as measured on TensorFlow 2.21.

    string   varint64 length, one per element | masked(c): u32 | the bytes of all elements
             c = CRC32C over the lengths as u32 each (u64 above 2**32 - 1), in the byte order of the file
    variant  per element: varint64 length | VariantTensorDataProto | masked(running): u32 LE
             running = CRC32C over length as u64 LE and proto, then over the stored checksum, then on to the
             next element

The entry's checksum is continued over the stored checksums and everything after them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np

from ckptstore.errors import ChecksumError, FormatError, UnsupportedError
from ckptstore.format.coding import BytesLike, decode_varint, encode_fixed32, encode_varint
from ckptstore.format.crc32c import crc32c, mask, unmask

__all__ = ["decode_strings", "decode_variants", "encode_strings", "encode_variants"]

_UINT32_MAX = 0xFFFFFFFF


def encode_strings(values: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the bytes of a string tensor in C order, and their unmasked CRC32C for the entry."""
    lengths = [len(value) for value in values]
    head = _encode_lengths(lengths)
    checksum = _lengths_crc32c(lengths, big_endian=False)
    stored = encode_fixed32(mask(checksum))
    body = b"".join(values)
    return b"".join((head, stored, body)), crc32c(body, crc32c(stored, checksum))


def _encode_lengths(lengths: list[int]) -> bytes:
    if max(lengths, default=0) < 128:
        return bytes(lengths)
    return b"".join([encode_varint(length) for length in lengths])


def _lengths_crc32c(lengths: list[int], *, big_endian: bool) -> int:
    order = ">" if big_endian else "<"
    if max(lengths, default=0) <= _UINT32_MAX:
        return crc32c(np.array(lengths, dtype=f"{order}u4"))
    crc = 0
    for length in lengths:
        crc = crc32c(struct.pack(f"{order}{'I' if length <= _UINT32_MAX else 'Q'}", length), crc)
    return crc


def decode_strings(
    data: BytesLike,
    count: int,
    *,
    big_endian: bool = False,
    masked_crc32c: int | None = None,
    source: str,
    tensor: str,
    offset: int = 0,
) -> list[bytes]:
    """Return the elements of a string tensor.

    Parameters
    ----------
    data : bytes-like
        All bytes of the tensor.
    count : int
        Number of elements, from the shape.
    big_endian : bool
        Byte order of the file: of the stored checksum and of the lengths that it covers.
    masked_crc32c : int, optional
        The checksum of the entry. Given, it is verified; it cannot be calculated from the bytes alone,
        because the lengths enter it in another form than they have in the file.
    source, tensor : str
        URL and name for error messages.
    offset : int, bytes
        Where `data` begins in the file, for error messages.

    Raises
    ------
    FormatError
        If the lengths cannot be read or do not add up to the size of `data`.
    ChecksumError
        If the length checksum or the entry's differs.
    """
    view = memoryview(data).cast("B")
    size = len(view)
    if not size and not count:
        # TensorFlow stores a checksum even for no elements, other writers nothing.
        _check_entry_crc32c(0, masked_crc32c, source, tensor, offset)
        return []
    if count + 4 > size:
        raise FormatError(
            "a string tensor is too small for its elements",
            url=source,
            tensor=tensor,
            offset=offset,
            expected=f"at least {count + 4} bytes for {count} elements",
            actual=size,
        )
    lengths, pos = _decode_lengths(view, count, source, tensor, offset)
    if pos + 4 + sum(lengths) != size:
        raise FormatError(
            "the lengths of a string tensor do not add up to its size",
            url=source,
            tensor=tensor,
            offset=offset,
            expected=f"{size} bytes",
            actual=pos + 4 + sum(lengths),
        )
    checksum = _lengths_crc32c(lengths, big_endian=big_endian)
    stored = int.from_bytes(view[pos : pos + 4], "big" if big_endian else "little")
    _check_crc32c("The length checksum does not match", checksum, stored, source, tensor, offset + pos)
    if masked_crc32c is not None:
        _check_entry_crc32c(crc32c(view[pos:], checksum), masked_crc32c, source, tensor, offset)
    body = bytes(view[pos + 4 :])
    ends = list(itertools.accumulate(lengths))
    return [body[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _decode_lengths(
    view: memoryview, count: int, source: str, tensor: str, offset: int
) -> tuple[list[int], int]:
    head = bytes(view[:count])
    if not count or max(head) < 128:
        return list(head), count
    lengths = []
    pos = 0
    try:
        for _ in range(count):
            length, pos = decode_varint(view, pos, source=source)
            lengths.append(length)
        if pos + 4 > len(view):
            raise FormatError("a string tensor ends before its length checksum")
    except FormatError as error:
        error.url, error.tensor, error.offset = source, tensor, offset + pos
        raise
    return lengths, pos


def _check_entry_crc32c(crc: int, masked_crc32c: int | None, source: str, tensor: str, offset: int) -> None:
    if masked_crc32c is not None:
        _check_crc32c("Checksum does not match", crc, masked_crc32c, source, tensor, offset)


def _check_crc32c(what: str, crc: int, masked_crc32c: int, source: str, tensor: str, offset: int) -> None:
    if unmask(masked_crc32c) != crc:
        raise ChecksumError(
            what,
            url=source,
            tensor=tensor,
            offset=offset,
            expected=f"{unmask(masked_crc32c):#010x}",
            actual=f"{crc:#010x}",
            hint="The data file is damaged; restore an older checkpoint or copy this one again.",
        )


def encode_variants(protos: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the bytes of a variant tensor, and their unmasked CRC32C for the entry.

    Parameters
    ----------
    protos : sequence of bytes
        A serialized VariantTensorDataProto an element, in C order.
    """
    parts = []
    crc = 0
    for proto in protos:
        crc = crc32c(proto, crc32c(struct.pack("<Q", len(proto)), crc))
        stored = encode_fixed32(mask(crc))
        crc = crc32c(stored, crc)
        parts += [encode_varint(len(proto)), proto, stored]
    return b"".join(parts), crc


def decode_variants(
    data: BytesLike,
    count: int,
    *,
    big_endian: bool = False,
    masked_crc32c: int | None = None,
    source: str,
    tensor: str,
    offset: int = 0,
) -> list[bytes]:
    """Return the serialized VariantTensorDataProtos of a variant tensor.

    Parameters and errors are those of `decode_strings`.

    Raises
    ------
    UnsupportedError
        If the file is big-endian: TensorFlow neither writes nor reads that.
    """
    if big_endian:
        raise UnsupportedError("variants of a big-endian file cannot be read", url=source, tensor=tensor)
    view = memoryview(data).cast("B")
    size = len(view)
    if count * 5 > size:
        raise FormatError(
            "a variant tensor is too small for its elements",
            url=source,
            tensor=tensor,
            offset=offset,
            expected=f"at least {count * 5} bytes for {count} elements",
            actual=size,
        )
    protos = []
    crc = pos = 0
    for index in range(count):
        start = pos
        try:
            length, pos = decode_varint(view, pos, source=source)
            if length + 4 > size - pos:
                raise FormatError(
                    f"variant element {index} runs past the end of the tensor", actual=f"{length} bytes"
                )
        except FormatError as error:
            error.url, error.tensor, error.offset = source, tensor, offset + start
            raise
        proto = bytes(view[pos : pos + length])
        pos += length
        crc = crc32c(proto, crc32c(struct.pack("<Q", length), crc))
        stored = int.from_bytes(view[pos : pos + 4], "little")
        what = f"The checksum of variant element {index} does not match"
        _check_crc32c(what, crc, stored, source, tensor, offset + start)
        crc = crc32c(view[pos : pos + 4], crc)
        pos += 4
        protos.append(proto)
    if pos != size:
        raise FormatError(
            "a variant tensor has bytes after its last element",
            url=source,
            tensor=tensor,
            offset=offset + pos,
            expected=f"{pos} bytes",
            actual=size,
        )
    _check_entry_crc32c(crc, masked_crc32c, source, tensor, offset)
    return protos
