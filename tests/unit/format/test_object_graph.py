"""The object graph: byte identity with TensorFlow's, keys, and files that lie."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError, UsageError
from ckptstore.format.object_graph import (
    OBJECT_GRAPH_KEY,
    VARIABLE_VALUE,
    Attribute,
    Child,
    Node,
    SlotVariable,
    checkpoint_key,
    decode,
    encode,
    escape,
    local_names,
    mark_checkpoint_values,
    object_path,
    parent_edges,
    slot_path,
    unescape,
)

CASES = [
    ("04_object_based", "obj"),
    ("04_object_based", "root"),
    ("04_object_based", "slots"),
    ("04_object_based", "maxshard"),
    ("10_checkpoint_record", "manager/ck-4"),
    ("10_checkpoint_record", "manager/ck-5"),
    ("11_saved_model", "sm/variables/variables"),
]


def load(fixtures_dir, directory, prefix):
    expected = json.loads((fixtures_dir / directory / "expected.json").read_text())
    checkpoint = next(entry for entry in expected["checkpoints"] if entry["prefix"] == prefix)
    data = base64.b64decode(checkpoint["tensors"][OBJECT_GRAPH_KEY]["strings_b64"][0])
    return data, set(checkpoint["tensors"])


@pytest.mark.parametrize(("directory", "prefix"), CASES)
def test_graphs_of_tensorflow_come_back_to_the_byte(fixtures_dir, directory, prefix):
    data, _ = load(fixtures_dir, directory, prefix)
    assert encode(decode(data, source="x")) == data


@pytest.mark.parametrize(("directory", "prefix"), CASES)
def test_has_checkpoint_values_is_marked_as_tensorflow_does(fixtures_dir, directory, prefix):
    nodes = decode(load(fixtures_dir, directory, prefix)[0], source="x")
    unmarked = [dataclasses.replace(node, has_checkpoint_values=None) for node in nodes]
    assert mark_checkpoint_values(unmarked) == nodes


@pytest.mark.parametrize(("directory", "prefix"), CASES)
def test_keys_follow_from_paths(fixtures_dir, directory, prefix):
    data, names = load(fixtures_dir, directory, prefix)
    nodes = decode(data, source="x")
    edges = parent_edges(nodes)
    paths = {}
    for node_id, node in enumerate(nodes):
        if node_id == 0 or edges[node_id] is not None:
            paths[node_id] = object_path(local_names(edges, node_id))
        for slot in node.slot_variables:
            paths[slot.slot_id] = slot_path(
                object_path(local_names(edges, slot.variable_id)), paths[node_id], slot.slot_name
            )
    for node_id, node in enumerate(nodes):
        for attribute in node.attributes:
            assert attribute.checkpoint_key == checkpoint_key(paths[node_id], attribute.name)
            assert attribute.checkpoint_key in names


def test_paths_of_the_fixture_with_slots(fixtures_dir):
    data, names = load(fixtures_dir, "04_object_based", "slots")
    nodes = decode(data, source="x")
    slots = [(slot.slot_name, nodes[slot.slot_id]) for node in nodes for slot in node.slot_variables]
    assert [name for name, _ in slots] == ["m", "v"]
    for name, node in slots:
        assert (
            f"/.OPTIMIZER_SLOT/optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE"
            in node.attributes[0].checkpoint_key
        )
        assert node.attributes[0].checkpoint_key in names


def test_a_small_graph_is_encoded_as_tensorflow_does():
    nodes = [
        Node((Child(1, "v"), Child(2, "empty"))),
        Node((), (Attribute(VARIABLE_VALUE, "v/.ATTRIBUTES/VARIABLE_VALUE", "Variable"),)),
        Node(),
    ]
    value = b"VARIABLE_VALUE"
    key = b"v/.ATTRIBUTES/VARIABLE_VALUE"
    attribute = b"\x0a\x0e" + value + b"\x12\x08Variable" + b"\x1a\x1c" + key
    assert encode(mark_checkpoint_values(nodes)) == (
        b"\x0a\x16" + b"\x0a\x05\x08\x01\x12\x01v" + b"\x0a\x09\x08\x02\x12\x05empty" + b"\x2a\x02\x08\x01"
        + b"\x0a\x3e" + b"\x12\x38" + attribute + b"\x2a\x02\x08\x01"
        + b"\x0a\x02\x2a\x00"  # False is an empty message, not nothing
    )  # fmt: skip


@pytest.mark.parametrize(
    ("local_name", "part"), [("x.y", "x..y"), ("k/1", "k.S1"), ("a/b", "a.Sb"), (".S", "..S"), ("", "")]
)
def test_escape(local_name, part):
    assert escape(local_name) == part
    assert unescape(part) == local_name


@given(st.text())
def test_unescape_reverses_escape(name):
    assert "/" not in escape(name)
    assert unescape(escape(name)) == name


@pytest.mark.parametrize("part", [".ATTRIBUTES", "a/b", "a.", "...", ".s"])
def test_unescape_refuses_what_escape_never_returns(part):
    with pytest.raises(UsageError):
        unescape(part)


def test_keys():
    assert checkpoint_key(object_path(["d", "k/1"])) == "d/k.S1/.ATTRIBUTES/VARIABLE_VALUE"
    assert slot_path("model/w", "opt", "m/1") == "model/w/.OPTIMIZER_SLOT/opt/m.S1"


def test_the_shortest_way_counts_and_of_equal_ones_the_first():
    nodes = [
        Node((Child(1, "deep"), Child(2, "b"), Child(2, "again"), Child(0, "root"))),
        Node((Child(2, "inner"), Child(3, "leaf"))),
        Node(),
        Node(),
        Node(),
    ]
    edges = parent_edges(nodes)
    assert [local_names(edges, node_id) for node_id in range(5)] == [
        [],
        ["deep"],
        ["b"],
        ["deep", "leaf"],
        [],
    ]
    assert edges[0] is None
    assert edges[4] is None


def test_values_are_marked_up_to_the_root_and_around_cycles():
    leaf = Node((), (Attribute(VARIABLE_VALUE, "k"),))
    nodes = [Node((Child(1, "a"), Child(3, "c"))), Node((Child(2, "b"), Child(0, "up"))), leaf, Node()]
    assert [node.has_checkpoint_values for node in mark_checkpoint_values(nodes)] == [True, True, True, False]
    slots = [Node((Child(1, "opt"),)), Node((), (), (SlotVariable(0, "m", 2),)), Node()]
    assert [node.has_checkpoint_values for node in mark_checkpoint_values(slots)] == [True, True, False]


def test_everything_a_node_can_have_survives():
    nodes = [
        Node((Child(1, "é"),), (), (SlotVariable(1, "m", 1),), None, ("saver", "object")),
        Node((), (Attribute("A", "k", ""),), (), False),
    ]
    assert decode(encode(nodes), source="x") == nodes


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x04\x0a\x02\x08\x01",  # a child that is not there
        b"\x0a\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a negative one
        b"\x0a\x04\x1a\x02\x18\x07",  # a slot variable that is not there
        b"\x0a\x05",  # cut
        b"\xff",
        b"\x0a\x06\x0a\x04\x12\x02\xff\xff",  # a name that is not UTF-8
    ],
)
def test_a_lying_graph_is_a_format_error(data):
    with pytest.raises(FormatError, match="object graph") as raised:
        decode(data, source="/c/m.index")
    assert raised.value.url == "/c/m.index"


def test_a_long_chain_takes_linear_space():
    count = 20_000
    nodes = [Node((Child(node_id + 1, "next"),)) for node_id in range(count)] + [Node()]
    edges = parent_edges(decode(encode(nodes), source="x"))
    assert len(local_names(edges, count)) == count


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="UTF-8"):
        encode([Node((Child(0, "caf\udce9"),))])
