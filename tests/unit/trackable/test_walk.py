"""Nested containers become numbered objects, as TensorFlow numbers them."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from ckptstore.errors import UsageError
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.walk import check_member, walk


def shape_of(tree):
    """Return each node's children as ``{name: id}``."""
    return [dict(node.children) for node in tree.nodes]


def keys(tree):
    return [tree.key(node_id) for node_id, node in enumerate(tree.nodes) if node.has_value]


def test_ids_are_breadth_first_in_the_order_of_the_containers():
    tree = walk({"z": {"q": np.ones(1)}, "a": np.ones(1), "m": [np.ones(1), 3.5]})
    assert shape_of(tree) == [{"z": 1, "a": 2, "m": 3}, {"q": 4}, {}, {"0": 5, "1": 6}, {}, {}, {}]
    assert keys(tree) == [
        "a/.ATTRIBUTES/VARIABLE_VALUE",
        "z/q/.ATTRIBUTES/VARIABLE_VALUE",
        "m/0/.ATTRIBUTES/VARIABLE_VALUE",
        "m/1/.ATTRIBUTES/VARIABLE_VALUE",
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("k/1", "d/k.S1"),
        ("x.y", "d/x..y"),
        (".ATTRIBUTES", "d/..ATTRIBUTES"),
        ("", "d/"),
        ("ü\0", "d/ü\0"),
    ],
)
def test_names_are_escaped_in_keys_and_kept_in_the_graph(name, path):
    tree = walk({"d": {name: np.ones(1)}})
    assert tree.key(2) == f"{path}/.ATTRIBUTES/VARIABLE_VALUE"
    assert tree.nodes[1].children == [(name, 2)]


def test_the_same_array_is_one_object_under_its_shortest_path():
    array = np.ones(2)
    tree = walk({"deep": [array, {"y": array}], "top": array})
    assert shape_of(tree) == [{"deep": 1, "top": 2}, {"0": 2, "1": 3}, {}, {"y": 2}]
    assert keys(tree) == ["top/.ATTRIBUTES/VARIABLE_VALUE"]
    assert [ref.key for ref in tree.nodes[2].refs] == ["top", 0, "y"]


def test_equal_numbers_are_not_the_same_object():
    assert len(walk({"a": 1, "b": 1, "c": np.float32(1)}).nodes) == 4


def test_a_container_is_an_object_for_each_place_where_it_stands():
    # As measured on TensorFlow: it wraps a dictionary anew each time, and its elements in place once.
    inner = {"x": np.ones(1)}
    outer = [inner, inner]
    tree = walk({"a": outer, "b": outer})
    assert shape_of(tree) == [{"a": 1, "b": 2}, {"0": 3, "1": 4}, {"0": 3, "1": 4}, {"x": 5}, {"x": 5}, {}]


def test_a_cycle_ends():
    loop: dict[str, object] = {"x": np.ones(1)}
    loop["self"] = loop
    items: list[object] = []
    items.append((items, np.ones(1)))
    tree = walk({"loop": loop, "items": items})
    assert len(tree.nodes) < 12
    assert keys(tree)[0] == "loop/x/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_chain_deeper_than_the_stack_is_walked():
    value = np.ones(1)
    chain: list[object] = [value]
    for _ in range(5000):
        chain = [chain]
    tuples: tuple[object, ...] = ()
    for _ in range(5000):
        tuples = (tuples,)
    tree = walk({"chain": chain, "nothing": tuples})
    assert tree.key(len(tree.nodes) - 1).count("/0") == 5001


def test_empty_containers_are_objects_and_empty_tuples_and_none_are_not():
    tree = walk({"n": {}, "l": [], "t": (), "tt": ((), (None,)), "none": None, "u": (np.ones(1), {}, ())})
    assert shape_of(tree) == [{"n": 1, "l": 2, "u": 3}, {}, {}, {"0": 4, "1": 5}, {}, {}]


def test_a_named_tuple_has_children_by_field_and_by_number():
    pair = collections.namedtuple("pair", "p q")
    tree = walk({"t": pair(np.ones(1), {})})
    assert tree.nodes[1].children == [("p", 2), ("q", 3), ("0", 2), ("1", 3)]
    assert tree.key(2) == "t/p/.ATTRIBUTES/VARIABLE_VALUE"


def test_the_root_may_be_among_the_attached():
    root = {"w": np.ones(1)}
    tree = walk(root, {"alpha": np.ones(1), "root": root, "w": root["w"]})
    assert tree.nodes[0].children == [("w", 1), ("alpha", 2), ("root", 0)]


def test_an_attached_child_must_not_hide_another_one():
    with pytest.raises(UsageError, match="already has a child 'w'"):
        walk({"w": np.ones(1)}, {"w": np.ones(1)})


@pytest.mark.parametrize("value", [object(), {1, 2}, range(3), bytearray(b"x"), slice(1)])
def test_what_is_no_value_is_named_by_its_path(value):
    with pytest.raises(UsageError, match="a checkpoint cannot hold this") as info:
        walk({"model": [{"x.y": value}]})
    assert info.value.tensor == "model/0/x..y"
    with pytest.raises(UsageError):
        check_member("x", value)


def test_keys_that_are_no_text_are_refused():
    with pytest.raises(UsageError, match="keys of a dictionary must be text") as info:
        walk({"model": {3: np.ones(1)}})
    assert info.value.tensor == "model"


def adam(*paths):
    return Optimizer({"beta2_power": 0.5, "beta1_power": 0.9}, {"v": dict.fromkeys(paths, 1.0)})


def test_slots_come_after_all_other_objects():
    tree = walk({"net": {"w": np.ones(2), "b": np.ones(1)}, "opt": adam("net/b", "net/w")})
    assert tree.nodes[2].children == [("beta1_power", 5), ("beta2_power", 6)]
    assert [tuple(slot) for slot in tree.slots] == [(2, "v", 3, 7), (2, "v", 4, 8)]
    assert tree.key(7) == "net/w/.OPTIMIZER_SLOT/opt/v/.ATTRIBUTES/VARIABLE_VALUE"
    assert tree.key(8) == "net/b/.OPTIMIZER_SLOT/opt/v/.ATTRIBUTES/VARIABLE_VALUE"
    assert not any(child >= 7 for node in tree.nodes for _, child in node.children)


@pytest.mark.parametrize("path", ["net/a/b", "net/a.Sb", "same/a.Sb", "alias"])
def test_a_slot_finds_its_variable_by_any_path(path):
    net = {"a/b": np.ones(1)}
    tree = walk({"net": net, "same": net, "alias": net["a/b"], "opt": adam(path)})
    assert tree.path(tree.slots[0].variable) == "alias"


def test_of_two_readings_of_a_path_the_plain_one_counts():
    tree = walk({"x..y": np.ones(1), "x.y": np.ones(2), "opt": adam("x..y", "x.y")})
    assert [tree.nodes[slot.variable].value.shape for slot in tree.slots] == [(1,), (2,)]


def test_a_slot_of_an_optimizer_that_is_the_root():
    tree = walk(adam("a"), {"a": np.ones(1)})
    assert tree.key(len(tree.nodes) - 1) == "a/.OPTIMIZER_SLOT//v/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (adam("net/ww"), "Did you mean 'net/w'"),
        (adam("net"), "found a container"),
        (adam("net/w", "more/same/w"), "two values for one variable"),
        (Optimizer(slots={"m": 3}), "slot 'm' of an optimizer must be a dictionary"),  # type: ignore[dict-item]
        (Optimizer(slots={"m": {"net/w": [1]}}), "a checkpoint cannot hold this"),
        (Optimizer(slots={"m": {"net/w": object()}}), "a checkpoint cannot hold this"),
        (Optimizer(slots={"m": {5: 1}}), "named by its path"),  # type: ignore[dict-item]
        (Optimizer(slots={5: {}}), "a slot's name must be text"),  # type: ignore[dict-item]
        (Optimizer(values=[1]), "values of an optimizer must be a dictionary"),  # type: ignore[arg-type]
        (Optimizer(values={1: 1}), "must be text"),  # type: ignore[dict-item]
    ],
)
def test_a_slot_that_fits_nothing_is_refused(optimizer, message):
    weights = np.ones(1)
    with pytest.raises(UsageError, match=message):
        walk({"net": {"w": weights}, "more": {"same": {"w": weights}}, "opt": optimizer})


def test_a_slot_needs_an_array_of_its_own():
    weights = np.ones(1)
    with pytest.raises(UsageError, match="used twice"):
        walk({"w": weights, "opt": Optimizer(slots={"m": {"w": weights}})})
