"""From a stream of bytes to the parts of an upload: cut, checked and sent, several at a time.

Every byte goes through the checksum once, piece by piece, in the thread that sends it; the checksums of parts
and of whatever else the pieces belong to are combined from those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import UsageError
from ckptstore.storage.upload import Upload
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.transfer import Transfer

__all__ = ["BudgetLease", "Checksum", "PartSender"]

_T = TypeVar("_T")


class Checksum:
    """The CRC32C of bytes that are cut into pieces, each of which may be calculated by another thread."""

    __slots__ = ("_crcs", "_sizes")

    def __init__(self) -> None:
        self._crcs: list[int] = []
        self._sizes: list[int] = []

    def add_piece(self, size_bytes: int) -> int:
        """Add a piece behind the others, and return its number."""
        self._crcs.append(-1)
        self._sizes.append(size_bytes)
        return len(self._sizes) - 1

    def set_piece(self, number: int, crc: int) -> None:
        """Set the checksum of a piece."""
        self._crcs[number] = crc

    @property
    def value(self) -> int:
        """Unmasked, of all pieces; each must be set."""
        whole = 0
        for crc, size_bytes in zip(self._crcs, self._sizes, strict=True):
            assert crc >= 0, "a piece was not sent"
            whole = combine(whole, crc, size_bytes)
        return whole


class BudgetLease:
    """Bytes of a budget, given back when the last holder releases them.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self, budget: MemoryBudget, size_bytes: int, on_free: Callable[[], object] | None = None
    ) -> None:
        self.size_bytes = size_bytes
        self._budget = budget
        self._on_free = on_free
        self._holders = 1
        self.lock = threading.Lock()

    def retain(self) -> BudgetLease:
        """Return this, for one more holder, who calls `release` as well."""
        with self.lock:
            self._holders += 1
        return self

    def shrink(self, size_bytes: int) -> None:
        """Give back what is more than `size_bytes`; only with one holder."""
        assert size_bytes <= self.size_bytes, "more memory than was acquired"
        self._budget.release(self.size_bytes - size_bytes)
        self.size_bytes = size_bytes

    def release(self) -> None:
        """Give the bytes back, unless there are other holders."""
        with self.lock:
            self._holders -= 1
            is_free = not self._holders
        if is_free:
            if self._on_free is not None:
                self._on_free()
            self._budget.release(self.size_bytes)


class _PartPiece(NamedTuple):
    view: memoryview
    checksum: Checksum | None
    number: int
    is_lent: bool


class _UploadPart:
    """A part that is being assembled."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pieces: list[_PartPiece] = []
        self.size_bytes = 0
        self.leases: dict[int, BudgetLease] = {}

    def retain(self, lease: BudgetLease) -> None:
        if id(lease) not in self.leases:
            self.leases[id(lease)] = lease.retain()

    def release(self) -> None:
        self.pieces.clear()
        while self.leases:
            self.leases.popitem()[1].release()


class PartSender:
    """Feeds one upload.

    Calls
    -----
    `put` for all bytes in order, `finish`, then `commit` of the upload, then `close`; or `close` at any time.

    Parameters
    ----------
    upload : Upload
        Committing, aborting and closing it stays with the caller.
    transfer : Transfer
        Threads, memory, and progress.
    size_bytes : int, optional
        The size of the object. Where it is not known, a full part is sent when the next byte comes.

    Attributes
    ----------
    size_bytes : int
        Put so far.

    Threads
    -------
    One thread at a time. `upload.parallel` of one leaves everything in that thread.
    """

    def __init__(self, upload: Upload, transfer: Transfer, size_bytes: int | None = None) -> None:
        self._upload = upload
        self._transfer = transfer
        self._part_size_bytes = upload.part_size_bytes
        self._expected_bytes = size_bytes
        parallel = upload.parallel
        if size_bytes is not None:
            # One part is not worth a thread.
            parallel = max(1, min(parallel, -(-size_bytes // self._part_size_bytes)))
        self._group = transfer.group(parallel)
        # The part that is not full yet; every part before it was submitted to the group.
        self._part = _UploadPart(0)
        # Set once the last part is submitted; `put` must not follow.
        self._last: _UploadPart | None = None
        # Parts submitted whose leases are held: until they are sent, the last one until `close`.
        self._under_way: dict[int, _UploadPart] = {}
        # One piece per part.
        self._whole = Checksum()
        # Whether the caller's memory is in the part that is not full yet, and in parts that may still be
        # sent.
        self._holds_lent = False
        self._sends_lent = False
        self.size_bytes = 0

    @property
    def crc32c(self) -> int:
        """Unmasked CRC32C of all bytes, once `finish` returned."""
        return self._whole.value

    @property
    def held_bytes(self) -> int:
        """Memory that the part which is not full yet keeps."""
        return sum(lease.size_bytes for lease in self._part.leases.values())

    def reserve(self, size_bytes: int) -> BudgetLease:
        """Acquire memory for bytes to put, waiting for room. Raises as `put`."""
        with self._guarded():
            self._transfer.budget.acquire(size_bytes, scope=self._group.scope, beside=self.held_bytes)
        return BudgetLease(self._transfer.budget, size_bytes)

    def wait_for(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns; its scope ends when a part fails. Raises as `put`."""
        with self._guarded():
            return self._group.scope.run(call)

    def put(
        self, view: memoryview, *, checksum: Checksum | None = None, lease: BudgetLease | None = None
    ) -> None:
        """Append bytes.

        Parameters
        ----------
        view : memoryview
            Flat. Its memory must not change until `detach_from_caller`, `finish` or `close` returns. If that
            of the caller does, the checksums are those of the bytes that were sent, or sending fails.
        checksum : Checksum, optional
            Gets the checksums of the pieces into which the bytes are cut, once they are sent.
        lease : BudgetLease, optional
            Retained until the bytes are sent; those of the last part until `close`. Without it the memory is
            the caller's, see `detach_from_caller`.

        Raises
        ------
        BaseException
            The error of the first thread that failed. Nothing runs any more then.
        """
        self._holds_lent = self._holds_lent or lease is None
        with self._guarded():
            while view:
                room = self._part_size_bytes - self._part.size_bytes
                if not room:
                    self._send(is_last=False)
                    continue
                piece, view = view[:room], view[room:]
                size_bytes = len(piece)
                number = -1 if checksum is None else checksum.add_piece(size_bytes)
                part = self._part
                part.pieces.append(_PartPiece(piece, checksum, number, lease is None))
                part.size_bytes += size_bytes
                if lease is not None:
                    part.retain(lease)
                self.size_bytes += size_bytes
                if self._expected_bytes is not None and part.size_bytes == self._part_size_bytes:
                    self._send(is_last=self.size_bytes == self._expected_bytes)

    def detach_from_caller(self) -> None:
        """Make what was put so far independent of the caller's memory: sent, or copied. Raises as `put`."""
        if not self._holds_lent and not self._sends_lent:
            return
        with self._guarded():
            self._holds_lent = False
            if self._sends_lent:
                self._group.wait()
                self._sends_lent = False
            part = self._part
            for index, piece in enumerate(part.pieces):
                if piece.is_lent:
                    lease = self.reserve(len(piece.view))
                    part.pieces[index] = piece._replace(view=memoryview(bytes(piece.view)), is_lent=False)
                    part.retain(lease)
                    lease.release()

    def finish(self) -> None:
        """Send what is left, and wait until all parts are sent. Raises as `put`."""
        with self._guarded():
            if self._expected_bytes is not None and self.size_bytes != self._expected_bytes:
                raise UsageError(
                    "the data file came out with another size than planned",
                    expected=f"{self._expected_bytes} bytes",
                    actual=f"{self.size_bytes} bytes",
                    hint="The arrays must not change while they are saved.",
                )
            if self._last is None:
                self._send(is_last=True)
            self._group.finish()

    def close(self) -> None:
        """Stop what is not finished; then no thread works for this, and it holds no memory."""
        self._group.stop()
        self._group.forget()
        self._part.release()
        for part in self._under_way.values():
            part.release()
        self._under_way.clear()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # The first failure counts, not that the wait for it was interrupted.
            self._group.__exit__(type(error), error, None)
            raise

    def _send(self, *, is_last: bool) -> None:
        part, self._part = self._part, _UploadPart(self._part.number + 1)
        number = self._whole.add_piece(part.size_bytes)
        self._under_way[part.number] = part
        if is_last:
            self._last = part
        is_lent = any(piece.is_lent for piece in part.pieces)
        self._sends_lent = self._sends_lent or is_lent

        def send() -> None:
            views = [piece.view for piece in part.pieces]
            crcs: Sequence[int] = ()
            if is_lent:
                # The checksum of what was sent, not of a second look at memory that is not ours.
                crcs = self._upload.send_shared(part.number, views, is_last=is_last)
            else:
                crcs = [crc32c(view) for view in views]
            whole = 0
            for (view, checksum, piece_number, _), crc in zip(part.pieces, crcs, strict=True):
                if checksum is not None:
                    checksum.set_piece(piece_number, crc)
                whole = combine(whole, crc, len(view))
            self._whole.set_piece(number, whole)
            if not is_lent:
                self._upload.send(part.number, views, whole, is_last=is_last)
            self._transfer.advance(part.size_bytes)
            if not is_last:
                self._under_way.pop(part.number).release()

        self._group.submit(send)
