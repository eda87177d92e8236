"""Putting one checkpoint in place: data, graph, then the index. One of the two modules that commit.

Data files are never overwritten. A shard count is part of their names and of the index, and readers open only
the shards that entries name, so a save over an existing prefix writes its shards under another count
(`choose_count`): whoever holds the old index reads the old data until nobody can need it.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType

from ckptstore.bundle.plan import SavePlan
from ckptstore.bundle.writer import IndexEntry, ShardWriter, build_index
from ckptstore.checksums import crc32c
from ckptstore.directory.collect import collect_graph, collect_shards
from ckptstore.errors import (
    AmbiguousOutcomeError,
    CkptStoreError,
    ConflictError,
    FencedError,
    IncompleteBundleError,
    NotFoundError,
)
from ckptstore.format.entry import HEADER_KEY, decode_entry, decode_header
from ckptstore.format.naming import data_name, index_name, meta_name
from ckptstore.format.record_protocol import ShardName
from ckptstore.format.table import Table
from ckptstore.storage.base import Ambiguous, Committed, Location, Lost, PutOutcome, Upload
from ckptstore.types import ByteRange

__all__ = [
    "LARGEST_COUNT",
    "ShardSet",
    "Standing",
    "choose_count",
    "name_is_taken",
    "publish_index",
    "put_graph",
    "put_meta",
    "read_standing",
]

# TensorFlow's own deletion glob is ".data-?????-of-?????": five digits at most.
LARGEST_COUNT = 99_999

# Until then it is quicker to draw than to make a list of what is free.
_DRAWS = 100

_COPY_SIZE_BYTES = 8 * 1024 * 1024


def choose_count(shards: int, taken: Collection[int] | None) -> int:
    """Return the shard count under which a save writes its data files.

    Parameters
    ----------
    shards : int
        How many there are.
    taken : collection of int or None
        None for a prefix that was never used: the canonical count, as TensorFlow names it. Otherwise the
        counts that the prefix's index and unfinished deletes name. A random one is drawn, because with a
        predictable one the late delete of a frozen writer hits a name that came back into use.

    Raises
    ------
    ConflictError
        If no count is left: a record that somebody made up may name them all.
    """
    if taken is None:
        return shards
    generator = random.SystemRandom()
    every = range(shards + 1, LARGEST_COUNT + 1)
    for _ in range(_DRAWS if every else 0):
        count = generator.choice(every)
        if count not in taken:
            return count
    free = [count for count in every if count not in taken]
    if free:
        return generator.choice(free)
    raise ConflictError(
        "no name is left for the data files: every one is that of a file that is still to be deleted",
        expected=f"a free shard count from {shards + 1} to {LARGEST_COUNT}",
        hint="Look at the comment lines of the record, or save under another name.",
    )


@dataclass(frozen=True, slots=True)
class Standing:
    """An index that stands at a prefix: its version, and the data files it names."""

    version: str
    shards: tuple[ShardName, ...]

    @property
    def counts(self) -> set[int]:
        """The shard counts in use."""
        return {count for _, count in self.shards}


class ShardSet:
    """The data files of one save, written but named by no index yet.

    Leaving the ``with`` block before `publish_index` succeeded deletes them again, unless its answer was
    lost: then an index may name them.

    Parameters
    ----------
    directory : Location
    prefix : str
        Direct child of `directory`.
    """

    def __init__(self, directory: Location, prefix: str) -> None:
        self.directory = directory
        self.prefix = prefix
        self.index = b""
        self.named = False
        self._uploads = ExitStack()
        self._upload: Upload | None = None
        self._writer: ShardWriter | None = None
        self._name: ShardName = (0, 0)
        self._entries: list[IndexEntry] = []
        self._committed: list[ShardName] = []
        self._canonical_count = 0
        self._in_doubt: ShardName | None = None
        self._graph: tuple[Location, bytes] | None = None

    @property
    def shards(self) -> tuple[ShardName, ...]:
        """Shard number and count of each file."""
        return tuple(self._committed)

    def write(self, plan: SavePlan, taken: Collection[int] | None) -> None:
        """Write every shard of `plan` in one pass, and build the index bytes.

        Parameters
        ----------
        taken : collection of int or None
            See `choose_count`.
        """
        refused = taken
        self._canonical_count = len(plan.shards)
        while not self._write(plan, choose_count(len(plan.shards), refused)):
            refused = refused or set()

    def _write(self, plan: SavePlan, count: int) -> bool:
        for number, shard in enumerate(plan.shards):
            writer = self.begin(number, count, shard.size_bytes)
            for item in shard.items:
                writer.add_item(item)
            if not self.seal():
                # The leftover of a save that died: its name stays taken, whoever it belonged to.
                self.drop()
                return False
        self.finish(count)
        return True

    def begin(self, number: int, count: int, size_bytes: int | None = None) -> ShardWriter:
        """Begin data file `number` of `count`; add its tensors, then `seal`."""
        self._name = (number, count)
        location = self.directory.child(data_name(self.prefix, number, count))
        self._upload = self._uploads.enter_context(location.storage.upload(location.key, size_bytes))
        self._writer = ShardWriter(self._upload, shard_id=number)
        return self._writer

    def seal(self) -> bool:
        """Make the data file begun last visible; False if one of that name is there already.

        Raises
        ------
        AmbiguousOutcomeError
            If the answer was lost.
        """
        assert self._writer is not None
        assert self._upload is not None
        self._writer.finish()
        if not self._commit(self._upload):
            return False
        self._entries.extend(self._writer.entries)
        return True

    def _commit(self, upload: Upload) -> bool:
        self._in_doubt = self._name
        outcome = upload.commit()
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "a data file may or may not have been written",
                url=self.directory.child(data_name(self.prefix, *self._name)).url,
                actual=outcome.reason,
                hint="No index names it; save again.",
            )
        if isinstance(outcome, Committed):
            self._committed.append(self._name)
        self._in_doubt = None
        return isinstance(outcome, Committed)

    def copy(self, number: int, count: int, source: Location) -> bool:
        """Copy a whole data file from another bundle; False if a file of the new name is there already.

        Raises
        ------
        IncompleteBundleError
            If `source` is missing.
        """
        storage = source.storage
        try:
            info = storage.head(source.key)
        except NotFoundError:
            raise IncompleteBundleError(
                "a data file is missing",
                url=source.url,
                hint="Bring it back from a copy, or leave this bundle out.",
            ) from None
        self._name = (number, count)
        location = self.directory.child(data_name(self.prefix, number, count))
        upload = self._uploads.enter_context(location.storage.upload(location.key, info.size_bytes))
        window = memoryview(bytearray(min(_COPY_SIZE_BYTES, info.size_bytes)))
        for start in range(0, info.size_bytes, _COPY_SIZE_BYTES):
            stop = min(start + _COPY_SIZE_BYTES, info.size_bytes)
            part = window[: stop - start]
            storage.read_into(source.key, [ByteRange(start, stop)], [part], version=info.version)
            upload.write(part)
        return self._commit(upload)

    def finish(self, count: int) -> None:
        """Build the index of all shards."""
        self.index = build_index(self._entries, count)

    def put_graph(self, data: bytes, suffix: str, *, is_there: bool) -> None:
        """Put the graph beside the checkpoint, to be dropped with it; `is_there` as for the function.

        Raises
        ------
        ConflictError
            If another writer keeps changing it.
        """
        location = self.directory.child(meta_name(self.prefix, suffix))
        self._graph = (location, data)
        put_graph(location, data, is_there=is_there)

    def drop(self, *, fenced: bool = False) -> None:
        """Delete what was written so far.

        Parameters
        ----------
        fenced : bool
            Another run saves here now. Its files may have the canonical names as soon as ours are gone, and
            a delete that a client sends twice would take them: those are left to ``gc``, unless a file of
            ours can be told from another's.
        """
        committed, self._committed = self._committed, []
        self._entries.clear()
        doubtful = [] if self._in_doubt is None else [self._in_doubt]
        if fenced:
            doubtful += [name for name in committed if name[1] == self._canonical_count]
            committed = [name for name in committed if name not in doubtful]
        try:
            if committed:
                collect_shards(self.directory, self.prefix, committed)
        finally:
            self._uploads.close()
        if doubtful or self._graph is not None:
            self._drop_unnamed(doubtful)

    def look_again(self) -> bool:
        """Tell whether the index was published after all, once the call that should do it has failed.

        If not, the files are dropped where it is certain that no index will name them.
        """
        return self._drop_unnamed(self._committed)

    def _drop_unnamed(self, shards: Collection[ShardName]) -> bool:
        """Delete those of `shards` that are ours and in no index, and a graph that is alone."""
        storage = self.directory.storage
        keys = {shard: self.directory.child(data_name(self.prefix, *shard)).key for shard in shards}
        # Our uploads are closed by now: a file of such a name whose writer lives is another's. And asked
        # before the index is read, which that writer has published by then or never will.
        abandoned = [shard for shard, key in keys.items() if storage.is_abandoned(key)]
        standing = read_standing(self.directory, self.prefix)
        named = () if standing is None else standing.shards
        unnamed = [shard for shard in abandoned if shard not in named]
        if unnamed:
            collect_shards(self.directory, self.prefix, unnamed)
        if standing is None and self._graph is not None and len(abandoned) == len(shards):
            self._drop_graph(*self._graph)
        return bool(shards) and set(shards) <= set(named)

    def _drop_graph(self, location: Location, data: bytes) -> None:
        try:
            there = location.storage.get(location.key)
        except NotFoundError:
            return
        if there.data == data:
            collect_graph(location, there.version)

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.named:
            # Of committed uploads only handles are left. The checkpoint exists, whatever they say.
            with suppress(CkptStoreError):
                self._uploads.close()
            return
        try:
            self.drop(fenced=isinstance(error, FencedError))
        except CkptStoreError as second:
            if error is None:
                raise
            error.add_note(f"Its files could not be removed either: {second}")


def put_meta(directory: Location, prefix: str, data: bytes, *, suffix: str = "meta") -> None:
    """Put the graph beside `prefix`; see `put_graph`."""
    put_graph(directory.child(meta_name(prefix, suffix)), data)


def put_graph(location: Location, data: bytes, *, is_there: bool = False) -> None:
    """Put a graph in its place, unless the same bytes are there.

    Parameters
    ----------
    is_there : bool
        Whether something is there in all likelihood: it is then looked at first, which saves the upload.

    Raises
    ------
    ConflictError
        If another writer keeps changing it.
    """
    storage = location.storage
    outcome: PutOutcome = Lost(None) if is_there else storage.put_new(location.key, data)
    for _ in range(3):
        if isinstance(outcome, Committed):
            return
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "the graph may or may not have been written", url=location.url, actual=outcome.reason
            )
        try:
            version = _version_unless_same(location, data)
        except NotFoundError:
            outcome = storage.put_new(location.key, data)
            continue
        if version is None:
            return
        outcome = storage.put_if(location.key, data, version)
    raise ConflictError(
        "another writer keeps changing the graph",
        url=location.url,
        hint="Let only one job save under this prefix.",
    )


def _version_unless_same(location: Location, data: bytes) -> str | None:
    """Return the version of what is there, None if it holds the same bytes."""
    storage = location.storage
    if storage.capabilities.checksum_proved_by_store:
        info = storage.head(location.key)
        if info.crc32c is not None:
            return None if (info.size_bytes, info.crc32c) == (len(data), crc32c(data)) else info.version
    there = storage.get(location.key)
    return None if there.data == data else there.version


def publish_index(files: ShardSet, standing: Standing | None) -> Committed | Lost:
    """Put the index in place: from here on the checkpoint exists.

    Parameters
    ----------
    files : ShardSet
    standing : Standing or None
        The index to replace; None to create it.

    Raises
    ------
    AmbiguousOutcomeError
        If the answer was lost: the index may be there.

    Guarantees
    ----------
    A reader sees the complete old checkpoint or the complete new one, whatever call the writer dies in.
    """
    location = files.directory.child(index_name(files.prefix))
    storage = location.storage
    # Until the answer is known an index may name the files: an error on the way must not delete them.
    files.named = True
    try:
        # COMMIT POINT: the checkpoint exists.
        if standing is None:
            outcome = storage.put_new(location.key, files.index)
        else:
            outcome = storage.put_if(location.key, files.index, standing.version)
    except CkptStoreError:
        # Refused for certain: a storage that cannot tell answers Ambiguous.
        files.named = False
        raise
    if isinstance(outcome, Ambiguous):
        raise AmbiguousOutcomeError(
            "the index may or may not have been written",
            url=location.url,
            actual=outcome.reason,
            hint="Nothing was cleaned up; check whether the checkpoint is there before you save it again.",
        )
    files.named = isinstance(outcome, Committed)
    return outcome


def name_is_taken(directory: Location, prefix: str, shards: int, count: int) -> bool:
    """Return whether one of the first `shards` data files under this shard count is there."""
    for number in range(shards):
        location = directory.child(data_name(prefix, number, count))
        try:
            location.storage.head(location.key)
        except NotFoundError:
            continue
        return True
    return False


def read_standing(directory: Location, prefix: str) -> Standing | None:
    """Return the index that stands at `prefix`, None if there is none.

    An index that cannot be read names no files: it may be replaced, and what it meant is left to ``gc``.
    """
    location = directory.child(index_name(prefix))
    try:
        got = location.storage.get(location.key)
    except NotFoundError:
        return None
    return Standing(got.version, _shards_of_index(got.data, source=location.url))


def _shards_of_index(data: bytes, *, source: str) -> tuple[ShardName, ...]:
    numbers: set[int] = set()
    count = 0
    try:
        for key, value in Table.from_bytes(data, source=source).items():
            if key == HEADER_KEY:
                count = decode_header(value, source=source).num_shards
            else:
                entry = decode_entry(value, source=source, tensor=key.decode(errors="replace"))
                if not entry.slices:
                    numbers.add(entry.shard_id)
    except CkptStoreError:
        return ()
    return tuple((number, count) for number in sorted(numbers))
