"""The handle of a large write: parts of one size, from several threads where the storage takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.base import PutOutcome
from ckptstore.storage.checks import byte_view

if TYPE_CHECKING:
    from ckptstore.storage.base import Buffer

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
        self._is_whole = False

    def send(self, number: int, pieces: Sequence[memoryview], crc32c: int, *, is_last: bool = False) -> None:
        """Bring part `number`: the bytes of all `pieces`, one behind the other.

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
        """
        size_bytes = sum(map(len, pieces))
        if size_bytes > self.part_size_bytes or (size_bytes < self.part_size_bytes and not is_last):
            raise UsageError(
                "a part of an upload has the wrong size",
                expected=f"{self.part_size_bytes} bytes",
                actual=f"{size_bytes} bytes",
            )
        self._send(number, pieces, crc32c, is_last)
        self._sent[number] = (crc32c, size_bytes)
        if is_last:
            self._is_whole = True

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
        if not self._is_whole:
            self._send_collected(is_last=True)
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
