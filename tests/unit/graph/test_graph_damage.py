"""Graphs that lie or are damaged: typed errors, found when asked about; and very large ones."""

from __future__ import annotations

import contextlib
import random
import time

import pytest

from ckptstore.errors import CkptStoreError, FormatError, TensorNotFoundError, UnsupportedError
from ckptstore.format.protos import message_class
from ckptstore.graph import Graph, read_meta_graph


def from_text(text: str) -> Graph:
    return read_meta_graph(text.encode(), source="/m.meta")


@pytest.mark.parametrize(
    ("text", "ask", "error"),
    [
        ("graph_def { node { name: 'a' } node { name: 'a' } }", lambda g: g.get_operations(), FormatError),
        (
            "graph_def { node { name: 'a' input: 'b' } }",
            lambda g: g.get_operation_by_name("a").inputs,
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' input: '^b' } }",
            lambda g: g.get_operation_by_name("a").control_inputs,
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' op: 'NoOp' } node { name: 'b' input: 'a' } }",
            lambda g: g.get_operation_by_name("b").inputs,
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' op: 'NoOp' } node { name: 'b' input: 'a:x' } }",
            lambda g: g.get_operation_by_name("b").inputs,
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' op: 'Split'"
            " attr { key: 'num_split' value { i: 1152921504606846976 } } } }",
            lambda g: g.get_tensor_by_name("a:0"),
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' op: 'Split' attr { key: 'num_split' value { i: -1 } } } }",
            lambda g: g.get_tensor_by_name("a:0"),
            FormatError,
        ),
        (
            "graph_def { node { name: 'a' op: 'Identity' attr { key: 'T' value { type: 99 } } } }",
            lambda g: g.get_tensor_by_name("a:0"),
            FormatError,
        ),
        (
            "collection_def { key: 'c' value { node_list { value: 'nope:0' } } }",
            lambda g: g.get_collection("c"),
            FormatError,
        ),
        (
            "collection_def { key: 'variables' value { bytes_list { value: '\\377' } } }",
            lambda g: g.get_collection("variables"),
            FormatError,
        ),
        (
            "graph_def { node { name: 'v' op: 'VariableV2' } }"
            " collection_def { key: 'variables' value { bytes_list { value: '\\377' } } }",
            lambda g: g.variables,
            FormatError,
        ),
        (
            "signature_def { key: 's' value { inputs { key: 'x' value { dtype: 99 } } } }",
            lambda g: g.signatures,
            FormatError,
        ),
        (
            "graph_def { node { name: 'c' op: 'Const' attr { key: 'value' value { tensor { dtype: DT_FLOAT"
            " tensor_shape { dim { size: 1099511627776 } } float_val: 1 float_val: 2 } } } } }",
            lambda g: g.constants[0].value,
            UnsupportedError,
        ),
        (
            "graph_def { node { name: 'c' op: 'Const' attr { key: 'value' value { tensor { dtype: DT_FLOAT"
            " tensor_shape { dim { size: 2 } } tensor_content: 'abc' } } } } }",
            lambda g: g.constants[0].value,
            FormatError,
        ),
    ],
    ids=range(14),
)
def test_a_lie_is_found_when_it_is_asked_about(text, ask, error):
    graph = from_text(text)
    with pytest.raises(error) as raised:
        ask(graph)
    assert raised.value.url == "/m.meta"


def test_a_huge_constant_of_one_value_is_a_view():
    graph = from_text(
        "graph_def { node { name: 'c' op: 'Const' attr { key: 'value' value { tensor { dtype: DT_FLOAT"
        " tensor_shape { dim { size: 1099511627776 } } float_val: 1 } } } } }"
    )
    assert graph.get_tensor_by_name("c:0").shape == (2**40,)
    value = graph.constants[0].value
    assert value is not None
    assert value[2**39] == 1


def test_a_variable_without_type_or_shape_can_be_listed():
    (variable,) = from_text("graph_def { node { name: 'v' op: 'VarHandleOp' } }").variables
    assert (variable.name, variable.dtype, variable.shape) == ("v:0", None, None)
    assert variable.initializer_name == ""
    assert variable.save_slice is None
    assert not variable.trainable


def ask_everything(graph):
    def attempt(question):
        try:
            return question()
        except CkptStoreError:
            return ()

    for operation in attempt(graph.get_operations):
        attempt(lambda op=operation: (op.inputs, op.control_inputs))
        for tensor in attempt(lambda op=operation: op.outputs):
            attempt(lambda t=tensor: (repr(t), t.value))
        attempt(lambda op=operation: [op.get_attr(name) for name in ("T", "dtype", "value", "_class")])
    for key in graph.get_all_collection_keys():
        attempt(lambda k=key: graph.get_collection(k))
    for question in (
        lambda: graph.placeholders,
        lambda: [(v.dtype, v.trainable, v.save_slice) for v in graph.variables],
        lambda: [tensor.value for tensor in graph.constants],
        lambda: (graph.signatures, graph.functions, graph.saver_def, graph.as_graph_def()),
    ):
        attempt(question)


def test_damaged_files_give_typed_errors_only(fixtures_dir):
    whole = (fixtures_dir / "09_with_meta" / "ref.meta").read_bytes()
    choose = random.Random(20)
    answered = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(choose.choice([1, 1, 3])):
            damaged[choose.randrange(len(damaged))] = choose.choice(
                [0, 1, 127, 128, 255, choose.randrange(256)]
            )
        try:
            ask_everything(read_meta_graph(bytes(damaged), source="/m.meta"))
            answered += 1
        except FormatError:
            pass
    assert answered > 50
    for size in range(0, len(whole), 211):
        with contextlib.suppress(FormatError):
            ask_everything(read_meta_graph(whole[:size], source="/m.meta"))


def test_many_nodes_are_indexed_in_linear_time():
    meta = message_class("MetaGraphDef")()
    for number in range(50_000):
        meta.graph_def.node.add(name=f"scope_{number % 100}/node_{number}", op="NoOp")
    graph = Graph(meta.SerializeToString(), source="x")
    start = time.process_time()
    assert graph.get_operation_by_name("scope_99/node_49999").type == "NoOp"
    assert len(graph.get_operations()) == 50_000
    with pytest.raises(TensorNotFoundError, match="scope_7/node_"):
        graph.get_tensor_by_name("scope_7/node_77:0")
    # A hundred times of what it takes: catches a square, not a slow machine.
    assert time.process_time() - start < 20
