"""Which value of a checkpoint goes where."""

from __future__ import annotations

import time

import numpy as np

from ckptstore.format.object_graph import Attribute, Child, Node, SlotVariable
from ckptstore.trackable.describe import describe
from ckptstore.trackable.match import match_graph, match_names
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.walk import walk


def leaf(key):
    return Node((), (Attribute("VARIABLE_VALUE", key),))


def found(tree, match):
    return {tree.path(node_id): key for node_id, key in match.values.items()}


def test_a_tree_matches_its_own_graph():
    tree = walk({"a": [np.ones(1), {"b": np.ones(1)}], "opt": Optimizer({"x": 1}, {"m": {"a/0": 1}})})
    match = match_graph(tree, describe(tree))
    assert found(tree, match) == {
        tree.path(node_id): tree.key(node_id) for node_id, node in enumerate(tree.nodes) if node.has_value
    }
    assert match.unmatched == match.unused == ()


def test_names_count_and_keys_do_not():
    nodes = [Node((Child(1, "net"),)), Node((Child(2, "w"),)), leaf("any/text")]
    tree = walk({"net": {"w": 1}})
    assert found(tree, match_graph(tree, nodes)) == {"net/w": "any/text"}


def test_what_is_left_over_is_listed_on_both_sides():
    nodes = [Node((Child(1, "a"), Child(2, "b"), Child(3, "c"))), leaf("a"), leaf("b"), Node()]
    tree = walk({"a": 1, "b": {"x": 1}, "c": 1, "d": 1})
    match = match_graph(tree, nodes)
    assert found(tree, match) == {"a": "a"}
    assert match.unmatched == ("c", "d", "b/x")
    assert match.unused == ("b",)


def test_one_array_in_the_file_fills_two_of_the_tree():
    nodes = [Node((Child(1, "a"), Child(1, "b"))), leaf("a")]
    tree = walk({"a": np.ones(1), "b": np.ones(1)})
    match = match_graph(tree, nodes)
    assert found(tree, match) == {"a": "a", "b": "a"}
    assert match.unused == ()


def test_of_two_arrays_in_the_file_the_one_on_the_shortest_way_fills_one_of_the_tree():
    nodes = [Node((Child(1, "d"), Child(2, "top"))), Node((Child(3, "x"),)), leaf("top"), leaf("d/x")]
    array = np.ones(1)
    tree = walk({"d": {"x": array}, "top": array})
    match = match_graph(tree, nodes)
    assert found(tree, match) == {"top": "top"}
    assert match.unused == ("d/x",)


def test_other_attributes_and_registered_savers_are_unused():
    table = Node((), (Attribute("-keys", "t/keys"), Attribute("VARIABLE_VALUE", "t/value")))
    saver = Node((), registered_saver=("Custom", "obj"))
    tree = walk({"t": 1, "s": 1})
    match = match_graph(tree, [Node((Child(1, "t"), Child(2, "s"))), table, saver])
    assert found(tree, match) == {"t": "t/value"}
    assert match.unused == ("t/keys", "obj (saved by the registered saver Custom)")


def test_slots_are_matched_by_optimizer_variable_and_name():
    nodes = [
        Node((Child(1, "w"), Child(2, "opt"))),
        leaf("w"),
        Node((), (), (SlotVariable(1, "m", 3), SlotVariable(1, "v", 4))),
        leaf("slot m"),
        leaf("slot v"),
    ]
    tree = walk({"w": np.ones(1), "opt": Optimizer(slots={"v": {"w": 0.0}, "u": {"w": 0.0}})})
    match = match_graph(tree, nodes)
    assert found(tree, match) == {"w": "w", "w/.OPTIMIZER_SLOT/opt/v": "slot v"}
    assert match.unmatched == ("w/.OPTIMIZER_SLOT/opt/u",)
    assert match.unused == ("slot m",)


def test_an_empty_graph_matches_nothing():
    assert match_graph(walk({"a": 1}), []).unmatched == ("a",)


def test_cycles_on_both_sides_end():
    loop: dict[str, object] = {"x": np.ones(1)}
    loop["a"] = loop
    nodes = [Node((Child(1, "a"),)), Node((Child(2, "a"), Child(3, "x"))), Node((Child(0, "a"),)), leaf("x")]
    tree = walk({"a": loop})
    assert list(found(tree, match_graph(tree, nodes)).values()) == ["x"]


def test_the_first_of_equal_names_counts():
    nodes = [Node((Child(1, "a"), Child(2, "a"))), leaf("first"), leaf("second")]
    tree = walk({"a": 1})
    assert found(tree, match_graph(tree, nodes)) == {"a": "first"}


def test_a_hostile_graph_takes_no_longer_than_its_size():
    # Every container of the tree is led to one node with many children: looked at once, not a thousand times.
    many = tuple(Child(1, str(number)) for number in range(100_000))
    nodes = [Node(many), Node(many)]
    tree = walk([[[1.0] for _ in range(50)] for _ in range(50)])
    start_s = time.process_time()
    assert len(match_graph(tree, nodes).unmatched) == 2500
    assert time.process_time() - start_s < 10


def test_names_match_without_a_graph():
    optimizer = Optimizer({"beta1_power": 1.0}, {"Adam": {"net/x.y": 1.0}})
    tree = walk({"net": {"x.y": 1.0}, "opt": optimizer, "n": 1.0, "save_counter": 1})
    names = ["net/x.y", "net/x.y/Adam", "opt/beta1_power", "n/.ATTRIBUTES/VARIABLE_VALUE", "other"]
    match = match_names(tree, names, optional=("save_counter",))
    assert sorted(match.values.values()) == sorted(names[:-1])
    assert match.unmatched == ()
    assert match.unused == ("other",)
    assert match_names(tree, names).unmatched == ("save_counter",)
