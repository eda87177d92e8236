"""Files in the memory of this process, shared with fsspec's ``memory://``.

Guarantees
----------
What fsspec puts there is seen here and vice versa. A file is replaced as a whole, in one step. Nothing
outlives the process, and a change that fsspec makes between a comparison and a swap is overwritten.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import NotFoundError, UsageError
from ckptstore.storage.abilities import KnowsWriters, ListsUploads, MarksUploads, SupportsCopies
from ckptstore.storage.base import Storage
from ckptstore.storage.checks import byte_view, check_pin, resolve_range, resolve_reads
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.upload import Upload, removed_while_written
from ckptstore.storage.values import (
    Capabilities,
    Committed,
    GetResult,
    Lost,
    ObjectInfo,
    PutOutcome,
    SuffixRange,
)

if TYPE_CHECKING:
    from fsspec.implementations.memory import MemoryFile

    from ckptstore.storage.values import Buffer
    from ckptstore.types import ByteRange

__all__ = ["MemoryStorage", "unfinished_uploads"]


@dataclass(slots=True)
class _Seen:
    """The state of a file when it was last read."""

    data: bytes
    modified: Any
    version: str


@dataclass(slots=True, eq=False)
class _Unfinished:
    """What an upload has so far; alive until its handle is closed, needed while an index names it."""

    key: str
    data: bytearray
    started_s: float
    is_alive: bool = True
    is_needed: bool = False


# Like fsspec's store, all of these belong to the process and not to an instance.
_LOCKS = ForkSafeLocks()
_VERSIONS = itertools.count(1)
_SEEN: weakref.WeakKeyDictionary[MemoryFile, _Seen] = weakref.WeakKeyDictionary()
_WRITERS: weakref.WeakKeyDictionary[MemoryFile, _Unfinished] = weakref.WeakKeyDictionary()
_UNFINISHED: set[_Unfinished] = set()


@functools.lru_cache(maxsize=1)
def _name_of(pid: int) -> str:
    return f"process {pid} {secrets.token_hex(8)}"


def _process_name() -> str:
    """Return what no other process has, nor one after this that gets its number."""
    return _name_of(os.getpid())


class MemoryStorage(Storage, SupportsCopies, KnowsWriters, ListsUploads, MarksUploads):
    """The files of fsspec's memory file system; keys are ``/bucket/name`` for ``memory://bucket/name``."""

    capabilities = Capabilities(
        backend="memory",
        create_if_absent=True,
        compare_and_swap=True,
        conditional_delete=True,
        durable_when_acknowledged=False,
        checksum_proved_by_store=False,
        several_hosts=False,
    )

    def __init__(self) -> None:
        # On first use: work on a disk does not need fsspec.
        from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

        self._file_type = MemoryFile
        self._fs = MemoryFileSystem()
        self._files: dict[str, MemoryFile] = self._fs.store

    def url_of(self, key: str) -> str:
        return f"memory:/{key or '/'}"

    @property
    def server(self) -> str:
        return _process_name()

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        seen = self._look(key)
        url = self.url_of(key)
        check_pin(version, seen.version, url)
        start, stop = resolve_range(byte_range, len(seen.data), url)
        whole = stop - start == len(seen.data)
        return GetResult(seen.data if whole else seen.data[start:stop], seen.version, len(seen.data))

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        seen = self._look(key)
        url = self.url_of(key)
        check_pin(version, seen.version, url)
        data = memoryview(seen.data)
        for start, stop, buffer in resolve_reads(ranges, buffers, len(data), url):
            buffer[:] = data[start:stop]

    def head(self, key: str) -> ObjectInfo:
        return _info(key, self._look(key))

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        return self.create(key, bytes(byte_view(data)))

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        content = bytes(byte_view(data))
        with _LOCKS[0]:
            found = self._version(key)
            if found != version:
                return Lost(found)
            return Committed(self._place(key, content).version)

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        with _LOCKS[0]:
            self._check_place(key)
        return _MemoryUpload(self, key)

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        seen = self._look(source_key)
        check_pin(version, seen.version, self.url_of(source_key))
        return self.create(target_key, seen.data)

    def delete_if(self, key: str, version: str) -> bool:
        with _LOCKS[0]:
            found = self._version(key)
            if found == version:
                del self._files[key]
            return found in (version, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        with _LOCKS[0]:
            for key in keys:
                self._files.pop(key, None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        directory = prefix.rpartition("/")[0]
        with _LOCKS[0]:
            self._check_parents(prefix)
            # A copy first: fsspec does not take our lock.
            files = [
                (key, file)
                for key, file in self._files.copy().items()
                if key.startswith(prefix) and key.rpartition("/")[0] == directory
            ]
            return iter(sorted((_info(key, _state(file)) for key, file in files), key=lambda info: info.key))

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        with _LOCKS[0]:
            stale = _stale(prefix, min_age_s)
            _UNFINISHED.difference_update(stale)
        return len(stale)

    def stale_uploads(self, prefix: str, min_age_s: float) -> Sequence[ObjectInfo]:
        since_s = time.time() - time.monotonic()
        with _LOCKS[0]:
            return [
                ObjectInfo(upload.key, len(upload.data), "", since_s + upload.started_s)
                for upload in _stale(prefix, min_age_s)
            ]

    def is_abandoned(self, key: str) -> bool:
        """Return whether an upload made this file and was closed since."""
        with _LOCKS[0]:
            file = self._files.get(key)
            writer = None if file is None else _WRITERS.get(file)
            return writer is not None and not writer.is_alive and not writer.is_needed

    def is_in_use(self, key: str) -> bool:
        with _LOCKS[0]:
            file = self._files.get(key)
            writer = None if file is None else _WRITERS.get(file)
            return writer is not None and writer.is_alive

    def mark_needed(self, keys: Sequence[str]) -> None:
        self._mark(keys, is_needed=True)

    def mark_unneeded(self, keys: Sequence[str]) -> None:
        self._mark(keys, is_needed=False)

    def _mark(self, keys: Sequence[str], *, is_needed: bool) -> None:
        with _LOCKS[0]:
            for key in keys:
                file = self._files.get(key)
                writer = None if file is None else _WRITERS.get(file)
                if writer is not None:
                    writer.is_needed = is_needed

    def is_upload(self, key: str) -> bool:
        self._look(key)
        with _LOCKS[0]:
            file = self._files.get(key)
            writer = None if file is None else _WRITERS.get(file)
            return writer is not None and not writer.is_needed

    def create(self, key: str, data: bytes, writer: _Unfinished | None = None) -> PutOutcome:
        """Create a file if nothing is there; `writer` is the upload that it comes from."""
        with _LOCKS[0]:
            self._check_place(key)
            if writer is not None:
                if writer not in _UNFINISHED:
                    raise removed_while_written(self.url_of(key))
                _UNFINISHED.discard(writer)
            found = self._version(key)
            if found is not None:
                return Lost(found)
            seen = self._place(key, data)
            if writer is not None:
                _WRITERS[self._files[key]] = writer
            return Committed(seen.version)

    def _look(self, key: str) -> _Seen:
        with _LOCKS[0]:
            file = self._files.get(key)
            if file is None:
                raise NotFoundError("the file does not exist", url=self.url_of(key), hint="Check the path.")
            return _state(file)

    def _version(self, key: str) -> str | None:
        file = self._files.get(key)
        return None if file is None else _state(file).version

    def _place(self, key: str, data: bytes) -> _Seen:
        # Not pipe_file or open, which show an empty file first.
        file = self._files[key] = self._file_type(self._fs, key, data)
        return _state(file)

    def _check_place(self, key: str) -> None:
        """Raise `UsageError` where a disk would refuse the file."""
        self._check_parents(key)
        if key in self._fs.pseudo_dirs:
            raise UsageError(
                "a directory stands where a file should be",
                url=self.url_of(key),
                hint="Choose another path.",
            )

    def _check_parents(self, key: str) -> None:
        if not key.startswith("/"):
            raise UsageError(
                "this is not a key of the memory file system", url=key, expected="a leading slash"
            )
        parent = key.rpartition("/")[0]
        while parent:
            if parent in self._files:
                raise UsageError(
                    "a file stands where a directory should be",
                    url=self.url_of(parent),
                    hint="Choose another path.",
                )
            parent = parent.rpartition("/")[0]


class _MemoryUpload(Upload):
    def __init__(self, storage: MemoryStorage, key: str) -> None:
        super().__init__(storage.url_of(key))
        self._storage = storage
        self._unfinished = _Unfinished(key, bytearray(), time.monotonic())
        with _LOCKS[0]:
            _UNFINISHED.add(self._unfinished)

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        for piece in pieces:
            self._unfinished.data += piece

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        data, self._unfinished.data = bytes(self._unfinished.data), bytearray()
        return self._storage.create(self._unfinished.key, data, self._unfinished)

    def _abort(self) -> None:
        self._unfinished.data = bytearray()
        with _LOCKS[0]:
            _UNFINISHED.discard(self._unfinished)

    def _close(self) -> None:
        self._unfinished.is_alive = False

    def __del__(self) -> None:
        if self._unfinished.is_alive:
            # Not `abort`: the garbage collector may run while this thread holds the lock.
            self._unfinished.is_alive = False
            self._unfinished.data = bytearray()
            _UNFINISHED.discard(self._unfinished)


def unfinished_uploads() -> list[str]:
    """Return the keys of the uploads in this process that are neither committed nor aborted; for tests."""
    return [unfinished.key for unfinished in tuple(_UNFINISHED)]


def _stale(prefix: str, min_age_s: float) -> list[_Unfinished]:
    oldest_s = time.monotonic() - min_age_s
    directory = prefix.rpartition("/")[0]
    return [
        unfinished
        for unfinished in tuple(_UNFINISHED)
        if unfinished.key.startswith(prefix)
        and unfinished.key.rpartition("/")[0] == directory
        and (unfinished.started_s <= oldest_s or not unfinished.is_alive)
    ]


def _state(file: MemoryFile) -> _Seen:
    """Return what `file` holds now, under another version if that is not what it held when last seen."""
    # getvalue() returns the buffer itself, and a write while that is referenced makes a new buffer. So the
    # same object means that nothing was written, not even in place, which changes neither time nor size.
    data = file.getvalue()
    seen = _SEEN.get(file)
    if seen is None or not (seen.data is data or (seen.modified == file.modified and seen.data == data)):
        seen = _SEEN[file] = _Seen(data, file.modified, str(next(_VERSIONS)))
    seen.data = data
    return seen


def _info(key: str, seen: _Seen) -> ObjectInfo:
    return ObjectInfo(key, len(seen.data), seen.version, seen.modified.timestamp())
