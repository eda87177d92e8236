"""The checks of a V2 bundle: index, places, slices, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ckptstore.bundle.read.fetch import PartSums
from ckptstore.bundle.read.index_file import IndexFile, shown_name
from ckptstore.bundle.read.plan import ReadRun, plan_reads
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.read.shard_files import ShardFile
from ckptstore.bundle.verify.report import Findings
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
from ckptstore.transfer.download import Download, Request, joined
from ckptstore.transfer.ranges import split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["verify_v2"]


class _Piece(NamedTuple):
    """A tensor in one piece, or a slice, whose entry is sound."""

    name: str
    entry: BundleEntry

    @property
    def has_varying_size(self) -> bool:
        return self.entry.dtype_enum in (dtypes.STRING.as_datatype_enum, dtypes.VARIANT.as_datatype_enum)


def verify_v2(reader: ReaderV2, findings: Findings, transfer: Transfer | None) -> None:
    """Add everything that is wrong with the bundle to `findings`; without a transfer read no tensor."""
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
    if transfer is None:
        return
    transfer.restart(sum(piece.entry.size_bytes for _, inside in readable for piece in inside))
    for shard, inside in readable:
        bytes_check = _BytesCheck(shard, inside, reader.header.big_endian, transfer)
        try:
            bytes_check.run(reader.shards.parallel_reads)
        except CorruptError as error:
            # The file was cut or removed while it was being read: nothing more to learn from it.
            findings.add(error, shard.url)
        bytes_check.tell(findings)
    findings.bytes_checked += transfer.done_bytes


def _index_items(index: IndexFile, findings: Findings) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the items of the index, and whether these are all: of a damaged one, those before the damage."""
    try:
        rows = index.rows()
    except CorruptError as error:
        findings.add(error, index.url)
    else:
        findings.bytes_checked += index.size_bytes
        return [(key, rows.value(row)) for row, key in enumerate(rows.keys)], True
    items: list[tuple[bytes, bytes]] = []
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


class _BytesCheck:
    """One data file, read once from front to back in memory of bounded size, and every checksum compared.

    Threads
    -------
    One thread calls `run` and then `tell`.
    """

    def __init__(self, shard: ShardFile, pieces: list[_Piece], big_endian: bool, transfer: Transfer) -> None:
        self._shard = shard
        self._pieces = pieces
        self._big_endian = big_endian
        self._transfer = transfer
        self._errors: list[tuple[int, CorruptError]] = []
        self._notes: list[tuple[int, str]] = []

    def run(self, parallel: int) -> None:
        """Read and compare."""
        entries = [entry for _, entry in self._pieces]
        for number, entry in enumerate(entries):
            if not entry.size_bytes:
                self._check(number, b"")
        download = Download(parallel, self._transfer, total_bytes=sum(entry.size_bytes for entry in entries))
        plan = plan_reads(
            [entry.shard_id for entry in entries],
            [entry.offset for entry in entries],
            [entry.offset + entry.size_bytes for entry in entries],
            stage_size_bytes=download.size_bytes,
        )
        size = download.size_bytes
        requests = joined((request for run in plan.runs for request in self._requests(run, size)), size)
        download.run(requests, lent_size_bytes=min(plan.size_bytes, size))

    def tell(self, findings: Findings) -> None:
        """Add what was found, in the order of the file."""
        for number, error in sorted(self._errors, key=lambda found: found[0]):
            name, entry = self._pieces[number]
            findings.add(error, self._shard.url, name, entry)
        findings.notes += [note for _, note in sorted(self._notes)]

    def _requests(self, run: ReadRun, size_bytes: int) -> Iterator[Request]:
        number = run.rows[0]
        name = self._pieces[number].name
        if run.staged:
            wanted = ByteRange(run.start, run.stop)
            yield Request(self._shard, name, [wanted], [None], partial(self._take_run, run))
            return
        ranges = list(split(run.start, run.stop, size_bytes))
        sums = PartSums(len(ranges))
        # Strings are checked in one go: their checksum runs over their lengths, not over the bytes of these.
        whole = None
        if self._pieces[number].has_varying_size:
            whole = np.empty(run.stop - run.start, np.uint8).data
        for part, (start, stop) in enumerate(ranges):
            buffer = None if whole is None else whole[start - run.start : stop - run.start]
            take = partial(self._take_part, number, part, sums, whole)
            yield Request(self._shard, name, [ByteRange(start, stop)], [buffer], take)

    def _take_run(self, run: ReadRun, buffers: Sequence[memoryview]) -> None:
        for number in run.rows:
            entry = self._pieces[number].entry
            start = entry.offset - run.start
            raw = bytes(buffers[0][start : start + entry.size_bytes])
            self._check(number, raw)
            self._transfer.advance(len(raw))

    def _take_part(
        self, number: int, part: int, sums: PartSums, whole: memoryview | None, buffers: Sequence[memoryview]
    ) -> None:
        size = len(buffers[0])
        is_last = sums.add(part, 0 if whole is not None else crc32c(buffers[0]), size)
        if is_last and whole is not None:
            self._check(number, whole)
        elif is_last:
            self._compare(number, sums.crc32c())
        self._transfer.advance(size)

    def _check(self, number: int, raw: bytes | memoryview) -> None:
        """Check the bytes of one piece."""
        piece = self._pieces[number]
        if not piece.has_varying_size:
            self._compare(number, crc32c(raw))
            return
        name, entry = piece
        is_string = entry.dtype_enum == dtypes.STRING.as_datatype_enum
        try:
            (decode_strings if is_string else decode_variants)(
                raw,
                element_count(entry.shape),
                big_endian=self._big_endian,
                masked_crc32c=entry.masked_crc32c,
                source=self._shard.url,
                tensor=name,
                offset=entry.offset,
            )
        except UnsupportedError as error:
            self._notes.append((number, str(error)))
        except CorruptError as error:
            self._errors.append((number, error))

    def _compare(self, number: int, crc: int) -> None:
        name, entry = self._pieces[number]
        try:
            self._shard.check_crc32c(entry, crc, name)
        except CorruptError as error:
            self._errors.append((number, error))
