"""An index that is patched has the bytes of one that is merged, whatever was reported."""

from __future__ import annotations

import zlib
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.write import index_memory
from ckptstore.bundle.write.index import IndexEntry, build_index
from ckptstore.bundle.write.index_memory import IndexMemory, IndexPart, IndexReporter, deflated
from ckptstore.bundle.write.partial_indexes import merge_partial_indexes
from ckptstore.errors import CorruptError
from ckptstore.format.entry import BundleEntry, BundleHeader, name_to_key
from ckptstore.format.patchable_index import PatchableIndex
from ckptstore.format.slices import encode_slice_key
from ckptstore.types import Slice

ROWS = 3


class Tensor(NamedTuple):
    """What one rank writes of a tensor: all of it, or its rows."""

    name: str
    is_cut: bool
    size_bytes: int


def index_of(rank: int, ranks: int, tensors: list[Tensor], crcs: list[int]) -> bytes:
    """Return the index of the data file of one rank, as `ShardSet.reports` makes it."""
    entries: list[IndexEntry] = []
    offset = 0
    for tensor, crc in zip(tensors, crcs, strict=True):
        shape = (ROWS, 4)
        if tensor.is_cut:
            box = Slice(((rank * ROWS, ROWS), (0, -1)))
            full = BundleEntry(1, (ranks * ROWS, 4), rank, slices=(box,))
            entries.append((name_to_key(tensor.name), full))
            key = encode_slice_key(tensor.name, box)
        else:
            key = name_to_key(f"{tensor.name}/of/{rank}")
        entries.append((key, BundleEntry(1, shape, rank, offset, tensor.size_bytes, crc)))
        offset += tensor.size_bytes
    return build_index(entries, 1)


class Job:
    """Ranks that report, and the chief that remembers."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.memory = IndexMemory()
        self.reporters = [IndexReporter() for _ in range(ranks)]
        self.saves = 0

    def report(self, rank: int, index: bytes) -> IndexPart:
        return self.reporters[rank].part(deflated(index), name=str(self.saves), like=self.memory.name)

    def save(self, indexes: dict[int, bytes], count: int) -> list[IndexPart]:
        """Have the index made, and compare it; return what was reported."""
        self.saves += 1
        self.memory.begin(str(self.saves))
        parts = {rank: self.report(rank, index) for rank, index in indexes.items()}
        assert self.memory.build(parts.items(), count) == merge_partial_indexes(indexes.items(), count)
        return list(parts.values())


crcs = st.one_of(st.just(0), st.integers(1, 2**32 - 1))
tensors = st.lists(
    st.builds(Tensor, st.sampled_from(["a", "b/c", "ü", "z" * 200]), st.booleans(), st.integers(0, 300)),
    min_size=1,
    max_size=4,
    unique_by=lambda tensor: tensor.name,
)


@given(st.data(), st.integers(1, 4), st.booleans())
def test_the_bytes_are_those_of_a_full_merge(data, ranks, few):
    job = Job(ranks)
    held = [data.draw(tensors) for _ in range(ranks)]
    with mock.patch.object(index_memory, "_FEW", 16 if few else 0):
        for _ in range(4):
            for rank in data.draw(st.lists(st.integers(0, ranks - 1), max_size=1)):
                held[rank] = data.draw(tensors)
            writing = data.draw(st.sampled_from([range(ranks), range(ranks), range(max(1, ranks - 1))]))
            indexes = {
                rank: index_of(rank, ranks, held[rank], data.draw(st.lists(crcs, min_size=n, max_size=n)))
                for rank in writing
                if (n := len(held[rank]))
            }
            job.save(indexes, data.draw(st.sampled_from([ranks, ranks, 200, 70_000])))


def some_indexes(ranks: int, seed: int, tensors: int = 300) -> dict[int, bytes]:
    rng = np.random.default_rng(seed)
    held = [Tensor(f"layer/{number}/kernel", number % 3 > 0, 48) for number in range(tensors)]
    return {
        rank: index_of(rank, ranks, held, rng.integers(1, 2**32, tensors, np.uint32).tolist())
        for rank in range(ranks)
    }


def test_from_the_second_save_on_checksums_are_enough():
    job = Job(20)
    assert all(isinstance(part, bytes) for part in job.save(some_indexes(20, 0), 20))
    with mock.patch.object(index_memory, "merge_partial_indexes", side_effect=AssertionError):
        for seed in (1, 2):
            assert all(isinstance(part, np.ndarray) for part in job.save(some_indexes(20, seed), 20))


def test_several_blocks_are_patched():
    job = Job(40)
    job.save(some_indexes(40, 0), 40)
    index = PatchableIndex.of(
        job.memory.build([(rank, deflated(part)) for rank, part in some_indexes(40, 0).items()], 40)
    )
    assert index is not None
    assert len(index.blocks) > 1
    assert len(index.positions) == 40 * 300
    job.save(some_indexes(40, 1), 40)


def test_the_chief_may_report_its_own_index_whole():
    job = Job(3)
    job.save(some_indexes(3, 0), 3)
    indexes = some_indexes(3, 1)
    parts: dict[int, IndexPart] = {rank: job.report(rank, indexes[rank]) for rank in (1, 2)}
    parts[0] = deflated(indexes[0])
    with mock.patch.object(index_memory, "merge_partial_indexes", side_effect=AssertionError):
        found = job.memory.build(parts.items(), 3)
    assert found == merge_partial_indexes(indexes.items(), 3)


def test_a_report_that_the_chief_does_not_remember_is_whole():
    job = Job(2)
    job.save(some_indexes(2, 0), 2)
    job.memory = IndexMemory()
    assert all(isinstance(part, bytes) for part in job.save(some_indexes(2, 1), 2))
    # A save of another layout that fails before its index is made changes nothing.
    job.saves += 1
    for rank, index in some_indexes(2, 2, tensors=7).items():
        job.report(rank, index)
    assert all(isinstance(part, np.ndarray) for part in job.save(some_indexes(2, 3), 2))


@pytest.mark.parametrize("bad", [np.ones(299, np.uint32), np.zeros(300, np.uint32), np.ones(0, np.uint32)])
def test_checksums_of_something_else_are_refused(bad):
    for others in (1, 3):
        job = Job(3)
        job.save(some_indexes(3, 0), 3)
        parts: dict[int, IndexPart] = {
            rank: job.report(rank, index) for rank, index in some_indexes(3, 1).items() if rank < others
        }
        with pytest.raises(CorruptError, match="data file 2"):
            job.memory.build([*parts.items(), (2, bad)][-3:], 3)


def test_checksums_without_a_memory_are_refused():
    with pytest.raises(CorruptError, match="data file 5"):
        IndexMemory().build([(5, np.ones(3, np.uint32))], 1)


@pytest.mark.parametrize("part", [b"", b"no zlib", zlib.compress(bytes(50))[:-3], zlib.compress(b"") + b"x"])
def test_a_damaged_part_is_refused(part):
    with pytest.raises(CorruptError):
        IndexMemory().build([(0, part)], 1)


def test_an_entry_without_checksum_has_no_place():
    held = [Tensor("a", False, 4), Tensor("b", True, 4)]
    assert PatchableIndex.of(index_of(0, 2, held, [1, 0])) is None
    found = PatchableIndex.of(index_of(0, 2, held, [7, 8]))
    assert found is not None
    # The key of a slice begins with a zero byte.
    assert found.checksums().tolist() == [8, 7]
    assert found.patched(np.array([5, 6], np.uint32), BundleHeader(1)) == index_of(0, 2, held, [6, 5])
    assert PatchableIndex.of(build_index([], 3)) is not None
