"""The data files of one save, written but named by no index yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import NamedTuple

from ckptstore.bundle.write.index import IndexEntry, build_index, renumbered
from ckptstore.bundle.write.index_memory import IndexMemory, IndexPart, deflated
from ckptstore.bundle.write.plan import SavePlan, ShardPlan
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.collect import collect_graph, collect_shards, collect_unpublished
from ckptstore.directory.open_save import Assignment, SaveSteps, ShardReport
from ckptstore.directory.proved_file import proved_version
from ckptstore.directory.publish import publish_index, put_graph
from ckptstore.directory.published_index import (
    PublishedIndex,
    choose_count,
    name_is_taken,
    read_published_index,
)
from ckptstore.directory.save_request import RunningSave, SaveRequest
from ckptstore.errors import (
    AccessError,
    AmbiguousOutcomeError,
    CkptStoreError,
    FencedError,
    IncompleteBundleError,
    NotFoundError,
    TransientError,
)
from ckptstore.format.naming import data_name, index_name, meta_name
from ckptstore.format.record_facts import ShardName
from ckptstore.storage.abilities import KnowsWriters, SupportsCopies
from ckptstore.storage.base import Location
from ckptstore.storage.scope import Scope
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["ShardSet", "have_written", "shards_of_save"]

_COPY_SIZE_BYTES = 8 * 1024 * 1024

# Whoever leaves a save that failed is not held up for longer; what then stays is left to ``gc``.
_CLEAN_UP_S = 10.0


class _InDoubt(NamedTuple):
    """A file whose commit was begun; the upload that would make it, None for a copy."""

    name: ShardName
    upload: Upload | None = None


class ShardSet:
    """The data files of one save, written but named by no index yet.

    Leaving the ``with`` block before `publish` succeeded deletes them again, unless its answer was lost: then
    an index may name them.

    Calls
    -----
    `write` or, file by file, `begin`, `seal` and `copy`; `accept` for files that other processes wrote; then
    `finish`. A sink adds `put_graph` and `publish`; after a failure between index and record,
    `recheck_publication`.

    Parameters
    ----------
    prefix : str
        Direct child of `directory`.
    transfer : Transfer, optional
        The save that this belongs to.
    stage : Stage, optional
        The copy of the bytes of the plan that is written.
    canonical_count : int
        The count that TensorFlow gives these files, which another writer may use as well.
    indexes : IndexMemory, optional
        What was reported of the files of the save before.
    """

    def __init__(
        self,
        directory: Location,
        prefix: str,
        *,
        transfer: Transfer | None = None,
        stage: Stage | None = None,
        canonical_count: int = 0,
        indexes: IndexMemory | None = None,
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self._transfer = transfer or Transfer("save", directory.child(prefix).url)
        self._stage = stage
        self._indexes = indexes or IndexMemory()
        # Complete once `finish` returned; `versions` is by number, of the files in `shards`.
        self.index = b""
        self.versions: dict[int, str] = {}
        # Whether an index may name the files: True from before `publish` asks until it is refused for
        # certain. No file is deleted then.
        self.may_be_published = False
        # Every upload that was begun, and its writer; `_upload`, `_writer` and `_name` are those of the file
        # begun last.
        self._uploads = ExitStack()
        self._upload: Upload | None = None
        self._writer: ShardWriter | None = None
        self._name: ShardName = (0, 0)
        # By number. Of the files in `_committed`, which were made here and are not deleted; and the indexes
        # of those in `_accepted`.
        self._entries: dict[int, Sequence[IndexEntry]] = {}
        self._reported: dict[int, IndexPart] = {}
        self._committed: list[ShardName] = []
        # Files that other processes wrote.
        self._accepted: list[ShardName] = []
        # What is being committed, while and as long as the outcome is not known.
        self._in_doubt: _InDoubt | None = None
        self._canonical_count = canonical_count
        # What `put_graph` wrote or tried to.
        self._graph: tuple[Location, bytes] | None = None

    @property
    def shards(self) -> tuple[ShardName, ...]:
        """Shard number and count of each file."""
        return (*self._committed, *self._accepted)

    def write(self, plan: SavePlan, count: int, numbers: Sequence[int] | None = None) -> bool:
        """Write the shards of `plan` in one pass.

        Parameters
        ----------
        count : int
            In the names of the files.
        numbers : sequence of int, optional
            Of the shards; without it they are counted from 0.

        Returns
        -------
        bool
            False if a file of one of the names is there already: it stays, and nothing of this save does.
        """
        for place, shard in enumerate(plan.shards):
            number = place if numbers is None else numbers[place]
            is_new = self._take(number, count, shard, place)
            if is_new is None:
                writer = self.begin(number, count, shard.size_bytes)
                if self._stage is None:
                    writer.write(shard.items)
                else:
                    writer.write_staged(shard.items, self._stage.shard(place, writer.held_bytes))
                is_new = self.seal()
            if not is_new:
                self.start_again()
                return False
        return True

    def accept(self, reports: Sequence[ShardReport]) -> None:
        """Add data files that others wrote: the index names them, and they are deleted by their writers."""
        for report in reports:
            number, _ = report.name
            self._accepted.append(report.name)
            self.versions[number] = report.version
            self._reported[number] = report.index

    def reports(self) -> list[ShardReport]:
        """Return what another process needs to know of the files that were written here."""
        return [
            ShardReport(name, self.versions[name[0]], deflated(build_index(self._entries[name[0]], 1)))
            for name in self._committed
        ]

    def settle(self) -> None:
        """Keep the files that were written here: an index names them, or it is not known whether one does."""
        self.may_be_published = True

    def _take(self, number: int, count: int, shard: ShardPlan, place: int) -> bool | None:
        """Copy the data file that has the bytes of `shard` already.

        Returns
        -------
        bool or None
            False if a file of the new name is there already; None if the bytes have to be written.
        """
        source, storage = shard.source, self.directory.storage
        if source is None or not isinstance(storage, SupportsCopies):
            return None
        source_key = self.directory.child(source.name).key
        target = self.directory.child(data_name(self.prefix, number, count))
        self._name = (number, count)
        try:
            version = source.version or proved_version(self.directory, shard, self._transfer.scope.check)
            if version is None:
                return None
            self._in_doubt = _InDoubt(self._name)
            outcome = storage.copy_from(source_key, target.key, version)
        except (NotFoundError, AccessError):
            # Deleted by retention or another program, or written by another user. Both are certain refusals.
            outcome = None
        if outcome is None:
            self._in_doubt = None
            return None
        is_new = self._outcome_is_new(outcome)
        if is_new:
            self._entries[number] = renumbered(source.entries, number)
            if self._stage is not None:
                self._stage.shard(place, lambda: 0).skip(shard.size_bytes)
            self._transfer.advance(shard.size_bytes)
        return is_new

    def begin(self, number: int, count: int, size_bytes: int | None = None) -> ShardWriter:
        """Begin data file `number` of `count`; add its tensors, then `seal`."""
        self._name = (number, count)
        location = self.directory.child(data_name(self.prefix, number, count))
        self._upload = self._uploads.enter_context(location.storage.upload(location.key, size_bytes))
        self._writer = ShardWriter(
            self._upload, shard_id=number, transfer=self._transfer, size_bytes=size_bytes
        )
        # Nothing may be sent to the upload once it is closed.
        self._uploads.callback(self._writer.close)
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
        # Without a request nothing else would notice a cancelled save.
        self._transfer.scope.check()
        is_new = self._commit(self._upload)
        self._writer.close()
        if not is_new:
            return False
        self._entries[self._name[0]] = self._writer.entries
        return True

    def _commit(self, upload: Upload) -> bool:
        self._in_doubt = _InDoubt(self._name, upload)
        return self._outcome_is_new(upload.commit())

    def _outcome_is_new(self, outcome: PutOutcome) -> bool:
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "a data file may or may not have been written",
                url=self.directory.child(data_name(self.prefix, *self._name)).url,
                actual=outcome.reason,
                hint="No index names it; save again.",
            )
        if isinstance(outcome, Committed):
            self._committed.append(self._name)
            self.versions[self._name[0]] = outcome.version
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
                hint="Restore the file from a copy, or leave this bundle out.",
            ) from None
        self._name = (number, count)
        location = self.directory.child(data_name(self.prefix, number, count))
        if storage is location.storage and isinstance(storage, SupportsCopies):
            self._in_doubt = _InDoubt(self._name)
            try:
                outcome = storage.copy_from(source.key, location.key, info.version)
            except (NotFoundError, AccessError):
                # Certain refusals; reading the bytes says more.
                outcome = None
            if outcome is not None:
                return self._outcome_is_new(outcome)
            self._in_doubt = None
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
        if self._reported:
            own = {number: deflated(build_index(entries, 1)) for number, entries in self._entries.items()}
            self.index = self._indexes.build({**own, **self._reported}.items(), count)
        else:
            entries = [entry for number in sorted(self._entries) for entry in self._entries[number]]
            self.index = build_index(entries, count)

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

    def publish(self, published: PublishedIndex | None) -> Committed | Lost:
        """Put the index in place: from here on the checkpoint exists.

        Parameters
        ----------
        published : PublishedIndex or None
            The index to replace; None to create it.

        Raises
        ------
        AmbiguousOutcomeError
            If the answer was lost: the index may be there.
        """
        location = self.directory.child(index_name(self.prefix))
        replaced = () if published is None else published.shards
        # Before: a save that dies right after the index leaves them behind.
        self._mark(replaced, is_needed=False)
        # Until the answer is known an index may name the files: an error on the way must not delete them.
        self.may_be_published = True
        try:
            outcome = publish_index(location, self.index, None if published is None else published.version)
        except CkptStoreError:
            self.may_be_published = False
            self._mark(replaced, is_needed=True)
            raise
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "the index may or may not have been written",
                url=location.url,
                actual=outcome.reason,
                hint="Nothing was cleaned up; check whether the checkpoint is there before saving it again.",
            )
        self.may_be_published = isinstance(outcome, Committed)
        self._mark(self.shards if self.may_be_published else replaced, is_needed=True)
        return outcome

    def _mark(self, shards: Collection[ShardName], *, is_needed: bool) -> None:
        storage = self.directory.storage
        if shards and isinstance(storage, KnowsWriters):
            keys = [self.directory.child(data_name(self.prefix, *shard)).key for shard in shards]
            # The outcome of the save does not depend on it.
            with suppress(CkptStoreError):
                (storage.mark_needed if is_needed else storage.mark_unneeded)(keys)

    def drop(self, *, fenced: bool = False) -> None:
        """Delete what was written so far.

        Parameters
        ----------
        fenced : bool
            Another run saves here now. Its files may take the canonical names as soon as ours are gone, and
            a delete that a proxy sends twice would remove them: those are left to ``gc``, unless the storage
            can prove that a file is ours.

        Raises
        ------
        CkptStoreError
            If something was perhaps not deleted; it is left to ``gc``.
        """
        # Its own scope: the clean-up also runs after a save that was cancelled, or ran out of time.
        with Scope(_CLEAN_UP_S, what="cannot clean up", url=self.directory.child(self.prefix).url):
            self._drop(fenced)

    def start_again(self) -> None:
        """Delete what was written so far, before all is written under other names."""
        # What an answer was lost of waits for `gc`: this save goes on.
        with suppress(TransientError):
            self.drop()

    def _drop(self, fenced: bool) -> None:
        if self._writer is not None:
            self._writer.close()
        committed, self._committed = self._committed, []
        self._accepted.clear()
        self._entries.clear()
        self._reported.clear()
        doubtful: list[ShardName] = []
        if self._in_doubt is not None:
            # As long as ours is there nobody else can create one of that name.
            is_there = not fenced and _has_landed(self._in_doubt.upload)
            (committed if is_there else doubtful).append(self._in_doubt.name)
        if fenced:
            doubtful += [name for name in committed if name[1] == self._canonical_count]
            committed = [name for name in committed if name not in doubtful]
        canonical = [name for name in committed if name[1] == self._canonical_count]
        try:
            # A random name is used by nobody else.
            collect_shards(self.directory, self.prefix, [name for name in committed if name not in canonical])
            collect_unpublished(self.directory, self.prefix, canonical)
        finally:
            self._uploads.close()
        if doubtful or self._graph is not None:
            self._drop_unnamed(doubtful)

    def recheck_publication(self) -> bool:
        """Return whether the index was published after all, although `publish` failed.

        If not, the files that certainly no index will name are deleted.
        """
        return self._drop_unnamed(self._committed)

    def _drop_unnamed(self, shards: Collection[ShardName]) -> bool:
        """Delete those of `shards` that are ours and in no index, and our graph if there is no index."""
        storage = self.directory.storage
        keys = {shard: self.directory.child(data_name(self.prefix, *shard)).key for shard in shards}
        # Our uploads are closed by now: a file of such a name whose writer lives belongs to another writer.
        # Checked before the index is read: a writer that is gone has published its index by then, or never
        # will.
        abandoned: list[ShardName] = []
        if isinstance(storage, KnowsWriters):
            abandoned = [shard for shard, key in keys.items() if storage.is_abandoned(key)]
        published = read_published_index(self.directory, self.prefix)
        named = () if published is None else published.shards
        unnamed = [shard for shard in abandoned if shard not in named]
        if unnamed:
            collect_shards(self.directory, self.prefix, unnamed)
        if published is None and self._graph is not None and len(abandoned) == len(shards):
            self._drop_graph(*self._graph)
        is_published = bool(shards) and set(shards) <= set(named)
        if is_published:
            self._mark(shards, is_needed=True)
        return is_published

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
        if self.may_be_published:
            # Only the handles of committed uploads are left. The checkpoint exists whether or not they close.
            with suppress(CkptStoreError):
                self._uploads.close()
            return
        try:
            self.drop(fenced=isinstance(error, FencedError))
        except CkptStoreError as second:
            if error is None:
                raise
            error.add_note(f"Its files could not be removed either: {second}")


def _has_landed(upload: Upload | None) -> bool:
    try:
        return upload is not None and upload.has_landed()
    except CkptStoreError:
        # The storage is still away: the file is left to `gc`.
        return False


def shards_of_save(request: SaveRequest, running: RunningSave) -> ShardSet:
    """Return the data files of `request`, none of which is written yet."""
    return ShardSet(
        request.prefix.parent,
        request.prefix.name,
        transfer=running.transfer,
        stage=running.stage,
        canonical_count=request.shard_count,
        indexes=request.indexes,
    )


def have_written(
    files: ShardSet, request: SaveRequest, running: RunningSave, taken: Collection[int] | None
) -> SaveSteps:
    """Have the data files of `request` written under names that nobody uses, and build their index.

    Parameters
    ----------
    taken : collection of int or None
        See `choose_count`.
    """
    shards = request.shard_count
    # What is staged piece by piece cannot be written twice.
    if taken is None and running.stage is not None and not running.stage.is_whole:
        taken = set() if name_is_taken(files.directory, files.prefix, shards, shards) else None
    while True:
        count = choose_count(shards, taken)
        reports = yield Assignment(files, count)
        if reports is not None:
            break
        files.start_again()
        taken = {*(taken or ()), count}
    files.accept(reports)
    files.finish(count)
