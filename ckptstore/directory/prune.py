"""Deleting by rules because the user asks for it, while no run saves or while one does.

It is a save that saves nothing: what no rule keeps leaves the list and becomes pending in one replacement of
the record, and is then deleted by exact names (docs/design/020-retention-rules.md). A run that saves
meanwhile is not fenced: its line stays in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ckptstore.directory.catalog import PrefixFiles, fault_of, list_checkpoints
from ckptstore.directory.collect import collect_pending
from ckptstore.directory.graph_keeper import GraphKeeper, is_graph_suffix
from ckptstore.directory.moved import moved_here
from ckptstore.directory.owner_names import owner_of_step, step_of
from ckptstore.directory.paths import relative_prefix
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.record_entries import is_listed, listed_paths
from ckptstore.directory.record_update import RecordSnapshot, read_record, update_record, with_new_write_ids
from ckptstore.directory.retention import Entry
from ckptstore.directory.retention_rules import RetentionRule
from ckptstore.errors import CkptStoreError, ConflictError, NotFoundError
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import DEFAULT_SUFFIX, Owner, OwnerName, Pending, Record
from ckptstore.storage.abilities import now_s
from ckptstore.storage.base import Location

__all__ = ["NamedRule", "PruneItem", "PrunePlan", "PruneReport", "PruneRequest", "prune"]

NamedRule: TypeAlias = tuple[str, RetentionRule]
"""A rule, and what the user calls it."""

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PruneItem:
    """One checkpoint, and what becomes of it.

    Attributes
    ----------
    prefix : str
        Relative to the directory, or as the record names it.
    goes : bool
        Whether it is to be deleted.
    because : tuple of str
        What keeps it; empty if it goes.
    size_bytes : int
        Of all its files.
    time_s : float or None
        When it was saved, seconds since 1970.
    published : PublishedIndex or None
        What is to be deleted.
    """

    prefix: str
    goes: bool
    because: tuple[str, ...]
    size_bytes: int
    time_s: float | None
    published: PublishedIndex | None = None

    @property
    def step(self) -> int | None:
        """The step in its name."""
        return step_of(self.prefix)


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What is to be deleted, and what stays and why; nothing was changed.

    Attributes
    ----------
    url, record_url : str
    record_version : str
        Of the record that was judged.
    now_s : float
        Seconds since 1970.
    items : tuple of PruneItem
        In the order of the record, the newest last.
    unfinished : tuple of Pending
        Deletes that a save or another prune has decided and not finished.
    """

    url: str
    record_url: str
    record_version: str
    now_s: float
    items: tuple[PruneItem, ...]
    unfinished: tuple[Pending, ...]

    @property
    def victims(self) -> tuple[PruneItem, ...]:
        """What is to be deleted."""
        return tuple(item for item in self.items if item.goes)

    def still(self, later: PrunePlan) -> PrunePlan:
        """Return `later`, where nothing goes that does not go here, in the same version."""
        shown = {(item.prefix, item.published) for item in self.victims}
        items = [
            item
            if not item.goes or (item.prefix, item.published) in shown
            else replace(item, goes=False, because=("changed meanwhile",))
            for item in later.items
        ]
        return replace(later, items=tuple(items))


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was deleted.

    Attributes
    ----------
    plan : PrunePlan
        As it was carried out.
    deleted : tuple of PruneItem
    error : CkptStoreError or None
        Why not everything is gone; the next save or prune goes on.
    """

    plan: PrunePlan
    deleted: tuple[PruneItem, ...] = ()
    error: CkptStoreError | None = None


@dataclass(slots=True)
class PruneRequest:
    """What is asked for.

    Attributes
    ----------
    directory, record : Location
    rules : sequence of NamedRule
        A checkpoint stays if any keeps it.
    keep : sequence of str
        Prefixes that stay in any case.
    basename : str or None
        Judge the steps of this one only.
    with_unlisted : bool
        Judge complete checkpoints that the record does not list, too.
    record_version : str or None
        Go by no other version of the record.
    """

    directory: Location
    record: Location
    rules: Sequence[NamedRule]
    keep: Sequence[str] = ()
    basename: str | None = None
    with_unlisted: bool = False
    record_version: str | None = None
    # Prefix and version → index.
    _read: dict[tuple[str, str], PublishedIndex | None] = field(default_factory=dict)

    def plan(self, snapshot: RecordSnapshot | None = None) -> PrunePlan:
        """Return what is to be done about the record as it is now.

        Raises
        ------
        NotFoundError
            If there is no record, or nothing of a name in `keep`.
        CorruptError
            If the record cannot be read.
        ConflictError
            If the record has another version than it must have.
        AccessError, TransientError
            If the storage does not show what is there.
        """
        snapshot = read_record(self.record) if snapshot is None else snapshot
        if snapshot.fault is not None:
            raise snapshot.fault
        if snapshot.version is None:
            raise NotFoundError(
                "there is no record that says which checkpoints a saver owns",
                url=self.record.url,
                hint="ckptstore repair makes one; remove_checkpoint deletes a single checkpoint.",
            )
        if self.record_version not in (None, snapshot.version):
            raise ConflictError(
                "the record has changed since the plan was made; nothing was deleted",
                url=self.record.url,
                expected=f"version {self.record_version}",
                actual=f"version {snapshot.version}",
                hint="Make a new plan.",
            )
        return _Judgement(self, snapshot.record, snapshot.version).plan()

    def index_of(self, files: PrefixFiles) -> PublishedIndex | None:
        """Return the index of `files`, read once in each version."""
        assert files.index is not None
        key = (files.prefix, files.index.version)
        if key not in self._read:
            self._read[key] = read_published_index(self.directory, files.prefix)
        return self._read[key]


class _Judgement:
    """One look at a directory."""

    def __init__(self, request: PruneRequest, record: Record, version: str) -> None:
        self._request = request
        self._directory = request.directory
        self._record = record
        self._version = version
        self._pins = frozenset(record.pins)
        self._found = list_checkpoints(request.directory)
        self._now_s = now_s(request.directory.storage)
        # In the order in which they are shown.
        self._items: dict[str, PruneItem] = {}
        self._judged: dict[OwnerName, list[Entry]] = {}
        self._published: dict[str, PublishedIndex] = {}

    def plan(self) -> PrunePlan:
        """Return what stays, and why, and what goes."""
        state = self._record.state and moved_here(self._directory, self._record.state)
        listed = {relative_prefix(self._directory, path) or path: time for path, time in listed_paths(state)}
        for prefix, files in sorted(self._found.items(), key=lambda item: item[1].mtime_s):
            if prefix not in listed and files.index is not None:
                self._look_at(prefix, files.index.mtime_s, is_listed=False)
        for name, time_s in listed.items():
            self._look_at(name, time_s, is_listed=True)
        latest = None if state is None else relative_prefix(self._directory, state.model_checkpoint_path)
        unknown = [name for name in self._request.keep if name not in self._items]
        if unknown:
            raise NotFoundError(
                "there is no such checkpoint to keep",
                url=self._directory.child(unknown[0]).url,
                hint="ckptstore ls shows those that there are.",
            )
        for entries in self._judged.values():
            self._judge(entries, latest)
        return PrunePlan(
            self._directory.url or ".",
            self._request.record.url,
            self._version,
            self._now_s,
            tuple(self._items.values()),
            tuple(
                line
                for line in self._record.pending
                if _is_to_be_deleted(self._directory, self._record, line)
            ),
        )

    def _is_unfinished(self, line: Pending) -> bool:
        """Return whether files of a pending line are left: a line stays for a while after they are gone."""
        files = self._found.get(line.prefix)
        if files is None or not _is_to_be_deleted(self._directory, self._record, line):
            return False
        is_index = files.index is not None and files.index.version == line.version
        return is_index or (files.index is None and not files.data.keys().isdisjoint(line.shards))

    def _look_at(self, name: str, time_s: float | None, *, is_listed: bool) -> None:
        """Add one checkpoint; what no rule is asked about stays."""
        files = self._found.get(name)
        size = 0 if files is None else _size_of(files)
        if time_s is None and files is not None and files.index is not None:
            time_s = files.index.mtime_s
        reason = self._why_left_alone(name, files, is_listed=is_listed)
        self._items[name] = PruneItem(name, False, () if reason is None else (reason,), size, time_s)
        if reason is None:
            owner = owner_of_step(name)
            assert owner is not None
            metrics = self._record.notes.get(name, {})
            entry = Entry(name, time_s or 0.0, step_of(name), metrics)
            self._judged.setdefault(owner, []).append(entry)

    def _why_left_alone(self, name: str, files: PrefixFiles | None, *, is_listed: bool) -> str | None:
        record, request = self._record, self._request
        owner = owner_of_step(name)
        if name in self._pins:
            return "pinned"
        if relative_prefix(self._directory, name) is None or "/" in name:
            return "in another directory"
        if name in record.kept:
            return "kept: no saver owns it"
        if OwnerName(name, "exact") in record.owners:
            return "saved without a step"
        if owner is None or not _owns(record, owner):
            return "no saver with steps owns it"
        if request.basename not in (None, owner.basename):
            return "not asked for"
        if files is None or files.index is None:
            return "no index"
        published = request.index_of(files)
        if published is None or not published.shards or not set(published.shards) <= files.data.keys():
            return "torn"
        if not is_listed and not request.with_unlisted:
            return "not listed"
        self._published[name] = published
        return None

    def _judge(self, entries: list[Entry], latest: str | None) -> None:
        """Judge the checkpoints of one owner."""
        if self._request.with_unlisted:
            # Times do not survive a copy.
            entries.sort(key=lambda entry: entry.step or 0)
        # The newest stays if it can be restored, otherwise the next.
        while entries and fault_of(self._directory.child(entries[-1].prefix)) is not None:
            self._set(entries.pop().prefix, ["torn"])
        because: dict[str, list[str]] = {entry.prefix: [] for entry in entries}
        for words, rule in self._request.rules:
            for prefix in rule.keep(entries, self._now_s):
                because[prefix].append(words)
        for prefix in self._request.keep:
            if prefix in because:
                because[prefix].append("--keep")
        if latest in because:
            because[latest].append("the latest")
        if entries and not because[entries[-1].prefix]:
            because[entries[-1].prefix].append("the newest")
        for prefix, reasons in because.items():
            self._set(prefix, reasons)

    def _set(self, prefix: str, because: list[str]) -> None:
        self._items[prefix] = replace(
            self._items[prefix],
            goes=not because,
            because=tuple(because),
            published=self._published[prefix],
        )


def prune(request: PruneRequest, shown: PrunePlan) -> PruneReport:
    """Delete what goes in `shown`, as far as it still goes in the record as it is now.

    Raises
    ------
    DeadlineError, AmbiguousOutcomeError, CkptStoreError
        If the record could not be replaced; nothing was deleted.

    Guarantees
    ----------
    The newest checkpoint of each owner that can be restored stays, and so does the latest. A crash at any
    point leaves each checkpoint listed, or pending: the next save or prune deletes it. The last graph is put
    beside a checkpoint that stays.
    """
    plans = [shown]

    def change(snapshot: RecordSnapshot) -> Record:
        plans.append(shown.still(request.plan(snapshot)))
        return _without(request.directory, snapshot.record, plans[-1])

    if not shown.victims and not shown.unfinished:
        return PruneReport(shown)
    written = update_record(request.record, change, timeout_s=_TIMEOUT_S).record
    plan = plans[-1]
    done, error = _delete(request.directory, written, plan)
    gone = {line.prefix for line in done}
    deleted = tuple(item for item in plan.victims if item.prefix in gone)
    try:
        _drop_lines(request.record, done)
    except CkptStoreError as failure:
        error = error or failure
    return PruneReport(plan, deleted, error)


def _without(directory: Location, record: Record, plan: PrunePlan) -> Record:
    """Return `record` with what goes pending instead of listed; the last graph is saved before."""
    victims = plan.victims
    gone = {item.prefix for item in victims}
    owners = {owner for item in victims if (owner := owner_of_step(item.prefix)) is not None}
    for name in owners:
        GraphKeeper(directory).carry_over(
            [item.prefix for item in victims if owner_of_step(item.prefix) == name],
            [item.prefix for item in plan.items if not item.goes and owner_of_step(item.prefix) == name],
            _suffix(record, name),
        )
    pending = list(record.pending)
    for item in victims:
        owner = owner_of_step(item.prefix)
        assert item.published is not None
        assert owner is not None
        line = Pending(item.prefix, item.published.version, item.published.shards, _suffix(record, owner))
        if line not in pending:
            pending.append(line)
    changed = replace(
        record,
        state=record.state and _unlisted(directory, moved_here(directory, record.state), gone),
        pending=tuple(pending),
        notes={prefix: metrics for prefix, metrics in record.notes.items() if prefix not in gone},
        counted={prefix: keep for prefix, keep in record.counted.items() if prefix not in gone},
    )
    return with_new_write_ids(changed)


def _unlisted(directory: Location, state: CheckpointState, gone: set[str]) -> CheckpointState:
    paths = state.all_model_checkpoint_paths
    times = state.all_model_checkpoint_timestamps
    stays = [number for number, path in enumerate(paths) if relative_prefix(directory, path) not in gone]
    return replace(
        state,
        all_model_checkpoint_paths=tuple(paths[number] for number in stays),
        all_model_checkpoint_timestamps=tuple(times[number] for number in stays)
        if len(times) == len(paths)
        else times,
    )


def _delete(
    directory: Location, record: Record, plan: PrunePlan
) -> tuple[list[Pending], CkptStoreError | None]:
    """Do the deletes of `record` that are the user's to do; return those that are done."""
    decided = {item.prefix for item in plan.victims}
    done: list[Pending] = []
    error: CkptStoreError | None = None
    for line in record.pending:
        if line.prefix not in decided and line not in plan.unfinished:
            continue
        owner = owner_of_step(line.prefix)
        suffixes = (DEFAULT_SUFFIX, DEFAULT_SUFFIX if owner is None else _suffix(record, owner))
        try:
            collect_pending(directory, line, with_graph=line.suffix in suffixes)
            done.append(line)
        except CkptStoreError as failure:
            error = error or failure
    return done, error


def _drop_lines(record: Location, done: list[Pending]) -> None:
    def change(snapshot: RecordSnapshot) -> Record:
        left = tuple(line for line in snapshot.record.pending if line not in done)
        if snapshot.fault is not None or snapshot.version is None or left == snapshot.record.pending:
            raise _NothingToDoError
        return with_new_write_ids(replace(snapshot.record, pending=left))

    try:
        update_record(record, change, timeout_s=_TIMEOUT_S)
    except _NothingToDoError:
        return


class _NothingToDoError(Exception):
    """A save has dropped the lines meanwhile."""


def _is_to_be_deleted(directory: Location, record: Record, line: Pending) -> bool:
    """Return whether a pending `line` is one of a saver with steps of `record`, and still means something."""
    owner = owner_of_step(line.prefix)
    return (
        "/" not in line.prefix
        and is_graph_suffix(line.suffix)
        and owner in record.owners
        and OwnerName(line.prefix, "exact") not in record.owners
        and line.prefix not in record.pins
        and line.prefix not in record.kept
        and not is_listed(directory, record.state, line.prefix)
    )


def _owns(record: Record, name: OwnerName) -> bool:
    """Return whether `name` owns what has its names: by its line, or because nobody has any."""
    return not record.owners or name in record.owners or OwnerName(name.basename, "") in record.owners


def _suffix(record: Record, name: OwnerName) -> str:
    line: Owner | None = record.owners.get(name)
    return DEFAULT_SUFFIX if line is None else line.suffix


def _size_of(files: PrefixFiles) -> int:
    infos = (files.index, files.meta, *files.data.values())
    return sum(info.size_bytes for info in infos if info is not None)
