"""One save into a directory of checkpoints: write, fence, publish, record, keep, collect.

The order is the protocol; each step leaves the directory so that a reader finds the complete old or the
complete new checkpoint, and the next save repairs what is left (docs/design/001-commit-protocol.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ckptstore.checksums import crc32c
from ckptstore.directory.graph_keeper import GraphKeeper
from ckptstore.directory.moved import moved_here
from ckptstore.directory.open_save import Assignment, OpenSave, SaveSteps, ShardReport
from ckptstore.directory.other_saves import OtherSaves
from ckptstore.directory.own_prefixes import own_filter
from ckptstore.directory.owned import Owned
from ckptstore.directory.owner_names import owner_of_step
from ckptstore.directory.ownership import Ownership
from ckptstore.directory.paths import inside
from ckptstore.directory.pending_deletes import PendingDeletes
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.record_change import RecordChange, Window
from ckptstore.directory.record_entries import newest_own, own_entries
from ckptstore.directory.record_update import RECORD_NAME, RecordSnapshot, read_record, update_record
from ckptstore.directory.retention import Entry, Retention
from ckptstore.directory.save_request import LastSaved, RunningSave, SaveRequest
from ckptstore.directory.shard_set import ShardSet, have_written, shards_of_save
from ckptstore.directory.unrecorded import Unrecorded, adopt_unrecorded, explain_unrecorded
from ckptstore.errors import (
    AmbiguousOutcomeError,
    CkptStoreError,
    ConflictError,
    FencedError,
    NotFoundError,
    UsageError,
)
from ckptstore.format.naming import index_name
from ckptstore.format.record_facts import Intent, OwnerName, Record, Superseded
from ckptstore.storage.base import Location
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.retry import Backoff
from ckptstore.storage.values import Committed

__all__ = ["CheckpointWriter"]


class _NamesTakenError(Exception):
    """Deletes that are not done name files of these counts."""

    def __init__(self, counts: set[int]) -> None:
        super().__init__()
        self.counts = counts


class _NotOursError(Exception):
    """There is no record, or one without our lines: nothing is announced there."""

    def __init__(self, snapshot: RecordSnapshot) -> None:
        super().__init__()
        self.snapshot = snapshot


# The writers whose saves run in this context, which their worker threads share.
_SAVING: ContextVar[tuple[CheckpointWriter, ...]] = ContextVar("ckptstore_saving", default=())


class CheckpointWriter:
    """Saves into one directory for one Saver or manager: keeps the record, deletes what retention drops.

    Parameters
    ----------
    directory : Location
        Made when missing.
    record_name : str or None
        Of the record in `directory`; None for the usual one.
    clock : callable
        Seconds since 1970.
    timeout_s : float
        Bound on the time that contention with other writers may take.

    Threads
    -------
    Saves of several threads come one after the other, under `lock`.
    """

    def __init__(
        self,
        directory: Location,
        record_name: str | None,
        retention: Retention,
        clock: Callable[[], float],
        *,
        timeout_s: float = 60.0,
    ) -> None:
        self.directory = directory
        self._record = directory.child(record_name or RECORD_NAME)
        self._retention = retention
        # A clock may return numpy's float, whose repr would end up in the record.
        self._clock: Callable[[], float] = lambda: float(clock())
        self._timeout_s = timeout_s
        self._locks = ForkSafeLocks(1)
        self._window = Window()
        self._begin("")

    def _begin(self, run: str) -> None:
        """Start anew for `run`: a forked child is another run than its parent."""
        self._ownership = Ownership(self.directory, self._record, run, self._clock, self._retention.keep)
        self._graphs = GraphKeeper(self.directory)
        self._deletes = PendingDeletes(self.directory, self._ownership)
        self._unrecorded: dict[str, Unrecorded] = {}
        self._last: LastSaved | None = None

    def last_saved(self) -> LastSaved | None:
        """Return the checkpoint saved last; None if there is none.

        It is read from the record and the storage until this writer has saved one itself.
        """
        if self._last is not None:
            return self._last
        state = read_record(self._record).record.state
        latest = None if state is None else inside(self.directory, state.model_checkpoint_path)
        if latest is None:
            return None
        location = self.directory.child(index_name(latest))
        try:
            return LastSaved(latest, location.storage.get(location.key).data, {})
        except NotFoundError:
            return None

    @property
    def window(self) -> tuple[Entry, ...]:
        """The checkpoints that retention counts, oldest first."""
        pins = frozenset(self._ownership.last_seen.pins)
        return tuple(entry for entry in self._window.entries if entry.prefix not in pins)

    def set_window(self, window: tuple[Entry, ...]) -> None:
        """Make the next save start from `window` instead of from the list of the record."""
        self._window = Window(window, is_forced=True)

    def peek(self, basename: str) -> None:
        """Set `window` to the steps of `basename` that the record lists, without taking anything over."""
        record = read_record(self._record).record
        state = record.state and moved_here(self.directory, record.state)
        is_own = own_filter([OwnerName(basename, "steps")], record)
        entries = own_entries(self.directory, state, is_own, {}, self._clock())
        pins = frozenset(record.pins)
        self._window = Window(tuple(entry for entry in entries if entry.prefix not in pins))

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by the caller while a save is open.

        Raises
        ------
        UsageError
            If this thread, or one that works for it, has a save open.
        """
        if self in _SAVING.get():
            raise UsageError(
                "a save into this directory was started within another one, which waits for it",
                url=self.directory.url,
                hint="Do not save in a report of progress.",
            )
        return self._locks[0]

    def open(self, request: SaveRequest, running: RunningSave) -> OpenSave:
        """Return a save that makes its checkpoint the latest, and deletes what retention drops.

        Parameters
        ----------
        request : SaveRequest
            Its prefix is a direct child of the directory.

        Guarantees
        ----------
        When it is over, the checkpoint exists and is the latest. Files that could not be deleted are a
        warning.
        """
        return OpenSave(self._steps(request, running))

    def _steps(self, request: SaveRequest, running: RunningSave) -> SaveSteps:
        _SAVING.set((*_SAVING.get(), self))
        if request.run != self._ownership.run:
            self._begin(request.run)
        prefix, suffix, meta = request.prefix.name, request.suffix, request.meta
        # What a look at the record within this save did not show has come since, whatever the clocks say.
        began_s = self._clock() if request.owner in self._ownership.owned else -math.inf
        owned = self._acquire(request)
        replaced = adopt_unrecorded(self._unrecorded, prefix, self._ownership)
        step = request.step
        fresh = (
            request.owner.form == "steps"
            and step is not None
            and prefix not in owned.seen
            and (owned.highest_step is None or step > owned.highest_step)
        )
        published = None if fresh else read_published_index(self.directory, prefix)
        others = OtherSaves(request, self._ownership.last_seen, published, began_s)
        with shards_of_save(request, running) as files:
            taken = None if fresh else self._taken(prefix, step, published, owned)
            try:
                before = yield from self._written(files, request, running, taken, others)
            except ConflictError:
                # To the next attempt it is no new name.
                owned.seen.add(prefix)
                raise
            others.begin(before.record, files.index)
            change = RecordChange(
                request, self._ownership, self._retention, self._deletes, self._window, replaced
            )
            others.saved_s = change.now_s
            self._graphs.remember(prefix, suffix, written=meta is not None, fresh=fresh)

            def decide(snapshot: RecordSnapshot) -> Record:
                if self._ownership.is_rewritten(snapshot, request.owner):
                    self._refuse_unknown(request.owner, prefix, snapshot.record)
                record = change(snapshot)
                others.check(snapshot.record)
                self._graphs.carry_over(
                    [v.prefix for v in change.victims], [e.prefix for e in change.after.entries], suffix
                )
                return record

            def claim() -> None:
                # Without a record nothing separates two runs that start at the same time: the one that
                # creates it continues, and only it replaces the published index. Until then the record names
                # just that.
                update_record(self._record, decide, timeout_s=self._timeout_s)

            # Before the graph: a fenced run leaves nothing.
            decide(before)
            if published is not None and before.version is None:
                claim()
            if meta is not None:
                files.put_graph(meta, suffix, is_there=published is not None)
            running.before_commit()
            # Until the record has it: an answer may be lost, and the index be ours all the same.
            self._deletes.saved_s.pop(prefix, None)
            self._unrecorded[prefix] = unrecorded = Unrecorded(files, change.now_s, replaced, request.metrics)
            try:
                self._publish(unrecorded, published, request.owner, claim, others)
                # A record that somebody rewrites may list it already: the answer to ours was lost then.
                owned.add(prefix, self._deletes.known[prefix])
                others.version = self._deletes.known[prefix].version
            finally:
                if not files.may_be_published:
                    del self._unrecorded[prefix]
        self._deletes.collect_earlier(before.record, prefix)
        try:
            after = update_record(self._record, decide, first=before, timeout_s=self._timeout_s)
        except (AmbiguousOutcomeError, FencedError):
            raise
        except ConflictError:
            # Another save of this run has the prefix, whatever stands there.
            del self._unrecorded[prefix]
            raise
        except CkptStoreError as error:
            explain_unrecorded(error, request.prefix, self._record)
            raise
        self._ownership.record_saved(after, request.owner, Entry(prefix, change.now_s), change.left)
        self._unrecorded.clear()
        self._deletes.done.clear()
        self._deletes.saved_s[prefix] = change.now_s
        self._window = change.after
        self._last = LastSaved(prefix, files.index, files.versions)
        running.when_saved()
        self._deletes.collect_pending(after.record)
        for gone in change.left:
            self._deletes.known.pop(gone, None)
            self._deletes.saved_s.pop(gone, None)
            self._graphs.forget(gone, suffix)

    def _acquire(self, request: SaveRequest) -> Owned:
        """Become the owner of what is saved, and of what the user told us to count."""
        prefix = request.prefix.name
        owned = self._ownership.acquire(request.owner, self._timeout_s, fresh_start=request.fresh_start)
        prefixes, owners = [prefix], self._ownership.last_seen.owners
        if self._window.is_forced:
            prefixes += [entry.prefix for entry in self._window.entries]
            # Another Saver of this run may have saved one of them since.
            owners = read_record(self._record).record.owners
        for each in prefixes:
            # Saved without a step before: the run that did it is told.
            exact = OwnerName(each, "exact")
            if exact in owners:
                self._ownership.acquire(exact, self._timeout_s, check=False)
            elif each != prefix:
                self._ownership.acquire(owner_of_step(each) or exact, self._timeout_s, check=False)
        return owned

    def _written(
        self,
        files: ShardSet,
        request: SaveRequest,
        running: RunningSave,
        taken: set[int] | None,
        others: OtherSaves,
    ) -> Generator[Assignment, Sequence[ShardReport] | None, RecordSnapshot]:
        """Have the data files written under names that no pending delete has, and announce the index.

        Returns
        -------
        RecordSnapshot
            The record by then. It has no announcement where there was no record of ours to write it into.
        """
        # What is staged piece by piece cannot be written twice.
        is_whole = running.stage is None or running.stage.is_whole
        while True:
            yield from have_written(files, request, running, taken)
            try:
                return self._announce(files, request, others, is_canonical=taken is None and is_whole)
            except _NamesTakenError as error:
                files.start_again()
                taken = error.counts

    def _announce(
        self, files: ShardSet, request: SaveRequest, others: OtherSaves, *, is_canonical: bool
    ) -> RecordSnapshot:
        name = request.owner
        intent = Intent(
            files.prefix,
            name.form,
            request.run,
            crc32c(files.index),
            metrics=tuple(request.metrics.items()),
            replaces_crc32c=others.replaces_crc32c,
        )

        def change(snapshot: RecordSnapshot) -> Record:
            # Another Saver of this run may have saved the prefix meanwhile: its files are then pending
            # deletes.
            named = {count for _, count in snapshot.record.shards_named(files.prefix)}
            if not named.isdisjoint(count for _, count in files.shards):
                raise _NamesTakenError(named)
            if is_canonical and self._was_passed(snapshot.record, request):
                raise _NamesTakenError({count for _, count in files.shards})
            foreign = self._ownership.check(snapshot, name)
            try:
                others.look(snapshot.record)
            except ConflictError:
                self._ownership.snapshot = snapshot
                raise
            if foreign or snapshot.fault is not None or snapshot.record.state is None:
                raise _NotOursError(snapshot)
            return self._ownership.announce(self._deletes.without_done(snapshot.record), intent)

        # What this writer saw last costs no request; if it is not the present record, the write is lost.
        known = self._ownership.snapshot
        first = None if known.record.state is None or known.fault is not None else known
        try:
            snapshot = update_record(self._record, change, first=first, timeout_s=self._timeout_s)
        except _NotOursError as error:
            return error.snapshot
        self._ownership.record_announced(snapshot, name)
        self._deletes.done.clear()
        return snapshot

    def _was_passed(self, record: Record, request: SaveRequest) -> bool:
        """Return whether another Saver of this run has listed this step, or a later one, meanwhile.

        It may have listed and deleted this one: late deletes may then hit the canonical names.
        """
        owned, line = self._ownership.owned.get(request.owner), record.owners.get(request.owner)
        if owned is None or line is None or line.highest_step is None or request.step is None:
            return False
        if owned.highest_step is not None and line.highest_step <= owned.highest_step:
            return False
        owned.highest_step, owned.knows_all = line.highest_step, False
        return request.step <= line.highest_step

    def _refuse_unknown(self, name: OwnerName, prefix: str, record: Record) -> None:
        """Raise if `record` lost our lines, and another run has saved since: `prefix`, or its latest."""
        known = self._ownership.owned[name].published
        latest = newest_own(self.directory, record.state, self._ownership.filter_of(record, name))
        for each in dict.fromkeys([prefix] if latest not in known else [prefix, latest]):
            there = read_published_index(self.directory, each)
            if there is not None and (each not in known or known[each] not in (None, there)):
                raise self._ownership.fence_unknown(name, each)

    def _taken(
        self, prefix: str, step: int | None, published: PublishedIndex | None, owned: Owned
    ) -> set[int] | None:
        """Return the shard counts that a save of `prefix` must not use; None if it was never listed."""
        named = {count for _, count in self._ownership.last_seen.shards_named(prefix)}
        is_alone = OwnerName(prefix, "exact") in self._ownership.owned and prefix not in owned.seen
        never_listed = is_alone or owned.never_listed(prefix, step)
        if published is None and not named and never_listed:
            return None
        return named | (published.counts if published is not None else set())

    def _publish(
        self,
        unrecorded: Unrecorded,
        published: PublishedIndex | None,
        name: OwnerName,
        claim: Callable[[], object],
        others: OtherSaves,
    ) -> None:
        """Publish the index, and add the data files that it replaced to `unrecorded`."""
        files = unrecorded.files
        backoff = Backoff(self._timeout_s)
        while True:
            before = len(unrecorded.replaced)
            if published is not None and published.shards:
                # Before publishing: an interrupt leaves no time for it.
                unrecorded.replaced.append(Superseded(files.prefix, published.shards))
            outcome = files.publish(published)
            if isinstance(outcome, Committed):
                self._deletes.known[files.prefix] = PublishedIndex(outcome.version, files.shards)
                return
            del unrecorded.replaced[before:]
            if not backoff.wait():
                raise ConflictError(
                    "another writer keeps saving the same checkpoint",
                    url=self.directory.child(files.prefix).url,
                    hint="Let only one job save under this name.",
                )
            # A lost race does not mean fenced: a run that died, or was fenced, between index and record left
            # that index. The record is read after the index: a run that takes over from now on did not write
            # this version.
            published = read_published_index(self.directory, files.prefix)
            snapshot = read_record(self._record)
            self._ownership.check(snapshot, name)
            others.check_index(snapshot.record)
            if published is not None and self._ownership.is_rewritten(snapshot, name):
                raise self._ownership.fence_unknown(name, files.prefix)
            if published is not None and snapshot.version is None:
                claim()
