"""A hundred thousand small tensors, and a few huge ones: linear, bounded, and nothing read that need not be.

What is counted is steps of Python and calls of the storage; there is no stop-watch.
"""

from __future__ import annotations

import random
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.format.crc32c import combine, crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.entry_columns import encode_entries, encode_index
from ckptstore.format.table import Table
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.testing import CountingStorage
from tests.unit.format.tables import block_count

FEW, MANY = 10_000, 100_000

_GIB = 1 << 30
_MIB = 1 << 20


def name_of(number: int) -> str:
    return f"model/layer_{number // 64:05d}/block_{number % 64:02d}/kernel"


def some_values(count: int) -> dict[str, np.ndarray]:
    """Return `count` arrays of 1 KiB, each of other bytes."""
    rows = np.arange(count * 256, dtype=np.float32).reshape(count, 256)
    return {name_of(number): rows[number] for number in range(count)}


class Steps:
    """Calls of functions, Python's and C's, in every thread that begins while it is switched on."""

    def __init__(self) -> None:
        self.count = 0
        self._each: Counter[int] = Counter()

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self._each[threading.get_ident()] += 1

    def of(self, action: Callable[[], object]) -> int:
        """Return how many steps `action` takes."""
        self._each.clear()
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            action()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return sum(self._each.values())


class Checkpoint:
    """A saved checkpoint of `count` tensors, and what saving and restoring it took."""

    def __init__(self, directory: str, count: int) -> None:
        self.count = count
        self.prefix = f"{directory}/model"
        self.values = some_values(count)
        self.storages: list[CountingStorage] = []
        self.steps: dict[str, int] = {}
        self.calls: dict[str, Counter[str]] = {}
        steps = Steps()
        saver = ck.Saver(run="scale")
        with use_wrapper(self._counted):
            # The generated graph is made once for the same names, types and shapes.
            saver.save(self.values, self.prefix)
            self._note("save", steps.of(lambda: saver.save(self.values, self.prefix)))
            self._note("write", steps.of(self._write))
            self._note("restore", steps.of(self._restore))
            into = {name: np.zeros(256, np.float32) for name in self.values}
            self._note("fill", steps.of(lambda: saver.restore(into, self.prefix)))
            self._note("specs", steps.of(self._list))
            self._note("latest", steps.of(lambda: ck.latest_checkpoint(directory)))
        self.filled = into

    def _counted(self, inner: Any) -> CountingStorage:
        self.storages.append(CountingStorage(inner))
        return self.storages[-1]

    def _note(self, action: str, steps: int) -> None:
        self.steps[action] = steps
        self.calls[action] = sum((storage.counts for storage in self.storages), Counter[str]())
        for storage in self.storages:
            storage.reset()

    def _write(self) -> None:
        with ck.BundleWriter(f"{self.prefix}-written") as writer:
            for name, array in self.values.items():
                writer.add(name, array)

    def _restore(self) -> None:
        self.restored: dict[str, np.ndarray] = {}
        ck.Saver(run="scale").restore(self.restored, self.prefix)

    def _list(self) -> None:
        with ck.open_checkpoint(self.prefix) as checkpoint:
            assert len(checkpoint.specs()) == self.count


@pytest.fixture(scope="module")
def few() -> Iterator[Checkpoint]:
    yield from saved(FEW)


@pytest.fixture(scope="module")
def many() -> Iterator[Checkpoint]:
    yield from saved(MANY)


def saved(count: int) -> Iterator[Checkpoint]:
    # In memory: what a disk takes to write 100 MB is none of the steps.
    place = locate(f"memory://scale/{count}")
    yield Checkpoint(place.url, count)
    place.storage.delete_many([info.key for info in place.storage.list(f"{place.key}/")])


def test_a_hundred_thousand_tensors_come_back_as_they_were(many: Checkpoint) -> None:
    for found in (many.restored, many.filled):
        assert list(found) == list(many.values)
        np.testing.assert_array_equal(np.stack(list(found.values())), np.stack(list(many.values.values())))


@pytest.mark.parametrize("action", ["save", "write", "restore", "fill", "specs", "latest"])
def test_ten_times_the_tensors_take_ten_times_the_steps(
    few: Checkpoint, many: Checkpoint, action: str
) -> None:
    each_of_few, each_of_many = few.steps[action] / FEW, many.steps[action] / MANY
    assert each_of_many <= 1.3 * each_of_few
    assert each_of_few <= 1.3 * each_of_many
    # Of the order of what a checksum, an array and an entry in a dictionary for each take.
    assert each_of_many < 60


@pytest.mark.parametrize("action", ["save", "write", "restore", "fill", "specs", "latest"])
def test_ten_times_the_tensors_take_no_more_calls_of_the_storage(
    few: Checkpoint, many: Checkpoint, action: str
) -> None:
    # Bytes travel in pieces of some MiB; everything else is asked for once.
    moving = {"read_into", "upload.send"}
    mib = MANY * 1024 // _MIB
    assert {name: calls for name, calls in many.calls[action].items() if name not in moving} == {
        name: calls for name, calls in few.calls[action].items() if name not in moving
    }
    assert sum(many.calls[action][name] for name in moving) <= mib // 4 + 2


def test_finding_the_latest_checkpoint_takes_less_than_restoring_it(many: Checkpoint) -> None:
    assert many.steps["latest"] < many.steps["restore"]


def test_a_lookup_reads_footer_index_block_and_one_data_block(many: Checkpoint) -> None:
    location = locate(f"{many.prefix}.index")
    data = location.storage.get(location.key).data
    reads: list[int] = []

    def read(offset: int, size: int) -> bytes:
        reads.append(size)
        return data[offset : offset + size]

    Table(read, len(data), source="many.index")
    blocks = block_count(data)
    assert blocks > 10
    assert len(reads) == 2
    assert reads[0] == 48
    assert reads[1] < 100 * blocks
    for number in random.Random(1).sample(range(MANY), 20):
        reads.clear()
        assert Table(read, len(data), source="many.index").get(name_of(number).encode()) is not None
        assert len(reads) == 3
        assert reads[2] < 2 * 262_144


def test_reading_one_of_so_many_reads_little_more_than_that_one(many: Checkpoint) -> None:
    storages: list[CountingStorage] = []

    def counted(inner: Any) -> CountingStorage:
        storages.append(CountingStorage(inner))
        return storages[-1]

    name = name_of(MANY // 2)
    with use_wrapper(counted), ck.open_checkpoint(many.prefix) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read(name), many.values[name])
    calls = Counter(call.primitive for storage in storages for call in storage.calls)
    # The tail of the index; the block with the header; the one with the name; then the tensor.
    assert calls["get"] + calls["read_into"] <= 4
    assert sum(calls.values()) <= 5


# ------------------------------------------------------------------------------------------- 20 GiB of holes


def crc32c_of_zeros(size_bytes: int) -> int:
    """Return the checksum of so many zeros without having them."""
    crc, size, whole = crc32c(bytes(1)), 1, 0
    while size_bytes:
        if size_bytes & 1:
            whole = combine(whole, crc, size)
        size_bytes >>= 1
        crc, size = combine(crc, crc, size), 2 * size
    return whole


TENSORS = {
    "huge/0": (8 * _GIB, (2048, 1024, 1024)),
    "huge/1": (11 * _GIB, (11 * 1024, 256, 1024)),
    "large": (32 * _MIB, (8, 1024, 1024)),
    "small": (4096, (1024,)),
    "rest": (_GIB - 32 * _MIB - 4096, ((_GIB - 32 * _MIB - 4096) // 4,)),
}
"""Bytes and shape of float32 tensors, in the order of the data file: 20 GiB."""


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("holes")
    prefix = directory / "model"
    data = directory / "model.data-00000-of-00001"
    with data.open("wb") as file:
        file.truncate(20 * _GIB)
    entries = {}
    offset = 0
    for name, (size, shape) in TENSORS.items():
        entries[name.encode()] = BundleEntry(1, shape, 0, offset, size, mask(crc32c_of_zeros(size)))
        offset += size
    assert offset == 20 * _GIB
    (directory / "model.index").write_bytes(
        encode_index(BundleHeader(1), list(entries), encode_entries(list(entries.values())))
    )
    assert data.stat().st_blocks * 512 < _MIB, "this filesystem has no holes"
    yield prefix
    data.unlink()


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the most memory, numpy's included, that `action` held."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_checksum_of_zeros_is_the_one_of_real_ones() -> None:
    for size in (0, 1, 5, 4096, 100_003):
        assert crc32c_of_zeros(size) == crc32c(bytes(size))


def test_whole_tensors_are_restored_from_between_huge_ones(holes: Path) -> None:
    names = ["large", "small"]

    def restore() -> None:
        with ck.open_checkpoint(holes) as checkpoint:
            values = checkpoint.restore(names=names).restored
        assert [values[name].shape for name in names] == [(8, 1024, 1024), (1024,)]
        assert not any(values[name].any() for name in names)

    assert peak_bytes(restore) < 2 * 32 * _MIB + 64 * _MIB


def test_parts_of_huge_tensors_are_read_with_little_memory(holes: Path) -> None:
    def read() -> None:
        with ck.open_checkpoint(holes) as checkpoint:
            rows = checkpoint.read("huge/1", np.s_[11_000:11_004, ::8, 5])
            assert rows.shape == (4, 32)
            assert not rows.any()
            assert checkpoint.read("huge/0", np.s_[-1, -1, -1]) == 0
            assert not checkpoint.read("rest", np.s_[-1000:]).any()

    assert peak_bytes(read) < 64 * _MIB


def test_the_index_alone_tells_of_twenty_gib(holes: Path) -> None:
    def look() -> None:
        specs = ck.open_checkpoint(holes).specs()
        assert sum(spec.nbytes for spec in specs.values()) == 20 * _GIB
        assert specs["huge/1"].shape == TENSORS["huge/1"][1]

    assert peak_bytes(look) < 4 * _MIB


def test_one_byte_in_a_hole_is_found(holes: Path) -> None:
    data = holes.with_name("model.data-00000-of-00001")
    place = 19 * _GIB + 12_345
    with data.open("r+b") as file:
        file.seek(place)
        file.write(b"\x01")
    try:
        with ck.open_checkpoint(holes) as checkpoint:
            with pytest.raises(ck.ChecksumError, match="large"):
                checkpoint.read("large")
            assert not checkpoint.read("small").any()
    finally:
        with data.open("r+b") as file:
            file.seek(place)
            file.write(b"\x00")
