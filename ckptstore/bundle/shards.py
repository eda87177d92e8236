"""The data files of one bundle, opened when something in them is wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ckptstore.errors import ChecksumError, IncompleteBundleError, NotFoundError, TruncatedFileError
from ckptstore.format.crc32c import mask
from ckptstore.format.entry import BundleEntry
from ckptstore.format.naming import data_name
from ckptstore.storage.base import Location, ObjectInfo
from ckptstore.types import ByteRange

__all__ = ["ShardFile", "ShardFiles"]


class ShardFiles:
    """The shards of a bundle by number.

    Parameters
    ----------
    prefix : Location
    num_shards : int
        The count in their names. A shard with a higher number is looked for all the same, as TensorFlow does.
    index_is_current : callable
        Asked when a shard is missing: whether the index is still the one that names it.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, prefix: Location, num_shards: int, index_is_current: Callable[[], bool]) -> None:
        self._prefix = prefix
        self._num_shards = num_shards
        self._index_is_current = index_is_current
        self._files: dict[int, ShardFile] = {}
        self._lock = threading.Lock()

    def __getitem__(self, shard_id: int) -> ShardFile:
        with self._lock:
            found = self._files.get(shard_id)
            if found is None:
                location = self._prefix.suffixed(data_name("", shard_id, self._num_shards))
                found = self._files[shard_id] = ShardFile(location, self._prefix.url, self._index_is_current)
            return found


class ShardFile:
    """One data file, of one version from the first look on.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, location: Location, prefix_url: str, index_is_current: Callable[[], bool]) -> None:
        self.url = location.url
        self._location = location
        self._prefix_url = prefix_url
        self._index_is_current = index_is_current
        self._info: ObjectInfo | None = None

    def size_bytes(self, tensor: str) -> int:
        """Return the size of the file; one request, once.

        Raises
        ------
        IncompleteBundleError
            If it is missing, on behalf of `tensor`.
        NotFoundError
            If it is missing because the checkpoint was removed or overwritten in the meantime.
        """
        return self._look(tensor).size_bytes

    def check_inside(self, entry: BundleEntry, tensor: str) -> None:
        """Raise `TruncatedFileError` unless the file has the bytes of `entry`."""
        if not entry.size_bytes:
            return
        end, size = entry.offset + entry.size_bytes, self.size_bytes(tensor)
        if end > size:
            raise TruncatedFileError(
                "the data file ends before the tensor does",
                url=self.url,
                tensor=tensor,
                offset=entry.offset,
                expected=f"at least {end} bytes",
                actual=f"{size} bytes",
                hint="It was cut off, or belongs to another save; restore another one or copy it again.",
            )

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        """Fill `buffers`, on behalf of `tensor`; errors as for `size_bytes`, and those of the storage."""
        version = self._look(tensor).version
        try:
            self._location.storage.read_into(self._location.key, ranges, buffers, version=version)
        except NotFoundError as error:
            raise self._missing(tensor) from error

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

    def _look(self, tensor: str) -> ObjectInfo:
        # Two threads may both ask the first time; the answers can only differ if the file is being replaced.
        if self._info is None:
            try:
                self._info = self._location.storage.head(self._location.key)
            except NotFoundError as error:
                raise self._missing(tensor) from error
        return self._info

    def _missing(self, tensor: str) -> IncompleteBundleError | NotFoundError:
        if self._index_is_current():
            return IncompleteBundleError(
                "a data file that the index names is missing or was replaced",
                url=self.url,
                tensor=tensor,
                hint="Tensors in other data files can still be read. Restore another one or copy it again.",
            )
        return NotFoundError(
            "the checkpoint was removed or overwritten while it was being read",
            url=self._prefix_url,
            tensor=tensor,
            hint="Open it again.",
        )
