"""The checks of a V2 bundle: index, places, slices, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ckptstore.bundle.findings import Findings
from ckptstore.bundle.index_file import IndexFile, shown_name
from ckptstore.bundle.plan import STAGE_SIZE_BYTES, ReadItem, ReadRun, plan_reads
from ckptstore.bundle.reader_v2 import ReaderV2
from ckptstore.bundle.shards import ShardFile
from ckptstore.errors import CorruptError, FormatError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import crc32c
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleEntry,
    check_entry,
    decode_entry,
    element_count,
    key_to_name,
)
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.types import ByteRange

__all__ = ["Progress", "verify_v2"]

Progress = Callable[[int, int], None]
"""Called with the bytes of the data files checked so far, and those to check in all."""


class _Piece(NamedTuple):
    """A tensor in one piece, or a slice, whose entry is sound."""

    name: str
    entry: BundleEntry

    @property
    def has_varying_size(self) -> bool:
        return self.entry.dtype_enum in (dtypes.STRING.as_datatype_enum, dtypes.VARIANT.as_datatype_enum)


def verify_v2(reader: ReaderV2, findings: Findings, *, quick: bool, progress: Progress | None) -> None:
    """Add everything that is wrong with the bundle to `findings`."""
    items, is_whole = _index_items(reader.index, findings)
    pieces, partitioned = _check_entries(reader, items, findings)
    if is_whole:
        findings.tensors_checked = len(reader.names())
        for name in partitioned:
            try:
                reader.check(name)
            except UnsupportedError:
                pass
            except CorruptError as error:
                findings.add(error, reader.url, name)
    else:
        findings.tensors_checked = sum(key[:1] != b"\x00" for key, _ in items if key != HEADER_KEY)
    by_shard: dict[int, list[_Piece]] = {}
    for piece in pieces:
        by_shard.setdefault(piece.entry.shard_id, []).append(piece)
    readable = [
        (reader.shards[shard_id], _check_places(reader.shards[shard_id], by_shard[shard_id], findings))
        for shard_id in sorted(by_shard)
    ]
    if quick:
        return
    total = sum(piece.entry.size_bytes for _, inside in readable for piece in inside)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        findings.bytes_checked += size
        if progress is not None:
            progress(done, total)

    for shard, inside in readable:
        try:
            _check_bytes(shard, inside, reader.header.big_endian, findings, advance)
        except CorruptError as error:
            # The file was cut or removed while it was being read: nothing more to learn from it.
            findings.add(error, shard.url)


def _index_items(index: IndexFile, findings: Findings) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the items of the index, and whether these are all: of a damaged one, those before the damage."""
    try:
        items = list(index.items().items())
    except CorruptError as error:
        findings.add(error, index.url)
    else:
        findings.bytes_checked += index.size_bytes
        return items, True
    items = []
    with contextlib.suppress(CorruptError):  # it was reported above
        items.extend(index.table.items())
    return items, False


def _check_entries(
    reader: ReaderV2, items: list[tuple[bytes, bytes]], findings: Findings
) -> tuple[list[_Piece], list[str]]:
    """Check each entry by itself; return the sound ones with bytes, and the partitioned tensors."""
    pieces: list[_Piece] = []
    partitioned: list[str] = []
    for key, value in items:
        if key == HEADER_KEY:
            continue
        name = shown_name(key)
        try:
            # Not by asking for the key: in a damaged index a lookup may miss what a walk finds.
            entry = decode_entry(value, source=reader.url, tensor=name)
        except CorruptError as error:
            findings.add(error, reader.url, name)
            continue
        try:
            check_entry(entry, source=reader.url, tensor=name)
        except UnsupportedError as error:
            findings.notes.append(str(error))
            if entry.slices:
                continue
        except CorruptError as error:
            findings.add(error, reader.url, name)
            continue
        if entry.slices:
            partitioned.append(key_to_name(key))
        else:
            pieces.append(_Piece(name, entry))
    return pieces, partitioned


def _check_places(shard: ShardFile, pieces: list[_Piece], findings: Findings) -> list[_Piece]:
    """Return the pieces whose bytes the file has."""
    pieces.sort(key=lambda piece: piece.entry.offset)
    first = next((piece for piece in pieces if piece.entry.size_bytes), None)
    if first is None:
        return pieces  # a file of no bytes is never looked for
    try:
        size = shard.size_bytes(first.name)
    except CorruptError as error:
        if len(pieces) > 1:
            error.hint = f"{len(pieces)} tensors or slices are in it. {error.hint}"
        findings.add(error, shard.url)
        return []
    inside = []
    apart = []
    claimed = reached = 0
    shared = None
    for piece in pieces:
        try:
            shard.check_inside(piece.entry, piece.name)
        except CorruptError as error:
            findings.add(error, shard.url, piece.name, piece.entry)
            continue
        inside.append(piece)
        claimed += piece.entry.size_bytes
        if piece.entry.size_bytes and piece.entry.offset < reached:
            shared = shared or piece.name
        else:
            apart.append(piece)
        reached = max(reached, piece.entry.offset + piece.entry.size_bytes)
    if claimed > size:
        findings.add(
            FormatError(
                "several tensors or slices claim the same bytes of a data file",
                expected=f"at most {size} bytes",
                actual=f"{claimed} bytes",
            ),
            shard.url,
            shared,
        )
        # A small index could have a large file read ten thousand times.
        return apart
    if shared is not None:
        findings.notes.append(f"tensor {shared!r} shares bytes of {shard.url} with another one")
    return inside


def _check_bytes(
    shard: ShardFile,
    pieces: list[_Piece],
    big_endian: bool,
    findings: Findings,
    advance: Callable[[int], None],
) -> None:
    """Read the file once from front to back, in memory of bounded size, and compare every checksum."""
    items = []
    for number, (name, entry) in enumerate(pieces):
        start, size = entry.offset, entry.size_bytes
        if size:
            items.append(ReadItem(entry.shard_id, start, start + size, name, number))
        else:
            _check_piece(shard, pieces[number], b"", big_endian, findings)
    buffer = np.empty(min(STAGE_SIZE_BYTES, sum(item.stop - item.start for item in items)), np.uint8)
    for run in plan_reads(items).runs:
        size = run.stop - run.start
        first = pieces[run.items[0].request]
        if not run.staged and not first.has_varying_size:
            crc = _crc32c_of(shard, run, buffer)
            _compare(shard, first, crc, findings)
            advance(size)
            continue
        # Strings are checked in one go: their checksum runs over their lengths, not over the bytes of these.
        if size > len(buffer):
            buffer = np.empty(size, np.uint8)
        view = buffer.data[:size]
        shard.read_into([ByteRange(run.start, run.stop)], [view], first.name)
        for item in run.items:
            raw = bytes(view[item.start - run.start : item.stop - run.start])
            _check_piece(shard, pieces[item.request], raw, big_endian, findings)
            advance(len(raw))


def _crc32c_of(shard: ShardFile, run: ReadRun, buffer: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    crc = 0
    for start in range(run.start, run.stop, STAGE_SIZE_BYTES):
        stop = min(run.stop, start + STAGE_SIZE_BYTES)
        if len(buffer) < stop - start:
            buffer = np.empty(stop - start, np.uint8)
        view = buffer.data[: stop - start]
        shard.read_into([ByteRange(start, stop)], [view], run.items[0].tensor)
        crc = crc32c(view, crc)
    return crc


def _check_piece(shard: ShardFile, piece: _Piece, raw: bytes, big_endian: bool, findings: Findings) -> None:
    if not piece.has_varying_size:
        _compare(shard, piece, crc32c(raw), findings)
        return
    entry = piece.entry
    is_string = entry.dtype_enum == dtypes.STRING.as_datatype_enum
    try:
        (decode_strings if is_string else decode_variants)(
            raw,
            element_count(entry.shape),
            big_endian=big_endian,
            masked_crc32c=entry.masked_crc32c,
            source=shard.url,
            tensor=piece.name,
            offset=entry.offset,
        )
    except UnsupportedError as error:
        findings.notes.append(str(error))
    except CorruptError as error:
        findings.add(error, shard.url, piece.name, entry)


def _compare(shard: ShardFile, piece: _Piece, crc: int, findings: Findings) -> None:
    try:
        shard.check_crc32c(piece.entry, crc, piece.name)
    except CorruptError as error:
        findings.add(error, shard.url, piece.name, piece.entry)
