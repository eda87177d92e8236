"""One save of many ranks, as the chief sees it: it says who writes what, and publishes."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.directory.open_save import Assignment, ShardReport
from ckptstore.directory.save_request import CheckpointSink, RunningSave, SaveRequest
from ckptstore.distributed.coordinator import host_names_of
from ckptstore.distributed.manifests import encode_deal
from ckptstore.distributed.rounds import Chief, Message, rank_name
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError, UsageError
from ckptstore.format.naming import data_name
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.rank_task.base import RankTask
from ckptstore.saving.rank_task.part_message import decode_part, report_name
from ckptstore.saving.rank_task.report_message import encode_report
from ckptstore.saving.ranks import Ranks
from ckptstore.saving.report import RankReport, SaveReport
from ckptstore.storage.abilities import KnowsWriters

__all__ = ["ChiefTask"]

_LOG = logging.getLogger("ckptstore")

_CRC_BYTES: Final = 4


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
        super().__init__(replace(request, indexes=ranks.indexes), sink, options, ranks, record)
        self._make_meta = make_meta
        self._may_be_published = False
        self._is_agreed = False

    @cached_property
    def _chief(self) -> Chief:
        # When it is needed: an earlier save may find that this rank has missed some.
        ranks = self._ranks
        return Chief(ranks.coordinator, self._name, self._left_s, ranks.stall_s, self._check)

    def _left_s(self) -> float:
        return self._begun_s + self._limit_s - time.monotonic()

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
        while self._is_behind(hellos):
            self._pass_over(self._chief)
            del self._chief
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
            self._request = replace(self._request, meta=self._make_meta(self._ranks.whole_plan(manifests)))
        self._is_agreed = True

    def _is_behind(self, hellos: dict[int, Message]) -> bool:
        """Whether the others waited in vain for the chief in this save of theirs, and have left it."""
        others = [hello.head for rank, hello in hellos.items() if rank]
        return bool(others) and all(map(self._is_other_save, others)) and self._chief.was_left_by_all()

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
                    hint=(
                        "All ranks call save with the same path, step and options, in the same order; and all"
                        " Savers of a process take the same coordinator object."
                    ),
                )

    def _save(self, running: RunningSave) -> None:
        try:
            self._agree(staged=running.stage is not None)
            # In a context of its own: Ctrl-C leaves nothing set, whatever it interrupts.
            copy_context().run(self._lead, replace(running, when_saved=self._say_committed))
        except BaseException as error:
            self._tell(error)
            raise
        finally:
            if self._is_agreed:
                # Every rank is in this save, or beyond. Nobody waits for it now.
                self._ranks.forget_ended(self._chief)

    def _say_committed(self) -> None:
        """Let the others go on, before what retention drops is deleted here."""
        self._is_told = True
        assert self.report is not None
        try:
            self._chief.say("committed", report=encode_report(self.report))
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
        indexes = self._ranks.indexes
        indexes.begin(report_name(self._name, order))
        self._chief.say("order", order=order, count=assignment.count, plan=self._plan.name, like=indexes.name)
        begun_s = time.monotonic()
        reports: dict[int, Message] = {}
        failure: list[BaseException] = []
        has_written = threading.Event()

        def collect() -> None:
            try:
                reports.update(self._chief.collect(order, has_written))
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
        finally:
            has_written.set()
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
        _, data = self._crcs_of(rank, message)
        part = decode_part(message.head, data, self._ranks.indexes.name, shown)
        return ShardReport((number, count), version, part)

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
            about = {"prefix": self._request.prefix.name, "step": self._request.step}
            self._chief.fail(self._seen(error), may_be_published=self._may_be_published, about=about)

    def _end(self, error: BaseException | None) -> None:
        self._ranks.ended(self._chief)


def _number(message: Message, name: str) -> float:
    value = message.head.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
