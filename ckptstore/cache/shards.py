"""The data files of a checkpoint in the cache: what is there and right, and what is to be fetched."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

from ckptstore.bundle.read.shard_files import ShardFile, ShardFiles, WantedBytes
from ckptstore.cache.cached_shard import CachedShard
from ckptstore.cache.copy import Copy
from ckptstore.cache.fetching import Fetching
from ckptstore.cache.pieces import Place, are_right, place_of, stop_of
from ckptstore.cache.room import Room
from ckptstore.cache.troubles import Troubles
from ckptstore.cache.turns import Patience
from ckptstore.format.entry import BundleHeader
from ckptstore.storage.base import Location
from ckptstore.storage.local.range_locks import RangeLocks
from ckptstore.transfer.transfer import Transfer

__all__ = ["CachedShards"]

# Of a larger tensor a part is read from the storage, if it is less than this share.
_WHOLE_SIZE_BYTES = 64 * 1024 * 1024
_WHOLE_SHARE = 8


class CachedShards(ShardFiles):
    """The data files of one checkpoint by number.

    Parameters
    ----------
    prefix, header, index_is_current
        As for `ShardFiles`.
    copy : Copy
    use : RangeLocks
        Keeps the copy from being removed.
    room : Room
    troubles : Troubles

    Threads
    -------
    Safe for concurrent use.
    """

    is_cache = True

    def __init__(
        self,
        prefix: Location,
        header: BundleHeader,
        index_is_current: Callable[[], bool],
        copy: Copy,
        use: RangeLocks,
        room: Room,
        troubles: Troubles,
    ) -> None:
        super().__init__(prefix, header, index_is_current)
        self.has_views = True
        self._origin = ShardFiles(prefix, header, index_is_current)
        self._url = prefix.url
        self._index_is_current = index_is_current
        self._copy = copy
        self._use = use
        self._room = room
        self._troubles = troubles
        self._patience = Patience()

    def new_file(self, shard_id: int, location: Location) -> ShardFile:
        origin, end = self._origin[shard_id], self._copy.ends.get(shard_id, 0)
        if not end:
            return origin
        path = self._copy.data_path(shard_id)
        return CachedShard(origin, location, self._url, self._index_is_current, path, end, self._troubles.add)

    def close(self) -> None:
        self._use.close()

    def fetch_ahead(
        self,
        wanted: Sequence[WantedBytes],
        transfer: Transfer | None = None,
        memory_budget: int | None = None,
    ) -> list[bool]:
        tensors = {piece.entry.shard_id: piece.tensor for piece in wanted if piece.entry.size_bytes}
        files = {
            shard_id: file for shard_id, tensor in tensors.items() if (file := self._file(shard_id, tensor))
        }
        pieces = {
            place_of(piece): piece
            for piece in wanted
            if piece.entry.size_bytes and piece.entry.shard_id in files
        }

        def present(pieces: Sequence[WantedBytes]) -> list[bool]:
            return self._are_present(pieces, files)

        is_present = dict(zip(pieces, present(list(pieces.values())), strict=True))
        small = _small_parts(wanted)
        missing = [piece for place, piece in pieces.items() if not is_present[place] and place not in small]
        if missing:
            fetching = Fetching(
                self._copy,
                files,
                self._room,
                present,
                self._troubles.add,
                self.parallel_reads,
                self._patience,
            )
            fetched = fetching.run(missing, self.big_endian, transfer, memory_budget)
            is_present.update(dict.fromkeys(fetched, True))
        for place, piece in pieces.items():
            files[place[0]].set_absent(place[1], stop_of(piece), is_absent=not is_present[place])
        self._troubles.tell()
        return [not piece.entry.size_bytes or is_present.get(place_of(piece), False) for piece in wanted]

    def _file(self, shard_id: int, tensor: str) -> CachedShard | None:
        """Return a data file, on behalf of a tensor; None if the cache cannot have it."""
        shard = self[shard_id]
        return shard if isinstance(shard, CachedShard) and shard.file(tensor) is not None else None

    def _are_present(self, pieces: Sequence[WantedBytes], files: dict[int, CachedShard]) -> list[bool]:
        """Return whether the cache has the bytes of each: no hole, and the right checksum."""
        found = [False] * len(pieces)
        rows = [row for row, is_hole in enumerate(self._have_holes(pieces, files)) if not is_hole]
        whole = [pieces[row] for row in rows]
        memories = [files[piece.entry.shard_id].memory(piece.entry.offset, stop_of(piece)) for piece in whole]
        for row, is_right in zip(
            rows, are_right(whole, memories, self.big_endian, self.parallel_reads), strict=True
        ):
            found[row] = is_right
        return found

    def _have_holes(self, pieces: Sequence[WantedBytes], files: dict[int, CachedShard]) -> list[bool]:
        found = [False] * len(pieces)
        rows_of: dict[int, list[int]] = {}
        for row, piece in enumerate(pieces):
            rows_of.setdefault(piece.entry.shard_id, []).append(row)
        for shard_id, rows in rows_of.items():
            if files[shard_id].is_whole():
                continue
            start = min([pieces[row].entry.offset for row in rows])
            stop = max([stop_of(pieces[row]) for row in rows])
            holes = files[shard_id].holes(start, stop)
            ends = [end for _, end in holes]
            for row in rows:
                at = bisect.bisect_right(ends, pieces[row].entry.offset)
                found[row] = at < len(holes) and holes[at][0] < stop_of(pieces[row])
        return found


def _small_parts(wanted: Iterable[WantedBytes]) -> set[Place]:
    """Return the large tensors of which little is wanted."""
    large = [piece for piece in wanted if piece.entry.size_bytes > _WHOLE_SIZE_BYTES]
    wanted_bytes: dict[Place, int] = {}
    for piece in large:
        wanted_bytes[place_of(piece)] = wanted_bytes.get(place_of(piece), 0) + piece.wanted_bytes
    return {
        place_of(piece)
        for piece in large
        if wanted_bytes[place_of(piece)] * _WHOLE_SHARE <= piece.entry.size_bytes
    }
