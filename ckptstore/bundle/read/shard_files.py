"""The data files of one bundle, opened when something in them is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from ckptstore.bundle.read.other_names import similar_file_hint
from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    IncompleteBundleError,
    NotFoundError,
    TruncatedFileError,
)
from ckptstore.format.crc32c import mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.file_kind import HEAD_SIZE_BYTES, FileKind, file_kind
from ckptstore.format.naming import data_name
from ckptstore.storage.abilities import SupportsViews
from ckptstore.storage.base import Location
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.pool import run_tasks
from ckptstore.transfer.ranges import GAP_SIZE_BYTES, REQUEST_SIZE_BYTES
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

__all__ = ["ShardFile", "ShardFiles", "WantedBytes"]

# Of more data files the sizes come from a listing. A request of its own for each, several at a time, takes
# less up to here.
_LISTED_ABOVE = 16


class ShardFiles:
    """The shards of a bundle by number.

    Parameters
    ----------
    header : BundleHeader
        Has the count in their names, and their byte order. A shard with a higher number is opened all the
        same, as TensorFlow does.
    index_is_current : callable
        Called when a shard is missing: returns whether the index is still the one that names it.

    Attributes
    ----------
    parallel_reads : int
        The number of reads at the same time that is fastest.
    big_endian : bool
        Whether data files hold big-endian numbers.
    has_views : bool
        Whether data files can be memory-mapped.
    are_far : bool
        Whether each range that is read costs a request to a server.
    is_cache : bool
        Whether `fetch_ahead` has to be called before anything is read.

    Threads
    -------
    Safe for concurrent use.
    """

    is_cache = False

    def __init__(self, prefix: Location, header: BundleHeader, index_is_current: Callable[[], bool]) -> None:
        self.parallel_reads = prefix.storage.parallel_reads
        self.big_endian = header.big_endian
        self.has_views = isinstance(prefix.storage, SupportsViews)
        self.are_far = not self.has_views
        self._prefix = prefix
        self._num_shards = header.num_shards
        self._index_is_current = index_is_current
        self._files: dict[int, ShardFile] = {}
        self._locks = ForkSafeLocks()

    def __getitem__(self, shard_id: int) -> ShardFile:
        with self._locks[0]:
            found = self._files.get(shard_id)
            if found is None:
                location = self._prefix.suffixed(data_name("", shard_id, self._num_shards))
                found = self._files[shard_id] = self.new_file(shard_id, location)
            return found

    def new_file(self, shard_id: int, location: Location) -> ShardFile:
        """Return a data file, which lies at `location`; called once for each."""
        return ShardFile(location, self._prefix.url, self._index_is_current)

    def close(self) -> None:
        """Let go of what keeps them on this machine; what is read or mapped stays valid."""

    def fetch_ahead(
        self,
        wanted: Sequence[WantedBytes],
        transfer: Transfer | None = None,
        memory_budget: int | None = None,
    ) -> list[bool]:
        """Get what is about to be read onto this machine, if this is a cache; see `is_cache`.

        Parameters
        ----------
        wanted : sequence of WantedBytes
        transfer : Transfer, optional
            What the reads belong to.
        memory_budget : int, optional
            Without `transfer`: bytes to hold.

        Returns
        -------
        list of bool
            Whether the bytes of each are there, verified, so that they may be used through `ShardFile.view`.

        Raises
        ------
        ChecksumError
            If the bytes in the storage are damaged.
        CkptStoreError
            If they cannot be read.
        """
        return [True] * len(wanted)

    def request_sizes(self, wanted: Iterable[tuple[int, str]]) -> None:
        """Request version and size of several data files at the same time, each on behalf of a tensor.

        Parameters
        ----------
        wanted : iterable of (shard id, tensor)

        Raises
        ------
        IncompleteBundleError, NotFoundError
            As `ShardFile.size_bytes`.
        """
        wanted = [(shard_id, tensor) for shard_id, tensor in wanted if not self[shard_id].is_known]
        if self.are_far and len(wanted) > _LISTED_ABOVE:
            self._list_sizes([shard_id for shard_id, _ in wanted])
        # Of those that the list did not have, each is asked for by itself: only that proves it missing.
        unknown = [
            partial(self[shard_id].size_bytes, tensor)
            for shard_id, tensor in wanted
            if not self[shard_id].is_known
        ]
        if len(unknown) > 1 and self.parallel_reads > 1:
            run_tasks(current_scope() or Scope(), unknown, self.parallel_reads)

    def _list_sizes(self, shard_ids: Iterable[int]) -> None:
        """Find out versions and sizes by listing: one request for a thousand data files."""
        prefix = self._prefix.suffixed(".data-")
        files = {self[shard_id].key: self[shard_id] for shard_id in shard_ids}
        # Who may read need not be allowed to list.
        with contextlib.suppress(AccessError):
            for info in prefix.storage.list(prefix.key):
                if info.key in files:
                    files[info.key].set_state(info.version, info.size_bytes)


def _around(ranges: Sequence[ByteRange]) -> ByteRange:
    """Return the smallest range that all of `ranges`, in any order, lie in."""
    return ByteRange(min([part.start for part in ranges]), max([part.stop for part in ranges]))


class WantedBytes(NamedTuple):
    """A stored piece, a tensor or a slice of one, and how many of its bytes are wanted."""

    entry: BundleEntry
    tensor: str
    wanted_bytes: int


class _FileState(NamedTuple):
    """Version and size of a data file."""

    version: str
    size_bytes: int


_UNKNOWN = FileKind("", "")  # the first bytes were not looked at


class ShardFile:
    """One data file, of one version from the first request on.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, location: Location, prefix_url: str, index_is_current: Callable[[], bool]) -> None:
        self.url = location.url
        self._location = location
        self._prefix_url = prefix_url
        self._index_is_current = index_is_current
        self._found: _FileState | None = None
        self._request_locks = ForkSafeLocks()
        self._view: memoryview | None = None
        self._was_viewed = False
        self._kind: FileKind | None = _UNKNOWN

    @property
    def key(self) -> str:
        """Of the file in its storage."""
        return self._location.key

    def set_state(self, version: str, size_bytes: int) -> None:
        """Remember version and size, as a listing gives them."""
        with self._request_locks[0]:
            if self._found is None:
                self._found = _FileState(version, size_bytes)

    @property
    def is_known(self) -> bool:
        """Whether version and size are known, so that `size_bytes` sends no request."""
        return self._found is not None

    def size_bytes(self, tensor: str) -> int:
        """Return the size of the file; one request, once.

        Raises
        ------
        IncompleteBundleError
            If it is missing, on behalf of `tensor`.
        NotFoundError
            If it is missing because the checkpoint was removed or overwritten in the meantime.
        """
        return self._state(tensor).size_bytes

    def check_inside(self, offset: int, size_bytes: int, tensor: str) -> None:
        """Raise `TruncatedFileError` unless the file has these bytes of `tensor`."""
        if not size_bytes:
            return
        end, size = offset + size_bytes, self.size_bytes(tensor)
        if end > size:
            error = TruncatedFileError(
                "the data file ends before the tensor does",
                url=self.url,
                tensor=tensor,
                offset=offset,
                expected=f"at least {end} bytes",
                actual=f"{size} bytes",
                hint="It was cut off, or belongs to another save; restore another one or copy it again.",
            )
            self._add_kind(error, tensor)
            raise error

    def view(self, tensor: str) -> memoryview | None:
        """Return all of the file as read-only memory, on behalf of `tensor`; None where that is not possible.

        Errors as for `size_bytes`, and those of the storage.
        """
        storage = self._location.storage
        if not self._was_viewed and isinstance(storage, SupportsViews):
            version = self._state(tensor).version
            try:
                self._view = storage.view(self._location.key, version=version)
            except NotFoundError as error:
                raise self._missing(tensor) from error
            self._was_viewed = True
        return self._view

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        """Fill `buffers`, on behalf of `tensor`; errors as for `size_bytes`, and those of the storage.

        If nothing is known of the file yet, a short range is read without asking for its size first.
        """
        try:
            if self._found is None:
                whole = _around(ranges)
                if self._is_short(whole, ranges):
                    with self._request_locks[0]:
                        if self._found is None:
                            self._read_first(whole, ranges, buffers)
                            return
            version = self._state(tensor).version
            self._location.storage.read_into(self._location.key, ranges, buffers, version=version)
        except NotFoundError as error:
            raise self._missing(tensor) from error
        except TruncatedFileError as error:
            self._add_kind(error, tensor)
            raise

    def _add_kind(self, error: TruncatedFileError, tensor: str) -> None:
        """Say in `error` what the file is instead, if its first bytes tell."""
        if self._kind is _UNKNOWN:
            self._kind = None
            # The file is known to be too short; a request that fails here must not hide it.
            with contextlib.suppress(CkptStoreError):
                version, size_bytes = self._state(tensor)
                head = ByteRange(0, min(size_bytes, HEAD_SIZE_BYTES))
                self._kind = file_kind(
                    self._location.storage.get(self._location.key, head, version=version).data
                )
        if self._kind is not None:
            error.what += f": its first bytes are those of {self._kind.name}"
            error.hint = self._kind.advice

    @staticmethod
    def _is_short(whole: ByteRange, ranges: Sequence[ByteRange]) -> bool:
        """Return whether to read the whole range at once: few bytes, of which most are wanted."""
        size = whole.size_bytes
        return (
            0 < size <= REQUEST_SIZE_BYTES
            and size - sum([wanted.size_bytes for wanted in ranges]) <= GAP_SIZE_BYTES
        )

    def _read_first(
        self, whole: ByteRange, ranges: Sequence[ByteRange], buffers: Sequence[memoryview]
    ) -> None:
        """Read the ranges with one request, whose answer has version and size of the file."""
        storage, key = self._location.storage, self._location.key
        if len(ranges) == 1:
            self._found = _FileState(*storage.get_into(key, whole, buffers[0]))
            return
        data, version, size_bytes = storage.get(key, whole)
        for part, buffer in zip(ranges, buffers, strict=True):
            buffer[:] = memoryview(data)[part.start - whole.start : part.stop - whole.start]
        self._found = _FileState(version, size_bytes)

    def check_crc32c(self, entry: BundleEntry, crc: int, tensor: str) -> None:
        """Raise `ChecksumError` unless `crc`, unmasked, of the bytes in the file is the one of `entry`."""
        masked = mask(crc)
        if masked != entry.masked_crc32c:
            raise ChecksumError(
                f"the checksum of bytes {entry.offset} to {entry.offset + entry.size_bytes} does not match",
                url=self.url,
                tensor=tensor,
                offset=entry.offset,
                expected=f"masked_crc32c {entry.masked_crc32c:#010x}",
                actual=f"{masked:#010x}",
                hint="It is damaged, or belongs to another save; restore another one or copy it again.",
            )

    def _state(self, tensor: str) -> _FileState:
        found = self._found
        if found is None:
            with self._request_locks[0]:
                found = self._found
                if found is None:
                    try:
                        info = self._location.storage.head(self._location.key)
                    except NotFoundError as error:
                        raise self._missing(tensor) from error
                    found = self._found = _FileState(info.version, info.size_bytes)
        return found

    def _missing(self, tensor: str) -> IncompleteBundleError | NotFoundError:
        if self._index_is_current():
            return IncompleteBundleError(
                "a data file that the index names is missing or was replaced",
                url=self.url,
                tensor=tensor,
                hint="Tensors in other data files can still be read. Restore another one or copy it again."
                + similar_file_hint(self._location),
            )
        return NotFoundError(
            "the checkpoint was removed or overwritten while it was being read",
            url=self._prefix_url,
            tensor=tensor,
            hint="Open it again.",
        )
