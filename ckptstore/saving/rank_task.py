"""One save of many ranks, as one of them sees it: the chief keeps the record, each rank writes its part.

``docs/design/021-many-ranks.md`` has the messages and what happens on each bad day.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ckptstore.bundle.write.item_bytes import entry_crc32c
from ckptstore.bundle.write.plan import SavePlan, ShardPlan, WriteItem
from ckptstore.bundle.write.shares import Manifest, Share, item_of, manifest_of
from ckptstore.directory.open_save import Assignment, ShardReport
from ckptstore.directory.published_index import read_published_index
from ckptstore.directory.save_request import CheckpointSink, RunningSave, SaveRequest
from ckptstore.directory.shard_set import ShardSet
from ckptstore.distributed.coordinator import host_names_of
from ckptstore.distributed.manifests import decode_deal, encode_deal, encode_manifest, fingerprint_of
from ckptstore.distributed.messages import unpack_error
from ckptstore.distributed.rounds import Chief, Member, Message, grace_s, rank_name
from ckptstore.errors import (
    CkptStoreError,
    CoordinatorLostError,
    CorruptError,
    NotFoundError,
    SaveCancelledError,
    UsageError,
)
from ckptstore.format import dtypes
from ckptstore.format.naming import data_name
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.ranks import Plan, Ranks
from ckptstore.saving.report import RankReport, SaveReport
from ckptstore.saving.task import SaveTask
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.scope import Scope

__all__ = ["ChiefTask", "MemberTask", "RankTask", "task_of"]

_LOG = logging.getLogger("ckptstore")

_CRC_BYTES: Final = 4

# How long a rank that has lost the chief looks into the storage.
_ASK_S: Final = 20.0


class RankTask(SaveTask, ABC):
    """One save of many ranks, as one of them sees it; see `SaveTask`.

    Parameters
    ----------
    request : SaveRequest
        Its plan is what this rank holds.
    sink : CheckpointSink
        Used by the chief alone.
    options : SaveOptions
    ranks : Ranks
    record : str or None
        Name of the record that the chief keeps, None without one; the same on all ranks.

    Attributes
    ----------
    report : SaveReport or None
        Set when the save has succeeded.
    """

    def __init__(
        self,
        request: SaveRequest,
        sink: CheckpointSink,
        options: SaveOptions,
        ranks: Ranks,
        record: str | None,
    ) -> None:
        # The others wait a grace longer for the chief, which says who is missing.
        extra_s = 0.0 if ranks.is_chief else 2 * grace_s(ranks.deadline_s)
        super().__init__(request, sink, replace(options, deadline_s=ranks.deadline_s + extra_s))
        self._ranks = ranks
        self._record = record
        self._items: Sequence[WriteItem] = [item for shard in request.plan.shards for item in shard.items]
        self._manifest = encode_manifest(manifest_of(self._items))
        self._fingerprint = fingerprint_of(self._manifest)
        # Of each replica that this rank holds; None: the arrays could not be looked at in time.
        self._crcs: np.ndarray[Any, np.dtype[np.uint32]] | None = None
        self._plan: Plan | None = None
        self._begun_s = time.monotonic()
        self._staged_s = 0.0
        self._is_told = False
        # Last: an error before it, of which the others are told, counts this save itself.
        self._name = ranks.next_name()

    @property
    def _rank(self) -> int:
        return self._ranks.coordinator.rank

    def _hello(self, *, staged: bool) -> Message:
        request, known = self._request, self._ranks.plan
        head = {
            "prefix": request.prefix.name,
            # A shared file system may be mounted elsewhere on another host.
            "directory": None
            if isinstance(request.prefix.storage, KnowsWriters)
            else request.prefix.parent.url,
            "step": request.step,
            "record": self._record,
            "check_replicas": self._ranks.check_replicas,
            "fingerprint": self._fingerprint,
            "plan": None if known is None else known.name,
            "staged": staged,
        }
        is_new = self._ranks.acknowledged != self._fingerprint
        return Message(head, self._manifest if is_new else b"")

    def _check(self) -> None:
        """Raise if this rank need not wait for the others any more."""
        if self.is_cancelled:
            raise SaveCancelledError("the save was cancelled", url=self.url)

    def _knows_its_part(self) -> bool:
        """Whether this rank holds what it held in the last save."""
        return self._ranks.plan is not None and self._ranks.acknowledged == self._fingerprint

    def _settle_part(self, plan: Plan, *, look_at_arrays: bool = True) -> None:
        """Restrict what is written to this rank's part of `plan`."""
        is_new = self._ranks.plan is None or self._ranks.plan.name != plan.name
        own = [item_of(self._items, share) for share in plan.deal.shares[self._rank]]
        self._ranks.plan = plan
        self._ranks.acknowledged = self._fingerprint
        self._plan = plan
        check = self._ranks.check_replicas
        if look_at_arrays and self._crcs is None and (check == "always" or (check == "first" and is_new)):
            self._crcs = self._replica_crcs(plan)
        shard = ShardPlan("", tuple(own), sum(item.size_bytes for item in own))
        self._request = replace(
            self._request, plan=SavePlan((shard,) if own else ()), shards=plan.deal.shard_count
        )

    def _replica_crcs(self, plan: Plan) -> np.ndarray[Any, np.dtype[np.uint32]]:
        crcs = [
            entry_crc32c(item_of(self._items, Share(item, replica.rows)))
            for replica in plan.deal.replicas
            for rank, item in replica.holders
            if rank == self._rank
        ]
        return np.array(crcs, np.uint32)

    def begin_snapshot(self) -> None:
        """Make `run` write the bytes that `stage` copies: of this rank's part alone."""
        self._staged_s = -time.monotonic()
        try:
            self._agree_on_parts()
        except BaseException as error:
            self._tell(error)
            raise
        super().begin_snapshot()

    def stage(self) -> None:
        """Copy the arrays; return when they may be changed again, or when the save is over."""
        super().stage()
        self._staged_s += time.monotonic()

    def release(self, error: BaseException | None = None) -> None:
        """Release arrays and memory; the other ranks are told, if this one never began."""
        is_over, self._items = self._is_over, ()
        super().release(error)
        if is_over:
            return
        self._tell(error or SaveCancelledError("the save was given up", url=self.url))
        if error is not None:
            # What the other ranks know by now is not known here: all agree before the next save is staged.
            self._ranks.acknowledged = ""
        self._end(error)

    @abstractmethod
    def _end(self, error: BaseException | None) -> None:
        """Take care of the messages of this save, which is over here."""

    @abstractmethod
    def _agree_on_parts(self) -> None:
        """Find out this rank's part, before it is copied."""

    @abstractmethod
    def _tell(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on, unless its outcome is known already."""

    def _seen(self, error: BaseException) -> BaseException:
        """Return the error that the others are told of."""
        if self.is_cancelled:
            return SaveCancelledError("the save was cancelled", url=self.url)
        return error


class ChiefTask(RankTask):
    """The save as the chief sees it.

    Parameters
    ----------
    request, sink, options, ranks, record
        As `RankTask`.
    make_meta : callable or None
        Returns the graph for a plan of everything that all ranks hold; None: the request has it, or there is
        none.
    """

    def __init__(
        self,
        request: SaveRequest,
        sink: CheckpointSink,
        options: SaveOptions,
        ranks: Ranks,
        record: str | None,
        make_meta: Callable[[SavePlan], bytes] | None,
    ) -> None:
        super().__init__(request, sink, options, ranks, record)
        self._make_meta = make_meta
        self._chief = Chief(ranks.coordinator, self._name, self._left_s, ranks.stall_s, self._check)
        self._may_be_published = False
        self._is_agreed = False

    def _left_s(self) -> float:
        return self._begun_s + self._ranks.deadline_s - time.monotonic()

    def _agree_on_parts(self) -> None:
        if self._knows_its_part():
            # The others are asked when the save runs.
            assert self._ranks.plan is not None
            self._settle_part(self._ranks.plan)
        else:
            self._agree(staged=False)

    def _agree(self, *, staged: bool) -> None:
        if self._is_agreed:
            return
        # Not before: an earlier save may have taken its time.
        self._begun_s = time.monotonic()
        known = self._ranks.plan
        own = self._hello(staged=staged)
        hellos = self._chief.hear(own)
        self._ranks.forget_ended(self._chief)
        self._check_alike(hellos)
        plan, manifests, has_to_be_told = self._ranks.agree([(dict(h.head), h.blob) for h in hellos.values()])
        if not plan.deal.shard_count:
            raise UsageError("no rank holds anything to save", hint="Give at least one array.")
        if has_to_be_told:
            self._chief.say("plan", encode_deal(plan.deal, manifests), name=plan.name)
        # `agree` has set it already.
        self._ranks.plan = known
        self._settle_part(plan, look_at_arrays=not staged)
        if self._make_meta is not None:
            self._request = replace(self._request, meta=self._make_meta(_plan_of_all(manifests)))
        self._is_agreed = True

    def _check_alike(self, hellos: dict[int, Message]) -> None:
        own = hellos[0].head
        for name in ("step", "prefix", "directory", "record", "check_replicas"):
            others = {rank: hello.head.get(name) for rank, hello in hellos.items()}
            different = [rank for rank, value in others.items() if value != own[name]]
            if different:
                shown = ", ".join(rank_name(self._ranks.coordinator, rank) for rank in different[:8])
                raise UsageError(
                    f"the ranks do not save the same: {name} differs",
                    url=self.url,
                    expected=f"{own[name]!r} as on {rank_name(self._ranks.coordinator, 0)}",
                    actual=f"{others[different[0]]!r} on {shown}",
                    hint="All ranks call save with the same path, step and options, in the same order.",
                )

    def _save(self, running: RunningSave) -> None:
        try:
            self._agree(staged=running.stage is not None)
            # In a context of its own: Ctrl-C leaves nothing set, whatever it interrupts.
            copy_context().run(self._lead, running)
        except BaseException as error:
            self._tell(error)
            raise
        self._is_told = True
        assert self.report is not None
        try:
            self._chief.say("committed", report=_encode_report(self.report))
        except CkptStoreError as error:
            # The others look into the storage.
            _LOG.warning("the other ranks could not be told that %s is saved: %s", self.url, error)

    def _lead(self, running: RunningSave) -> None:
        failed_counts = self._ranks.failed_counts.get(self.url, set())
        with self._sink.lock, self._sink.open(self._request, running) as save:
            assignment = save.begin()
            order = 0
            while assignment is not None:
                if assignment.count in failed_counts:
                    # A rank of a save that failed may still be about to write it.
                    assignment = save.refuse()
                    continue
                self._ranks.failed_counts.setdefault(self.url, set()).add(assignment.count)
                files = assignment.files
                try:
                    reports = self._have_written(running, assignment, order)
                    assignment = save.refuse() if reports is None else save.commit(reports)
                except BaseException as error:
                    self._may_be_published = files.may_be_published
                    # Before the clean-up, which takes its time where the storage is away.
                    self._tell(error)
                    raise
                order += 1
        self._ranks.failed_counts.pop(self.url, None)

    def _have_written(
        self, running: RunningSave, assignment: Assignment, order: int
    ) -> list[ShardReport] | None:
        """Have every rank write its part; None if one of the names is taken."""
        assert self._plan is not None
        self._chief.say("order", order=order, count=assignment.count, plan=self._plan.name)
        begun_s = time.monotonic()
        reports: dict[int, Message] = {}
        failure: list[BaseException] = []

        def collect() -> None:
            try:
                reports.update(self._chief.collect(order))
            except BaseException as error:  # noqa: BLE001 - raised by the thread that saves
                failure.append(error)
                running.transfer.cancel()

        waiting = threading.Thread(target=collect, name="ckptstore-ranks", daemon=True)
        waiting.start()
        numbers = self._plan.deal.numbers
        is_new = True
        try:
            running.transfer.restart(self._request.plan.size_bytes)
            if numbers[0] is not None:
                is_new = assignment.files.write(self._request.plan, assignment.count, [numbers[0]])
        except BaseException as error:
            if failure and isinstance(error, CkptStoreError):
                raise failure[0] from error
            raise
        written_s = time.monotonic() - begun_s
        waiting.join()
        if failure:
            raise failure[0]
        self._check_replicas(reports)
        found = []
        for rank, message in reports.items():
            if rank == 0 or numbers[rank] is None:
                continue
            number = numbers[rank]
            assert number is not None
            if message.head.get("taken") is True:
                is_new = False
            else:
                found.append(self._shard_report(rank, number, assignment.count, message))
        own = {"bytes": self._request.plan.size_bytes, "staged_s": self._staged_s, "written_s": written_s}
        reports[0] = Message(own)
        self.report = self._report(reports)
        return found if is_new else None

    def _shard_report(self, rank: int, number: int, count: int, message: Message) -> ShardReport:
        name = data_name(self._request.prefix.name, number, count)
        location = self._request.prefix.parent.child(name)
        shown = rank_name(self._ranks.coordinator, rank)
        if isinstance(location.storage, KnowsWriters):
            try:
                size_bytes: int | None = location.storage.head(location.key).size_bytes
            except NotFoundError:
                size_bytes = None
            if size_bytes != message.head.get("bytes"):
                raise UsageError(
                    "the chief does not see the data file that another rank wrote",
                    url=location.url,
                    expected=f"{message.head.get('bytes')} bytes, written by {shown}",
                    actual="nothing" if size_bytes is None else f"{size_bytes} bytes",
                    hint="The directory has to be shared by the hosts of all ranks.",
                )
        version = message.head.get("version")
        if not isinstance(version, str):
            raise CorruptError(f"{shown} reports no version of its file")
        _, index = self._crcs_of(rank, message)
        return ShardReport((number, count), version, index)

    def _crcs_of(self, rank: int, message: Message) -> tuple[np.ndarray[Any, np.dtype[np.uint32]], bytes]:
        """Return the checksums of replicas in a report, and what is behind them."""
        count = message.head.get("crcs", 0)
        if not isinstance(count, int) or not 0 <= count * _CRC_BYTES <= len(message.blob):
            raise CorruptError(f"{rank_name(self._ranks.coordinator, rank)} reports no checksums")
        end = count * _CRC_BYTES
        return np.frombuffer(message.blob[:end], "<u4"), message.blob[end:]

    def _check_replicas(self, reports: dict[int, Message]) -> None:
        """Compare the checksums of what several ranks hold."""
        assert self._plan is not None
        found: dict[int, np.ndarray[Any, np.dtype[np.uint32]]] = {}
        if self._crcs is not None:
            found[0] = self._crcs
        for rank, message in reports.items():
            if rank and "crcs" in message.head:
                found[rank], _ = self._crcs_of(rank, message)
        if len(found) < 2:
            return
        places = dict.fromkeys(found, 0)
        for replica in self._plan.deal.replicas:
            by_crc: dict[int, list[int]] = {}
            for rank, _ in replica.holders:
                if rank in found:
                    place = places[rank]
                    places[rank] = place + 1
                    if place >= len(found[rank]):
                        raise CorruptError(f"rank {rank} reports too few checksums")
                    by_crc.setdefault(int(found[rank][place]), []).append(rank)
            if len(by_crc) > 1:
                groups = sorted(by_crc.values(), key=len, reverse=True)
                shown = " and ".join(", ".join(map(str, group[:8])) for group in groups[:4])
                raise UsageError(
                    "ranks pass different values of a tensor that should be the same on all of them",
                    tensor=replica.name,
                    url=self.url,
                    expected="equal bytes on every rank that holds it",
                    actual=f"differences between the ranks {shown}",
                    hint="Find out why, give them different names, or set check_replicas='never'.",
                )

    def _report(self, messages: dict[int, Message]) -> SaveReport:
        names = host_names_of(self._ranks.coordinator)
        return SaveReport(
            [
                RankReport(
                    rank,
                    names[rank],
                    int(_number(messages[rank], "bytes")),
                    _number(messages[rank], "staged_s"),
                    _number(messages[rank], "written_s"),
                )
                for rank in sorted(messages)
            ],
            time.monotonic() - self._begun_s,
        )

    def _tell(self, error: BaseException) -> None:
        if not self._is_told:
            self._is_told = True
            self._chief.fail(self._seen(error), may_be_published=self._may_be_published)

    def _end(self, error: BaseException | None) -> None:
        self._ranks.ended(self._chief)


class MemberTask(RankTask):
    """The save as every other rank sees it; parameters as `RankTask`."""

    def __init__(
        self,
        request: SaveRequest,
        sink: CheckpointSink,
        options: SaveOptions,
        ranks: Ranks,
        record: str | None,
    ) -> None:
        super().__init__(request, sink, options, ranks, record)
        self._member = Member(ranks.coordinator, self._name, ranks.deadline_s, ranks.stall_s, self._check)
        self._has_greeted = False
        # What the chief waits for; two messages while it is not known whether the first was handed over.
        self._owed: tuple[str, ...] = ("hello",)

    def _agree_on_parts(self) -> None:
        if self._knows_its_part():
            assert self._ranks.plan is not None
            plan = self._ranks.plan
            self._greet(staged=True)
            self._settle_part(plan)
            return
        self._greet(staged=False)
        while self._plan is None:
            self._take(self._word("hello"))

    def _greet(self, *, staged: bool) -> None:
        if not self._has_greeted:
            self._has_greeted = True
            hello = self._hello(staged=staged)
            self._owed = ("hello", "done-0")
            self._member.greet(hello)
            self._owed = ("done-0",)

    def _word(self, phase: str) -> Message:
        word = self._member.hear()
        if word is None:
            # It is told all the same: it may come later.
            raise self._member.chief_missing(phase)
        return word

    def _take(self, word: Message, *, staged: bool = False) -> None:
        """Take over a plan; raise what made the save fail."""
        kind = word.head.get("kind")
        if kind == "plan":
            plan = Plan(str(word.head.get("name")), decode_deal(word.blob))
            known = self._plan
            try:
                if staged and known and known.deal.shares[self._rank] != plan.deal.shares[self._rank]:
                    raise CorruptError("the chief orders another part than was staged", url=self.url)
                self._settle_part(plan, look_at_arrays=not staged)
            except IndexError as error:
                raise CorruptError(
                    "the chief deals out what this rank does not hold", url=self.url
                ) from error
        elif kind == "failed":
            raise self._failure(word)
        elif kind != "order" or self._plan is None:
            raise CorruptError("the chief said something else than was due", url=self.url, actual=repr(kind))

    def _failure(self, word: Message) -> CkptStoreError:
        self._is_told = True
        told = word.head.get("error")
        rank = word.head.get("rank")
        # What a rank says of itself names it already; what the chief found concerns all.
        error = unpack_error(told if isinstance(told, dict) else {}, "")
        error.add_note(f"This ended the save on all ranks; the chief was told by rank {rank}.")
        return error

    def _save(self, running: RunningSave) -> None:
        try:
            self._follow(running)
        except BaseException as error:
            self._tell(error)
            raise

    def _follow(self, running: RunningSave) -> None:
        self._greet(staged=running.stage is not None)
        word = self._word("hello")
        while word.head.get("kind") == "plan":
            self._take(word, staged=running.stage is not None)
            word = self._word("hello")
        if self._plan is None and self._ranks.plan is not None:
            self._settle_part(self._ranks.plan, look_at_arrays=running.stage is None)
        prefix = self._request.prefix
        while True:
            self._take(word)
            if self._plan is None or word.head.get("plan") != self._plan.name:
                raise CorruptError("the chief ordered a plan that this rank does not have", url=self.url)
            order, count = word.head.get("order"), word.head.get("count")
            if not isinstance(order, int) or not isinstance(count, int):
                raise CorruptError("the chief gave an order without numbers", url=self.url)
            self._owed = (f"done-{order}",)
            with ShardSet(
                prefix.parent,
                prefix.name,
                transfer=running.transfer,
                stage=running.stage,
                canonical_count=self._plan.deal.shard_count,
            ) as files:
                word = self._write(running, files, order, count)
                kind = word.head.get("kind")
                if kind == "order":
                    files.may_be_published = False
                    continue
                if kind == "failed":
                    files.may_be_published = word.head.get("keep") is not False
                    raise self._failure(word)
                if kind != "committed":
                    raise CorruptError("the chief said neither yes nor no", url=self.url, actual=repr(kind))
            break
        self._is_told = True
        self.report = _decode_report(word.head.get("report"))

    def _write(self, running: RunningSave, files: ShardSet, order: int, count: int) -> Message:
        """Write this rank's part, report it, and return what the chief says then."""
        assert self._plan is not None
        number = self._plan.deal.numbers[self._rank]
        plan = self._request.plan
        begun_s = time.monotonic()
        heard: list[Message | None] = []
        is_written = threading.Event()
        is_done = threading.Event()

        def progress() -> float:
            return running.transfer.done_bytes / max(plan.size_bytes, 1)

        def listen() -> None:
            try:
                word = self._member.listen(progress, is_written.is_set)
                heard.append(word)
                if word is not None and not is_written.is_set():
                    # It can only be a failure: what is still to be written is of no use.
                    running.transfer.cancel()
            finally:
                is_done.set()

        threading.Thread(target=listen, name="ckptstore-ranks", daemon=True).start()
        try:
            running.transfer.restart(plan.size_bytes)
            is_new = number is None or files.write(plan, count, [number])
            if is_new:
                running.before_commit()
            is_written.set()
            report = self._done(files, begun_s) if is_new else Message({"taken": True})
            # From here on the chief may publish: an index may name the file, whatever happens.
            files.may_be_published = is_new
            self._report(order, report)
            self._owed = ()
            is_done.wait()
        except CkptStoreError as error:
            is_written.set()
            if not heard:
                self._tell(error)
            # The chief says what ended the save: the same on all ranks.
            is_done.wait(self._member.left_s + grace_s(0.0))
            word = heard[0] if heard else None
            if word and word.head.get("kind") == "failed" and word.head.get("rank") != self._rank:
                raise self._failure(word) from error
            self._is_told = True
            raise
        except BaseException:
            self._member.is_stopped = True
            raise
        return heard[0] or self._ask_the_store(files, number, count)

    def _done(self, files: ShardSet, begun_s: float) -> Message:
        own = next(iter(files.reports()), None)
        head: dict[str, Any] = {
            "bytes": self._request.plan.size_bytes,
            "staged_s": self._staged_s,
            "written_s": time.monotonic() - begun_s,
        }
        blob = b""
        if self._crcs is not None:
            head["crcs"] = len(self._crcs)
            blob = self._crcs.astype("<u4").tobytes()
        if own is not None:
            head["version"] = own.version
            blob += own.index
        return Message(head, blob)

    def _report(self, order: int, report: Message) -> None:
        try:
            self._member.report(order, report)
        except CkptStoreError as error:
            # It may have arrived.
            _LOG.warning("the chief was perhaps not told that this rank is ready: %s", error)

    def _ask_the_store(self, files: ShardSet, number: int | None, count: int) -> Message:
        """Find out without the chief how the save ended; an index may name the file, now or later."""
        self._is_told = True
        prefix = self._request.prefix
        unknown = CoordinatorLostError(
            "the chief is gone, and it is not known whether the save was published", url=self.url
        )
        try:
            # Its own scope: a rank that stood still asks when the time of the save is over.
            with Scope(_ASK_S, what="cannot find out how the save ended", url=self.url):
                published = read_published_index(prefix.parent, prefix.name)
        except CkptStoreError as error:
            raise unknown from error
        shards = () if published is None else published.shards
        # Nobody else can have made a file of this number and count.
        if (number, count) in shards or (number is None and any(count == each for _, each in shards)):
            return Message({"kind": "committed"})
        raise unknown

    def _tell(self, error: BaseException) -> None:
        # Once it has reported, its word is given.
        if not self._is_told and self._owed:
            self._is_told = True
            self._member.fail(self._owed, self._seen(error))

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._ranks.forget_ended(self._member)
        else:
            self._ranks.plan = None
            # What comes after the chief has dropped the messages would stay.
            self._ranks.ended(self._member)


def task_of(
    request: SaveRequest,
    sink: CheckpointSink,
    options: SaveOptions,
    ranks: Ranks | None,
    *,
    record: str | None = None,
    make_meta: Callable[[SavePlan], bytes] | None = None,
) -> SaveTask:
    """Return the task of a save: of this process alone, of the chief, or of another rank.

    Parameters
    ----------
    request, sink, options
        As `SaveTask`.
    ranks : Ranks or None
    record, make_meta
        As `ChiefTask`.
    """
    if ranks is None:
        return SaveTask(request, sink, options)
    if ranks.is_chief:
        return ChiefTask(request, sink, options, ranks, record, make_meta)
    return MemberTask(request, sink, options, ranks, record)


def _number(message: Message, name: str) -> float:
    value = message.head.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _plan_of_all(manifests: Sequence[Manifest]) -> SavePlan:
    """Return a plan, without arrays, of all tensors that the ranks hold."""
    none = np.empty(0, np.uint8)
    whole = {}
    for manifest in manifests:
        for one in manifest:
            if one.name not in whole:
                dtype = dtypes.by_name(one.dtype)
                whole[one.name] = WriteItem(one.name, dtype, one.full_shape, None, one.full_shape, 0, none)
    return SavePlan((ShardPlan("", tuple(whole[name] for name in sorted(whole)), 0),))


def _encode_report(report: SaveReport) -> dict[str, Any]:
    return {
        "seconds": report.seconds,
        "ranks": [[one.host_name, one.bytes, one.staged_s, one.written_s] for one in report.ranks],
    }


def _decode_report(told: Any) -> SaveReport | None:
    try:
        return SaveReport(
            [
                RankReport(rank, str(host), int(size), float(staged_s), float(written_s))
                for rank, (host, size, staged_s, written_s) in enumerate(told["ranks"])
            ],
            float(told["seconds"]),
        )
    except (TypeError, KeyError, ValueError):
        # Asked of the store: the chief has not said it.
        return None
