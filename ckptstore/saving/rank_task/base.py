"""One save of many ranks, as one of them sees it: what chief and member have in common.

``docs/design/021-many-ranks.md`` has the messages and what happens on each bad day.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ckptstore.bundle.write.item_bytes import entry_crc32c
from ckptstore.bundle.write.plan import SavePlan, ShardPlan, WriteItem
from ckptstore.bundle.write.shares import Share, item_of
from ckptstore.directory.save_request import CheckpointSink, SaveRequest
from ckptstore.distributed.rounds import Message, Round, grace_s
from ckptstore.errors import SaveCancelledError
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.ranks import Plan, Ranks
from ckptstore.saving.task import SaveTask
from ckptstore.storage.abilities import KnowsWriters

__all__ = ["RankTask"]


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
        self._limit_s = ranks.take_limit_s()
        super().__init__(request, sink, replace(options, deadline_s=self._limit_s + extra_s))
        self._ranks = ranks
        self._record = record
        self._items: Sequence[WriteItem] = [item for shard in request.plan.shards for item in shard.items]
        self._manifest, self._fingerprint = ranks.held(self._items)
        # Of each replica that this rank holds; None: the arrays could not be looked at in time.
        self._crcs: np.ndarray[Any, np.dtype[np.uint32]] | None = None
        self._plan: Plan | None = None
        self._begun_s = time.monotonic()
        self._staged_s = 0.0
        self._is_told = False
        # Last: an error before it, of which the others are told, counts this save itself.
        self._call = ranks.next_call()

    @property
    def _name(self) -> str:
        return self._ranks.name_of(self._call)

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

    def _is_other_save(self, head: Mapping[str, Any]) -> bool:
        """Whether a message is about another checkpoint than this one."""
        return (head.get("prefix"), head.get("step")) != (self._request.prefix.name, self._request.step)

    def _pass_over(self, missed: Round) -> None:
        """Leave a save that failed on the others as this rank did not begin it: its own is a later one."""
        self._ranks.ended(missed)
        self._ranks.missed += 1
        # What the others know by now is not known here.
        self._ranks.acknowledged = ""

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
