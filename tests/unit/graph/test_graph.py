"""Asking a network by name: the fixtures of TensorFlow, node by node."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ckptstore.errors import TensorNotFoundError, UsageError
from ckptstore.format.protos import message_class
from ckptstore.graph import Graph, SaverDef, read_meta_graph
from ckptstore.graph.graph import file_of

NAMES = ["ref", "res"]


@pytest.fixture(params=NAMES)
def fixture(request, fixtures_dir):
    directory = fixtures_dir / "09_with_meta"
    expected = json.loads((directory / "expected.json").read_text())["meta"][request.param]
    data = (directory / f"{request.param}.meta").read_bytes()
    return read_meta_graph(data, source=f"{request.param}.meta"), expected, request.param


@pytest.fixture
def ref(fixtures_dir):
    return read_meta_graph((fixtures_dir / "09_with_meta" / "ref.meta").read_bytes(), source="ref.meta")


@pytest.fixture
def res(fixtures_dir):
    return read_meta_graph((fixtures_dir / "09_with_meta" / "res.meta").read_bytes(), source="res.meta")


def from_text(text: str) -> Graph:
    return read_meta_graph(text.encode(), source="/m.meta")


# TensorFlow's files.


def test_every_node_has_the_expected_type_and_inputs(fixture):
    graph, expected, _ = fixture
    operations = graph.get_operations()
    assert [operation.name for operation in operations] == [name for name, _, _ in expected["nodes"]]
    for operation, (name, op_type, inputs) in zip(operations, expected["nodes"], strict=True):
        assert operation.type == op_type
        assert graph.get_operation_by_name(name) is operation
        data = [tensor.name.removesuffix(":0") for tensor in operation.inputs]
        control = [f"^{other.name}" for other in operation.control_inputs]
        assert data + control == inputs


def test_operation_types_are_those_that_the_file_lists(fixture):
    graph, expected, _ = fixture
    assert sorted({operation.type for operation in graph.get_operations()}) == expected["ops"]
    assert [op_def.name for op_def in file_of(graph).message.meta_info_def.stripped_op_list.op] == expected[
        "ops"
    ]
    assert file_of(graph).message.graph_def.versions.producer == expected["graph_producer"]
    assert file_of(graph).message.meta_info_def.tensorflow_version == expected["tensorflow_version"]


def test_every_output_has_a_type_and_the_recorded_shape(fixture):
    graph, _, _ = fixture
    for operation in graph.get_operations():
        shapes = operation.get_attr("_output_shapes") if operation.outputs else []
        assert [tensor.shape for tensor in operation.outputs] == shapes
        for index, tensor in enumerate(operation.outputs):
            assert (tensor.op, tensor.index) == (operation, index)
            assert tensor.dtype is not None
            assert graph.get_tensor_by_name(tensor.name) is tensor


def test_saver_def(fixture):
    graph, expected, _ = fixture
    assert graph.saver_def == SaverDef(**expected["saver_def"])


def test_variables_and_placeholders(fixture):
    graph, expected, name = fixture
    assert [variable.name for variable in graph.variables] == expected["variables"]
    assert [tensor.name for tensor in graph.placeholders] == ["x:0"]
    first = graph.variables[0]
    assert (first.dtype, first.shape, first.op.name) == ("float32", (3, 2), "layer/w")
    assert (first.initializer_name, first.variable_name) == ("layer/w/Assign", "layer/w:0")
    assert first.snapshot_name == ("layer/w/read:0" if name == "ref" else "layer/w/Read/ReadVariableOp:0")
    assert first.is_resource == (name == "res")
    assert [variable.trainable for variable in graph.variables[:3]] == [True, True, False]
    assert first == graph.get_tensor_by_name("layer/w:0")
    assert first.value is None


def test_collections(fixture):
    graph, expected, name = fixture
    assert graph.get_all_collection_keys() == sorted(expected["collections"])
    stored = file_of(graph).message.collection_def
    assert {key: stored[key].WhichOneof("kind") for key in stored} == expected["collections"]
    assert graph.get_collection("my_nums") == [3]
    assert graph.get_collection("my_ops") == [graph.get_tensor_by_name("y:0")]
    assert [v.name for v in graph.get_collection("variables")] == expected["variables"]
    assert [v.name for v in graph.get_collection("trainable_variables")] == ["layer/w:0", "layer/b:0"]
    assert [v.name for v in graph.get_collection("global_step")] == ["global_step:0"]
    assert graph.get_collection("nothing of that name") == []
    if name == "res":
        assert graph.get_collection("train_op") == [graph.get_operation_by_name("Adam")]


def test_tensors_of_the_small_network(ref):
    x = ref.get_tensor_by_name("x:0")
    assert (x.dtype, x.shape, x.op.type, x.value) == ("float32", (None, 3), "Placeholder", None)
    w = ref.get_tensor_by_name("layer/w:0")
    assert (w.dtype, w.shape) == ("float32", (3, 2))  # float32_ref in the file
    assert ref.get_tensor_by_name("y:0").shape == (None, 2)
    assert [t.dtype for t in ref.get_operation_by_name("save/RestoreV2").outputs] == [
        "int64",
        "float32",
        "float32",
    ]
    assert ref.get_operation_by_name("init").outputs == ()


def test_the_tensor_of_a_resource_variable_is_a_handle(res):
    handle = res.get_tensor_by_name("layer/w:0")
    assert (handle.dtype.name, handle.shape) == ("resource", ())
    assert res.get_tensor_by_name("layer/w/Read/ReadVariableOp:0").dtype == "float32"


def test_constants_have_values(ref):
    values = {tensor.name: tensor.value for tensor in ref.constants}
    assert values["Const:0"].tolist() == [0, 1]
    assert values["global_step/Initializer/zeros:0"] == 0
    assert values["global_step/Initializer/zeros:0"].dtype == np.int64
    assert values["save/filename/input:0"].item() == b"model"
    assert values["save/SaveV2/tensor_names:0"].tolist() == [b"global_step", b"layer/b", b"layer/w"]
    np.testing.assert_array_equal(
        values["layer/w/initial_value:0"],
        np.array([[6.624316, 1.7573177], [6.7096677, -14.123463], [-7.398783, -2.814268]], np.float32),
    )
    assert all(not value.flags.writeable for value in values.values())


def test_attributes_are_python_values(ref):
    multiply = ref.get_operation_by_name("MatMul")
    assert multiply.get_attr("T") == "float32"
    assert multiply.get_attr("transpose_a") is False
    assert multiply.get_attr("_output_shapes") == [(None, 2)]
    variable = ref.get_operation_by_name("layer/w")
    assert variable.get_attr("shape") == (3, 2)
    assert variable.get_attr("container") == b""
    assert ref.get_operation_by_name("layer/w/Assign").get_attr("_class") == [b"loc:@layer/w"]
    assert ref.get_operation_by_name("save/SaveV2").get_attr("dtypes") == ["int64", "float32", "float32"]
    assert ref.get_operation_by_name("Const").get_attr("value").tolist() == [0, 1]
    with pytest.raises(UsageError, match=r"no attribute 'transpose'.*transpose_a"):
        multiply.get_attr("transpose")


def test_graph_def_is_the_part_of_the_file(ref):
    graph_def = ref.as_graph_def()
    assert graph_def in file_of(ref).data
    assert message_class("GraphDef").FromString(graph_def) == file_of(ref).message.graph_def


def test_a_saved_model_shows_signatures_and_functions(fixtures_dir):
    saved_model = message_class("SavedModel").FromString(
        (fixtures_dir / "11_saved_model" / "sm" / "saved_model.pb").read_bytes()
    )
    graph = Graph(saved_model.meta_graphs[0].SerializeToString(deterministic=True), source="saved_model.pb")
    assert "serving_default" in graph.signatures
    signature = graph.signatures["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    for info in (*signature.inputs.values(), *signature.outputs.values()):
        assert graph.get_tensor_by_name(str(info.name)).dtype == info.dtype
    functions = graph.functions
    assert functions
    called = [op for op in graph.get_operations() if op.type == "StatefulPartitionedCall"]
    assert called
    for operation in called:
        function = functions[operation.get_attr("f")]
        assert [argument.dtype for argument in function.inputs] == operation.get_attr("Tin")
        assert [argument.dtype for argument in function.outputs] == operation.get_attr("Tout")
        assert function.operations


# Names that do not exist.


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("layer/w", "'layer/w:0'"),
        ("laier/w:0", "'layer/w:0'"),
        ("layer/w:1", "'layer/w:0'"),
        ("init:0", "no outputs"),
        ("x:", "number"),
        ("x:-1", "number"),
        ("x:0x1", "number"),
        ("x:²", "number"),
        ("x:99999999999999999999", "number"),
        (":0", "number"),
        ("x:0:0", ""),
        ("^x", "x"),
        ("", ""),
        ("no such thing whatsoever" * 100, ""),
    ],
)
def test_unknown_tensors(ref, name, hint):
    with pytest.raises(TensorNotFoundError) as raised:
        ref.get_tensor_by_name(name)
    assert isinstance(raised.value, KeyError)
    assert hint in str(raised.value)
    assert raised.value.url == "ref.meta"


def test_unknown_operations(ref):
    with pytest.raises(TensorNotFoundError, match="Did you mean 'MatMul'"):
        ref.get_operation_by_name("Matmul")
    with pytest.raises(TensorNotFoundError, match="get_tensor_by_name"):
        ref.get_operation_by_name("MatMul:0")
    for lookup in (ref.get_operation_by_name, ref.get_tensor_by_name):
        with pytest.raises(UsageError):
            lookup(3)


# Graphs with little said about their operations.


def test_operations_without_definition_come_from_the_catalogue():
    graph = from_text(
        "graph_def { node { name: 'a' op: 'Split' attr { key: 'num_split' value { i: 3 } }"
        " attr { key: 'T' value { type: DT_HALF } } } node { name: 'v' op: 'VariableV2'"
        " attr { key: 'dtype' value { type: DT_INT32_REF } }"
        " attr { key: 'shape' value { shape { dim { size: 2 } } } } }"
        " node { name: 's' op: 'Shape' } }"
    )
    assert [tensor.dtype for tensor in graph.get_operation_by_name("a").outputs] == ["float16"] * 3
    assert graph.get_tensor_by_name("a:2").shape is None
    assert graph.get_tensor_by_name("v:0").dtype == "int32"
    assert graph.get_tensor_by_name("v:0").shape == (2,)
    assert graph.get_tensor_by_name("s:0").dtype == "int32"  # out_type has a default
    assert graph.get_operation_by_name("s").get_attr("out_type") == "int32"


def test_operations_that_nobody_defines_have_the_outputs_that_are_used():
    graph = from_text(
        "graph_def { node { name: 'own' op: 'MyOwn' } node { name: 'shaped' op: 'MyOwn'"
        " attr { key: '_output_shapes' value { list { shape { } shape { unknown_rank: true } } } } }"
        " node { name: 'b' op: 'Identity' input: 'own:2' attr { key: 'T' value { type: DT_INT8 } } } }"
    )
    assert [tensor.name for tensor in graph.get_operation_by_name("own").outputs] == [
        "own:0",
        "own:1",
        "own:2",
    ]
    assert graph.get_tensor_by_name("own:2").dtype is None
    assert graph.get_operation_by_name("b").inputs[0].name == "own:2"
    assert [tensor.shape for tensor in graph.get_operation_by_name("shaped").outputs] == [(), None]
    with pytest.raises(TensorNotFoundError):
        graph.get_tensor_by_name("own:3")


def test_a_function_is_an_operation_of_its_graph():
    graph = from_text(
        "graph_def { node { name: 'call' op: 'f' } library { function { signature { name: 'f'"
        " output_arg { name: 'y' type: DT_INT64 } output_arg { name: 'z' type: DT_BOOL } } } } }"
    )
    assert [tensor.dtype for tensor in graph.get_operation_by_name("call").outputs] == ["int64", "bool"]


def test_every_kind_of_collection():
    variable = message_class("VariableDef")(variable_name="v:0", trainable=True)
    variable.save_slice_info_def.full_name = "whole"
    variable.save_slice_info_def.full_shape.extend([4, 2])
    variable.save_slice_info_def.var_offset.extend([2, 0])
    variable.save_slice_info_def.var_shape.extend([2, 2])
    meta = message_class("MetaGraphDef")()
    node = meta.graph_def.node.add(name="v", op="VariableV2")
    node.attr["dtype"].type = 1
    node.attr["shape"].shape.dim.add(size=2)
    collections = meta.collection_def
    collections["model_variables"].bytes_list.value.append(variable.SerializeToString())
    collections["savers"].bytes_list.value.append(
        message_class("SaverDef")(max_to_keep=3).SerializeToString()
    )
    collections["text"].bytes_list.value.extend([b"a", b"\xff"])
    collections["ints"].int64_list.value.extend([1, -2])
    collections["floats"].float_list.value.extend([1.5])
    collections["nodes"].node_list.value.extend(["v", "v:0"])
    collections["any"].any_list.value.add(type_url="t/x", value=b"1")
    collections["none"].SetInParent()
    graph = Graph(meta.SerializeToString(), source="x")
    (found,) = graph.get_collection("model_variables")
    assert (found.name, found.trainable) == ("v:0", True)
    assert found.save_slice == ("whole", (4, 2), (2, 0), (2, 2))
    assert graph.variables[0].save_slice == found.save_slice
    assert graph.get_collection("savers")[0].max_to_keep == 3
    assert graph.get_collection("text") == [b"a", b"\xff"]
    assert graph.get_collection("ints") == [1, -2]
    assert graph.get_collection("floats") == [1.5]
    assert graph.get_collection("nodes") == [
        graph.get_operation_by_name("v"),
        graph.get_tensor_by_name("v:0"),
    ]
    assert graph.get_collection("any") == [b"\x0a\x03t/x\x12\x011"]
    assert graph.get_collection("none") == []
