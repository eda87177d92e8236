"""One save of many ranks, as one of them sees it: the chief keeps the record, each rank writes its part.

``docs/design/021-many-ranks.md`` has the messages and what happens on each bad day.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ckptstore.bundle.write.item_bytes import stored_crc32c
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

__all__ = ["ChiefTask", "MemberTask", "RankTask", "task_of"]

_CRC_BYTES: Final = 4


class RankTask(SaveTask):
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
        self._name = ranks.next_name()
        self._items: Sequence[WriteItem] = [item for shard in request.plan.shards for item in shard.items]
        self._manifest = encode_manifest(manifest_of(self._items))
        self._fingerprint = fingerprint_of(self._manifest)
        # Of each replica that this rank holds; None: the arrays could not be looked at in time.
        self._crcs: np.ndarray[Any, np.dtype[np.uint32]] | None = None
        self._plan: Plan | None = None
        self._begun_s = time.monotonic()
        self._staged_s = 0.0
        self._is_told = False

    @property
    def _rank(self) -> int:
        return self._ranks.coordinator.rank

    def _hello(self, *, staged: bool) -> Message:
        request, known = self._request, self._ranks.plan
        head = {
            "prefix": request.prefix.name,
            "step": request.step,
            "record": self._record,
            "check_replicas": self._ranks.check_replicas,
            "fingerprint": self._fingerprint,
            "plan": None if known is None else known.name,
            "staged": staged,
        }
        is_new = self._ranks.acknowledged != self._fingerprint
        return Message(head, self._manifest if is_new else b"")

    def _knows_its_part(self) -> bool:
        """Whether this rank holds what it held in the last save."""
        return self._ranks.plan is not None and self._ranks.acknowledged == self._fingerprint

    def _settle_part(self, plan: Plan, *, look_at_arrays: bool = True) -> None:
        """Restrict what is written to this rank's part of `plan`."""
        is_new = self._ranks.plan is None or self._ranks.plan.name != plan.name
        self._ranks.plan = plan
        self._ranks.acknowledged = self._fingerprint
        self._plan = plan
        own = [item_of(self._items, share) for share in plan.deal.shares[self._rank]]
        check = self._ranks.check_replicas
        if look_at_arrays and self._crcs is None and (check == "always" or (check == "first" and is_new)):
            self._crcs = self._replica_crcs(plan)
        shard = ShardPlan("", tuple(own), sum(item.size_bytes for item in own))
        self._request = replace(
            self._request, plan=SavePlan((shard,) if own else ()), shards=plan.deal.shard_count
        )

    def _replica_crcs(self, plan: Plan) -> np.ndarray[Any, np.dtype[np.uint32]]:
        crcs = [
            stored_crc32c(item_of(self._items, Share(item, replica.rows)))
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
        self._items = ()
        super().release(error)
        self._tell(error or SaveCancelledError("the save was given up", url=self.url))

    def _agree_on_parts(self) -> None:
        raise NotImplementedError

    def _tell(self, error: BaseException) -> None:
        """Tell the others that this rank cannot go on, unless its outcome is known already."""
        raise NotImplementedError

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
        self._chief = Chief(ranks.coordinator, self._name, self._left_s, ranks.stall_s)
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
        known = self._ranks.plan
        own = self._hello(staged=staged)
        hellos = self._chief.hear(own)
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
        for name in ("step", "prefix", "record", "check_replicas"):
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
        self._chief.say("committed", report=_encode_report(self.report))
        self._ranks.finished(self._chief)

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
                except BaseException:
                    self._may_be_published = files.may_be_published
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
        if isinstance(location.storage, KnowsWriters):
            try:
                location.storage.head(location.key)
            except NotFoundError as error:
                raise UsageError(
                    "the chief does not see the data file that another rank wrote",
                    url=location.url,
                    actual=f"written by {rank_name(self._ranks.coordinator, rank)}",
                    hint="The directory has to be shared by the hosts of all ranks.",
                ) from error
        version = message.head.get("version")
        if not isinstance(version, str):
            raise CorruptError(f"{rank_name(self._ranks.coordinator, rank)} reports no version of its file")
        crcs = message.head.get("crcs")
        skipped = _CRC_BYTES * crcs if isinstance(crcs, int) else 0
        return ShardReport((number, count), version, message.blob[skipped:])

    def _check_replicas(self, reports: dict[int, Message]) -> None:
        """Compare the checksums of what several ranks hold."""
        assert self._plan is not None
        found: dict[int, np.ndarray[Any, np.dtype[np.uint32]]] = {}
        if self._crcs is not None:
            found[0] = self._crcs
        for rank, message in reports.items():
            count = message.head.get("crcs")
            if rank and isinstance(count, int) and not message.head.get("taken"):
                found[rank] = np.frombuffer(message.blob[: count * _CRC_BYTES], "<u4")
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
                    int(messages[rank].head.get("bytes", 0)),
                    float(messages[rank].head.get("staged_s", 0.0)),
                    float(messages[rank].head.get("written_s", 0.0)),
                )
                for rank in sorted(messages)
            ],
            time.monotonic() - self._begun_s,
        )

    def _tell(self, error: BaseException) -> None:
        if not self._is_told:
            self._is_told = True
            self._chief.fail(self._seen(error), may_be_published=self._may_be_published)


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
        self._member = Member(ranks.coordinator, self._name, ranks.deadline_s, ranks.stall_s)
        self._has_greeted = False
        # The message that the chief waits for.
        self._owed = "hello"

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
            self._member.greet(self._hello(staged=staged))
            self._owed = "done-0"

    def _word(self, phase: str) -> Message:
        word = self._member.hear()
        if word is None:
            self._is_told = True
            raise self._member.chief_missing(phase)
        return word

    def _take(self, word: Message, *, staged: bool = False) -> None:
        """Take over a plan; raise what made the save fail."""
        kind = word.head.get("kind")
        if kind == "plan":
            self._settle_part(
                Plan(str(word.head.get("name")), decode_deal(word.blob)), look_at_arrays=not staged
            )
        elif kind == "failed":
            raise self._failure(word)
        elif kind != "order":
            raise CorruptError("the chief said something else than an order", actual=repr(kind))

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
            order, count = int(word.head["order"]), int(word.head["count"])
            self._owed = f"done-{order}"
            with ShardSet(
                prefix.parent,
                prefix.name,
                transfer=running.transfer,
                stage=running.stage,
                canonical_count=self._plan.deal.shard_count,
            ) as files:
                word = self._write(running, files, order, count)
                if word.head.get("kind") == "order":
                    continue
                if word.head.get("kind") == "failed":
                    if word.head.get("keep") is True:
                        files.settle()
                    raise self._failure(word)
                files.settle()
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
        is_over = threading.Event()

        def progress() -> float:
            return running.transfer.done_bytes / max(plan.size_bytes, 1)

        def listen() -> None:
            try:
                word = self._member.listen(progress)
                heard.append(word)
                if word is not None and not is_over.is_set():
                    # It can only be a failure: what is still to be written is of no use.
                    running.transfer.cancel()
            finally:
                is_done.set()

        is_done = threading.Event()
        threading.Thread(target=listen, name="ckptstore-ranks", daemon=True).start()
        try:
            running.transfer.restart(plan.size_bytes)
            is_new = number is None or files.write(plan, count, [number])
            is_over.set()
        except CkptStoreError as error:
            if not heard:
                self._member.fail(self._owed, self._seen(error))
            # The chief says what ended the save: the same on all ranks.
            is_done.wait(self._member.left_s + grace_s(0.0))
            if heard and heard[0] is not None:
                if heard[0].head.get("kind") == "failed" and heard[0].head.get("rank") != self._rank:
                    raise self._failure(heard[0]) from error
                self._is_told = True
            raise
        head: dict[str, Any] = {
            "bytes": 0 if number is None else plan.size_bytes,
            "staged_s": self._staged_s,
            "written_s": time.monotonic() - begun_s,
        }
        blob = b""
        if not is_new:
            head["taken"] = True
        else:
            # From here on the chief may publish.
            running.before_commit()
            if self._crcs is not None:
                head["crcs"] = len(self._crcs)
                blob = self._crcs.astype("<u4").tobytes()
            if number is not None:
                (own,) = files.reports()
                head["version"] = own.version
                blob += own.index
        self._member.report(order, Message(head, blob))
        is_done.wait()
        word = heard[0] if heard else None
        return word or self._ask_the_store(files, number, count)

    def _ask_the_store(self, files: ShardSet, number: int | None, count: int) -> Message:
        """Find out without the chief how the save ended."""
        self._is_told = True
        # Whatever comes out: an index may name the file, now or later.
        files.settle()
        prefix = self._request.prefix
        published = read_published_index(prefix.parent, prefix.name)
        shards = () if published is None else published.shards
        # Nobody else can have made a file of this number and count.
        if (number, count) in shards or (number is None and any(count == each for _, each in shards)):
            return Message({"kind": "committed"})
        raise CoordinatorLostError(
            "the chief is gone, and it is not known whether the save was published", url=self.url
        )

    def _tell(self, error: BaseException) -> None:
        if not self._is_told:
            self._is_told = True
            self._member.fail(self._owed, self._seen(error))


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
