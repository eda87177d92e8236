from __future__ import annotations

import numpy as np
import pytest

from ckptstore.bundle.write.index import build_index
from ckptstore.bundle.write.merge import MergeInput, merge_indexes
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.errors import UsageError
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.types import Slice
from tests.unit.bundle.helpers import Sink, add_all


def bundle(label: str, *shards) -> MergeInput:
    entries = []
    for number, pieces in enumerate(shards):
        writer = ShardWriter(Sink(), shard_id=number)
        add_all(writer, pieces)
        entries += writer.entries
    return MergeInput(sorted(entries), BundleHeader(len(shards)), label)


def piece(spec: str) -> dict:
    return {"name": "w", "array": np.zeros(2), "shape": (6,), "spec": spec}


def test_shards_are_numbered_as_their_files_first_appear_in_key_order():
    merged = merge_indexes([bundle("one", {"z": 1, "y": 2}, {"a": 3}), bundle("two", {"m": 4})])
    # In "one" the key "a" comes first, and it lies in shard 1.
    assert merged.shards == ((0, 1), (0, 0), (1, 0))
    assert {key: entry.shard_id for key, entry in merged.entries} == {b"a": 0, b"y": 1, b"z": 1, b"m": 2}
    assert merged.num_shards == 3


def test_offsets_sizes_and_checksums_stay():
    source = bundle("one", {"z": 1.5, "y": np.arange(3)})
    before = {key: entry._replace(shard_id=0) for key, entry in source.entries}
    merged = merge_indexes([bundle("zero", {"a": 0}), source])
    after = {key: entry._replace(shard_id=0) for key, entry in merged.entries if key != b"a"}
    assert after == before


def test_slices_of_one_tensor_follow_each_other_in_input_order():
    inputs = [bundle("a", [piece("4,2")]), bundle("b", [piece("0,2")]), bundle("c", [piece("2,2")])]
    merged = dict(merge_indexes(inputs).entries)
    whole = merged[b"w"]
    assert [box.extents for box in whole.slices] == [((4, 2),), ((0, 2),), ((2, 2),)]
    assert whole.shard_id == 0
    assert sorted(entry.shard_id for key, entry in merged.items() if key != b"w") == [0, 1, 2]


def test_the_index_is_that_of_a_direct_write_when_every_shard_has_a_tensor():
    first, second = {"a": np.arange(3)}, {"b": np.arange(4)}
    direct = bundle("x", first, second)
    merged = merge_indexes([bundle("one", first), bundle("two", second)])
    assert merged.index_bytes() == build_index(direct.entries, 2)


def test_the_count_in_the_file_names_can_be_another():
    merged = merge_indexes([bundle("one", {"a": 1})])
    assert merged.index_bytes(17) == build_index(merged.entries, 17)


def test_a_file_that_nothing_refers_to_gets_no_number_and_still_counts():
    merged = merge_indexes([bundle("one", {}, {"a": 1}), bundle("two", {"b": 1})])
    assert merged.shards == ((0, 1), (1, 0))
    assert merged.num_shards == 3


@pytest.mark.parametrize("second", [{"a": 2}, [{"name": "a", "array": [0.0], "shape": (2,), "spec": "0,1"}]])
def test_a_name_in_two_bundles_is_refused_and_both_are_named(second):
    with pytest.raises(UsageError, match="Duplicate tensor keyed by a encountered, when merging prefix: two"):
        merge_indexes([bundle("one", {"a": 1}), bundle("two", second)])


def test_the_same_slice_in_two_bundles_is_refused():
    with pytest.raises(UsageError, match="Duplicate tensor keyed by"):
        merge_indexes([bundle("one", [piece("0,2")]), bundle("two", [piece("0,2")])])


def test_slices_that_do_not_agree_are_refused():
    other = {"name": "w", "array": np.zeros(2, "f4"), "shape": (6,), "spec": "2,2"}
    with pytest.raises(UsageError, match="do not agree"):
        merge_indexes([bundle("one", [piece("0,2")]), bundle("two", [other])])


@pytest.mark.parametrize(
    ("header", "message"),
    [(BundleHeader(1, True), "endianness"), (BundleHeader(1, producer=2), "versions")],
)
def test_bundles_of_another_kind_are_refused(header, message):
    with pytest.raises(UsageError, match=message):
        merge_indexes([bundle("one", {"a": 1}), MergeInput([], header, "two")])


def test_endianness_and_version_are_those_of_the_first():
    header = BundleHeader(2, True, 3, 1, (5,))
    merged = merge_indexes([MergeInput([], header, "one"), MergeInput([], header, "two")])
    assert merged.header == BundleHeader(4, True, 3, 1, (5,))


def test_nothing_to_merge_is_refused():
    with pytest.raises(UsageError, match="nothing to merge"):
        merge_indexes([])


def test_entries_of_many_shards_keep_the_box_of_a_merged_tensor():
    box = Slice(((0, 2),))
    source = MergeInput([(b"w", BundleEntry(2, (6,), 0, slices=(box,)))], BundleHeader(1), "one")
    assert dict(merge_indexes([source]).entries)[b"w"].slices == (box,)
