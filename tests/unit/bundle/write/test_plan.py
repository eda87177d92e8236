from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.read.plan import (
    DIRECT_SIZE_BYTES,
    GAP_SIZE_BYTES,
    STAGE_SIZE_BYTES,
    ReadPlan,
    plan_reads,
)
from ckptstore.bundle.write.plan import plan_save, write_item
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.errors import UsageError
from ckptstore.types import Slice
from tests.unit.bundle.helpers import Sink


def test_a_save_plan_keeps_the_order_given_and_knows_every_size():
    tensors: dict[str, Any] = {"b": np.zeros((2, 3), "f4"), "a": [1, 2], "s": ["x", "longer" * 40]}
    plan = plan_save(tensors)
    (shard,) = plan.shards
    assert [item.name for item in shard.items] == ["b", "a", "s"]
    assert [item.dtype.name for item in shard.items] == ["float32", "int64", "string"]
    # Strings: lengths 1 (one byte) and 240 (two bytes), the checksum, the bytes.
    assert [item.size_bytes for item in shard.items] == [24, 16, 3 + 4 + 241]
    assert plan.size_bytes == shard.size_bytes == 24 + 16 + 248


@given(st.lists(st.binary(max_size=300), max_size=5), st.sampled_from(["string", "variant"]))
def test_the_planned_size_of_strings_and_variants_is_what_is_written(values, dtype):
    array = np.empty(len(values), object)
    array[:] = values
    item = write_item("s", array, dtype=dtype)
    writer = ShardWriter(Sink())
    writer.add_item(item)
    assert writer.size_bytes == item.size_bytes


def test_shards_ascend_by_label_as_text():
    plan = plan_save(
        {"a": 1, "b": 2, "c": 3, "d": 4}, {"a": "CPU:2", "b": "CPU:10", "c": "", "d": "CPU:2"}.__getitem__
    )
    assert [(shard.label, [item.name for item in shard.items]) for shard in plan.shards] == [
        ("", ["c"]),
        ("CPU:10", ["b"]),
        ("CPU:2", ["a", "d"]),
    ]


def test_a_plan_without_tensors_has_one_empty_shard():
    plan = plan_save({})
    assert [shard.items for shard in plan.shards] == [()]
    assert plan.size_bytes == 0


def test_one_bad_tensor_fails_the_whole_plan_and_is_named():
    with pytest.raises(UsageError, match="when") as caught:
        plan_save({"good": np.zeros(3), "when": np.zeros(3, "datetime64[s]")})
    assert caught.value.tensor == "when"


@pytest.mark.parametrize("name", ["", 3, None, "\ud800"])
def test_a_name_that_is_no_name_is_refused(name):
    with pytest.raises(UsageError):
        write_item(name, 1.0)


def test_plans_can_be_printed_and_not_changed():
    plan = plan_save({"w": np.zeros(1 << 20)})
    assert "'w'" in repr(plan)
    assert len(repr(plan)) < 1000
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.shards = ()  # type: ignore[misc]


def test_a_slice_that_covers_the_tensor_is_a_whole_tensor():
    whole = write_item("w", np.zeros((2, 3)), shape=(2, 3), spec="-:0,3")
    part = write_item("w", np.zeros((1, 3)), shape=(2, 3), spec=[(1, 1), (0, -1)])
    assert whole.slice is None
    assert part.slice == Slice(((1, 1), (0, -1)))
    assert part.full_shape == (2, 3)


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((4, 3), "0,2:-", "does not match the shape of the tensor to save"),
        ((2, 3), "0,1", "Mismatching ranks"),
        ((2, 3), "1,2:-", "out of bounds"),
        ((2, 3), "3", "Expected a pair of numbers or '-'"),
        (None, "0,1:-", "belong together"),
        ((2, 3), None, "belong together"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused_in_the_words_of_tensorflow(shape, spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        write_item("w", np.zeros((1, 3)), shape=shape, spec=spec)
    assert caught.value.tensor == "w"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"shape": (4,), "spec": "0,2"}, {"shape": (4,), "spec": "0,2"}),
        ({}, {"shape": (4,), "spec": "0,2"}),
        ({"shape": (4,), "spec": "0,2"}, {}),
    ],
)
def test_a_key_that_comes_twice_is_refused(first, second):
    items = [write_item("w", np.zeros(2), **first), write_item("w", np.zeros(2), **second)]
    with pytest.raises(UsageError, match="Adding duplicate key: w"):
        plan_save(items)


def test_slices_of_one_tensor_have_one_type_and_shape():
    first = write_item("w", np.zeros(2), shape=(4,), spec="0,2")
    for other in (
        write_item("w", np.zeros(2, "f4"), shape=(4,), spec="2,2"),
        write_item("w", np.zeros(2), shape=(5,), spec="2,2"),
    ):
        with pytest.raises(UsageError, match="do not agree"):
            plan_save([first, other])


def test_slices_that_overlap_are_accepted_as_by_tensorflow():
    items = [
        write_item("w", np.zeros(2), shape=(4,), spec="0,2"),
        write_item("w", np.zeros(2), shape=(4,), spec="1,2"),
    ]
    (shard,) = plan_save(items).shards
    assert [item.slice for item in shard.items] == [Slice(((0, 2),)), Slice(((1, 2),))]


def planned(pieces: list[tuple[int, int, int]], **limits: int) -> ReadPlan:
    """Return the plan for pieces (shard, start, stop)."""
    shards, starts, stops = ([piece[column] for piece in pieces] for column in range(3))
    return plan_reads(shards, starts, stops, **limits)


def test_neighbours_are_read_together_and_distant_pieces_are_not():
    plan = planned([(0, 100, 110), (0, 0, 10), (0, 12, 20), (1, 20, 30)], gap_size_bytes=5)
    assert [(run.shard, run.start, run.stop, run.rows) for run in plan.runs] == [
        (0, 0, 20, (1, 2)),
        (0, 100, 110, (0,)),
        (1, 20, 30, (3,)),
    ]
    assert plan.size_bytes == 40


def test_large_pieces_go_alone_and_straight():
    plan = planned([(0, 0, 5), (0, 5, 105), (0, 105, 110)], gap_size_bytes=50, direct_size_bytes=100)
    assert [(run.start, run.stop, run.staged) for run in plan.runs] == [
        (0, 5, True),
        (5, 105, False),
        (105, 110, True),
    ]


def test_the_bytes_of_a_large_piece_are_never_read_twice():
    assert GAP_SIZE_BYTES < DIRECT_SIZE_BYTES <= STAGE_SIZE_BYTES


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 500), st.integers(0, 60)), max_size=30),
    st.integers(0, 50),
    st.integers(1, 50),
    st.integers(50, 200),
)
def test_every_piece_lies_in_one_run_and_runs_keep_their_limits(pieces, gap, direct, stage):
    pieces = [(shard, start, start + size) for shard, start, size in pieces]
    plan = planned(pieces, gap_size_bytes=gap, direct_size_bytes=direct, stage_size_bytes=stage)
    seen = [row for run in plan.runs for row in run.rows]
    assert sorted(seen) == [row for row, (_, start, stop) in enumerate(pieces) if start < stop]
    for run in plan.runs:
        found = [pieces[row] for row in run.rows]
        assert found == sorted(found)
        assert run.start == min(start for _, start, _ in found)
        assert run.stop == max(stop for _, _, stop in found)
        assert {shard for shard, _, _ in found} == {run.shard}
        assert run.staged == (found[0][2] - found[0][1] < direct)
        assert not run.staged or run.stop - run.start <= stage
    assert [run[:2] for run in plan.runs] == sorted(run[:2] for run in plan.runs)
