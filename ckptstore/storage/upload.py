"""The handle of a large write: parts of one size, from several threads where the storage takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.checks import byte_view
from ckptstore.storage.values import PutOutcome

if TYPE_CHECKING:
    from ckptstore.storage.values import Buffer

__all__ = ["Upload"]


class Upload(ABC):
    """One large object under way: invisible until `commit`, gone after `abort`.

    An object consists of parts, numbered from 0, all of `part_size_bytes` except the last one.

    Calls
    -----
    ``send`` once for each part, or ``write`` any number of times; then ``commit`` or ``abort``, then
    ``close``. Leaving the ``with`` block aborts what was not committed, and closes.

    Until ``close`` the storage can tell that the writer of the object is alive (local disk: a lock on the
    file), so keep the upload open until the index that names the object is published.

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

    def __init__(self) -> None:
        self._sent: dict[int, tuple[int, int]] = {}  # part → CRC32C, size in bytes
        self._collected = bytearray()
        self._begun_parts: set[int] = set()
        self._last_number: int | None = None

    def send(self, number: int, pieces: Sequence[memoryview], crc32c: int, *, is_last: bool = False) -> None:
        """Bring part `number`, once: the bytes of all `pieces`, one behind the other.

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
            If it has the wrong size or number; nothing was sent then.
        """
        size_bytes = sum(map(len, pieces))
        if size_bytes > self.part_size_bytes or (size_bytes < self.part_size_bytes and not is_last):
            raise UsageError(
                "a part of an upload has the wrong size",
                expected=f"{self.part_size_bytes} bytes",
                actual=f"{size_bytes} bytes",
            )
        self._check_number(number, is_last)
        self._begun_parts.add(number)
        self._send(number, pieces, crc32c, is_last)
        self._sent[number] = (crc32c, size_bytes)
        if is_last:
            self._last_number = number

    def _check_number(self, number: int, is_last: bool) -> None:
        last = self._last_number
        if self.parallel == 1:
            # After a part that failed, the backend says what that means for the next one.
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
        self._check_open()

    def _send_collected(self, *, is_last: bool) -> None:
        # A new buffer: of the last part the bytes have to stay.
        part, self._collected = self._collected, bytearray()
        self.send(len(self._sent), (memoryview(part),), crc32c(part), is_last=is_last)

    def commit(self) -> PutOutcome:
        """Make the object visible under its key if nothing is there; durable when it returns `Committed`."""
        self._check_open()
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
        return self._commit(size_bytes, whole)

    @abstractmethod
    def _check_open(self) -> None:
        """Raise `UsageError` if the upload is over, or belongs to the parent of this process."""

    @abstractmethod
    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        """Do what `send` says; sizes are checked."""

    @abstractmethod
    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        """Do what `commit` says; every part was sent, and the object has this size and checksum."""

    @abstractmethod
    def abort(self) -> None:
        """Throw away what was sent. No effect after `commit` answered `Committed`."""

    @abstractmethod
    def close(self) -> None:
        """Release what proves that the writer is alive."""

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
