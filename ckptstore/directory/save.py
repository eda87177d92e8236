"""One save into a directory of checkpoints: write, fence, publish, record, keep, collect.

The order is the protocol; each step leaves the directory so that a reader finds the complete old or the
complete new checkpoint, and the next save repairs what is left (docs/design/001-commit-protocol.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from ckptstore.bundle.plan import SavePlan
from ckptstore.directory.collect import collect_pending, collect_shards
from ckptstore.directory.graphs import GraphKeeper
from ckptstore.directory.ownership import Held, Ownership
from ckptstore.directory.paths import owner_of
from ckptstore.directory.publish import ShardSet, Standing, publish_index, put_meta, read_standing
from ckptstore.directory.record_change import RecordChange
from ckptstore.directory.record_update import RECORD_NAME, read_record, update_record
from ckptstore.directory.retention import Entry, Retention
from ckptstore.directory.window import own_entries
from ckptstore.errors import CkptStoreError, CkptStoreWarning, ConflictError, NotFoundError
from ckptstore.format.naming import index_name, split_step
from ckptstore.format.record_protocol import Pending, Record, Superseded
from ckptstore.storage.base import Committed, Location
from ckptstore.storage.retry import Backoff

__all__ = ["CheckpointWriter", "write_checkpoint"]


def write_checkpoint(
    directory: Location, prefix: str, plan: SavePlan, *, meta: bytes | None = None, suffix: str = "meta"
) -> None:
    """Write one checkpoint and nothing else: no record, no retention, no owner.

    The data files that an overwrite replaces stay until ``gc``: without a record nobody knows who still reads
    them.

    Raises
    ------
    ConflictError
        If another writer saves the same prefix at the same time.
    """
    standing = read_standing(directory, prefix)
    with ShardSet(directory, prefix) as files:
        files.write(plan, None if standing is None else standing.counts)
        if meta is not None:
            put_meta(directory, prefix, meta, suffix=suffix)
        outcome = publish_index(files, standing)
        if not isinstance(outcome, Committed):
            raise ConflictError(
                "another writer saved the same checkpoint at the same time",
                url=directory.child(prefix).url,
                hint="Its checkpoint is complete; save under another name, or let only one job save here.",
            )


class CheckpointWriter:
    """Saves into one directory, for one Saver or manager: what the record lists, what stays and what goes.

    Parameters
    ----------
    directory : Location
        Made when missing.
    record_name : str or None
        Of the record in `directory`; None for the usual one.
    retention : Retention
    clock : callable
        Seconds since 1970.
    timeout_s : float
        Bound on the time that contention with other writers may cost.

    Threads
    -------
    One thread at a time.
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
        # A clock may answer numpy's float, whose repr would end up in the record.
        self._clock: Callable[[], float] = lambda: float(clock())
        self._timeout_s = timeout_s
        self._ownership = Ownership(directory, self._record, self._clock)
        self._graphs = GraphKeeper(directory)
        self._known: dict[str, Standing] = {}
        self._done: set[Pending | Superseded] = set()
        self._forced: tuple[Entry, ...] | None = None
        self.window: tuple[Entry, ...] = ()

    def set_window(self, window: tuple[Entry, ...]) -> None:
        """Let the next save start from `window` instead of from what the record lists."""
        self._forced = window
        self.window = window

    def peek(self, basename: str) -> None:
        """Show the window that the record lists for `basename`, without taking anything over."""
        state = read_record(self._record).record.state
        self.window = tuple(own_entries(self.directory, state, {basename}, {}, self._clock()))

    def save(
        self, prefix: str, plan: SavePlan, *, run: str, meta: bytes | None, suffix: str = "meta"
    ) -> None:
        """Save one checkpoint, make it the latest, and collect what retention lets go.

        Parameters
        ----------
        prefix : str
            Direct child of the directory.
        plan : SavePlan
        run : str
            Identity for fencing.
        meta : bytes or None
            The graph; None writes none.
        suffix : str
            Of the graph's file.

        Raises
        ------
        FencedError
            A newer run owns this basename; nothing of this save stays.
        AmbiguousOutcomeError
            An answer was lost for good; nothing was cleaned up.
        CkptStoreError
            Whatever kept the checkpoint from being published; the previous one still restores.

        Guarantees
        ----------
        When it returns, the checkpoint exists and is the latest. Files that could not be deleted are a
        warning.
        """
        basename, step = split_step(prefix)
        held = self._ownership.acquire(basename, run, self._timeout_s)
        fresh = (
            step is not None
            and prefix not in held.seen
            and (held.highest_step is None or step > held.highest_step)
        )
        standing = None if fresh else read_standing(self.directory, prefix)
        with ShardSet(self.directory, prefix) as files:
            files.write(plan, None if fresh else self._taken(prefix, standing, held))
            if meta is not None:
                put_meta(self.directory, prefix, meta, suffix=suffix)
            self._graphs.note(prefix, suffix, written=meta is not None, fresh=fresh)
            change = RecordChange(
                self._ownership,
                self._retention,
                prefix,
                run,
                suffix,
                now_s=self._clock(),
                known=self.window,
                forced=self._forced,
                done=self._done,
                look_up=self._look_up,
                replaced=standing,
            )
            before = read_record(self._record)
            change(before)
            self._graphs.carry_over(
                [v.prefix for v in change.victims], [e.prefix for e in change.window], suffix
            )
            change.replaced = self._publish(prefix, files, standing, run)
        held.seen.add(prefix)
        self._ownership.saved(prefix)
        record = update_record(self._record, change, first=before, timeout_s=self._timeout_s)
        held.in_record = held.has_saved = True
        self._ownership.last_seen = record
        self._ownership.adopted.clear()
        self._forced = None
        self.window = change.window
        self._collect(record, before.record)

    def _taken(self, prefix: str, standing: Standing | None, held: Held) -> set[int] | None:
        """Return the shard counts that a save of `prefix` must not use; None if it was never listed."""
        named = {count for _, count in self._ownership.last_seen.shards_named(prefix)}
        if standing is None and not named and prefix not in held.seen and split_step(prefix)[1] is None:
            return None
        return named | (standing.counts if standing is not None else set())

    def _publish(self, prefix: str, files: ShardSet, standing: Standing | None, run: str) -> Standing | None:
        """Publish the index; return what it replaced."""
        backoff = Backoff(self._timeout_s)
        while True:
            outcome = publish_index(files, standing)
            if isinstance(outcome, Committed):
                self._known[prefix] = Standing(outcome.version, files.shards)
                return standing
            # Lost is not fenced by itself: a run that died, or was fenced, between index and record left it
            # there.
            self._ownership.check(read_record(self._record), run)
            if not backoff.wait():
                raise ConflictError(
                    "another writer keeps saving the same checkpoint",
                    url=self.directory.child(prefix).url,
                    hint="Let only one job save under this name.",
                )
            standing = read_standing(self.directory, prefix)

    def _look_up(self, prefix: str) -> Standing | None:
        """Return the index of a checkpoint that is to be deleted, None if it is gone."""
        known = self._known.get(prefix)
        if known is not None:
            location = self.directory.child(index_name(prefix))
            try:
                if location.storage.head(location.key).version == known.version:
                    return known
            except NotFoundError:
                return None
        standing = read_standing(self.directory, prefix)
        if standing is not None:
            self._known[prefix] = standing
        return standing

    def _collect(self, record: Record, before: Record) -> None:
        """Delete what the record says is to go. The checkpoint exists, so a failure is only a warning."""
        for pending in record.pending:
            if self._is_mine(pending.prefix) and pending not in self._done:
                self._attempt(pending, collect_pending)
                self._known.pop(pending.prefix, None)
        for superseded in record.superseded:
            # Only those of earlier saves: readers of the index that this save replaced must be able to
            # finish.
            if (
                self._is_mine(superseded.prefix)
                and superseded in before.superseded
                and superseded not in self._done
            ):
                self._attempt(
                    superseded, lambda directory, line: collect_shards(directory, line.prefix, line.shards)
                )

    def _is_mine(self, prefix: str) -> bool:
        return "/" not in prefix and owner_of(prefix) in self._ownership.held

    def _attempt(self, line: Pending | Superseded, collect: Callable[..., None]) -> None:
        try:
            collect(self.directory, line)
        except CkptStoreError as error:
            warnings.warn(
                f"the checkpoint is saved, but old files of {line.prefix!r} are not deleted yet: {error}",
                CkptStoreWarning,
                stacklevel=5,
            )
        else:
            self._done.add(line)
