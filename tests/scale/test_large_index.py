"""Lookups in an index of tens of thousands of tensors: few reads, and damage stays in its block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.errors import ChecksumError, TensorNotFoundError
from ckptstore.format.entry import BundleEntry
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from tests.unit.bundle.helpers import craft, index_file, put, save, saved, take, tracked

_numbers = itertools.count()


@pytest.fixture
def prefix() -> Iterator[Location]:
    """A prefix in memory that no other test uses."""
    location = locate(f"memory://large-index/{next(_numbers)}/model")
    yield location
    location.storage.delete_many([info.key for info in location.storage.list(location.key)])


def test_a_damaged_block_hides_only_its_own_tensors(prefix):
    names = [f"{'n' * 400}/{number:06d}" for number in range(20_000)]
    craft(prefix, {name.encode(): BundleEntry(1, (), size_bytes=4) for name in names}, bytes(4))
    data = bytearray(take(index_file(prefix)))
    data[len(data) // 2] ^= 1
    put(index_file(prefix), bytes(data))
    reader = open_bundle(prefix)
    assert all(reader.stored_many(names[:200]))
    assert reader.has(names[-1])
    with pytest.raises(ChecksumError):
        reader.stored_many(names)
    with pytest.raises(ChecksumError):
        reader.names()


@pytest.mark.parametrize("method", ["has", "stored"])
def test_many_single_lookups_read_the_index_once(prefix, method):
    names = [f"{'n' * 400}/{number:06d}" for number in range(0, 40_000)]
    craft(prefix, {name.encode(): BundleEntry(1, (), size_bytes=4) for name in names}, bytes(4))
    size = len(take(index_file(prefix)))
    tracking, there = tracked(prefix)
    reader = open_bundle(there)
    for name in names[::101]:
        getattr(reader, method)(name)
    # The tail, then up to 64 blocks, then all that is left: not once a name.
    assert len(tracking.reads) < 70
    assert tracking.size_bytes() < size + 70 * 300_000
    before = len(tracking.reads)
    assert reader.has(names[5])
    assert not reader.has("other")
    assert len(tracking.reads) == before


def test_a_lookup_in_a_large_index_reads_little_of_it(prefix):
    arrays = [np.array([number], np.int8) for number in range(100)]
    save(prefix, {f"layer_{number:06d}/{'x' * 100}": arrays[number % 100] for number in range(60_000)})
    size = len(take(index_file(prefix)))
    assert size > 1_200_000
    tracking, place = tracked(prefix)
    reader = open_bundle(place)
    assert reader.read(f"layer_030000/{'x' * 100}").tolist() == [0]
    # The tail with footer and index block, the block with the header, the block with the name.
    reads = [(start, stop) for key, start, stop in tracking.reads if key.endswith(".index")]
    assert len(reads) == 3
    assert sum(stop - start for start, stop in reads) < 3 * 270_000
    assert len(reader.names()) == 60_000


def test_the_hint_for_an_unknown_name_among_very_many_comes_at_once(prefix):
    reader = saved(prefix, {f"net/layer_{n}/kernel": np.int8(0) for n in range(20_000)})
    with pytest.raises(TensorNotFoundError, match="layer_777/kernel"):
        reader.read("net/layer_777/kernle")
