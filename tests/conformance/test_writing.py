"""Given the tensors in TensorFlow's order, data files and index come out to the byte."""

from __future__ import annotations

import numpy as np
import pytest

from ckptstore.bundle.write.index import IndexEntry, build_index
from ckptstore.bundle.write.merge import MergeInput, merge_indexes
from ckptstore.bundle.write.plan import plan_save, write_item
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.format.crc32c import crc32c
from ckptstore.format.entry import BundleHeader
from tests.conformance.fixtures import CASES, Case, named
from tests.unit.bundle.helpers import Sink, read_many

PLAIN = [case for case in CASES if case.is_plain]


def rewritten(case: Case) -> list[tuple[ShardWriter, bytes]]:
    """Write what the checkpoint holds, piece by piece in the order of its files; one writer a shard."""
    reader = case.open()
    values = dict(
        zip(reader.names(), read_many(reader, [(name, None) for name in reader.names()]), strict=True)
    )
    shards = []
    for shard in range(case.expected["num_shards"]):
        sink = Sink()
        writer = ShardWriter(sink, shard_id=shard)
        for piece in case.expected["layout"]:
            if piece["shard"] != shard:
                continue
            name = piece["name"]
            dtype = case.tensors[name]["dtype"]
            if "slice" in piece:
                shape = tuple(piece["full_shape"])
                where = tuple(
                    slice(None) if length == -1 else slice(start, start + length)
                    for start, length in piece["slice"]
                )
                writer.add(name, values[name][where], dtype=dtype, shape=shape, spec=piece["slice"])
            else:
                writer.add(name, values[name], dtype=dtype)
        writer.finish()
        shards.append((writer, sink.data))
    return shards


@pytest.mark.parametrize(**named(PLAIN))
def test_data_files(case):
    for shard, (writer, data) in enumerate(rewritten(case)):
        assert data == case.data(shard)
        assert writer.size_bytes == len(data)
        assert writer.crc32c == crc32c(data)


@pytest.mark.parametrize(**named(PLAIN))
def test_index(case):
    entries = [entry for writer, _ in rewritten(case) for entry in writer.entries]
    assert build_index(entries, case.expected["num_shards"]) == case.index()


@pytest.mark.parametrize(**named([case for case in PLAIN if case.expected["num_shards"] > 1]))
def test_index_by_merging_a_bundle_for_each_shard(case):
    """How TensorFlow itself makes a sharded checkpoint."""
    inputs = []
    for number, (writer, _) in enumerate(rewritten(case)):
        entries: list[IndexEntry] = sorted((key, entry._replace(shard_id=0)) for key, entry in writer.entries)
        inputs.append(MergeInput(entries, BundleHeader(1), f"part-{number}"))
    merged = merge_indexes(inputs)
    assert merged.shards == tuple((number, 0) for number in range(len(inputs)))
    assert merged.index_bytes() == case.index()


@pytest.mark.parametrize(**named([case for case in PLAIN if case.expected["num_shards"] == 1]))
def test_a_save_plan_says_beforehand_how_large_the_files_become(case):
    reader = case.open()
    items = []
    for piece in case.expected["layout"]:
        dtype = case.tensors[piece["name"]]["dtype"]
        array = reader.read(piece["name"])
        if "slice" not in piece:
            items.append(write_item(piece["name"], array, dtype=dtype))
            continue
        where = tuple(
            slice(None) if length == -1 else slice(start, start + length) for start, length in piece["slice"]
        )
        shape = tuple(piece["full_shape"])
        items.append(write_item(piece["name"], array[where], dtype=dtype, shape=shape, spec=piece["slice"]))
    plan = plan_save(items)
    assert plan.size_bytes == len(case.data(0))
    assert [item.size_bytes for item in plan.shards[0].items] == [
        piece["size"] for piece in case.expected["layout"]
    ]


def test_a_table_of_several_blocks_is_among_them():
    """A block has 262 144 bytes."""
    (many,) = (case for case in PLAIN if case.expected["prefix"] == "many")
    assert len(many.index()) > 262_144
    assert len(many.tensors) > 6000
    assert all(np.prod(tensor["shape"]) < 100 for tensor in many.tensors.values())
