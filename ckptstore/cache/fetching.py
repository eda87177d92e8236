"""Fetch what the cache lacks: each part of the data files by one process of the host, every byte verified.

What is written was verified in private memory before, so all write the same bytes, and nobody sees a wrong
one, whoever is killed, and whatever `turns` is worth.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ckptstore.bundle.read.fetch import PartSums
from ckptstore.bundle.read.shard_files import WantedBytes
from ckptstore.cache.cached_shard import CachedShard
from ckptstore.cache.copy import Copy, Part
from ckptstore.cache.pieces import Place, check, has_strings, place_of, stop_of
from ckptstore.cache.room import Room
from ckptstore.cache.turns import CELL_SIZE_BYTES, Patience, Turn, Turns, cell_of
from ckptstore.format.crc32c import crc32c, crc32c_of_ranges, mask
from ckptstore.storage.local.sparse_file import SparseFile
from ckptstore.storage.retry import pause
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.download import Download, Request, Source
from ckptstore.transfer.ranges import coalesce, split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["Fetching"]

# Above this a tensor is verified in a file of its own, not in memory.
_MEMORY_SIZE_BYTES = 64 * 1024 * 1024
_COPY_SIZE_BYTES = 1 << 20

_SHORTEST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.2


class _Watched:
    """A source that gives a sign of life whenever bytes come: one request may take longer than patience."""

    def __init__(self, origin: Source, beat: Callable[[], object]) -> None:
        self._origin = origin
        self._beat = beat

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        scope = (current_scope() or Scope()).branch()
        scope.on_progress = self._beat
        try:
            scope.run(lambda: self._origin.read_into(ranges, buffers, tensor))
        finally:
            scope.detach()


class Fetching:
    """One pass over pieces that are missing.

    Parameters
    ----------
    copy : Copy
    shards : mapping
        Shard → its file, open in the cache.
    room : Room
    are_present : callable
        Returns which of some pieces the cache has by now.
    trouble : callable
        Gets the errors of the cache's own files; None where it is full.
    parallel : int
        Requests at the same time.
    patience : Patience

    Threads
    -------
    One thread calls `run`.
    """

    def __init__(
        self,
        copy: Copy,
        shards: Mapping[int, CachedShard],
        room: Room,
        are_present: Callable[[Sequence[WantedBytes]], list[bool]],
        trouble: Callable[[OSError | None], None],
        parallel: int,
        patience: Patience,
    ) -> None:
        self._copy = copy
        self._shards = shards
        self._room = room
        self._are_present = are_present
        self._trouble = trouble
        self._parallel = parallel
        self._patience = patience
        self._turns: Turns
        self._there: set[Place] = set()
        self._parts: list[Part] = []
        self._is_bounded = False
        self._big_endian = False
        self._download = Download(1)

    def run(
        self,
        wanted: Sequence[WantedBytes],
        big_endian: bool,
        transfer: Transfer | None,
        memory_budget: int | None,
    ) -> set[Place]:
        """Fetch pieces; return shard and offset of those that are in the cache now.

        Raises
        ------
        CkptStoreError
            From the storage, or if its bytes are damaged.
        """
        self._big_endian = big_endian
        total_bytes = sum([piece.entry.size_bytes for piece in wanted])
        self._download = Download(self._parallel, transfer, memory_budget, total_bytes)
        self._is_bounded = memory_budget is not None
        if transfer is not None:
            self._is_bounded = transfer.budget.limit_bytes is not None
        cells: dict[Place, list[WantedBytes]] = {}
        for piece in sorted(wanted, key=place_of):
            shard_id, offset = place_of(piece)
            cells.setdefault((shard_id, offset // CELL_SIZE_BYTES), []).append(piece)
        order = list(cells.values())
        first = random.SystemRandom().randrange(len(order))
        order = order[first:] + order[:first]
        self._turns = Turns(self._copy, self._patience, self._trouble)
        try:
            busy = self._pass(order)
            self._wait_for(busy)
        finally:
            for part in list(self._parts):
                self._remove(part)
            self._turns.close()
        return self._there

    def _wait_for(self, busy: list[list[WantedBytes]]) -> None:
        """Take what others fetch, or fetch it when they do not."""
        pause_s = _SHORTEST_PAUSE_S
        while busy:
            scope = current_scope()
            if scope is not None:
                scope.check()
            pause(pause_s, None if scope is None else scope.cancellation)
            before = len(busy)
            busy = self._pass(busy)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if len(busy) == before else _SHORTEST_PAUSE_S

    def _pass(self, cells: Sequence[list[WantedBytes]]) -> list[list[WantedBytes]]:
        """Fetch what is missing of the cells that are free; return the others."""
        busy: list[list[WantedBytes]] = []
        self._download.run(self._requests(cells, busy))
        return busy

    def _requests(
        self, cells: Sequence[list[WantedBytes]], busy: list[list[WantedBytes]]
    ) -> Iterator[Request]:
        for pieces in cells:
            cell = cell_of(place_of(pieces[0]))
            turn = self._turns.take(cell)
            if turn is Turn.THEIRS:
                busy.append(pieces)
                continue
            requests = list(self._of_cell(pieces, turn is Turn.MINE))
            if not requests:
                self._turns.give_back(cell)
                continue
            rest = itertools.count(1 - len(requests))
            for request in requests:
                source = request.source
                if turn is Turn.MINE:
                    source = _Watched(source, partial(self._turns.get_on, cell))
                take = partial(self._take, request.take, cell, rest)
                yield request._replace(source=source, take=take)

    def _take(
        self,
        take: Callable[[Sequence[memoryview]], object],
        cell: int,
        rest: Iterator[int],
        buffers: Sequence[memoryview],
    ) -> None:
        take(buffers)
        self._turns.get_on(cell)
        if next(rest) == 0:
            self._turns.give_back(cell)

    def _of_cell(self, cell: Sequence[WantedBytes], is_owner: bool) -> Iterator[Request]:
        is_there = self._are_present(cell)
        self._there.update([place_of(piece) for piece, is_it in zip(cell, is_there, strict=True) if is_it])
        missing = [piece for piece, is_it in zip(cell, is_there, strict=True) if not is_it]
        if not missing:
            return
        if not self._has_room(sum([piece.entry.size_bytes for piece in missing])):
            return
        shard = self._shards[missing[0].entry.shard_id]
        for piece in missing:
            shard.origin.check_inside(piece.entry.offset, piece.entry.size_bytes, piece.tensor)
        most_bytes = self._download.size_bytes
        small = [piece for piece in missing if piece.entry.size_bytes <= most_bytes]
        starts, stops = [piece.entry.offset for piece in small], [stop_of(piece) for piece in small]
        for first, end in coalesce(starts, stops, most_size_bytes=most_bytes):
            run = small[first:end]
            whole = ByteRange(starts[first], max(stops[first:end]))
            take = partial(self._take_run, shard, run)
            yield Request(shard.origin, run[0].tensor, [whole], [None], take)
        for piece in missing:
            if piece.entry.size_bytes > most_bytes:
                yield from self._of_large(shard, piece, is_owner)

    def _has_room(self, size_bytes: int, taken_bytes: int = 0) -> bool:
        try:
            has_room = self._room.has(size_bytes, self._copy.source, taken_bytes)
        except OSError as error:
            self._trouble(error)
            return False
        if not has_room:
            self._trouble(None)
        return has_room

    def _take_run(
        self, shard: CachedShard, run: Sequence[WantedBytes], buffers: Sequence[memoryview]
    ) -> None:
        block = np.frombuffer(buffers[0], np.uint8)
        starts = [piece.entry.offset - run[0].entry.offset for piece in run]
        stops = [start + piece.entry.size_bytes for start, piece in zip(starts, run, strict=True)]
        crcs = crc32c_of_ranges(block, starts, stops)
        for piece, crc, start, stop in zip(run, crcs, starts, stops, strict=True):
            check(piece, crc, block[start:stop], self._big_endian, shard.origin)
        # Bytes between two of them were not verified. Neighbours are written at one go.
        first = 0
        for end in range(1, len(run) + 1):
            if end < len(run) and starts[end] == stops[end - 1]:
                continue
            self._write(shard, run[first:end], block[starts[first] : stops[end - 1]].data)
            first = end

    def _of_large(self, shard: CachedShard, piece: WantedBytes, is_owner: bool) -> Iterator[Request]:
        """Yield the parts of a piece; it is written when all of them are there and verified."""
        entry = piece.entry
        ranges = list(split(entry.offset, stop_of(piece), self._download.size_bytes))
        sums = PartSums(len(ranges))
        is_large = self._is_bounded or entry.size_bytes > _MEMORY_SIZE_BYTES
        if is_large and not has_strings(piece):
            # Only by one process: each file takes as much of the disk as the tensor.
            if is_owner:
                yield from self._through_file(shard, piece, ranges, sums)
            return
        memory = np.empty(entry.size_bytes, np.uint8)

        def take(number: int, buffers: Sequence[memoryview]) -> None:
            if sums.add(number, crc32c(buffers[0]), len(buffers[0])):
                check(piece, sums.crc32c(), memory, self._big_endian, shard.origin)
                self._write(shard, [piece], memory.data)

        for number, (low, high) in enumerate(ranges):
            buffer = memory.data[low - entry.offset : high - entry.offset]
            wanted = [ByteRange(low, high)]
            yield Request(shard.origin, piece.tensor, wanted, [buffer], partial(take, number))

    def _through_file(
        self, shard: CachedShard, piece: WantedBytes, ranges: Sequence[tuple[int, int]], sums: PartSums
    ) -> Iterator[Request]:
        if not self._has_room(2 * piece.entry.size_bytes, taken_bytes=piece.entry.size_bytes):
            return
        try:
            part = Part(self._copy.directory)
        except OSError as error:
            self._trouble(error)
            return
        self._parts.append(part)
        failures: list[OSError] = []

        def take(number: int, low: int, buffers: Sequence[memoryview]) -> None:
            if not failures:
                try:
                    part.file.write(low - piece.entry.offset, buffers[0])
                except OSError as error:
                    failures.append(error)
                    self._trouble(error)
            if sums.add(number, crc32c(buffers[0]), len(buffers[0])):
                check(piece, sums.crc32c(), None, self._big_endian, shard.origin)
                if not failures:
                    self._write(shard, [piece], part.file)
                self._remove(part)

        for number, (low, high) in enumerate(ranges):
            wanted = [ByteRange(low, high)]
            yield Request(shard.origin, piece.tensor, wanted, [None], partial(take, number, low))

    def _remove(self, part: Part) -> None:
        self._parts.remove(part)
        try:
            part.remove()
        except OSError as error:
            self._trouble(error)

    def _write(
        self, shard: CachedShard, run: Sequence[WantedBytes], content: memoryview | SparseFile
    ) -> None:
        """Write neighbours that were verified."""
        start, size_bytes = run[0].entry.offset, sum([piece.entry.size_bytes for piece in run])
        is_right = True

        def write() -> None:
            nonlocal is_right
            file = shard.file(run[0].tensor)
            assert file is not None
            if isinstance(content, memoryview):
                file.write(start, content)
            else:
                is_right = _copy_range(content, file, start, size_bytes) == run[0].entry.masked_crc32c

        try:
            is_written = self._room.write(size_bytes, write, self._copy.source)
        except OSError as error:
            self._trouble(error)
            return
        if not is_written:
            self._trouble(None)
        elif is_right:
            self._there.update(map(place_of, run))


def _copy_range(source: SparseFile, target: SparseFile, start: int, size_bytes: int) -> int:
    """Copy a whole file to a place in another; return the masked checksum of what was copied."""
    buffer = np.empty(min(size_bytes, _COPY_SIZE_BYTES), np.uint8).data
    crc = at = 0
    while at < size_bytes:
        part = buffer[: size_bytes - at]
        source.read_into(at, part)
        crc = crc32c(part, crc)
        target.write(start + at, part)
        at += len(part)
    return mask(crc)
