"""What happened in one run, checked after every change of the bucket."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ckptstore.directory.retention import Entry
from ckptstore.directory.retention_rules import RetentionRule, kept_by
from ckptstore.format.naming import index_name, meta_name
from ckptstore.format.record_facts import Intent, Owner, OwnerName, Pending, Record, Superseded
from ckptstore.testing.invariants import (
    InvariantViolation,
    assert_acknowledged_save_is_kept,
    assert_checkpoint_is_complete,
    assert_fence_holds,
    assert_index_is_there,
    assert_nothing_is_forgotten,
    data_files_of,
    listed_prefixes,
    read_record_of,
)
from tests.simulation.bucket import SimulatedBucket
from tests.simulation.scheduler import Step

DIRECTORY = "bucket/run"
RECORD = "checkpoint"
_START = len(DIRECTORY) + 1


@dataclass(slots=True)
class Save:
    """One call of save. Its mark is the value of every array, and belongs to no other one.

    Attributes
    ----------
    began, ended : int
        Number of the step of the schedule.
    """

    mark: int
    run: str
    prefix: str
    is_acknowledged: bool = False
    actor: str = ""
    began: int = 0
    ended: int | None = None


class Files(Mapping[str, bytes]):
    """The directory as name → bytes."""

    def __init__(self, bucket: SimulatedBucket) -> None:
        self._objects = bucket.objects

    def __getitem__(self, name: str) -> bytes:
        return self._objects[f"{DIRECTORY}/{name}"].data

    def get(self, name: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        found = self._objects.get(f"{DIRECTORY}/{name}")
        return default if found is None else found.data

    def __contains__(self, name: object) -> bool:
        return f"{DIRECTORY}/{name}" in self._objects

    def __iter__(self) -> Iterator[str]:
        return (key[_START:] for key in self._objects)

    def __len__(self) -> int:
        return len(self._objects)


class History:
    """Watches a bucket.

    Parameters
    ----------
    bucket : SimulatedBucket
    max_to_keep : int
        Of every Saver.
    has_graphs : bool
        Whether each listed checkpoint must have its graph.
    rules : sequence of RetentionRule, optional
        By which every Saver keeps checkpoints, besides the newest `max_to_keep`. Each save has metrics then.

    Attributes
    ----------
    files : Files
    record : Record or None
        As it is now.
    saves : list of Save
        In the order in which they began.
    seen : dict of int to int
        Mark → when its index was put in place or the record called it the latest, whichever came last.
    bystanders : set of str
        Prefixes that somebody else has saved beside the training job: nobody else may list or delete them.
    torn : set of str
        Prefixes whose data files somebody took away.
    pins : set of str
        Prefixes whose pin was acknowledged, and that nobody has begun to unpin.
    violations : list of InvariantViolation
    on_index : callable
        Called with a prefix when its index was put in place; may raise `InvariantViolation`.
    """

    def __init__(
        self,
        bucket: SimulatedBucket,
        max_to_keep: int,
        *,
        has_graphs: bool,
        rules: Sequence[RetentionRule] = (),
    ) -> None:
        self.files = Files(bucket)
        self.record: Record | None = None
        self.saves: list[Save] = []
        self.seen: dict[int, int] = {}
        self.bystanders: set[str] = set()
        self.torn: set[str] = set()
        self.pins: set[str] = set()
        self.violations: list[InvariantViolation] = []
        self.on_index: Callable[[str], object] = lambda _: None
        self.noting = _Noting(self.violations)
        self._max_to_keep = max_to_keep
        self._has_graphs = has_graphs
        self._rules = rules
        self._listed: tuple[str, ...] = ()
        self._latest = ""
        # Each index that ever was there; and prefixes where one has come back.
        self._indexes: set[tuple[str, bytes]] = set()
        self._repeated: set[str] = set()
        # Of each run, the last one; those after a rewrite of the record are higher than those before.
        self._epochs: dict[str, int] = {}
        self._highest_before = 0
        # Owners that the record had before somebody rewrote it, until they are there again.
        self._dropped: dict[OwnerName, Owner] = {}
        # Runs whose save a record named, or announced, and runs in whose place another one came.
        self._savers: set[str] = set()
        self._beginners: set[str] = set()
        self._replaced: set[str] = set()
        self._changes = 0
        self._before_record: set[str] = set()
        # Saves that had not ended when somebody rewrote the record.
        self._under_way: set[int] = set()
        bucket.on_change = self._changed

    def note(self, name: str, text: str) -> None:
        """Record a violation that none of the shipped assertions covers."""
        self.violations.append(InvariantViolation(name, text))

    def mark_at(self, prefix: str) -> int | None:
        """Return which save stands at `prefix`; None if it cannot be restored."""
        try:
            name = data_files_of(self.files, prefix)[0]
            return int.from_bytes(self.files[name][:4], "little")
        except KeyError:
            return None

    def latest_mark(self) -> int | None:
        """Return which save the record calls the latest."""
        return self.mark_at(self._latest) if self._latest else None

    @property
    def listed(self) -> tuple[str, ...]:
        """What the record lists now."""
        return self._listed

    def is_listed(self, prefix: str) -> bool:
        """Return whether the record lists `prefix` now."""
        return prefix in self._listed

    def older(self, basename: str) -> list[str]:
        """Return what the record lists of `basename` but for its newest."""
        own = [p for p in self._listed if p.startswith(f"{basename}-") and p not in self.bystanders]
        return [prefix for prefix in own[:-1] if prefix != self._latest]

    def check_acknowledged(self, basename: str) -> None:
        """Check that the last acknowledged save of `basename` is its newest, or has a later one behind it."""
        saves = [save for save in self.saves if save.prefix.startswith(basename)]
        acknowledged = [save for save in saves if save.is_acknowledged]
        if not acknowledged:
            return
        # Not by the time of the answer: a frozen run may get the answer to its save after others went on.
        newest = max(self._epochs.get(save.run, 0) for save in acknowledged)
        last = [save for save in acknowledged if self._epochs.get(save.run, 0) == newest][-1]
        later = [
            save.mark
            for number, save in enumerate(saves)
            if self._epochs.get(save.run, 0) > newest or (save.run == last.run and number > saves.index(last))
        ]
        # Where somebody rewrote the record, two runs may go on until one of them has written it again.
        also = {save.mark for save in saves if save.mark in self._under_way and save.prefix == last.prefix}
        own = [p for p in self._listed if p.startswith(basename) and p not in self.bystanders]
        with self.noting:
            assert_acknowledged_save_is_kept(
                self.mark_at(own[-1]) if own else None, {last.mark, *later, *also}
            )

    def _changed(self, key: str) -> None:
        name = key[_START:]
        self._changes += 1
        with self.noting:
            if name == RECORD:
                self._record_changed()
                return
            prefix = name.partition(".")[0]
            if name == index_name(prefix):
                self.torn.discard(prefix)
                self._see(prefix)
                self._check_bystander(prefix)
                if prefix in self.pins and name not in self.files:
                    raise InvariantViolation("PINNED", f"{prefix!r} was deleted, and is pinned")
                if self._is_new_index(prefix):
                    self.on_index(prefix)
                if self.record is None or not self.record.owners:
                    self._before_record.add(prefix)
            if prefix in self._listed and prefix not in self.torn:
                self._check(prefix)

    def _is_new_index(self, prefix: str) -> bool:
        """Return whether an index stands at `prefix` that has never stood there before.

        One that has was deleted by retention meanwhile: its creation was sent twice, and the first one
        arrived last. It is torn, and no record names it (design note 007).
        """
        self._repeated.discard(prefix)
        if index_name(prefix) not in self.files:
            return False
        index = prefix, self.files[index_name(prefix)]
        if index in self._indexes:
            self._repeated.add(prefix)
            return False
        self._indexes.add(index)
        return True

    def _record_changed(self) -> None:
        before, after = self.record, read_record_of(self.files)
        if after is None or after.state is None:
            raise InvariantViolation("LOST", "there is no record any more")
        self.record = after
        self._listed = listed_prefixes(after)
        self._latest = after.state.model_checkpoint_path
        self._look_at_owners(before, after)
        self._see(self._latest)
        for prefix in self._listed:
            if prefix not in self.torn:
                self._check(prefix)
        if self.torn.difference(self._listed):
            raise InvariantViolation("LOST", f"what is torn left the list: {self.torn}")
        if before is not None:
            if after.owners:
                assert_fence_holds(before, after)
            pins = {*before.pins, *after.pins}
            old, new = self._counted(before, pins), self._counted(after, pins)
            assert_nothing_is_forgotten(old, new, self._max_to_keep)
            self._check_rules(old, new)
        if not self.pins <= set(after.pins):
            raise InvariantViolation("PINNED", f"pins left the record: {self.pins.difference(after.pins)}")

    def _look_at_owners(self, before: Record | None, after: Record) -> None:
        """Note who owns what and has saved; FENCE: a rewrite of the record helps no run that was replaced."""
        last = self._dropped if before is None else {**self._dropped, **before.owners}
        self._beginners.update(intent.run for intent in after.intents)
        for name, owner in after.owners.items():
            previous = last.get(name)
            if previous is not None and previous.run != owner.run:
                self._replaced.add(previous.run)
                # Who was replaced before its first save looks around only then: what it finds, it knows.
                is_zombie = owner.run in self._replaced & (self._savers | self._beginners)
                if name in self._dropped and previous.run in self._savers and is_zombie:
                    self.note("FENCE", f"{owner.run} came back after a save of {previous.run}")
            if before is None or (before.state != after.state and before.owners.get(name) != owner):
                self._savers.add(owner.run)
        if not after.owners:
            self._highest_before = max(self._epochs.values(), default=0)
            self._under_way.update(save.mark for save in self.saves if not save.is_acknowledged)
            # What was announced there is not proved any more.
            self._before_record.update(
                name.removesuffix(".index") for name in self.files if name.endswith(".index")
            )
        self._dropped = {
            name: owner
            for name, owner in (self._dropped if after.owners else last).items()
            if name not in after.owners
        }
        for owner in after.owners.values():
            self._epochs[owner.run] = self._highest_before + owner.epoch

    def was_replaced(self, run: str, prefix: str) -> bool:
        """Return whether another run came in the place of `run`.

        Where somebody rewrote the record, a checkpoint of another run at `prefix`, or as the latest, says so
        before that run has written the record, or even if it never will (docs/design/018-who-owns-what.md).
        """
        if run in self._replaced or run not in self._epochs:
            return True
        marks = {self.mark_at(each) for each in (prefix, self._latest)} if self._dropped else set()
        return any(save.mark in marks and save.run != run for save in self.saves)

    def _check_rules(self, old: Record, new: Record) -> None:
        """RULES: what leaves the list is kept by no rule. NOTES: what is listed has its metrics."""
        if not self._rules:
            return
        listed = listed_prefixes(new)
        for prefix in listed:
            if prefix not in new.notes:
                raise InvariantViolation("NOTES", f"{prefix!r} lost its metrics")
        notes = {**old.notes, **new.notes}
        gone = [prefix for prefix in listed_prefixes(old) if prefix not in listed]
        entries = [
            Entry(prefix, 0.0, int(prefix.rpartition("-")[2]), notes.get(prefix, {}))
            for prefix in (*gone, *listed)
            if index_name(prefix) in self.files
        ]
        kept = kept_by(self._rules, entries, 0.0)
        for prefix in gone:
            if prefix in kept:
                raise InvariantViolation("RULES", f"{prefix!r} left the list, although {kept[prefix]}")

    def had_rival(self, save: Save) -> bool:
        """Return whether another process of the same run saved while `save` went on.

        It may also have dropped the checkpoint that `save` had just listed, without an answer to it.
        """
        return any(
            other.actor != save.actor and other.run == save.run
            for other in self.saves
            if other.ended is None or other.ended >= save.began
        )

    def check_is_alone(self, save: Save, trace: Sequence[Step]) -> None:
        """TWICE: of two saves of one run at one prefix that overlap, only one succeeds.

        Unless retention has deleted the first one before the second one was published.
        """
        for other in self.saves:
            is_same = (other.run, other.prefix) == (save.run, save.prefix) and other is not save
            if not is_same or not other.is_acknowledged:
                continue
            commits = sorted((_first_commit(save, trace), _first_commit(other, trace)))
            is_gone = any(
                step.deed == "DELETE" and step.key.endswith(f"/{index_name(save.prefix)}")
                for step in trace[commits[0] : len(trace)]
            )
            if max(_first_look(save, trace), _first_look(other, trace)) < commits[0] and not is_gone:
                self.note(
                    "TWICE",
                    f"{other.mark} of {other.actor}, {save.mark} of {save.actor}: both saved {save.prefix!r}",
                )

    def _counted(self, record: Record, pins: Collection[str]) -> Record:
        """Return `record` without what takes no place in a window."""
        state = record.state
        if state is None or not (self.torn or self.bystanders or pins):
            return record
        left = tuple(
            prefix
            for prefix in state.all_model_checkpoint_paths
            if prefix not in self.torn and prefix not in self.bystanders and prefix not in pins
        )
        if not left:
            return replace(record, state=None)
        latest = state.model_checkpoint_path if state.model_checkpoint_path in left else left[-1]
        return replace(
            record, state=replace(state, model_checkpoint_path=latest, all_model_checkpoint_paths=left)
        )

    def _check_bystander(self, prefix: str) -> None:
        if prefix in self.bystanders and index_name(prefix) not in self.files:
            raise InvariantViolation("KEPT", f"{prefix!r} was deleted by a run that never saved it")

    def check_nothing_grows(self, before: Record | None, basename: str) -> None:
        """GROWS: nothing that earlier saves of `basename` left to be done is in the record any more."""
        if before is None or self.record is None:
            return
        named = (*before.pending, *before.superseded, *before.intents)
        lines: list[Pending | Superseded | Intent] = [
            *self.record.pending,
            *self.record.superseded,
            *self.record.intents,
        ]
        for line in lines:
            is_ours = line.prefix.startswith(basename) and line.prefix not in self.bystanders
            if is_ours and line in named:
                self.note("GROWS", f"the record goes on to say {line}")

    def check_nothing_is_left(self) -> None:
        """LEFT: at a quiet moment each checkpoint is listed, or was there before a record of ours was."""
        record = self.record
        assert record is not None
        named = {
            *self._listed,
            *self._before_record,
            *self.bystanders,
            *self._repeated,
            *(line.prefix for line in record.pending),
        }
        for name in self.files:
            prefix = name.removesuffix(".index")
            if prefix != name and prefix not in named:
                self.note("LEFT", f"nobody will ever delete {prefix!r}")

    def _see(self, prefix: str) -> None:
        mark = self.mark_at(prefix)
        if mark is not None:
            self.seen[mark] = self._changes

    def _check(self, prefix: str) -> None:
        assert_index_is_there(self.files, prefix)
        assert_checkpoint_is_complete(self.files, prefix)
        if self._has_graphs and meta_name(prefix) not in self.files:
            raise InvariantViolation("GRAPH", f"{prefix!r} is listed and lost its graph")


def _first_look(save: Save, trace: Sequence[Step]) -> int:
    """Return the step in which `save` looked first: what had ended by then came before it.

    That is the last look at the record of one that has written nothing yet, or the first answer it got.
    """
    looks: list[int] = []
    for number in range(save.began, len(trace)):
        step = trace[number]
        if step.actor != save.actor or not step.key or "lost" in step.outcome:
            continue
        if step.deed.startswith("PUT"):
            break
        if not looks or step.key.rpartition("/")[2] == RECORD:
            looks.append(number)
    return looks[-1] if looks else number


def _first_commit(save: Save, trace: Sequence[Step]) -> int:
    """Return the step in which `save` first changed the record or an index."""
    for number in range(save.began, len(trace)):
        step = trace[number]
        is_commit = step.key.endswith(".index") or step.key.rpartition("/")[2] == RECORD
        if step.actor == save.actor and step.deed.startswith("PUT") and is_commit:
            return number
    return len(trace)


class _Noting:
    """Takes a violation down instead of letting it through the code under test."""

    def __init__(self, violations: list[InvariantViolation]) -> None:
        self._violations = violations

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, InvariantViolation):
            self._violations.append(error.with_traceback(None))
            return True
        return False
