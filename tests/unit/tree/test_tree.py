"""Trees into arrays and a document, and back."""

from __future__ import annotations

import collections
import json
import math
import random
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptstore as ck
from ckptstore.tree.document import parse, serialize
from ckptstore.tree.flatten import Flat, flatten
from ckptstore.tree.habit import FieldKey, Habit, Json, TreeMember
from ckptstore.tree.leaves import leaves_by_name
from ckptstore.tree.match import ABSENT, build, match
from ckptstore.tree.merge import merge
from ckptstore.tree.skeleton import ArrayNode

HABIT = Habit()


class Slashes(Habit):
    separator = "/"
    escapes = True


class Shape(tuple[int, ...]):
    pass


class Frame:
    def __init__(self, x: Any, shape: Shape) -> None:
        self.x = x
        self.shape = shape


class Custom(Habit):
    def identity(self, value: Any) -> int:
        return id(value)

    def plain_of(self, value: Any) -> tuple[str, Json] | None:
        return ("custom.shape", list(value)) if isinstance(value, Shape) else None

    def plain_from(self, tag: str, content: Any) -> Any:
        return {"custom.shape": Shape}[tag](content)

    def children(self, value: Any) -> list[TreeMember] | None:
        if not isinstance(value, Frame):
            return None
        return [TreeMember(FieldKey(key), member) for key, member in vars(value).items()]


def there_and_back(tree: Any, habit: Habit = HABIT) -> Any:
    flat = flatten(tree, habit)
    document = parse(serialize(flat.skeleton, habit), habit, url="here")
    return build(document.root, lambda node: flat.arrays[node.name])


def document_of(tree: Any, habit: Habit = HABIT) -> bytes:
    return serialize(flatten(tree, habit).skeleton, habit)


PLAIN: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**63, -(2**63), 2**64, -(2**64), 10**5000],
    "floats": [0.0, -0.0, 1.0, 1e300, 5e-324, math.inf, -math.inf],
    "complex": 1 - 2j,
    "text": "a\x00\ud800é",
    "bytes": b"\x00\xff",
    "tuple": (1, (2, None), []),
    "empty": [{}, [], (), set(), ""],
    "keys": {0: 1, None: 2, (1, "a"): 3, b"k": 4, 2.5: 5},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "counter": collections.Counter({3: 2, "x": 1}),
    "set": {1, "a", None, (1, 2)},
    "frozen": frozenset({b"x"}),
    "python": random.getstate(),
    "numpy": np.random.default_rng(1).bit_generator.state,
}


@pytest.mark.parametrize("key", PLAIN)
def test_plain_values_come_back_with_their_types(key: str) -> None:
    found = there_and_back({key: PLAIN[key]})[key]
    assert found == PLAIN[key]
    assert type(found) is type(PLAIN[key])


def test_nan_comes_back() -> None:
    assert math.isnan(there_and_back({"x": math.nan})["x"])


def test_order_of_a_mapping_is_kept() -> None:
    assert list(there_and_back({"b": 1, "a": 2})) == ["b", "a"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_any_tree_of_plain_values_comes_back(tree: Any) -> None:
    assert repr(there_and_back(tree)) == repr(tree)


def test_arrays_are_named_by_their_keys_joined() -> None:
    w = np.zeros(2)
    flat = flatten({"model": {"l.w": w}, "state": {0: [w, {"m": w}]}}, HABIT)
    assert list(flat.arrays) == ["model.l.w", "state.0.0", "state.0.1.m"]


def test_separators_in_keys_are_escaped_where_the_habit_says_so() -> None:
    flat = flatten({"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "c.d": np.ones(1)}, Slashes())
    assert list(flat.arrays) == ["a.Sb", "a/b", "c..d"]


def test_two_arrays_of_one_name_are_refused_with_both_places() -> None:
    with pytest.raises(ck.UsageError, match=r"two arrays have the same name") as caught:
        flatten({"a.b": np.zeros(1), "a": {"b": np.ones(1)}}, HABIT)
    assert caught.value.tensor == "a.b"
    assert "['a.b'] and ['a']['b']" in str(caught.value)


def test_a_tied_array_is_stored_once_and_comes_back_twice() -> None:
    shared = np.arange(3)
    tree = {"a": shared, "b": {"c": shared}}
    flat = flatten(tree, Custom())
    assert list(flat.arrays) == ["a"]
    assert flat.tied == {"b.c": "a"}
    found = there_and_back(tree, Custom())
    assert found["a"] is shared
    assert found["b"]["c"] is shared


@pytest.mark.parametrize("value", [object(), range(3), Habit, collections.defaultdict(int), {1: object()}])
def test_anything_else_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(ck.UsageError, match=r"\['opt'\]\[1\]"):
        flatten({"opt": [0, value]}, HABIT)


def test_a_key_that_is_an_object_is_refused() -> None:
    with pytest.raises(ck.UsageError, match=r"a key of \['opt'\]"):
        flatten({"opt": {Habit: 1}}, HABIT)


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: dict[str, Any] = {}
    tree["a"] = tree
    with pytest.raises(ck.UsageError, match="deeper than 100"):
        flatten(tree, HABIT)


@pytest.mark.parametrize("tree", [np.zeros(1), {"_CKPTSTORE_TREE": np.zeros(1)}])
def test_an_array_that_cannot_be_named_is_refused(tree: Any) -> None:
    with pytest.raises(ck.UsageError, match="cannot be named"):
        flatten(tree, HABIT)


def test_values_and_containers_of_a_framework() -> None:
    frame = Frame(x=np.ones(2), shape=Shape((1, 2)))
    flat = flatten({"f": frame}, Custom())
    assert list(flat.arrays) == ["f.x"]
    found = there_and_back({"f": frame}, Custom())
    assert found == {"f": {"x": frame.x, "shape": Shape((1, 2))}}
    assert type(found["f"]["shape"]) is Shape


class TestParse:
    DOCUMENT = document_of(
        {"w": np.ones(2), "n": 3, "big": 2**70, "s": {1}, "o": {0: (1.5, b"x")}, "f": math.inf}
    )

    def test_every_flipped_byte_is_a_typed_error_or_another_document(self) -> None:
        whole = parse(self.DOCUMENT, HABIT, url="here")
        for position in range(len(self.DOCUMENT)):
            for bit in range(8):
                damaged = bytearray(self.DOCUMENT)
                damaged[position] ^= 1 << bit
                with suppress(ck.FormatError, ck.UnsupportedError):
                    assert parse(bytes(damaged), HABIT, url="here") != whole

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b'{"version":1}',
            b'{"version":0,"separator":".","root":null}',
            b'{"version":1,"separator":".","root":{}}',
            b'{"version":1,"separator":".","root":{"a":1,"b":2}}',
            b'{"version":1,"separator":".","root":{"array":"x","as":1}}',
            b'{"version":1,"separator":".","root":{"set":[[1]]}}',
            b'{"version":1,"separator":".","root":{"items":[[[1],2]]}}',
            b'{"version":1,"separator":".","root":{"items":[[1,2],[1,3]]}}',
            b'{"version":1,"separator":".","root":NaN}',
            b'{"version":1,"separator":".","root":{"dict":{"a":1,"a":2}}}',
            b'{"version":1,"separator":".","root":' + b"[" * 200 + b"]" * 200 + b"}",
            b'{"version":1,"separator":".","root":' + b"[" * 200_000,
            b'{"version":1,"separator":".","root":' + b"1" * 5000 + b"}",
        ],
    )
    def test_what_is_no_document_is_a_format_error(self, data: bytes) -> None:
        with pytest.raises(ck.FormatError):
            parse(data, HABIT, url="here")

    def test_a_newer_version_says_what_to_do(self) -> None:
        with pytest.raises(ck.UnsupportedError, match="Install a newer ckptstore"):
            parse(b'{"version":2}', HABIT, url="here")

    def test_a_value_of_another_framework_is_named(self) -> None:
        with pytest.raises(ck.UnsupportedError, match=r"other\.dtype: float32"):
            parse(b'{"version":1,"separator":".","root":{"other.dtype":"float32"}}', HABIT, url="here")

    def test_the_document_is_ascii_json_with_its_version(self) -> None:
        content = json.loads(document_of({"é": np.ones(1)}))
        assert content == {
            "version": 1,
            "separator": ".",
            "root": {"dict": {"é": {"array": "é", "as": "numpy"}}},
        }


def restored(tree: Any, saved: Any, habit: Habit = HABIT) -> tuple[Any, Any]:
    flat: Flat = flatten(saved, habit)
    found = match(tree, flat.skeleton, habit, set(flat.arrays))
    for name, arrays in found.filled.items():
        for array in arrays:
            array[...] = flat.arrays[name]
    return found, found.finish(lambda node: flat.arrays[node.name])


class TestMatch:
    def test_arrays_are_filled_and_plain_values_replaced_in_place(self) -> None:
        saved = {"w": np.ones(2), "opt": [{"lr": 0.5, "m": np.full(1, 7.0)}], "epoch": 3}
        tree: dict[str, Any] = {"w": np.zeros(2), "opt": [{"lr": 0.1, "m": np.zeros(1)}], "epoch": 0}
        w, group = tree["w"], tree["opt"][0]
        found, result = restored(tree, saved)
        assert result is tree
        assert tree["w"] is w
        assert w.tolist() == [1.0, 1.0]
        assert tree["opt"][0] is group
        assert (group["lr"], group["m"].tolist(), tree["epoch"]) == (0.5, [7.0], 3)
        assert (found.missing, found.unexpected) == ([], [])

    def test_nothing_is_changed_before_finish(self) -> None:
        tree = {"epoch": 0, "w": np.zeros(1)}
        flat = flatten({"epoch": 3, "w": np.ones(1)}, HABIT)
        match(tree, flat.skeleton, HABIT, set(flat.arrays))
        assert tree == {"epoch": 0, "w": np.zeros(1)}

    @pytest.mark.parametrize("empty", [{}, [], None])
    def test_an_empty_place_takes_what_was_saved(self, empty: Any) -> None:
        saved = {"state": {0: {"m": np.ones(1), "step": 4}}}
        found, result = restored({"state": empty}, saved)
        assert result["state"] == saved["state"]
        assert list(found.created) == ["state.0.m"]

    def test_a_list_of_plain_values_is_one_value(self) -> None:
        _, result = restored({"losses": [1.0]}, {"losses": [1.0, 0.5, 0.2]})
        assert result == {"losses": [1.0, 0.5, 0.2]}

    def test_a_tuple_is_replaced_where_it_stands(self) -> None:
        array = np.zeros(1)
        tree = {"t": (array, 1, [2])}
        _, result = restored(tree, {"t": (np.ones(1), 5, [6])})
        assert result is tree
        assert tree["t"] == (array, 5, [6])
        assert array.tolist() == [1.0]

    @pytest.mark.parametrize("saved", [{"w": np.ones(1)}, {"n": 1}, [1, 2], np.ones(1)])
    def test_an_object_of_its_own_is_not_replaced(self, saved: Any) -> None:
        tree = {"a": {"net": object()}}
        with pytest.raises(ck.UsageError, match=r"\['a'\]\['net'\].*expected builtins\.object"):
            restored(tree, {"a": {"net": saved}})

    def test_missing_and_unexpected_are_named(self) -> None:
        tree = {"w": np.zeros(1), "new": {"a": np.zeros(1), "n": 1}}
        found, _ = restored(tree, {"w": np.ones(1), "old": {"b": np.ones(1)}, "note": "x"})
        assert found.missing == ["new.a", "['new']['n']"]
        assert found.unexpected == ["old.b", "['note']"]

    def test_tied_arrays_are_both_filled_where_they_are_not_tied(self) -> None:
        shared = np.ones(2)
        tree = {"a": np.zeros(2), "b": np.zeros(2)}
        restored(tree, {"a": shared, "b": shared}, Custom())
        assert (tree["a"].tolist(), tree["b"].tolist()) == ([1.0, 1.0], [1.0, 1.0])

    @pytest.mark.parametrize(
        ("tree", "saved", "kinds"),
        [
            ({"x": np.zeros(1)}, {"x": 5}, ("an array", "int 5")),
            ({"x": {"a": 1}}, {"x": np.zeros(1)}, ("a container", "an array")),
            ({"x": np.zeros(1)}, {"x": {"a": 1}}, ("an array", "a container of 1")),
            ({"x": [np.zeros(1)]}, {"x": [np.zeros(1)] * 3}, ("a container of 1", "a container of 3")),
        ],
    )
    def test_another_kind_is_refused_with_its_place(
        self, tree: Any, saved: Any, kinds: tuple[str, str]
    ) -> None:
        with pytest.raises(ck.UsageError, match=r"differ at \['x'\]") as caught:
            restored(tree, saved)
        assert caught.value.tensor == "x"
        assert caught.value.expected == f"{kinds[0]}, as in the tree"
        assert caught.value.actual == f"{kinds[1]} in the checkpoint"

    def test_without_a_document_names_tell(self) -> None:
        tree = {"net": {"w": np.zeros(1), "b": np.zeros(1)}, "opt": {}, "lr": 0.1}
        found = match(tree, ABSENT, HABIT, {"net.w", "lr", "other"})
        assert list(found.filled) == ["net.w"]
        assert found.created == {"lr": ArrayNode("lr")}
        assert (found.missing, found.unexpected) == (["net.b"], ["other"])


def test_leaves_are_named_alike_whatever_the_containers() -> None:
    w = np.zeros(1)
    of_tuple = flatten({"a": (w, {"n": 3}), "e": [], "x/y": None}, Slashes()).skeleton
    assert leaves_by_name(of_tuple, Slashes()) == {"a/0": ArrayNode("a/0", "numpy"), "a/1/n": 3, "x.Sy": None}
    again = flatten({"a": {0: w, 1: {"n": 3}}, "x/y": None}, Slashes()).skeleton
    assert leaves_by_name(again, Slashes()) == leaves_by_name(of_tuple, Slashes())


def test_a_counter_is_one_value_and_a_scalar_of_numpy_is_replaced() -> None:
    tree = {"c": collections.Counter({5: 1}), "s": np.float32(1)}
    flat = flatten({"c": collections.Counter({1: 2}), "s": np.float32(3)}, HABIT)
    found = match(tree, flat.skeleton, HABIT, flat.arrays).finish(lambda node: flat.arrays[node.name])
    assert found == {"c": collections.Counter({1: 2}), "s": 3.0}
    assert list(found["c"]) == [1]


def merged(*trees: Any) -> Any:
    skeletons = [flatten(tree, HABIT).skeleton for tree in trees]
    return merge([(f"rank {rank}", one) for rank, one in enumerate(skeletons)], HABIT)


def test_trees_of_ranks_are_united() -> None:
    first = {"a": np.ones(1), "both": {"lr": math.nan, "x": [1, (np.ones(2),)]}}
    second = {"b": np.ones(1), "both": {"lr": math.nan, "x": [1, (np.ones(2),)], "more": None}}
    found = merged(first, second)
    assert list(found) == ["a", "both", "b"]
    assert found["both"]["x"] == [1, (ArrayNode("both.x.1.0", "numpy"),)]
    assert list(found["both"]) == ["lr", "x", "more"]


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [
        (1, 2, "1 on rank 0, 2 on rank 1"),
        (1, 1.0, "1 on rank 0, 1.0 on rank 1"),
        ([1], [1, 2], "a list of 1 on rank 0"),
        (np.ones(1), None, "the tensor 'x.k' on rank 0, None on rank 1"),
        ({}, [], "a dict of 0 on rank 0"),
    ],
)
def test_trees_of_ranks_that_differ_are_refused_with_place_and_ranks(
    first: Any, second: Any, shown: str
) -> None:
    with pytest.raises(ck.UsageError, match="different values") as caught:
        merged({"x": {"k": first}}, {"x": {"k": second}})
    assert caught.value.tensor == "x.k"
    assert shown in str(caught.value)
