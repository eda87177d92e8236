"""Any bytes as an object graph: a typed error or a partial restore, never a hang or a full stack."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from ckptstore.bundle.write.plan import plan_save
from ckptstore.errors import FormatError, UsageError
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY, Attribute, Child, Node, encode
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint import Checkpoint
from tests.unit.directory.helpers import write_checkpoint


@pytest.fixture
def url():
    return f"memory://test_hostile_graphs/{uuid.uuid4().hex}"


def write_files(url, tensors):
    location = locate(url)
    write_checkpoint(location.parent, location.name, plan_save(tensors))


def write_graph(url, nodes, **tensors):
    graph = nodes if isinstance(nodes, bytes) else encode(nodes)
    write_files(url, {**tensors, OBJECT_GRAPH_KEY: graph})


def leaf(key, name="VARIABLE_VALUE"):
    return Node((), (Attribute(name, key),))


@pytest.mark.parametrize(
    "graph",
    [
        b"\xff\xff",
        b"\x0a\x05ab",
        b"\x0a\x04\x0a\x02\x08\x05",  # a child that is node 5
        b"\x0a\x0d\x0a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # node -1
        b"\x0a\x04\x0a\x02\x12\xff",  # a name that is not UTF-8
    ],
)
def test_a_malformed_graph_is_a_format_error(url, graph):
    write_graph(url, graph, w=np.ones(1))
    with pytest.raises(FormatError) as info:
        Checkpoint(w=np.zeros(1)).read(url)
    assert info.value.tensor == OBJECT_GRAPH_KEY


def test_a_graph_that_is_no_string_is_a_format_error(url):
    for graph in (np.ones(1), np.array([b"", b""], object)):
        write_files(url, {OBJECT_GRAPH_KEY: graph})
        with pytest.raises(FormatError, match="not stored as one string"):
            Checkpoint(w=np.zeros(1)).read(url)


def test_a_graph_may_name_what_the_index_does_not_have(url):
    for key in ("gone", "", "\0slice", "é"):
        write_graph(url, [Node((Child(1, "w"),)), leaf(key)], w=np.ones(1))
        for tree in ({"w": np.zeros(1)}, {"w": 5.0}):
            with pytest.raises(FormatError, match="names a tensor that the index does not have"):
                Checkpoint(**tree).read(url)


def test_an_empty_graph_holds_nothing(url):
    write_graph(url, b"", w=np.ones(1))
    status = Checkpoint(w=np.zeros(1)).read(url).expect_partial()
    assert status.unmatched == ("w",)


def test_a_long_chain_and_a_cycle_need_no_stack(url):
    count = 20_000
    nodes = [Node((Child(number + 1, "a"), Child(0, "up"))) for number in range(count)]
    write_graph(url, [*nodes, leaf("w")], w=np.ones(1))
    loop: dict[str, object] = {"w": np.zeros(1)}
    loop["a"] = loop
    loop["up"] = loop
    status = Checkpoint(a=loop).read(url).expect_partial()
    assert status.unused == ("w",)


def test_many_children_under_few_names(url):
    graph = encode([Node(tuple(Child(1, "w") for _ in range(100_000))), leaf("w")])
    write_graph(url, graph, w=np.ones(1))
    array = np.zeros(1)
    Checkpoint(w=array).read(url).assert_consumed()
    assert array == 1


def test_a_strange_tensor_where_a_number_is_wanted_is_refused_by_its_index_entry(url):
    write_graph(url, [Node((Child(1, "w"),)), leaf("w")], w=np.zeros((1000, 1000)))
    with pytest.raises(UsageError, match=r"expected float64 \[1000, 1000\]"):
        Checkpoint(w=5.0).read(url)
