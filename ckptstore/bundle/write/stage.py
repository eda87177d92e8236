"""A copy of the bytes of a save: once it is made, the caller may change the arrays again.

One thread copies, in the order of the files, into blocks of memory; the thread that saves reads the bytes
from there. It starts when all is copied: if both ran at once they would share the memory bandwidth, and the
caller would wait two to four times as long. Where the memory budget is smaller than the checkpoint it starts
at once, and the copying waits for blocks whose bytes are stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ckptstore.bundle.write.item_bytes import byte_view, encoded, is_as_stored, stored_chunks
from ckptstore.bundle.write.plan import SavePlan, WriteItem
from ckptstore.errors import ConflictError
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.blocks import BLOCK_SIZE_BYTES, Block, enough_memory, give_blocks, take_block
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.upload import BudgetLease

__all__ = ["Stage", "StagedShard"]

# Smaller tensors are joined before they are copied: a separate copy costs more than their bytes.
_JOINED_BELOW_BYTES = 64 * 1024
_JOINED_SIZE_BYTES = 1024 * 1024

# Size of the pieces that are converted on the way into a block; small enough not to count in the budget.
_CONVERTED_SIZE_BYTES = 1024 * 1024


class _Staged:
    """A block, how much of it is filled, and the lease of its memory."""

    def __init__(self, array: Block, lease: BudgetLease) -> None:
        self.array = array
        self.view = byte_view(array)
        self.size_bytes = 0
        self.lease = lease
        self._is_needed = True

    def release(self) -> None:
        """Give the memory back as soon as no lease is retained; a second call does nothing."""
        with self.lease.lock:
            was_needed, self._is_needed = self._is_needed, False
        if was_needed:
            self.lease.release()


def _whole_size_bytes(plan: SavePlan) -> int:
    """Return how much memory the copy of a plan takes at most, if none of it is given back before the end."""
    blocks = sum(-(-shard.size_bytes // BLOCK_SIZE_BYTES) for shard in plan.shards)
    encoded_bytes = max(
        (
            item.size_bytes
            for shard in plan.shards
            for item in shard.items
            if item.size_bytes >= _JOINED_BELOW_BYTES and item.array.dtype.hasobject
        ),
        default=0,
    )
    return blocks * BLOCK_SIZE_BYTES + encoded_bytes


class Stage:
    """The bytes of one plan, copied from the caller's arrays for the thread that saves.

    Calls
    -----
    `copy` in the thread that owns the arrays. `shard` for every data file in order, in the thread that saves,
    which may start at once. `close` when the save is over, successful or not.

    Parameters
    ----------
    budget : MemoryBudget
        Of the transfer that saves; the blocks are taken from it, and what strings take while they are copied.
    url : str, optional
        Of the checkpoint, for messages.

    Attributes
    ----------
    is_whole : bool
        Whether the budget has room for everything at once: the shards can then be read again.

    Threads
    -------
    One that copies and one that saves; `close` from any.
    """

    def __init__(self, plan: SavePlan, budget: MemoryBudget, *, url: str | None = None) -> None:
        self.plan = plan
        limit = budget.limit_bytes
        self.is_whole = limit is None or _whole_size_bytes(plan) <= limit
        self._budget = budget
        self._url = url
        self._scope = Scope(what="cannot copy the arrays")
        # Reentrant: a signal handler that cancels may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # Published blocks of each shard, in order; appended by the thread that copies, until `_is_closed`.
        self._shards: list[list[_Staged]] = [[] for _ in plan.shards]
        # Item → checksum of strings; set before their first block is published.
        self._crcs: list[dict[int, int]] = [{} for _ in plan.shards]
        # The first shard that was never read. Without `is_whole` the ones before it cannot be read again.
        self._begun = 0
        # Set last by `copy`: every block is published then. Stays False if the copy fails.
        self._is_copied = False
        # Set by `close` with `_error`; no block is published afterwards.
        self._is_closed = False
        self._error: BaseException | None = None
        # While the thread that saves waits for a block: the memory that it keeps until it gets one.
        self._stuck_bytes: Callable[[], int] | None = None
        # The block that the copying thread is filling, not published yet; no other thread touches it.
        self._filling: _Staged | None = None
        # Memory held for strings that are being copied into blocks.
        self._encoded_bytes = 0
        # Blocks in use now and at most; `_most_out` are kept for the next save.
        self._out = 0
        self._most_out = 0

    def copy(self) -> None:
        """Copy everything; when this returns, the arrays may be changed.

        Raises
        ------
        BaseException
            The failure of the save, if it ends before.
        """
        try:
            for number, shard in enumerate(self.plan.shards):
                self._copy_shard(number, shard.items)
        except BaseException as error:
            failure = self._error or error
            self.close(failure)
            if self._filling is not None:
                # Only now: nobody else may get it while it is filled.
                self._filling.release()
            if failure is not error and isinstance(error, Exception):
                raise failure from None
            raise
        with self._lock:
            self._is_copied = True
            self._changed.notify_all()

    def _copy_shard(self, number: int, items: tuple[WriteItem, ...]) -> None:
        joined: list[bytes] = []
        joined_bytes = 0
        for index, item in enumerate(items):
            array = item.array
            if item.size_bytes < _JOINED_BELOW_BYTES and array.dtype.hasobject:
                raw, self._crcs[number][index] = encoded(item)
            elif item.size_bytes < _JOINED_BELOW_BYTES and is_as_stored(item):
                raw = array.tobytes()
            else:
                self._append(number, b"".join(joined))
                joined.clear()
                joined_bytes = 0
                if array.dtype.hasobject:
                    self._append_encoded(number, index)
                elif is_as_stored(item):
                    self._append(number, byte_view(array))
                else:
                    for chunk in stored_chunks(item, _CONVERTED_SIZE_BYTES):
                        self._append(number, byte_view(chunk))
                continue
            joined.append(raw)
            joined_bytes += len(raw)
            if joined_bytes >= _JOINED_SIZE_BYTES:
                self._append(number, b"".join(joined))
                joined.clear()
                joined_bytes = 0
        self._append(number, b"".join(joined))
        self._publish(number)

    def _append_encoded(self, number: int, index: int) -> None:
        """Append strings or variants, which are encoded whole."""
        item = self.plan.shards[number].items[index]
        limit = self._budget.limit_bytes
        size_bytes = item.size_bytes if limit is None else min(item.size_bytes, limit)
        filling_bytes = 0 if self._filling is None else BLOCK_SIZE_BYTES
        with self._budget.hold(size_bytes, scope=self._scope, beside=lambda: self._stuck() + filling_bytes):
            with enough_memory(self._budget, item.size_bytes, url=self._url, tensor=item.name):
                # The thread that saves asks for the checksum as soon as the first bytes are published.
                raw, self._crcs[number][index] = encoded(item)
            self._encoded_bytes = size_bytes
            try:
                self._append(number, raw)
            finally:
                self._encoded_bytes = 0

    def _append(self, number: int, data: bytes | memoryview) -> None:
        source = np.frombuffer(data, np.uint8)
        start = 0
        while start < len(source):
            block = self._filling
            if block is None:
                block = self._filling = self._new_block()
            stop = min(len(source), start + BLOCK_SIZE_BYTES - block.size_bytes)
            end = block.size_bytes + stop - start
            np.copyto(block.array[block.size_bytes : end], source[start:stop])
            block.size_bytes = end
            start = stop
            if end == BLOCK_SIZE_BYTES:
                self._publish(number)

    def _publish(self, number: int) -> None:
        """Hand the block that was filled last to the thread that saves."""
        with self._lock:
            # The thread that saves may be done already when only empty tensors are left.
            if self._filling is None:
                return
            # A block published after the end would never be given back.
            if self._is_closed:
                self._scope.check()
            self._shards[number].append(self._filling)
            self._filling = None
            self._changed.notify_all()

    def _new_block(self) -> _Staged:
        # Memory that the thread that saves cannot give back before it gets more is not waited for.
        self._budget.acquire(
            BLOCK_SIZE_BYTES, scope=self._scope, beside=lambda: self._stuck() + self._encoded_bytes
        )
        block: list[Block] = []

        def free() -> None:
            with self._lock:
                self._out -= 1
            give_blocks(block, self._most_out)

        with self._lock:
            self._out += 1
            self._most_out = max(self._most_out, self._out)
        lease = BudgetLease(self._budget, BLOCK_SIZE_BYTES, free)
        try:
            with enough_memory(self._budget, BLOCK_SIZE_BYTES, url=self._url):
                block.append(take_block())
            return _Staged(block[0], lease)
        except BaseException:
            lease.release()
            raise

    def _stuck(self) -> int:
        stuck_bytes = self._stuck_bytes
        return 0 if stuck_bytes is None else stuck_bytes()

    def shard(self, number: int, held_bytes: Callable[[], int]) -> StagedShard:
        """Return a reader of data file `number`, from its beginning.

        Parameters
        ----------
        number : int
        held_bytes : callable
            How much memory the caller keeps until it gets more bytes.

        Raises
        ------
        ConflictError
            If it was read before, and its first blocks are given back.
        """
        with self._lock:
            if number < self._begun and not self.is_whole:
                raise ConflictError(
                    "another writer used the names of the data files, and the copy is released already",
                    hint="Save again; a memory budget as large as the checkpoint makes this unnecessary.",
                )
            self._begun = max(self._begun, number + 1)
        return StagedShard(self, number, held_bytes)

    def _wait_for(self, number: int, index: int, held_bytes: Callable[[], int]) -> _Staged:
        """Return block `index` of data file `number` once it is published; of a whole stage, once all are."""
        scope = current_scope() or Scope()
        blocks = self._shards[number]

        def is_due() -> bool:
            return self._is_copied or (index < len(blocks) and not self.is_whole)

        if is_due():
            return blocks[index]
        scope.cancellation.watch(self._wake)
        try:
            self._stuck_bytes = held_bytes
            self._budget.wake()
            with self._lock:
                while not is_due():
                    if self._error is not None:
                        raise self._error
                    scope.check()
                    self._scope.check()
                    self._changed.wait(min(scope.remaining_s(), threading.TIMEOUT_MAX))
            return blocks[index]
        finally:
            self._stuck_bytes = None
            scope.cancellation.unwatch(self._wake)

    def _passed(self, number: int, index: int) -> None:
        """Release a block that the thread that saves has read, except retained leases."""
        if not self.is_whole:
            self._shards[number][index].release()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Give the memory back; a `copy` in progress raises `error`. Blocks handed out must not be in use."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._error = error
            # Before the lock is free: the thread that copies checks this next.
            self._scope.cancellation.cancel()
            self._changed.notify_all()
        for blocks in self._shards:
            for block in blocks:
                block.release()
        give_blocks([], self._most_out)


class StagedShard:
    """One data file, read from front to back.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self, stage: Stage, number: int, held_bytes: Callable[[], int]) -> None:
        self._stage = stage
        self._number = number
        self._held_bytes = held_bytes
        self._index = -1
        self._block: _Staged | None = None
        self._position = 0

    def crc(self, index: int) -> int:
        """Return the unmasked checksum of item `index`, strings or variants; call `room` before."""
        if not self._stage.plan.shards[self._number].items[index].size_bytes:
            return 0
        return self._stage._crcs[self._number][index]  # noqa: SLF001 (the other half of Stage)

    def room(self) -> int:
        """Wait for the next bytes, and return how many lie in one piece. Only where more bytes follow.

        Raises
        ------
        BaseException
            What the copying failed with.
        """
        if self._block is None or self._position == self._block.size_bytes:
            self.end()
            self._index += 1
            self._position = 0
            self._block = self._stage._wait_for(  # noqa: SLF001 (the other half of Stage)
                self._number, self._index, self._held_bytes
            )
        return self._block.size_bytes - self._position

    def take(self, size_bytes: int) -> tuple[memoryview, BudgetLease | None]:
        """Return the next bytes, at most `room`, and the lease to retain while they are needed."""
        if not size_bytes:
            return memoryview(b""), None
        assert self._block is not None
        start, self._position = self._position, self._position + size_bytes
        return self._block.view[start : self._position], self._block.lease

    def skip(self, size_bytes: int) -> None:
        """Skip `size_bytes` bytes."""
        while size_bytes:
            view, _ = self.take(min(size_bytes, self.room()))
            size_bytes -= len(view)
        self.end()

    def end(self) -> None:
        """Release the block that was read last."""
        if self._block is not None:
            self._stage._passed(self._number, self._index)  # noqa: SLF001 (the other half of Stage)
            self._block = None
