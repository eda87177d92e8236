"""The generated .meta. That TensorFlow restores it was tried out; here stands what it looks like."""

from __future__ import annotations

import time

import pytest

from ckptstore.errors import UsageError
from ckptstore.format import dtypes
from ckptstore.format.metagraph import serialize_meta_graph
from ckptstore.graph import meta_graph_for_arrays
from ckptstore.graph.graph import file_of
from ckptstore.graph.operation_names import is_legal_name
from tests.unit.graph.values import value_of

FLOAT = dtypes.by_name("float32")


def test_one_array_to_the_byte():
    graph = meta_graph_for_arrays([("w", FLOAT, (2, 0))], max_to_keep=4, keep_checkpoint_every_n_hours=2.0)
    graph_def = graph.as_graph_def()
    assert graph_def.startswith(
        b"\x0a\x2f" + b"\x0a\x01w" + b"\x12\x0aVariableV2"
        + b"\x2a\x0b\x0a\x05dtype\x12\x02\x30\x01"
        + b"\x2a\x11\x0a\x05shape\x12\x08\x3a\x06\x12\x02\x08\x02\x12\x00"
        + b"\x0a\x41" + b"\x0a\x13save/filename/input" + b"\x12\x05Const"
    )  # fmt: skip
    assert graph_def.endswith(b"\x22\x03\x08\xaa\x13")
    definition = b"\x12\x11\x0a\x0f\x0a\x03w:0\x12\x01w\x1a\x03w:0\x38\x01"
    assert file_of(graph).data.endswith(
        graph_def
        + b"\x1a\x44\x0a\x0csave/Const:0\x12\x19save/control_dependency:0\x1a\x10save/restore_all"
        + b"\x20\x04\x35\x00\x00\x00\x40\x38\x02"
        + b"\x22\x2a\x0a\x13trainable_variables\x12\x13" + definition
        + b"\x22\x20\x0a\x09variables\x12\x13" + definition
    )  # fmt: skip
    assert serialize_meta_graph(file_of(graph).message) == file_of(graph).data


def test_the_nodes_are_those_of_tensorflows_saver():
    graph = meta_graph_for_arrays([("b", FLOAT, (2,)), ("a/step", dtypes.by_name("int64"), ())])
    assert [(op.name, op.type, [t.name for t in op.inputs]) for op in graph.get_operations()] == [
        ("b", "VariableV2", []),
        ("a/step", "VariableV2", []),
        ("save/filename/input", "Const", []),
        ("save/filename", "PlaceholderWithDefault", ["save/filename/input:0"]),
        ("save/Const", "PlaceholderWithDefault", ["save/filename:0"]),
        ("save/SaveV2/tensor_names", "Const", []),
        ("save/SaveV2/shape_and_slices", "Const", []),
        (
            "save/SaveV2",
            "SaveV2",
            [
                "save/Const:0",
                "save/SaveV2/tensor_names:0",
                "save/SaveV2/shape_and_slices:0",
                "b:0",
                "a/step:0",
            ],
        ),
        ("save/RestoreV2/tensor_names", "Const", []),
        ("save/RestoreV2/shape_and_slices", "Const", []),
        (
            "save/RestoreV2",
            "RestoreV2",
            ["save/Const:0", "save/RestoreV2/tensor_names:0", "save/RestoreV2/shape_and_slices:0"],
        ),
        ("save/control_dependency", "Identity", ["save/Const:0"]),
        ("save/Assign", "Assign", ["b:0", "save/RestoreV2:0"]),
        ("save/Assign_1", "Assign", ["a/step:0", "save/RestoreV2:1"]),
        ("save/restore_all", "NoOp", []),
    ]
    assert value_of(graph.get_tensor_by_name("save/SaveV2/tensor_names:0")) == [b"b", b"a/step"]
    assert value_of(graph.get_tensor_by_name("save/SaveV2/shape_and_slices:0")) == [b"", b""]
    assert [v.name for v in graph.get_collection("variables")] == ["b:0", "a/step:0"]
    assert [v.name for v in graph.get_collection("trainable_variables")] == ["b:0"]
    assert graph.placeholders == []
    assert graph.saver_def is not None
    assert graph.saver_def.max_to_keep == 5
    assert graph.get_tensor_by_name("b:0").shape == (2,)


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
def test_every_type_is_a_variable_that_tensorflow_can_assign_or_left_out(dtype):
    graph = meta_graph_for_arrays([("x", dtype, (2,)), ("w", FLOAT, ())])
    assert serialize_meta_graph(file_of(graph).message) == file_of(graph).data
    ops = {variable.op.name: variable for variable in graph.variables}
    if dtype.name in ("qint16", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"):
        assert set(ops) == {"w"}
        assert value_of(graph.get_tensor_by_name("save/SaveV2/tensor_names:0")) == [b"w"]
        return
    resource = dtype.name in (
        "float8_e5m2",
        "float8_e4m3fn",
        "int4",
        "uint4",
        "int2",
        "uint2",
        "float4_e2m1fn",
    )
    assert ops["x"].is_resource == resource
    assert ops["x"].dtype == dtype
    assert ops["x"].snapshot_name == ("x/Read/ReadVariableOp:0" if resource else "x:0")
    assert graph.get_tensor_by_name(ops["x"].snapshot_name).dtype == dtype
    assert graph.get_operation_by_name("save/Assign").type == ("AssignVariableOp" if resource else "Assign")
    if resource:
        assert ops["x"].op.get_attr("shared_name") == b"x"


def test_keys_that_are_no_names_keep_their_key_in_the_checkpoint():
    keys = ["a b", "a_b", "_CHECKPOINTABLE", "w:0", "é", "save/Const", "x>"]
    graph = meta_graph_for_arrays([(key, FLOAT, ()) for key in keys])
    names = [variable.op.name for variable in graph.variables]
    assert names == ["a_b_1", "a_b", "v_CHECKPOINTABLE", "w_0", "v_", "save/Const", "x_"]
    assert all(map(is_legal_name, names))
    assert graph.saver_def is not None
    scope = graph.saver_def.restore_op_name.rpartition("/")[0]
    assert scope == "save_1"
    stored = value_of(graph.get_tensor_by_name("save_1/RestoreV2/tensor_names:0"))
    assert [key.decode() for key in stored] == keys


def test_the_value_of_a_resource_variable_gets_a_name_that_nobody_has():
    int4 = dtypes.by_name("int4")
    graph = meta_graph_for_arrays([("q", int4, ()), ("q/Read/ReadVariableOp", FLOAT, ())])
    assert graph.variables[0].snapshot_name == "q/Read/ReadVariableOp_1:0"


def test_without_arrays_there_is_no_saver():
    for specs in ([], [("q", dtypes.by_name("qint16"), ())]):
        graph = meta_graph_for_arrays(specs)
        assert graph.saver_def is None
        assert graph.get_operations() == []
        assert serialize_meta_graph(file_of(graph).message) == file_of(graph).data


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="UTF-8"):
        meta_graph_for_arrays([("caf\udce9", FLOAT, ())])


def test_many_arrays_take_linear_time():
    def seconds(count):
        specs = [(f"layer_{number // 10}/w_{number % 10}", FLOAT, (3, number % 7)) for number in range(count)]
        start = time.process_time()
        graph = meta_graph_for_arrays(specs)
        elapsed = time.process_time() - start
        assert len(file_of(graph).data) > 250 * count
        return elapsed

    seconds(10)
    # 100 000 take 0.6 s on two cores; the limit catches a square, not a slow machine.
    assert seconds(30_000) < 10
