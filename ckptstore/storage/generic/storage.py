"""Any other file system that fsspec knows, with what fsspec's interface has and no more.

Guarantees
----------
One writer at a time; the first write warns about that. fsspec has neither create-if-absent nor
compare-and-swap (its "create" looks first and writes then: seven of eight threads won), so conditions are
checked, but not enforced.

A file is written under its final name. Where the file system does not do that in one step, a reader may see
half of it, and a crash may leave half of it. Nothing is moved into place: on many of these file systems a
move is a copy and a delete. What still holds follows from the order of a save, and because a truncated index
or record is recognised:

* a save under a fresh prefix that dies is never taken for complete, and leaves the others as they were;
* a save over an existing prefix that dies while its index is replaced can leave that one checkpoint unusable;
* in place of a truncated record the index files beside it are read.

A version is what the file system reports: an ETag or generation, otherwise time of change, size and inode, as
exact as its clock. How long a call may take, and what is tried again, is up to the client.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ckptstore.errors import ChecksumError, CkptStoreError, CkptStoreWarning, NotFoundError
from ckptstore.storage.base import Storage
from ckptstore.storage.checks import byte_view, check_pin, resolve_range, resolve_reads, truncated
from ckptstore.storage.generic.files import Files
from ckptstore.storage.generic.upload import GenericUpload
from ckptstore.storage.retry import pause
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import (
    Ambiguous,
    Capabilities,
    Committed,
    GetResult,
    Lost,
    ObjectInfo,
    PutOutcome,
    SuffixRange,
)

if TYPE_CHECKING:
    from ckptstore.storage.values import Buffer
    from ckptstore.types import ByteRange

__all__ = ["GenericStorage"]

# A file up to this size is read back after a write, and its version is checked again after a read.
_SMALL_BYTES = 1024 * 1024

# A file that is being rewritten is read again, at intervals far longer than one small write.
_READS = 5
_READ_PAUSE_S = 0.2

# As for object stores: the bytes that take as long as one request.
_GAP_SIZE_BYTES = 64 * 1024
_REQUEST_SIZE_BYTES = 8 * 1024 * 1024
_PARALLEL_READS = 4


class GenericStorage(Storage):
    """The files of one fsspec protocol; keys are what follows ``PROTOCOL://`` in a URL.

    Parameters
    ----------
    protocol : str
        As fsspec knows it: ``"sftp"``, ``"abfs"``.
    **options
        Of the file system's class.

    Threads
    -------
    Safe for concurrent use, and after a fork.
    """

    def __init__(self, protocol: str, /, **options: Any) -> None:
        self.capabilities = Capabilities(
            backend=protocol,
            create_if_absent=False,
            compare_and_swap=False,
            conditional_delete=False,
            durable_when_acknowledged=False,
            checksum_proved_by_store=False,
            several_hosts=False,
        )
        self._files = Files(protocol, options)
        self._protocol = protocol
        self._uploads: weakref.WeakSet[GenericUpload] = weakref.WeakSet()
        self._warning = threading.Event()

    @property
    def parallel_reads(self) -> int:  # type: ignore[override]
        return _PARALLEL_READS if self._files.reads_in_parallel else 1

    def __repr__(self) -> str:
        return f"<GenericStorage {self._protocol}://>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a storage holds credentials and is not pickled: pass the URL and the options instead"
        )

    def url_of(self, key: str) -> str:
        return self._files.url_of(key)

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        url = self.url_of(key)
        for is_last in (*(False for _ in range(_READS - 1)), True):
            info = self._files.info(key)
            check_pin(version, info.version, url)
            start, stop = resolve_range(byte_range, info.size_bytes, url)
            data = self._files.read(key, start, stop)
            if stop - start > _SMALL_BYTES or self._version(key) == info.version or is_last:
                break
            pause(_READ_PAUSE_S)
        if len(data) != stop - start:
            raise truncated(url, start, stop, start + len(data))
        return GetResult(data, info.version, info.size_bytes)

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        url = self.url_of(key)
        info = self._files.info(key)
        check_pin(version, info.version, url)

        for group in _group(resolve_reads(ranges, buffers, info.size_bytes, url)):
            low = group[0][0]
            high = max(stop for _, stop, _ in group)
            data = memoryview(self._files.read(key, low, high))
            if len(data) != high - low:
                raise truncated(url, low, high, low + len(data))
            for start, stop, buffer in group:
                buffer[:] = data[start - low : stop - low]

    def head(self, key: str) -> ObjectInfo:
        return self._files.info(key)

    def _version(self, key: str) -> str | None:
        try:
            return self._files.info(key).version
        except NotFoundError:
            return None

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        return self._create(key, bytes(byte_view(data)), "")

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        self._warn_once()
        found = self._version(key)
        if found != version:
            return Lost(found)
        content = bytes(byte_view(data))
        try:
            self._files.write(key, content)
        except CkptStoreError as error:
            if self._holds(key, content):
                return Committed(self._files.info(key).version)
            return Ambiguous(f"{error}; a part of the old file may be left")
        return self._check_written(key, content, len(content))

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        upload = GenericUpload(
            key,
            self.url_of(key),
            lambda data, local_path: self._create(key, data, local_path),
            self._uploads.discard,
        )
        self._uploads.add(upload)
        return upload

    def _create(self, key: str, content: bytes | None, local_path: str) -> PutOutcome:
        """Write a new file with `content`, or with that of `local_path` where it is None."""
        self._warn_once()
        found = self._version(key)
        if found is not None:
            return Lost(found)
        try:
            if content is None:
                self._files.write_from(key, local_path)
            else:
                self._files.write(key, content)
        except BaseException as error:
            if not isinstance(error, CkptStoreError) or content is None or not self._holds(key, content):
                # Nothing was there before, so what is there now is a part of this file.
                with suppress(CkptStoreError):
                    self._files.remove(key)
                raise
        if content is None:
            return self._check_written(key, None, os.path.getsize(local_path))
        return self._check_written(key, content, len(content))

    def _check_written(self, key: str, content: bytes | None, size_bytes: int) -> PutOutcome:
        info = self._files.info(key)
        is_small = content is not None and size_bytes <= _SMALL_BYTES
        if info.size_bytes != size_bytes or (is_small and not self._holds(key, content)):
            raise ChecksumError(
                "the file does not hold what was written",
                url=self.url_of(key),
                expected=f"{size_bytes} bytes",
                actual=f"{info.size_bytes} bytes",
                hint="Save again; if that fails too, check the network and the server.",
            )
        return Committed(info.version)

    def _holds(self, key: str, content: bytes | None) -> bool:
        """Return whether the file holds exactly `content`; False also where it cannot be read."""
        try:
            return content is not None and self._files.read(key, 0, len(content) + 1) == content
        except CkptStoreError:
            return False

    def _warn_once(self) -> None:
        if not self._warning.is_set():
            self._warning.set()
            warnings.warn(
                f"{self._protocol}:// runs in single-writer mode, because fsspec has no conditional writes: "
                "let only one job save there, and none save over a checkpoint that others read",
                CkptStoreWarning,
                stacklevel=2,
            )

    def delete_if(self, key: str, version: str) -> bool:
        found = self._version(key)
        if found == version:
            with suppress(NotFoundError):
                self._files.remove(key)
        return found in (version, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        errors: list[CkptStoreError] = []
        for key in keys:
            try:
                self._files.remove(key)
            except NotFoundError:
                pass
            except CkptStoreError as error:
                errors.append(error)
        if errors:
            first, *others = errors
            for other in others:
                first.add_note(str(other))
            raise first

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        directory = prefix.rpartition("/")[0]
        found = [info for info in self._files.children(directory) if info.key.startswith(prefix)]
        return iter(sorted(found, key=lambda info: info.key))

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        # Only those of this process: an upload leaves nothing on the server before `commit`.
        oldest_s = time.monotonic() - min_age_s
        directory = prefix.rpartition("/")[0]
        stale = [
            upload
            for upload in list(self._uploads)
            if upload.key.startswith(prefix)
            and upload.key.rpartition("/")[0] == directory
            and upload.started_s <= oldest_s
        ]
        for upload in stale:
            upload.drop_as_stale()
        return len(stale)


def _group(reads: list[tuple[int, int, memoryview]]) -> list[list[tuple[int, int, memoryview]]]:
    """Return the reads in groups of neighbours, ascending by start; each group is one request."""
    groups: list[list[tuple[int, int, memoryview]]] = []
    low = high = 0
    for start, stop, buffer in reads:
        grown = max(high, stop)
        if not groups or start - high > _GAP_SIZE_BYTES or grown - low > _REQUEST_SIZE_BYTES:
            groups.append([])
            low, grown = start, stop
        groups[-1].append((start, stop, buffer))
        high = grown
    return groups
