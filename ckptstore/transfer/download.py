"""Many ranges of several objects into memory: in parallel, within the budget, each handled on arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, Protocol

import numpy as np

from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.pool import run_tasks
from ckptstore.transfer.ranges import GAP_SIZE_BYTES, cell_of, fair_size_bytes
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["Download", "Request", "Source", "joined"]


class Source(Protocol):
    """What is read from: one object, of one version.

    Threads
    -------
    Safe for concurrent use.
    """

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        """Fill `buffers`; `tensor` is for messages."""


class Request(NamedTuple):
    """What one thread reads at once.

    Attributes
    ----------
    tensor : str
        On whose behalf, for messages.
    ranges : sequence of ByteRange
        One; or several that are too short to be work for more than one thread.
    buffers : sequence of memoryview or None
        Where the bytes of each range go; None: into a block that is lent while `take` runs.
    take : callable
        Called with the bytes of each range, in the thread that read them, to verify and place them.
    """

    source: Source
    tensor: str
    ranges: Sequence[ByteRange]
    buffers: Sequence[memoryview | None]
    take: Callable[[Sequence[memoryview]], object]


def joined(requests: Iterable[Request], size_bytes: int) -> Iterator[Request]:
    """Put requests for neighbouring bytes together to one: up to a size, and as the object was sent.

    Parameters
    ----------
    requests : iterable of Request
        Cut by `ranges.split`, those of one source ascending.
    size_bytes : int
        From the first byte of one to its last.
    """
    group: list[Request] = []
    begin = reached = 0
    for request in requests:
        start, stop = request.ranges[0].start, request.ranges[-1].stop
        if group and not (
            request.source is group[0].source
            and 0 <= start - reached <= GAP_SIZE_BYTES
            and stop - begin <= size_bytes
            and cell_of(start, size_bytes) == cell_of(begin, size_bytes)
        ):
            yield _as_one(group)
            group = []
        if not group:
            begin = start
        group.append(request)
        reached = stop
    if group:
        yield _as_one(group)


def _as_one(group: list[Request]) -> Request:
    if len(group) == 1:
        return group[0]

    def take(buffers: Sequence[memoryview]) -> None:
        rest = iter(buffers)
        for request in group:
            request.take(list(islice(rest, len(request.ranges))))

    ranges = [wanted for request in group for wanted in request.ranges]
    buffers = [buffer for request in group for buffer in request.buffers]
    return Request(group[0].source, group[0].tensor, ranges, buffers, take)


class Download:
    """How requests are made: how many at a time, and how long ones.

    Parameters
    ----------
    parallel : int
        Requests at the same time; 1: one after the other, in the thread of the caller.
    transfer : Transfer, optional
        What they belong to. Without one they belong to the current scope, if there is any.
    memory_budget : int, optional
        Without a transfer: bytes of the blocks that are lent.
    total_bytes : int
        What there is to read in all, if that is known.

    Attributes
    ----------
    size_bytes : int
        The longest request to make, and the most that one may have lent.
    parallel : int
        Fewer than were asked for if the budget is small.

    Threads
    -------
    One thread calls `run`.
    """

    def __init__(
        self,
        parallel: int,
        transfer: Transfer | None = None,
        memory_budget: int | None = None,
        total_bytes: int = 0,
    ) -> None:
        self._scope = None if transfer is None else transfer.scope
        self._budget = MemoryBudget(memory_budget) if transfer is None else transfer.budget
        self._ring = None if transfer is None else transfer.ring
        limit = self._budget.limit_bytes if self._ring is None else self._ring.limit_bytes
        # Of a ring each thread has one block, and one that the device still copies from.
        blocks = 1 if self._ring is None else 2
        self.size_bytes = fair_size_bytes(limit, parallel * blocks, total_bytes)
        if limit is not None:
            parallel = max(1, min(parallel, limit // self.size_bytes // blocks))
        self.parallel = parallel
        self._block_size_bytes = 0
        self._idle: list[memoryview] = []
        self._held_bytes: list[int] = []

    def run(self, requests: Iterable[Request], *, lent_size_bytes: int | None = None) -> None:
        """Make all requests, begun in this order, as many at a time as is allowed.

        Parameters
        ----------
        requests : iterable of Request
            The next one is taken when a thread is free for it, and dropped when it is done.
        lent_size_bytes : int, optional
            The most that one of them has lent, if that is less than `size_bytes`.

        Raises
        ------
        BaseException
            The error of the first request that failed, in reading or in `take`. No request is in progress
            then, and no buffer is written to.
        """
        self._block_size_bytes = self.size_bytes if lent_size_bytes is None else lent_size_bytes
        pulled = iter(requests)
        first = list(islice(pulled, 2))
        try:
            if len(first) == 1 and self._scope is None:
                self._carry_out(first[0])
            elif first:
                tasks = (partial(self._carry_out, request) for request in chain(first, pulled))
                first = []
                run_tasks(self._scope or current_scope() or Scope(), tasks, self.parallel)
        finally:
            self._idle.clear()
            self._budget.release(sum(self._held_bytes))
            self._held_bytes.clear()

    def _carry_out(self, request: Request) -> None:
        source, tensor, ranges, buffers, take = request
        if None not in buffers:
            received = [buffer for buffer in buffers if buffer is not None]
            source.read_into(ranges, received, tensor)
            take(received)
            return
        with self._block() as block:
            received = []
            used = 0
            for wanted, buffer in zip(ranges, buffers, strict=True):
                if buffer is not None:
                    received.append(buffer)
                    continue
                size = wanted.stop - wanted.start
                received.append(block[used : used + size])
                used += size
            source.read_into(ranges, received, tensor)
            take(received)

    @contextmanager
    def _block(self) -> Iterator[memoryview]:
        if self._ring is not None:
            block = self._ring.lend(self._block_size_bytes)
            try:
                yield block
            finally:
                self._ring.take_back(block)
            return
        # There are never more blocks than requests at a time; what a list does is safe from several threads.
        try:
            block = self._idle.pop()
        except IndexError:
            self._budget.acquire(self._block_size_bytes)
            self._held_bytes.append(self._block_size_bytes)
            block = np.empty(self._block_size_bytes, np.uint8).data
        try:
            yield block
        finally:
            self._idle.append(block)
