"""Asking for many tensors at a time gives what asking for each one gives, errors included."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.write.plan import ClaimedNames, plan_save, write_item, write_items
from ckptstore.errors import FormatError, UsageError
from ckptstore.format.entry import BundleEntry, BundleHeader, encode_entry
from ckptstore.format.entry_columns import encode_index
from tests.unit.bundle.helpers import index_file, put, read_many, saved

MANY = 300


def pieces() -> list[dict]:
    """Return tensors of several types, strings and partitioned ones, as many as are looked up in bulk."""
    found: list[dict] = [{"name": f"w/{i:04d}", "array": np.full((i % 5, 3), i, "f4")} for i in range(MANY)]
    found += [{"name": f"b/{i}", "array": np.full(2, i, ml_dtypes.bfloat16)} for i in range(5)]
    found += [{"name": "text", "array": ["a", "bc"]}, {"name": "Ünï/\udc80", "array": 1}]
    found += [
        {"name": "part", "array": np.full((2, 3), i), "shape": (4, 3), "spec": f"{2 * i},2:-"}
        for i in range(2)
    ]
    return found


def test_many_tensors_are_described_like_each_of_them(prefix):
    reader = saved(prefix, pieces())
    names = [*reader.names(), "not there", "", "w/0007"]
    one_by_one = open_bundle(prefix)
    expected = [one_by_one.stored(name) if one_by_one.has(name) else None for name in names]
    assert reader.stored_many(names) == expected
    assert [tensor.name for tensor in expected[-1:] if tensor] == ["w/0007"]
    assert expected[-3:-1] == [None, None]


def test_many_tensors_are_read_into_new_arrays_and_given_ones(prefix):
    reader = saved(prefix, pieces())
    names = reader.names()
    given = {name: np.zeros((i % 5, 3), "f4") for i, name in enumerate(n for n in names if n[0] == "w")}
    arrays = read_many(reader, [(name, given.get(name)) for name in names])
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(array, open_bundle(prefix).read(name))
        assert given.get(name, array) is array


@pytest.mark.parametrize("wrong", [b"\x0f", encode_entry(BundleEntry(1, (3,), size_bytes=11))])
def test_the_first_entry_with_an_error_is_named(prefix, wrong):
    good = encode_entry(BundleEntry(1, (3,), size_bytes=12))
    values = [good] * MANY
    values[100] = values[200] = wrong
    keys = [b"%04d" % number for number in range(MANY)]
    put(index_file(prefix), encode_index(BundleHeader(1), keys, values))
    reader = open_bundle(prefix)
    names = [key.decode() for key in keys]
    with pytest.raises(FormatError, match="0100") as found:
        reader.stored_many(names)
    with pytest.raises(FormatError) as expected:
        open_bundle(prefix).stored("0100")
    assert str(found.value) == str(expected.value)
    assert len(reader.stored_many(names[:100])) == 100


def same(items, others) -> bool:
    arrays_are_equal = all(
        item.array.dtype == other.array.dtype and np.array_equal(item.array, other.array)
        for item, other in zip(items, others, strict=True)
    )
    return items == others and arrays_are_equal


def test_many_items_are_those_of_single_calls():
    values: dict[str, Any] = {
        "plain": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "turned": np.arange(3).astype(">i4"),
        "half": np.ones(2, ml_dtypes.bfloat16),
        "record": np.zeros(2, [("qint8", "i1")]),
        "scalar": np.float32(2),
        "list": [1, 2],
        "text": "é",
        "Ünï/\udc80": np.zeros(2),
        "none": np.empty((0, 4), bool),
    }
    items = write_items(values.items())
    assert same(items, [write_item(name, value) for name, value in values.items()])
    assert items[0].array is values["plain"]
    assert [str(item.dtype) for item in items[:3]] == ["float64", "float64", "int32"]


@pytest.mark.parametrize("name", ["", "\ud800", 7, None])
def test_a_name_that_is_none_is_refused_among_many_as_alone(name):
    with pytest.raises(UsageError) as expected:
        write_item(name, np.zeros(2))
    with pytest.raises(UsageError) as found:
        write_items([("good", np.zeros(2)), (name, np.zeros(2))])
    assert str(found.value) == str(expected.value)


def test_items_compare_and_print_without_their_arrays():
    item = write_item("w", np.zeros(1000))
    assert item == write_item("w", np.ones(1000))
    assert item != write_item("w", np.zeros(999))
    assert hash(item) == hash(write_item("w", np.ones(1000)))
    assert repr(item).startswith("WriteItem(name='w', dtype=")
    assert "array" not in repr(item)


def test_names_are_claimed_together_as_they_are_one_by_one():
    whole = write_items((f"w{number}", np.zeros(1)) for number in range(10))
    part = write_item("p", np.zeros(1), shape=(2,), spec="0,1")
    claimed = ClaimedNames()
    claimed.claim_all(whole)
    claimed.claim_all([part])
    claimed.claim_all([write_item("p", np.zeros(1), shape=(2,), spec="1,1"), write_item("q", 1)])
    for again in ([whole[3]], [part], [write_item("p", 1)], [write_item("x", 1), write_item("x", 2)]):
        with pytest.raises(UsageError, match="duplicate key"):
            claimed.claim_all(again)
    with pytest.raises(UsageError, match="duplicate key: w3"):
        plan_save([*whole, whole[3]])
