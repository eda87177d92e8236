"""How tensors that did not change are told from those that did, and where each goes."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.write.plan import SavePlan, plan_save
from ckptstore.bundle.write.unchanged import MOST_SHARDS, split_unchanged, stored_shards
from ckptstore.storage.registry import locate
from tests.unit.directory.helpers import fresh_memory


def saved(plan: SavePlan) -> list:
    """Write `plan` as the checkpoint "m" and return its data files."""
    from tests.unit.directory.helpers import write_checkpoint

    directory = locate(fresh_memory())
    write_checkpoint(directory, "m", SavePlan(plan.shards))
    index = directory.child("m.index")
    return stored_shards(index.storage.get(index.key).data, "m", {}, source=index.url)


def layout(plan: SavePlan) -> list[tuple[str, str]]:
    """Return the names in each file, and which file it is taken from."""
    return [
        ("".join(item.name for item in shard.items), shard.source.name if shard.source else "")
        for shard in plan.shards
    ]


def tensors(**sizes: float) -> dict[str, np.ndarray]:
    return {name: np.full(3, value) for name, value in sizes.items()}


FIRST = tensors(a=1, b=1, c=1, d=1)


def test_what_did_not_change_gets_a_file_of_its_own():
    previous = saved(plan_save(FIRST))
    plan = split_unchanged(plan_save({**FIRST, **tensors(a=2, c=2)}), previous)
    assert layout(plan) == [("ac", ""), ("bd", "")]


def test_that_file_is_taken_as_it_is_from_then_on():
    second = split_unchanged(plan_save({**FIRST, **tensors(a=2, c=2)}), saved(plan_save(FIRST)))
    third = split_unchanged(plan_save({**FIRST, **tensors(a=3, c=3)}), saved(second))
    assert layout(third) == [("ac", ""), ("bd", "m.data-00001-of-00002")]
    fourth = split_unchanged(plan_save({**FIRST, **tensors(a=4, c=4)}), saved(third))
    assert layout(fourth) == layout(third)


def test_of_a_part_of_it_a_new_file_is_made():
    second = split_unchanged(plan_save({**FIRST, **tensors(a=2)}), saved(plan_save(FIRST)))
    third = split_unchanged(plan_save({**FIRST, **tensors(a=3, b=3)}), saved(second))
    assert layout(third) == [("ab", ""), ("cd", "")]


def test_what_stops_changing_later_gets_another_file():
    second = split_unchanged(plan_save({**FIRST, **tensors(a=2, b=2)}), saved(plan_save(FIRST)))
    third = split_unchanged(plan_save({**FIRST, **tensors(a=3, b=2)}), saved(second))
    assert layout(third) == [("a", ""), ("cd", "m.data-00001-of-00002"), ("b", "")]
    fourth = split_unchanged(plan_save({**FIRST, **tensors(a=4, b=2)}), saved(third))
    assert layout(fourth) == [
        ("a", ""),
        ("cd", "m.data-00001-of-00003"),
        ("b", "m.data-00002-of-00003"),
    ]


def test_everything_the_same():
    plan = split_unchanged(plan_save(FIRST), saved(plan_save(FIRST)))
    assert layout(plan) == [("abcd", "m.data-00000-of-00001")]


def test_nothing_the_same():
    plan = plan_save(tensors(a=2, b=2, c=2, d=2))
    assert split_unchanged(plan, saved(plan_save(FIRST))) == plan
    assert split_unchanged(plan, []) == plan


def test_too_many_files_are_joined():
    names = "abcdefghijk"
    plan = plan_save({name: np.ones(2) for name in names}, shard_of=lambda name: name)
    assert len(plan.shards) > MOST_SHARDS
    assert layout(split_unchanged(plan, saved(plan))) == [(names, "")]


@pytest.mark.parametrize(
    "other",
    [
        np.ones(3, np.float32),
        np.ones((3, 1)),
        np.ones(4),
        np.array([1.0, 1.0, np.nextafter(1.0, 2.0)]),
        np.array([b"x", b"y", b"z"], object),
    ],
)
def test_another_type_shape_or_value_is_a_change(other: np.ndarray):
    previous = saved(plan_save({"a": np.ones(3), "b": np.ones(3)}))
    assert layout(split_unchanged(plan_save({"a": other, "b": np.ones(3)}), previous)) == [
        ("a", ""),
        ("b", ""),
    ]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(5, dtype=">i4"),
        np.arange(20)[::3],
        np.array(["text", "of another length"], object),
        np.zeros((0, 3)),
        np.array(True),
    ],
)
def test_arrays_of_every_kind_are_recognised(array: np.ndarray):
    previous = saved(plan_save({"a": array, "b": np.ones(3)}))
    plan = split_unchanged(plan_save({"a": array.copy(), "b": np.ones(3)}), previous)
    assert layout(plan) == [("ab", "m.data-00000-of-00001")]


def test_a_tensor_that_is_saved_no_more_spoils_its_file():
    previous = saved(plan_save(FIRST))
    rest = {name: FIRST[name] for name in "abc"}
    assert layout(split_unchanged(plan_save(rest), previous)) == [("abc", "")]


def test_files_with_slices_are_never_taken():
    directory = fresh_memory()
    with ck.BundleWriter(f"{directory}/m") as writer:
        writer.add("a", np.ones(3))
        writer.add_slice("p", [4], [(0, 2)], np.ones(2))
        writer.add_slice("p", [4], [(2, 2)], np.ones(2))
    index = locate(f"{directory}/m.index")
    previous = stored_shards(index.storage.get(index.key).data, "m", {}, source=index.url)
    plan = split_unchanged(plan_save({"a": np.ones(3), "p": np.ones(4)}), previous)
    assert layout(plan) == [("p", ""), ("a", "")]


def test_an_index_of_a_foreign_byte_order_names_nothing():
    from ckptstore.format.entry import HEADER_KEY, BundleHeader, encode_header
    from ckptstore.format.table_builder import TableBuilder

    builder = TableBuilder()
    builder.add(HEADER_KEY, encode_header(BundleHeader(1, True)))
    assert stored_shards(builder.finish(), "m", {}, source="m.index") == []
