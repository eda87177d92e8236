"""The protocol with one rule taken away: the simulation must notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import ckptstore.directory.checkpoint_writer
import ckptstore.directory.collect
import ckptstore.directory.garbage_search
import ckptstore.directory.pending_deletes
import ckptstore.directory.pins
from ckptstore.directory.catalog import list_checkpoints
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.intents import Announcements
from ckptstore.directory.open_save import Assignment, SaveSteps
from ckptstore.directory.other_saves import OtherSaves
from ckptstore.directory.owner_names import highest_step, may_have_saved, owner_of_step, start_of
from ckptstore.directory.ownership import Ownership
from ckptstore.directory.pending_deletes import PendingDeletes
from ckptstore.directory.prune import PrunePlan
from ckptstore.directory.record_change import RecordChange
from ckptstore.directory.record_update import RecordSnapshot
from ckptstore.directory.retention import Entry, Verdict
from ckptstore.directory.retention_rules import RulesRetention, kept_by
from ckptstore.directory.save_request import SaveRequest
from ckptstore.directory.shard_set import ShardSet
from ckptstore.directory.torn_entries import TornEntries
from ckptstore.distributed.messages import pack
from ckptstore.distributed.rounds import Chief, Message, Round
from ckptstore.errors import (
    CkptStoreError,
    CoordinatorLostError,
    FencedError,
    RanksMissingError,
    TransientError,
)
from ckptstore.format.naming import data_name, index_name, meta_name
from ckptstore.format.record_facts import Intent, OwnerName, Pending, Record
from ckptstore.saving.rank_task.member import MemberTask
from ckptstore.saving.ranks import Ranks
from ckptstore.storage.base import Location
from ckptstore.storage.object_store.conditional_write import ConditionalWrite
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import PutRequest
from ckptstore.storage.values import Lost
from tests.simulation.mailbox import Mailbox
from tests.simulation.memory import every_copy_of
from tests.simulation.storage import SimulatedTransport

__all__ = ["MUTATIONS", "Mutation"]


@dataclass(frozen=True)
class Mutation:
    """A rule to take away.

    Attributes
    ----------
    name : str
    scenario : str
        The one that shows best what it was good for.
    expected : set of str
        The invariants that may notice.
    seeds : int
        Within so many it must be noticed.
    apply : callable
        Returns a context in which the rule does not hold.
    """

    name: str
    scenario: str
    expected: frozenset[str]
    seeds: int
    apply: Callable[[], AbstractContextManager[Any]]


MUTATIONS: dict[str, Mutation] = {}


def _mutation(
    scenario: str, *expected: str, seeds: int = 10_000
) -> Callable[[Callable[[], Iterator[None]]], None]:
    def add(function: Callable[[], Iterator[None]]) -> None:
        name = function.__name__.strip("_").replace("_", "-")
        MUTATIONS[name] = Mutation(name, scenario, frozenset(expected), seeds, contextmanager(function))

    return add


@_mutation("zombie", "FENCE", "LOST", "DANGL", "CORR")
def _no_fence() -> Iterator[None]:
    """It is not checked whether another run took over."""
    with mock.patch.object(Ownership, "check", lambda *_: False):
        yield


@_mutation("steps", "SPURIOUS")
def _no_read_back() -> Iterator[None]:
    """A conflict is taken for another writer's, a broken connection for a failure."""

    def judge(self: ConditionalWrite, fault: Fault, attempts: object) -> Lost:
        if fault.kind in (Kind.PRECONDITION, Kind.ABSENT):
            return Lost(None)
        raise TransientError(f"the write failed: {fault}")

    with mock.patch.object(ConditionalWrite, "_judge", judge):
        yield


def _delete_whatever_version(directory: Location, pending: Pending, **_: Any) -> None:
    names = [data_name(pending.prefix, *shard) for shard in pending.shards]
    names = [index_name(pending.prefix), *names, meta_name(pending.prefix, pending.suffix)]
    directory.storage.delete_many([directory.child(name).key for name in names])


@_mutation("zombie-rollback", "DANGL", "CORR", "LOST")
def _no_version_of_victims() -> Iterator[None]:
    """A checkpoint that left the list is deleted, whatever has that name by now."""
    with mock.patch.object(ckptstore.directory.pending_deletes, "collect_pending", _delete_whatever_version):
        yield


def _delete_what_is_listed(directory: Location, pending: Pending, **_: Any) -> None:
    storage = directory.storage
    if storage.delete_if(directory.child(index_name(pending.prefix)).key, pending.version):
        storage.delete_many([info.key for info in storage.list(directory.child(f"{pending.prefix}.").key)])


@_mutation("zombie-rollback", "DANGL", "CORR", "LOST")
def _no_exact_names() -> Iterator[None]:
    """Data files are deleted as a listing shows them."""
    with mock.patch.object(ckptstore.directory.pending_deletes, "collect_pending", _delete_what_is_listed):
        yield


def _names_from(first: Callable[[int, Any], int]) -> Callable[..., SaveSteps]:
    def have_written(files: ShardSet, request: SaveRequest, running: object, taken: Any) -> SaveSteps:
        count = first(request.shard_count, taken)
        while (reports := (yield Assignment(files, count))) is None:
            count += 1
        files.accept(reports)
        files.finish(count)

    return have_written


@_mutation("zombie-rollback", "CORR", "LOST", "DANGL")
def _no_random_count() -> Iterator[None]:
    """An overwrite takes the next shard count, and canonical names come back into use."""

    def next_count(shards: int, taken: Any) -> int:
        return max(taken) + 1 if taken else shards

    with mock.patch.object(ckptstore.directory.checkpoint_writer, "have_written", _names_from(next_count)):
        yield


@_mutation("zombie", "FENCE", "LOST", "DANGL", "CORR")
def _no_compare_and_swap_of_the_record() -> Iterator[None]:
    """The record is written whatever it is by now."""
    put = SimulatedTransport.put

    def put_record(self: Any, request: PutRequest, *args: Any) -> Any:
        if request.target.name.endswith("/checkpoint"):
            request = replace(request, precondition=None)
        return put(self, request, *args)

    with mock.patch.object(SimulatedTransport, "put", put_record):
        yield


@_mutation("zombie", "SPURIOUS", "BLOCKED")
def _lost_is_fenced() -> Iterator[None]:
    """An index that already exists ends the run."""
    publish = CheckpointWriter._publish

    publish_index = ShardSet.publish

    def index_or_stop(*args: Any) -> Any:
        outcome = publish_index(*args)
        if isinstance(outcome, Lost):
            raise FencedError("somebody else saved this checkpoint")
        return outcome

    def publish_or_stop(self: CheckpointWriter, *args: Any) -> None:
        try:
            publish(self, *args)
        except FencedError as error:
            self._ownership._fenced = dict.fromkeys(self._ownership.owned, error)
            raise

    with (
        mock.patch.object(ShardSet, "publish", index_or_stop),
        mock.patch.object(CheckpointWriter, "_publish", publish_or_stop),
    ):
        yield


@_mutation("zombie-rollback", "DANGL", "CORR", "LOST")
def _equal_index_bytes() -> Iterator[None]:
    """A count may come back while an unfinished delete names it: equal tensors make an equal index."""

    def low_count(shards: int, taken: Any) -> int:
        return shards if taken is None else shards + 1

    with (
        mock.patch.object(ckptstore.directory.checkpoint_writer, "have_written", _names_from(low_count)),
        mock.patch.object(Record, "shards_named", lambda *_: set()),
    ):
        yield


@_mutation("zombie-rollback", "CORR", "LOST", seeds=30_000)
def _fenced_runs_delete_canonical_names() -> Iterator[None]:
    """A run that was replaced deletes files whose names the other one may have taken up."""
    drop = ShardSet.drop
    with mock.patch.object(ShardSet, "drop", lambda self, **_: drop(self)):
        yield


@_mutation("refused", "CORR", "LOST")
def _deletes_of_failed_saves_are_repeated() -> Iterator[None]:
    """A save that failed sends a delete again whose answer was lost: the first one may arrive last."""
    with mock.patch.object(ckptstore.directory.collect, "DeletesOnce", ()):
        yield


def _adopt_what_is_found(
    self: Ownership, name: OwnerName, record: Record, listed: Any, now_s: float
) -> list[str]:
    found = list_checkpoints(self.directory, start_of(name), lambda prefix: may_have_saved(name, prefix))
    highest = highest_step(record.owners.get(name), listed)
    adopted = [
        prefix
        for prefix, item in found.items()
        if highest is not None and item.index is not None and (item.step or 0) > highest
    ]
    self.adopted.extend(Entry(prefix, now_s) for prefix in adopted)
    return adopted


@_mutation("steps", "KEPT", "LOST", "LEFT")
def _no_proof_of_adoption() -> Iterator[None]:
    """Whatever is found above the highest step is taken over."""
    with mock.patch.object(Ownership, "_adopt", _adopt_what_is_found):
        yield


@_mutation("steps", "LEFT")
def _no_adoption() -> Iterator[None]:
    """A save that died between index and record is forgotten."""
    with mock.patch.object(Ownership, "_adopt", lambda *_: []):
        yield


@_mutation("steps", "KEPT", "LOST")
def _names_say_who_owns() -> Iterator[None]:
    """What looks like a step is one, although somebody owns the prefix alone."""

    def own_filter(self: Ownership, record: Record) -> Callable[[str], bool]:
        return lambda prefix: owner_of_step(prefix) in self.owned or OwnerName(prefix, "exact") in self.owned

    with mock.patch.object(Ownership, "own_filter", own_filter):
        yield


@_mutation("steps", "LOST")
def _torn_ones_count() -> Iterator[None]:
    """A checkpoint that cannot be restored takes a place in the window."""
    with mock.patch.object(TornEntries, "add", lambda *_: None):
        yield


@_mutation("overwrite", "GROWS")
def _no_earlier_deletes() -> Iterator[None]:
    """What earlier saves left to delete waits for the next save of the same run."""
    with mock.patch.object(PendingDeletes, "collect_earlier", lambda *_: None):
        yield


@_mutation("steps", "GROWS")
def _announcements_stay() -> Iterator[None]:
    """What a run that died has announced stays in the record."""

    def is_open(self: Announcements, intent: Intent) -> bool:
        return intent.run != self._run or intent not in self._announced

    with mock.patch.object(Announcements, "_is_open", is_open):
        yield


@_mutation("zombie-rollback", "FENCE", "LOST", "DANGL", "CORR")
def _rewritten_records_are_anybodys() -> Iterator[None]:
    """Where somebody has rewritten the record, nobody looks whether another run has saved since."""
    with (
        mock.patch.object(Ownership, "_refuse_unknown", lambda *_: None),
        mock.patch.object(CheckpointWriter, "_refuse_unknown", lambda *_: None),
    ):
        yield


@_mutation("steps", "SPURIOUS")
def _rewritten_records_fence_everybody() -> Iterator[None]:
    """A run that finds its line gone never goes on, although nobody else has saved."""

    def refuse(self: CheckpointWriter, name: OwnerName, prefix: str, _: object) -> None:
        raise self._ownership.fence_unknown(name, prefix)

    with mock.patch.object(CheckpointWriter, "_refuse_unknown", refuse):
        yield


@_mutation("zombie-rollback", "ORPHAN")
def _one_set_of_data_is_the_index_s() -> Iterator[None]:
    """Data files of one count are not compared with the index beside them, whatever their numbers."""
    with mock.patch.object(ckptstore.directory.garbage_search, "_is_one_save", lambda sets: len(sets) <= 1):
        yield


@_mutation("rules", "PINNED", "LOST")
def _retention_forgets_pins() -> Iterator[None]:
    """What is pinned is judged like everything else."""

    def decide(self: RecordChange, _: object, counted: tuple[Entry, ...], clock_s: float | None) -> Verdict:
        return self.retention.decide(counted, clock_s, self.now_s)

    with mock.patch.object(RecordChange, "_decide_unpinned", decide):
        yield


@_mutation("rules", "PINNED", "LOST", "RULES")
def _victims_are_chosen_once() -> Iterator[None]:
    """A save goes on with what it decided before it published, although somebody wrote the record since."""
    change = RecordChange._change

    def change_once(self: RecordChange, snapshot: RecordSnapshot) -> Record:
        if self._decided is None:
            return change(self, snapshot)
        return replace(self._decided[1], pins=snapshot.record.pins, intents=())

    with mock.patch.object(RecordChange, "_change", change_once):
        yield


@_mutation("rules", "PINNED")
def _what_is_leaving_may_be_pinned() -> Iterator[None]:
    """A pin does not look whether the checkpoint is to be deleted."""
    with mock.patch.object(ckptstore.directory.pins, "_is_leaving", lambda *_: False):
        yield


@_mutation("rules", "LOST", "DANGL", "NOTES")
def _only_rules_keep() -> Iterator[None]:
    """The newest goes if no rule keeps it."""

    def decide(
        self: RulesRetention, window: tuple[Entry, ...], clock_s: float | None, now_s: float
    ) -> Verdict:
        kept = kept_by(self.rules, window, now_s)
        return Verdict(
            tuple(entry for entry in window if entry.prefix in kept),
            tuple(entry for entry in window if entry.prefix not in kept),
            clock_s=clock_s,
        )

    with mock.patch.object(RulesRetention, "decide", decide):
        yield


@_mutation("rules", "NOTES")
def _metrics_die_with_their_save() -> Iterator[None]:
    """Who adopts a checkpoint does not learn its metrics."""
    with mock.patch.object(RecordChange, "_new_metrics", lambda self: {self.prefix: self.request.metrics}):
        yield


@_mutation("rules", "PINNED", "RULES")
def _a_prune_does_not_look_again() -> Iterator[None]:
    """What was shown is deleted, whatever the record says by now."""
    with mock.patch.object(PrunePlan, "still", lambda self, later: self):
        yield


@_mutation("same-run", "TWICE", "CORR", "DANGL")
def _no_look_at_the_race_for_an_index() -> Iterator[None]:
    """A save that finds another index than it expected never asks whether its own run has saved it."""
    with mock.patch.object(OtherSaves, "check_index", lambda *_: None):
        yield


@_mutation("same-run-same-prefix", "TWICE", "CORR", "DANGL")
def _no_look_at_the_record_again() -> Iterator[None]:
    """A save never asks whether another one of its run replaces, or has listed, the same prefix."""
    with mock.patch.object(OtherSaves, "check", lambda *_: None):
        yield


@_mutation("same-run", "TWICE", "CORR", "DANGL")
def _no_look_before_the_announcement() -> Iterator[None]:
    """A save takes what another one of its run has listed since it began for one before it."""
    with mock.patch.object(OtherSaves, "look", lambda *_: None):
        yield


# ------------------------------------------------------------------------------------------------ many ranks


@_mutation("ranks", "CORR", "MIXED", "WHOLE")
def _data_files_are_overwritten() -> Iterator[None]:
    """A rank writes its data file, whatever has that name."""
    put = SimulatedTransport.put

    def put_data(self: Any, request: PutRequest, *args: Any) -> Any:
        if ".data-" in request.target.name:
            request = replace(request, precondition=None)
        return put(self, request, *args)

    with mock.patch.object(SimulatedTransport, "put", put_data):
        yield


@_mutation("ranks", "CORR", "MIXED", "WHOLE", "AGREE", "SPURIOUS", "PHANTOM", "BLAME")
def _topics_are_used_again() -> Iterator[None]:
    """Topics do not have the number of the save in them, and what comes later counts."""
    with (
        mock.patch.object(Round, "_topic", lambda _, phase: f"save.{phase}"),
        mock.patch.object(Mailbox, "refuses_repeats", False),
    ):
        yield


@_mutation("ranks", "BLAME")
def _nobody_waits_longer_than_the_chief() -> Iterator[None]:
    """The other ranks do not wait a grace longer."""
    with every_copy_of("grace_s", lambda _: 0.0):
        yield


def _without_settling(ask: Callable[..., Message], error: type[CkptStoreError]) -> Callable[..., Message]:
    def ask_the_store(self: MemberTask, files: ShardSet, *name: Any) -> Message:
        try:
            return ask(self, files, *name)
        except CoordinatorLostError:
            files.may_be_published = False
            raise error("the chief is gone") from None

    return ask_the_store


@_mutation("ranks", "CORR")
def _ranks_delete_without_failed() -> Iterator[None]:
    """A rank that has lost the chief deletes its file."""
    substitute = _without_settling(MemberTask._ask_the_store, CoordinatorLostError)
    with mock.patch.object(MemberTask, "_ask_the_store", substitute):
        yield


@_mutation("ranks", "CORR", "AGREE")
def _not_in_the_store_is_failed() -> Iterator[None]:
    """A rank that has lost the chief, and finds no index, takes the save for failed."""
    substitute = _without_settling(MemberTask._ask_the_store, TransientError)
    with mock.patch.object(MemberTask, "_ask_the_store", substitute):
        yield


class _Forgetful(dict[str, set[int]]):
    """Remembers nothing."""

    def get(self, key: str, default: Any = None) -> Any:
        return default


@_mutation("ranks", "CORR", "MIXED")
def _counts_of_failed_saves_are_used_again() -> Iterator[None]:
    """The chief takes a count again under which a save has failed, where a delete may be repeated.

    Deletes that are sent once do no harm to a count that is used again; those that a proxy repeats do.
    """
    begin = Ranks.__init__

    def forgetful(self: Ranks, *args: Any) -> None:
        begin(self, *args)
        self.failed_counts = _Forgetful()

    with (
        mock.patch.object(Ranks, "__init__", forgetful),
        mock.patch.object(ckptstore.directory.collect, "DeletesOnce", ()),
    ):
        yield


@_mutation("ranks", "WHOLE")
def _published_without_a_report() -> Iterator[None]:
    """At the deadline the chief publishes what came."""
    collect = Chief.collect

    def collect_some(self: Chief, order: int, has_written: threading.Event) -> dict[int, Message]:
        try:
            return collect(self, order, has_written)
        except RanksMissingError:
            came = self.coordinator.gather(self._topic(f"done-{order}"), pack({}), timeout_s=0.0)
            return {rank: Message.read(data) for rank, data in came.items()}

    with mock.patch.object(Chief, "collect", collect_some):
        yield
