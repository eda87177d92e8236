"""The handle of a large write: parts of one size, from several threads where the storage takes them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import CkptStoreError, TransientError, UsageError
from ckptstore.storage.checks import byte_view
from ckptstore.storage.values import PutOutcome

if TYPE_CHECKING:
    from ckptstore.storage.values import Buffer

__all__ = ["Upload", "changed_while_sent", "removed_while_written"]


def removed_while_written(url: str) -> TransientError:
    """Return the error for an upload that a clean-up has removed."""
    return TransientError(
        "the unfinished upload was removed while it was written",
        url=url,
        hint="A clean-up took it for stale: raise its minimum age above the longest save.",
    )


def changed_while_sent(url: str) -> UsageError:
    """Return the error for memory that changed after its checksum was calculated."""
    return UsageError(
        "the arrays changed while they were being saved",
        url=url,
        hint="Do not change them until `save` returns; `save_async` copies them first.",
    )


class Upload(ABC):
    """One large object under way: invisible until `commit`, gone after `abort`.

    An object consists of parts, numbered from 0, all of `part_size_bytes` except the last one.

    A backend implements `_send`, `_commit`, `_abort` and `_close`, and `_send_shared` if it can do without a
    copy. Order, sizes and checksums of the parts,
    and whether the upload is still open, are checked here.

    Calls
    -----
    ``send`` or ``send_shared`` once for each part, or ``write`` any number of times; then ``commit`` or
    ``abort``, then ``close``. Leaving the ``with`` block aborts what was not committed, and closes.

    Until ``close`` the storage can prove that the writer of the object is alive (local disk: a lock on the
    file), so keep the upload open until the index that names the object is published.

    Parameters
    ----------
    url : str
        Of the object, for messages.

    Attributes
    ----------
    part_size_bytes : int
    parallel : int
        How many parts may be sent at the same time, in any order; 1: one after the other.

    Threads
    -------
    `send` from up to `parallel` threads at a time; everything else from one thread, when no `send` runs.
    """

    part_size_bytes: int = 8 * 1024 * 1024
    parallel: int = 1

    def __init__(self, url: str) -> None:
        self._url = url
        # A forked child has a copy of the upload, but must not touch what belongs to its parent.
        self._pid = os.getpid()
        # Parts may be sent, and the object committed. Never again after `commit`, `abort`, `close`, a part
        # that failed or a clean-up.
        self._is_open = True
        # A clean-up has aborted the upload. Implies not _is_open.
        self._was_dropped = False
        # The error of the first part that failed; never replaced. Set before _is_open becomes False, so that
        # other threads raise it too, and not that the upload is over.
        self._failure: CkptStoreError | None = None
        # part → CRC32C, size in bytes. Only parts that were sent completely.
        self._sent: dict[int, tuple[int, int]] = {}
        # Every part of which sending began, so a superset of _sent.
        self._begun_parts: set[int] = set()
        # The part that ends the object; it is in _sent.
        self._last_number: int | None = None
        # Bytes of `write` that are not sent yet, at most one part.
        self._collected = bytearray()

    @property
    def is_ours(self) -> bool:
        """Whether this process began the upload; False in a forked child."""
        return self._pid == os.getpid()

    def send(self, number: int, pieces: Sequence[memoryview], crc32c: int, *, is_last: bool = False) -> None:
        """Send part `number`, once: the bytes of all `pieces`, one after the other.

        Parameters
        ----------
        number : int
        pieces : sequence of memoryview
            Flat bytes. They stay unchanged until this returns; those of the last part until `commit` or
            `abort` does.
        crc32c : int
            Of all pieces together, unmasked.
        is_last : bool
            Whether the object ends with this part.

        Raises
        ------
        UsageError
            If it has the wrong size or number, or the upload is over; nothing was sent then.
        """

        def send() -> int:
            self._send(number, pieces, crc32c, is_last)
            return crc32c

        self._track(number, pieces, send, is_last=is_last)

    def send_shared(
        self, number: int, pieces: Sequence[memoryview], *, is_last: bool = False
    ) -> Sequence[int]:
        """Send a part from memory that may change meanwhile, although it should not; otherwise as `send`.

        Returns
        -------
        sequence of int
            The CRC32C of each piece as it was sent, unmasked. With another one the object never becomes
            visible.

        Raises
        ------
        UsageError
            Also if the memory changed, where that cannot be sent.
        """
        crcs: Sequence[int] = ()

        def send() -> int:
            nonlocal crcs
            crcs = self._send_shared(number, pieces, is_last)
            return _combined(crcs, pieces)

        self._track(number, pieces, send, is_last=is_last)
        return crcs

    def _track(
        self, number: int, pieces: Sequence[memoryview], send: Callable[[], int], *, is_last: bool
    ) -> None:
        """Check a part, send it by `send`, which returns its checksum, and record the outcome."""
        size_bytes = sum(map(len, pieces))
        if size_bytes > self.part_size_bytes or (size_bytes < self.part_size_bytes and not is_last):
            raise UsageError(
                "a part of an upload has the wrong size",
                expected=f"{self.part_size_bytes} bytes",
                actual=f"{size_bytes} bytes",
            )
        self._check_number(number, is_last)
        if self._failure is not None and self.is_ours:
            # The error of another thread's part. If this thread reports first, it reports what happened.
            raise self._failure
        self.check_open()
        self._begun_parts.add(number)
        try:
            crc = send()
        except BaseException as error:
            # How much of the part was stored is unknown, so nothing can follow.
            if self._failure is None and isinstance(error, CkptStoreError):
                self._failure = error
            self._is_open = False
            self._on_failed_part()
            raise
        self._sent[number] = (crc, size_bytes)
        if is_last:
            self._last_number = number

    def _check_number(self, number: int, is_last: bool) -> None:
        last = self._last_number
        if self.parallel == 1:
            # A part that failed has been begun: what that means for the next one is checked afterwards.
            fits = number not in self._sent and 0 <= number <= len(self._begun_parts) and last is None
        elif is_last:
            fits = last is None and number > max(list(self._sent), default=-1)
        else:
            fits = number not in self._sent and number >= 0 and (last is None or number < last)
        if not fits:
            raise UsageError(
                "a part of an upload was sent twice, behind the last one, or not in order where that matters",
                actual=f"part {number} of {'an unknown number' if last is None else last + 1}",
            )

    def write(self, data: Buffer) -> None:
        """Append `data`, collecting it into parts; the caller may change it again when this returns."""
        view = byte_view(data)
        while view:
            room = self.part_size_bytes - len(self._collected)
            if not room:
                self._send_collected(is_last=False)
                continue
            self._collected += view[:room]
            view = view[room:]
        self.check_open()

    def _send_collected(self, *, is_last: bool) -> None:
        # A new buffer: of the last part the bytes have to stay.
        part, self._collected = self._collected, bytearray()
        self.send(len(self._sent), (memoryview(part),), crc32c(part), is_last=is_last)

    def commit(self) -> PutOutcome:
        """Make the object visible under its key if nothing is there; durable when it returns `Committed`."""
        self.check_open()
        if self._last_number is None:
            self._send_collected(is_last=True)
        if list(range((self._last_number or 0) + 1)) != sorted(self._sent):
            raise UsageError(
                "an upload lacks a part, or has one behind the last",
                expected=f"parts 0 to {self._last_number}",
                actual=f"{len(self._sent)} parts",
            )
        whole = size_bytes = 0
        for number in range(len(self._sent)):
            part, part_size_bytes = self._sent[number]
            whole = combine(whole, part, part_size_bytes)
            size_bytes += part_size_bytes
        try:
            return self._commit(size_bytes, whole)
        finally:
            self._is_open = False

    def has_landed(self) -> bool:
        """Return whether the object is in place, after an `Ambiguous` commit; False if that is unknown.

        Raises
        ------
        CkptStoreError
            If the storage cannot be asked.
        """
        return False

    def abort(self) -> None:
        """Discard what was sent. No effect after `commit` has returned `Committed`."""
        self._is_open = False
        self._abort()

    def drop_as_stale(self) -> None:
        """Abort it because a clean-up found it too old; a later `commit` raises `TransientError`."""
        self._was_dropped = True
        self.abort()

    def close(self) -> None:
        """Release what proves that the writer is alive."""
        self._is_open = False
        self._close()

    def check_open(self) -> None:
        """Check that more can be sent, or the object committed.

        Raises
        ------
        UsageError
            If the upload is over, or belongs to the parent of this process.
        TransientError
            If a clean-up has removed it.
        """
        if self._was_dropped:
            raise removed_while_written(self._url)
        if not self._is_open or not self.is_ours:
            raise UsageError(
                "this upload is over, or belongs to the parent of this process",
                url=self._url,
                hint="Begin another upload.",
            )

    @abstractmethod
    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        """Send one part, as `send` promises; size and number are checked, and the upload is open."""

    def _send_shared(self, number: int, pieces: Sequence[memoryview], is_last: bool) -> Sequence[int]:
        """Send one part, as `send_shared` promises; checked as for `_send`. By default a copy of it."""
        copies = [memoryview(bytearray(piece)) for piece in pieces]
        crcs = [crc32c(copy) for copy in copies]
        self._send(number, copies, _combined(crcs, copies), is_last)
        return crcs

    @abstractmethod
    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        """Publish the object, as `commit` promises; all parts were sent, and it has this size and checksum.

        If it raises, or returns `Lost`, what was sent is discarded as far as possible.
        """

    def _on_failed_part(self) -> None:  # noqa: B027 - most have nothing to do before `abort`
        """React to a part that could not be sent; other threads may still be sending theirs. Never raises."""

    @abstractmethod
    def _abort(self) -> None:
        """Discard what was sent, if it was not published and `is_ours`; may be called more than once."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything; may be called more than once. Unfinished parts may stay, as after a crash."""

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abort()
        except CkptStoreError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self.close()


def _combined(crcs: Sequence[int], pieces: Sequence[memoryview]) -> int:
    whole = 0
    for crc, piece in zip(crcs, pieces, strict=True):
        whole = combine(whole, crc, len(piece))
    return whole
