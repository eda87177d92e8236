"""Arrays over memory-mapped data files, each verified when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE
from ckptstore.bundle.read.fetch import byte_order_unit
from ckptstore.bundle.read.parallel_checksums import crc32c_of_many
from ckptstore.bundle.read.reader import BundleReader, StoredTensor
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.read.shard_files import ShardFile, WantedBytes
from ckptstore.errors import CkptStoreError
from ckptstore.format.crc32c import mask
from ckptstore.format.entry import BundleEntry

__all__ = ["MappedTensors"]

# Names looked up together.
_LOT = 256

# When tensors are read one after the other, in their order, those that follow are verified along with each:
# twice as many bytes as the time before, up to the second bound.
_FIRST_AHEAD_BYTES = 8 * 1024 * 1024
_MOST_AHEAD_BYTES = 512 * 1024 * 1024


class _Mapped(NamedTuple):
    """A tensor in a memory-mapped file."""

    name: str
    entry: BundleEntry
    shard: ShardFile
    array: npt.NDArray[Any]

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        return self.array.reshape(-1).view(np.uint8)


class MappedTensors:
    """The tensors of one reader that can be used without copying them.

    Each is verified once. Those that were good are remembered; damaged ones are verified again each time.

    Threads
    -------
    Safe for concurrent use. Two threads that ask for the same tensor at the same time may both verify it.
    """

    def __init__(self, reader: BundleReader) -> None:
        self._reader = reader
        self._is_cache = isinstance(reader, ReaderV2) and reader.shards.is_cache
        self._verified: dict[str, npt.NDArray[Any]] = {}
        # The name that follows those that were verified last, and how many bytes these had.
        self._next = ""
        self._ahead_bytes = 0

    def get(
        self, name: str, following: Callable[[str], Iterable[str]] | None = None
    ) -> npt.NDArray[Any] | None:
        """Return a tensor, verified; None if it can only be had as a copy.

        Parameters
        ----------
        name : str
        following : callable, optional
            Returns the names that come after one, in the order in which a caller that wants all reads them.

        Returns
        -------
        ndarray or None
            Read-only, over the file's memory, which stays as long as the array. None for strings, partitioned
            tensors, files of the other byte order, values that are not aligned in the file, and wherever the
            storage cannot map.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor.
        ChecksumError
            If its bytes are damaged.
        FormatError, TruncatedFileError, IncompleteBundleError, NotFoundError
            As for `BundleReader.read`.
        """
        array = self._verified.get(name)
        if array is None:
            mapped = self._find(name)
            if mapped is None:
                return None
            ahead = [] if following is None else list(self._follow(mapped, following(name)))
            found = [mapped, *ahead]
            are_right = self._fetch(found) if self._is_cache else self._are_right(found)
            if not are_right[0]:
                return None  # there is no room for it in the cache
            array = mapped.array
            for other, is_right in zip(found, are_right, strict=True):
                if is_right:
                    self._verified[other.name] = other.array
        # Its shape can be set; the one that is kept has to stay as it is.
        return array[...]

    def clear(self) -> None:
        """Release the files; arrays that were returned keep theirs."""
        self._verified.clear()

    def _find(self, name: str, tensor: StoredTensor | None = None) -> _Mapped | None:
        """Return where a tensor lies in memory, unverified; `tensor` was looked up already."""
        reader = self._reader
        if not isinstance(reader, ReaderV2) or not reader.shards.has_views:
            return None
        if tensor is None:
            tensor = reader.stored(name)
        entry = tensor.entries[0]
        native = NATIVE[entry.dtype_enum]
        if tensor.slices or native.hasobject or not entry.size_bytes:
            return None
        if byte_order_unit(tensor.dtype, reader.header.big_endian, source=reader.url, tensor=name) > 1:
            return None
        shard = reader.shards[entry.shard_id]
        view = shard.view(name)
        if view is None:
            return None
        shard.check_inside(entry.offset, entry.size_bytes, name)
        array: npt.NDArray[Any] = np.ndarray(tensor.shape, native, view, entry.offset)
        if not array.flags.aligned:
            return None
        return _Mapped(name, entry, shard, array)

    def _follow(self, mapped: _Mapped, names: Iterable[str]) -> Iterator[_Mapped]:
        """Yield what is to be verified along with a tensor: nothing unless it is the one expected."""
        pulled: Iterator[str] = iter(names)
        if mapped.name == self._next:
            self._ahead_bytes = min(max(2 * self._ahead_bytes, _FIRST_AHEAD_BYTES), _MOST_AHEAD_BYTES)
            size_bytes = mapped.entry.size_bytes
            while size_bytes < self._ahead_bytes:
                lot = list(islice(pulled, _LOT))
                if not lot:
                    break
                for at, (name, tensor) in enumerate(zip(lot, self._stored(lot), strict=True)):
                    if size_bytes >= self._ahead_bytes:
                        pulled = chain(lot[at:], pulled)
                        break
                    other = None
                    with suppress(CkptStoreError):  # raised when the tensor is read
                        other = None if name in self._verified else self._find(name, tensor)
                    if other is not None:
                        size_bytes += other.entry.size_bytes
                        yield other
        else:
            self._ahead_bytes = 0
        self._next = next(pulled, "")

    def _stored(self, names: list[str]) -> list[StoredTensor | None]:
        try:
            return self._reader.stored_many(names)
        except CkptStoreError:
            return [None] * len(names)  # one of them is damaged; which one shows one by one

    def _are_right(self, tensors: Sequence[_Mapped]) -> list[bool]:
        """Return whether each, the first one excepted, has the checksum in the index; raise for the first."""
        reader = self._reader
        assert isinstance(reader, ReaderV2)
        crcs = crc32c_of_many([tensor.memory for tensor in tensors], reader.shards.parallel_reads)
        first = tensors[0]
        first.shard.check_crc32c(first.entry, crcs[0], first.name)
        return [mask(crc) == tensor.entry.masked_crc32c for tensor, crc in zip(tensors, crcs, strict=True)]

    def _fetch(self, tensors: Sequence[_Mapped]) -> list[bool]:
        """Get tensors into the cache; return which of them are there, verified."""
        reader = self._reader
        assert isinstance(reader, ReaderV2)
        wanted = [WantedBytes(entry, name, entry.size_bytes) for name, entry, _, _ in tensors]
        if len(wanted) > 1:
            with suppress(CkptStoreError):  # perhaps of one that follows
                return reader.shards.fetch_ahead(wanted, memory_budget=reader.memory_budget)
        is_there = reader.shards.fetch_ahead(wanted[:1], memory_budget=reader.memory_budget)
        return is_there + [False] * (len(wanted) - 1)
