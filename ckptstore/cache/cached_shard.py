"""One data file of a checkpoint in the cache: local where the bytes are there, else that of the storage."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.shard_files import ShardFile
from ckptstore.storage.base import Location
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.local.sparse_file import SparseFile
from ckptstore.types import ByteRange

__all__ = ["CachedShard"]


class CachedShard(ShardFile):
    """One data file.

    Attributes
    ----------
    origin : ShardFile
        The one in the storage.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        origin: ShardFile,
        location: Location,
        prefix_url: str,
        index_is_current: Callable[[], bool],
        path: str,
        end: int,
        trouble: Callable[[OSError], None],
    ) -> None:
        super().__init__(location, prefix_url, index_is_current)
        self.origin = origin
        self._path = path
        self._end = end
        self._trouble = trouble
        self._locks = ForkSafeLocks()
        self._is_open = False
        self._is_whole = False
        self._file: SparseFile | None = None
        self._memory: memoryview | None = None
        # What is not in the file, of what was asked for: ascending, and apart from each other.
        self._absent: list[tuple[int, int]] = []

    def set_state(self, version: str, size_bytes: int) -> None:
        self.origin.set_state(version, size_bytes)

    @property
    def is_known(self) -> bool:
        return self.origin.is_known or self._local_size_bytes() is not None

    def size_bytes(self, tensor: str) -> int:
        local = self._local_size_bytes()
        return self.origin.size_bytes(tensor) if local is None else local

    def view(self, tensor: str) -> memoryview | None:
        self.file(tensor)
        return self._memory

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        file, far = self._file, []
        for wanted, buffer in zip(ranges, buffers, strict=True):
            if file is None or self._is_absent(wanted.start, wanted.stop):
                far.append((wanted, buffer))
                continue
            try:
                file.read_into(wanted.start, buffer)
            except OSError as error:
                self._trouble(error)
                far.append((wanted, buffer))
        if far:
            self.origin.read_into([wanted for wanted, _ in far], [buffer for _, buffer in far], tensor)

    def file(self, tensor: str) -> SparseFile | None:
        """Return the file in the cache; None if there cannot be one, or that in the storage is too short.

        Raises as `size_bytes`.
        """
        with self._locks[0]:
            if not self._is_open:
                # The storage is asked before the file gets its length: an index may claim anything.
                is_there = self._local_size_bytes() is not None or self.origin.size_bytes(tensor) >= self._end
                if is_there:
                    self._open()
                self._is_open = True
            return self._file

    def _open(self) -> None:
        try:
            file = SparseFile(self._path)
            # The same for all processes: one that made it shorter would take pages out of the maps of others.
            file.grow(self._end)
            self._memory = file.view()
        except OSError as error:
            self._trouble(error)
        else:
            self._file = None if self._memory is None else file

    def is_whole(self) -> bool:
        """Return whether `file` has no hole; there will be none then."""
        if not self._is_whole:
            self._is_whole = not self.holes(0, self._end)
        return self._is_whole

    def holes(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what of a range must not be touched: what `file` lacks, or all if that cannot be told."""
        file = self._file
        if file is None or self._memory is None or len(self._memory) < stop:
            return [(start, stop)]
        try:
            return list(file.holes(start, stop))
        except OSError as error:
            self._trouble(error)
            return [(start, stop)]

    def memory(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return bytes of `file` that are no hole."""
        assert self._memory is not None
        return np.frombuffer(self._memory, np.uint8, stop - start, start)

    def set_absent(self, start: int, stop: int, *, is_absent: bool) -> None:
        """Record whether a range has to be read from the storage."""
        if not is_absent and not self._absent:
            return
        with self._locks[0]:
            at = bisect.bisect_left(self._absent, (start, stop))
            is_listed = at < len(self._absent) and self._absent[at] == (start, stop)
            if is_absent and not is_listed:
                self._absent.insert(at, (start, stop))
            elif is_listed and not is_absent:
                del self._absent[at]

    def _is_absent(self, start: int, stop: int) -> bool:
        with self._locks[0]:
            at = bisect.bisect_left(self._absent, (stop,))
            return at > 0 and self._absent[at - 1][1] > start

    def _local_size_bytes(self) -> int | None:
        """Return the length if the file is there and was given its length before."""
        if self._is_open:
            return None if self._file is None else self._file.size_bytes
        try:
            size_bytes = SparseFile.length(self._path)
        except OSError as error:
            self._trouble(error)
            return None
        return size_bytes if size_bytes is not None and size_bytes >= self._end > 0 else None
