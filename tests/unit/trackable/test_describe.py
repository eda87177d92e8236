"""The object graph of a tree."""

from __future__ import annotations

import numpy as np
import pytest

from ckptstore.errors import UsageError
from ckptstore.format.object_graph import Attribute, Child, Node, SlotVariable
from ckptstore.trackable.describe import describe
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.walk import walk


def value(path, full_name="Variable"):
    key = f"{path}/.ATTRIBUTES/VARIABLE_VALUE"
    return Node((), (Attribute("VARIABLE_VALUE", key, full_name),), (), True)


def test_values_are_marked_up_to_the_root_and_empty_containers_are_not():
    tree = walk({"w": np.ones(1), "nothing": {}, "l": [[1.0]]})
    assert describe(tree) == [
        Node((Child(1, "w"), Child(2, "nothing"), Child(3, "l")), (), (), True),
        value("w"),
        Node((), (), (), False),
        Node((Child(4, "0"),), (), (), True),
        Node((Child(5, "0"),), (), (), True),
        value("l/0/0"),
    ]


def test_an_optimizer_lists_its_slots():
    optimizer = Optimizer({"beta1_power": 0.9}, {"m": {"w": np.ones(1)}})
    nodes = describe(walk({"w": np.ones(1), "opt": optimizer}), {"w": "theta"})
    assert nodes[2] == Node((Child(3, "beta1_power"),), (), (SlotVariable(1, "m", 4),), True)
    assert nodes[1] == value("w", "theta")
    assert nodes[3] == value("opt/beta1_power", "beta1_power")
    assert nodes[4] == value("w/.OPTIMIZER_SLOT/opt/m", "theta/m")


def test_the_save_counter_has_its_name_as_full_name():
    nodes = describe(walk({"save_counter": np.zeros((), np.int64), "d": {"save_counter": 1}}))
    assert nodes[1] == value("save_counter", "save_counter")
    assert nodes[3] == value("d/save_counter")


def test_a_full_name_for_nothing_is_refused():
    with pytest.raises(UsageError, match="Did you mean 'net/w'"):
        describe(walk({"net": {"w": 1}}), {"net/ww": "x"})
