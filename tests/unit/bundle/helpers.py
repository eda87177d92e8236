"""Bundles made by hand, piece by piece, and a storage that knows which bytes travelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from ckptstore.bundle.read.open_bundle import BundleReader, open_bundle
from ckptstore.bundle.write.index import build_index
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.checksums import crc32c as checksum
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.naming import data_name
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Committed, GetResult, SuffixRange
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.types import ByteRange


class Sink(Upload):
    """Keeps what is sent, part by part."""

    def __init__(self, part_size_bytes: int = Upload.part_size_bytes, parallel: int = 1) -> None:
        super().__init__("memory://sink")
        self.part_size_bytes = part_size_bytes
        self.parallel = parallel
        self.parts: dict[int, bytes] = {}
        self.pieces: dict[int, int] = {}
        self.last: int | None = None

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        data = b"".join(pieces)
        assert number not in self.parts
        assert crc32c == checksum(data)
        self.parts[number] = data
        self.pieces[number] = len(pieces)
        if is_last:
            self.last = number

    def _commit(self, size_bytes: int, crc32c: int) -> Committed:
        assert (size_bytes, crc32c) == (len(self.data), checksum(self.data))
        return Committed("sink")

    @property
    def data(self) -> bytes:
        assert self.last == len(self.parts) - 1
        return b"".join(self.parts[number] for number in range(len(self.parts)))

    def _abort(self) -> None:
        pass

    def _close(self) -> None:
        pass


class Tracking(StorageWrapper):
    """Remembers every range that was read, with its key."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.reads: list[tuple[str, int, int]] = []

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        got = super().get(key, byte_range, version=version)
        start = byte_range.start if isinstance(byte_range, ByteRange) else got.size_bytes - len(got.data)
        self.reads.append((key, start, start + len(got.data)))
        return got

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self.reads += [(key, wanted.start, wanted.stop) for wanted in ranges]
        super().read_into(key, ranges, buffers, version=version)

    def of_data(self) -> list[tuple[str, int, int]]:
        """The ranges of data files, with the last part of their key."""
        return [(key.rpartition("/")[2], start, stop) for key, start, stop in self.reads if ".data-" in key]

    def size_bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.reads)


def put(location: Location, data: bytes) -> None:
    """Put a file there, whatever was there before."""
    storage = location.storage
    storage.delete_many([location.key])
    assert isinstance(storage.put_new(location.key, data), Committed)


def take(location: Location) -> bytes:
    return location.storage.get(location.key).data


def data_file(prefix: Location, shard: int = 0, num_shards: int = 1) -> Location:
    return prefix.suffixed(data_name("", shard, num_shards))


def index_file(prefix: Location) -> Location:
    return prefix.suffixed(".index")


def add_all(writer: ShardWriter, pieces: Sequence[dict[str, Any]] | dict[str, Any]) -> None:
    """Add a mapping of tensors, or pieces given as keyword arguments of `ShardWriter.add`."""
    if isinstance(pieces, dict):
        pieces = [{"name": name, "array": array} for name, array in pieces.items()]
    for piece in pieces:
        writer.add(**piece)
    writer.finish()


def save(prefix: Location, *shards: Any) -> None:
    """Write a bundle with one data file for each argument; see `add_all`."""
    entries = []
    for number, pieces in enumerate(shards):
        sink = Sink()
        writer = ShardWriter(sink, shard_id=number)
        add_all(writer, pieces)
        put(data_file(prefix, number, len(shards)), sink.data)
        entries += writer.entries
    put(index_file(prefix), build_index(entries, len(shards)))


def craft(
    prefix: Location, entries: dict[bytes, BundleEntry], data: bytes = b"", header: BundleHeader | None = None
) -> None:
    """Write an index with exactly these entries over one data file."""
    put(data_file(prefix), data)
    put(index_file(prefix), build_index(list(entries.items()), 1, header=header))


def saved(prefix: Location, *shards: Any) -> BundleReader:
    """Save and open."""
    save(prefix, *shards)
    return open_bundle(prefix)


def tracked(prefix: Location) -> tuple[Tracking, Location]:
    """Return a tracking storage, and the prefix in it."""
    tracking = Tracking(prefix.storage)
    return tracking, Location(tracking, prefix.key, prefix.url)


def read_many(
    reader: BundleReader, requests: Sequence[tuple[str, npt.NDArray[Any] | None]]
) -> list[npt.NDArray[Any]]:
    """Read whole tensors at once, by name."""
    return reader.read_stored([(reader.stored(name), out) for name, out in requests])
