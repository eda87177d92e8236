"""The checks of a V2 bundle: index, places, slices, bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ckptstore.bundle.read.claims import ShardClaims, claims_by_shard
from ckptstore.bundle.read.fetch import PartSums
from ckptstore.bundle.read.index_check import IndexCheck
from ckptstore.bundle.read.index_file import IndexFile
from ckptstore.bundle.read.plan import ReadRun, plan_reads
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.read.shard_files import ShardFile, ShardFiles
from ckptstore.bundle.verify.report import Findings
from ckptstore.errors import CorruptError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.block import rows_of
from ckptstore.format.crc32c import crc32c
from ckptstore.format.entry import HEADER_KEY, BundleEntry, check_entry, element_count, key_to_name
from ckptstore.format.entry_columns import Integers
from ckptstore.format.slices import shown_name
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.transfer.download import Download, Request, joined
from ckptstore.transfer.ranges import split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["verify_v2"]

_VARYING_SIZE = (dtypes.STRING.as_datatype_enum, dtypes.VARIANT.as_datatype_enum)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Tensors in one piece, and slices, whose entries are sound; one row each, ascending by key.

    Attributes
    ----------
    rows : ndarray of int64
        Their rows in the index.
    shard_ids, offsets, sizes_bytes : ndarray of int64
    """

    index: IndexCheck
    rows: Integers
    shard_ids: Integers
    offsets: Integers
    sizes_bytes: Integers

    def name(self, number: int) -> str:
        return shown_name(self.index.keys[self.rows[number]])

    def entry(self, number: int) -> BundleEntry:
        return self.index.entry(int(self.rows[number]))


def verify_v2(reader: ReaderV2, findings: Findings, transfer: Transfer | None) -> None:
    """Add everything that is wrong with the bundle to `findings`; without a transfer read no tensor."""
    index, is_whole = _read_index(reader.index, findings)
    pieces, partitioned = _check_entries(reader, index, findings)
    if is_whole:
        findings.tensors_checked = len(index.name_rows())
        _check_partitioned(reader, index, partitioned, findings)
    else:
        findings.tensors_checked = sum(key[:1] != b"\x00" for key in index.keys if key != HEADER_KEY)
    claims = claims_by_shard(pieces.shard_ids, pieces.offsets, pieces.sizes_bytes, with_empty=True)
    readable = [
        (reader.shards[of_shard.shard_id], _check_places(reader.shards, of_shard, pieces, findings))
        for of_shard in claims
    ]
    if transfer is None:
        return
    transfer.restart(sum(int(pieces.sizes_bytes[numbers].sum()) for _, numbers in readable))
    for shard, numbers in readable:
        inside = [(pieces.name(number), pieces.entry(number)) for number in numbers.tolist()]
        bytes_check = _BytesCheck(shard, inside, reader.header.big_endian, transfer)
        try:
            bytes_check.run(reader.shards.parallel_reads)
        except CorruptError as error:
            # The file was cut or removed while it was being read: nothing more to learn from it.
            findings.add(error, shard.url)
        bytes_check.report(findings)
    findings.bytes_checked += transfer.done_bytes


def _read_index(index: IndexFile, findings: Findings) -> tuple[IndexCheck, bool]:
    """Return the items of the index, and whether these are all: of a damaged one, those before the damage."""
    try:
        rows = index.rows()
    except CorruptError as error:
        findings.add(error, index.url)
    else:
        findings.bytes_checked += index.size_bytes
        return rows, True
    items: list[tuple[bytes, bytes]] = []
    with contextlib.suppress(CorruptError):  # it was reported above
        items.extend(index.table.items())
    return IndexCheck([rows_of(items)], index.url), False


def _check_entries(reader: ReaderV2, index: IndexCheck, findings: Findings) -> tuple[_Pieces, list[int]]:
    """Check each entry by itself; return the sound ones with bytes, and the rows of partitioned tensors."""
    columns = index.columns
    shard_ids, offsets, sizes_bytes = columns.shard_ids, columns.offsets, columns.sizes_bytes
    is_piece = index.is_sound.copy()
    unusual: dict[int, BundleEntry] = {}
    partitioned: list[int] = []
    doubtful = (np.flatnonzero(~index.is_sound[1:]) + 1).tolist()
    partitions = index.partitions(doubtful)
    for row in doubtful:
        if partitions.get(row) is not None:
            partitioned.append(row)
            continue
        name = shown_name(index.keys[row])
        try:
            # Not by looking up the key: in a damaged index a lookup may miss what a walk finds.
            entry = index.entry(row)
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
            partitioned.append(row)
        else:
            is_piece[row] = True
            unusual[row] = entry
    if unusual:
        rows = list(unusual)
        shard_ids, offsets, sizes_bytes = shard_ids.copy(), offsets.copy(), sizes_bytes.copy()
        shard_ids[rows] = [entry.shard_id for entry in unusual.values()]
        offsets[rows] = [entry.offset for entry in unusual.values()]
        sizes_bytes[rows] = [entry.size_bytes for entry in unusual.values()]
    kept = np.flatnonzero(is_piece)
    return _Pieces(index, kept, shard_ids[kept], offsets[kept], sizes_bytes[kept]), partitioned


def _check_partitioned(reader: ReaderV2, index: IndexCheck, rows: Sequence[int], findings: Findings) -> None:
    """Check that the slices of each partitioned tensor are there, agree with it, and are all of it."""
    partitions = index.partitions(rows)
    for row in rows:
        partition = partitions.get(row)
        if partition is not None and partition.is_complete:
            continue
        name = key_to_name(index.keys[row])
        try:
            reader.check(name)
        except UnsupportedError:
            pass
        except CorruptError as error:
            findings.add(error, reader.url, name)


def _check_places(shards: ShardFiles, claims: ShardClaims, pieces: _Pieces, findings: Findings) -> Integers:
    """Return the numbers of the pieces whose bytes a data file has."""
    shard = shards[claims.shard_id]
    has_bytes = claims.sizes_bytes > 0
    if not has_bytes.any():
        return claims.rows  # a file of which no bytes are read need not exist
    try:
        size = shard.size_bytes(pieces.name(claims.rows[has_bytes.argmax()]))
    except CorruptError as error:
        if len(claims.rows) > 1:
            error.hint = f"{len(claims.rows)} tensors or slices are in it. {error.hint}"
        findings.add(error, shard.url)
        return claims.rows[:0]
    is_outside = claims.outside(size)
    for number in claims.rows[is_outside].tolist():
        name, entry = pieces.name(number), pieces.entry(number)
        try:
            shard.check_inside(entry.offset, entry.size_bytes, name)
        except CorruptError as error:
            findings.add(error, shard.url, name, entry)
    inside = claims.only(~is_outside)
    is_shared = np.zeros(len(inside.rows), np.bool_)
    reached = np.maximum.accumulate(inside.ends)
    is_shared[1:] = (inside.sizes_bytes[1:] > 0) & (inside.offsets[1:] < reached[:-1])
    shared = pieces.name(inside.rows[is_shared.argmax()]) if is_shared.any() else None
    overclaim = inside.overclaim(size)
    if overclaim is not None:
        findings.add(overclaim, shard.url, shared)
        # A small index could have a large file read ten thousand times.
        return inside.rows[~is_shared]
    if shared is not None:
        findings.notes.append(f"tensor {shared!r} shares bytes of {shard.url} with another one")
    return inside.rows


class _BytesCheck:
    """One data file, read once from front to back in memory of bounded size, and every checksum compared.

    Threads
    -------
    One thread calls `run` and then `report`.
    """

    def __init__(
        self,
        shard: ShardFile,
        pieces: Sequence[tuple[str, BundleEntry]],
        big_endian: bool,
        transfer: Transfer,
    ) -> None:
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

    def report(self, findings: Findings) -> None:
        """Add what was found, in the order of the file."""
        for number, error in sorted(self._errors, key=lambda found: found[0]):
            name, entry = self._pieces[number]
            findings.add(error, self._shard.url, name, entry)
        findings.notes += [note for _, note in sorted(self._notes)]

    def _requests(self, run: ReadRun, size_bytes: int) -> Iterator[Request]:
        number = run.rows[0]
        name, entry = self._pieces[number]
        if run.staged:
            wanted = ByteRange(run.start, run.stop)
            yield Request(self._shard, name, [wanted], [None], partial(self._take_run, run))
            return
        ranges = list(split(run.start, run.stop, size_bytes))
        sums = PartSums(len(ranges))
        # Strings are checked in one go: their checksum runs over their lengths, not over the bytes of these.
        whole = None
        if entry.dtype_enum in _VARYING_SIZE:
            whole = np.empty(run.stop - run.start, np.uint8).data
        for part, (start, stop) in enumerate(ranges):
            buffer = None if whole is None else whole[start - run.start : stop - run.start]
            take = partial(self._take_part, number, part, sums, whole)
            yield Request(self._shard, name, [ByteRange(start, stop)], [buffer], take)

    def _take_run(self, run: ReadRun, buffers: Sequence[memoryview]) -> None:
        for number in run.rows:
            entry = self._pieces[number][1]
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
        name, entry = self._pieces[number]
        if entry.dtype_enum not in _VARYING_SIZE:
            self._compare(number, crc32c(raw))
            return
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
