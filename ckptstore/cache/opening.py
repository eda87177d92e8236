"""Open a checkpoint through the cache: which version there is now, and where its bytes are kept."""

from __future__ import annotations

from ckptstore.bundle.read.index_file import IndexFile
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.cache.copy import Copy, copies_of, digest, use
from ckptstore.cache.last_seen import PATIENCE_S, source_of
from ckptstore.cache.pieces import ends_of
from ckptstore.cache.room import Room
from ckptstore.cache.shards import CachedShards
from ckptstore.cache.troubles import Troubles
from ckptstore.errors import CorruptError, TransientError
from ckptstore.format.naming import index_name
from ckptstore.storage.base import Location
from ckptstore.storage.local.private_directory import PrivateDirectory
from ckptstore.storage.scope import Scope
from ckptstore.storage.values import GetResult
from ckptstore.types import ByteRange
from ckptstore.warn import warn

__all__ = ["CachedOpener"]

_FIRST_BYTE = ByteRange(0, 1)


class CachedOpener:
    """Opens V2 checkpoints through a cache.

    Parameters
    ----------
    root : PrivateDirectory
    room : Room
    troubles : Troubles
    version : str, optional
        Of the index that is asked for.
    is_stale_allowed : bool
        Whether to open what was seen last if the storage cannot be asked.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        root: PrivateDirectory,
        room: Room,
        troubles: Troubles,
        version: str | None,
        *,
        is_stale_allowed: bool,
    ) -> None:
        self._root = root
        self._room = room
        self._troubles = troubles
        self._version = version
        self._is_stale_allowed = is_stale_allowed

    def open_v2(self, location: Location) -> ReaderV2:
        """Return a reader of the checkpoint at `location`.

        Raises
        ------
        CkptStoreError
            As of `open_bundle`.
        """
        place = location.suffixed(index_name(""))
        checkpoint = self._root / digest(source_of(place))
        known = self._known(checkpoint)
        content = self._current_index(place, known)
        index = IndexFile(place, content)
        reader = None
        try:
            reader = self._reader(location, checkpoint, index, content)
        except CorruptError:
            pass  # of a part of the index that nobody may ask for
        except OSError as error:
            self._troubles.add(error)
        self._troubles.tell()
        return reader or ReaderV2(location, index)

    def _known(self, checkpoint: PrivateDirectory) -> GetResult | None:
        """Return the index that was seen last, or that of the version; None if there is none."""
        version = self._version
        try:
            for copy in copies_of(checkpoint):
                if version is None or copy.version == version:
                    index = copy.index()
                    if index is not None:
                        return index
        except OSError as error:
            self._troubles.add(error)
        return None

    def _current_index(self, place: Location, known: GetResult | None) -> GetResult:
        """Return the index in the storage: `known` if it is that, or the storage is away."""
        if known is None:
            return place.storage.get(place.key)
        patience_s = PATIENCE_S if self._is_stale_allowed else None
        try:
            # The first byte: a large index may take longer than that.
            with Scope(patience_s, what="cannot read the index", url=place.url):
                changed = place.storage.get_unless(place.key, known.version, _FIRST_BYTE)
            return known if changed is None else place.storage.get(place.key)
        except TransientError as error:
            if not self._is_stale_allowed:
                raise
            warn(f"{place.url} is opened as the cache {self._root.path} has it: {error}")
            return known

    def _reader(
        self, location: Location, checkpoint: PrivateDirectory, index: IndexFile, content: GetResult
    ) -> ReaderV2 | None:
        ends = ends_of(index.rows())
        directory = checkpoint / digest(index.version)
        checkpoint.make_below()
        held = use(directory)
        if held is None:
            return None
        copy = Copy.find(directory)
        if copy is None or copy.index() != content:
            facts = {
                "url": location.url,
                "key": location.key,
                "name": location.name,
                "source": source_of(location.parent),
                "num_shards": index.header.num_shards,
                "ends": sorted(ends.items()),
            }
            copy = Copy.make(directory, content, facts)
        shards = CachedShards(
            location, index.header, index.is_current, copy, held, self._room, self._troubles
        )
        return ReaderV2(location, index, shards)
