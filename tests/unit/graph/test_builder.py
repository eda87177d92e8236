"""Building a network: what follows from the inputs, what is refused, what comes out."""

from __future__ import annotations

import numpy as np
import pytest

from ckptstore.errors import UsageError
from ckptstore.graph import GraphBuilder, read_meta_graph, with_saver
from ckptstore.graph.graph import file_of
from ckptstore.types import DType
from tests.unit.graph.values import value_of


@pytest.fixture
def builder():
    return GraphBuilder()


def node(graph, name):
    return next(node for node in file_of(graph).message.graph_def.node if node.name == name)


def test_a_small_network(builder):
    x = builder.placeholder("x", "float32", (None, 3))
    w = builder.variable("dense/w", np.float32, (3, 2))
    b = builder.variable("dense/b", DType("float32", np.float32, 1), [2])
    product = builder.operation("MatMul", "MatMul", [x, w])
    total = builder.operation("add", "AddV2", [product, "dense/b"], device="/device:CPU:0")
    y = builder.operation("y", "Relu", ["add:0", "^MatMul"])
    builder.collection("outputs", [y.outputs[0]])
    graph = builder.build()
    assert [op.name for op in graph.get_operations()] == ["x", "dense/w", "dense/b", "MatMul", "add", "y"]
    assert [tensor.name for tensor in graph.placeholders] == ["x:0"]
    assert [(v.name, v.shape, v.trainable) for v in graph.variables] == [
        ("dense/w:0", (3, 2), True),
        ("dense/b:0", (2,), True),
    ]
    assert graph.get_tensor_by_name("x:0").shape == (None, 3)
    relu = graph.get_operation_by_name("y")
    assert [tensor.name for tensor in relu.inputs] == ["add:0"]
    assert [op.name for op in relu.control_inputs] == ["MatMul"]
    assert relu.outputs[0].dtype == "float32"
    assert graph.get_operation_by_name("add").device == "/device:CPU:0"
    assert graph.get_collection("outputs") == [relu.outputs[0]]
    assert (b.name, b.dtype, b.shape) == ("dense/b:0", "float32", (2,))
    assert (total.name, total.type, total.outputs[0].name) == ("add", "AddV2", "add:0")
    assert graph.saver_def is None


def test_the_same_description_gives_the_same_bytes_and_they_can_be_read():
    def build():
        builder = GraphBuilder()
        x = builder.placeholder("x", "half", None)
        builder.operation("c", "Cast", [x], {"DstT": "float64"})
        builder.collection("b", [1])
        builder.collection("a", [2])
        return builder.build()

    first = build()
    assert file_of(first).data == file_of(build()).data
    again = read_meta_graph(file_of(first).data, source="x")
    assert again.get_tensor_by_name("c:0").dtype == "float64"
    assert again.get_tensor_by_name("x:0").shape is None


def test_a_builder_goes_on_after_build(builder):
    builder.placeholder("a", "int32", ())
    first = builder.build()
    builder.placeholder("b", "int32", ())
    assert len(first.get_operations()) == 1
    assert len(builder.build().get_operations()) == 2


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (2.5, "float32", ()),
        ([1, 2], "int32", (2,)),
        (2**40, "int64", ()),
        (True, "bool", ()),
        (1 + 2j, "complex128", ()),
        (np.float64(2.5), "float64", ()),
        (np.array([[1, 2]], np.int64), "int64", (1, 2)),
        (np.arange(3, dtype=">i4"), "int32", (3,)),
        (["a", b"\xff", ""], "string", (3,)),
        (np.zeros((0, 3), np.uint8), "uint8", (0, 3)),
    ],
)
def test_constants(builder, value, dtype, shape):
    handle = builder.constant("c", value)
    assert (handle.dtype, handle.shape) == (dtype, shape)
    constant = builder.build().constants[0]
    assert (constant.dtype, constant.shape) == (dtype, shape)
    expected = [b"a", b"\xff", b""] if dtype == "string" else value
    assert np.array_equal(constant.value, np.asarray(expected, constant.value.dtype))


def test_a_constant_of_a_given_type(builder):
    assert builder.constant("c", [1, 2], "qint8").dtype == "qint8"
    with pytest.raises(UsageError):
        builder.constant("d", 2.5, "int32")
    with pytest.raises(UsageError):
        builder.constant("e", [[1], [1, 2]])


@pytest.mark.parametrize(
    ("op_type", "inputs", "attrs", "expected"),
    [
        ("Mul", ["f", "f"], None, {"T": "float32"}),
        ("Equal", ["i", "i"], None, {"T": "int64"}),
        ("ConcatV2", ["f", "f", "f", "axis"], None, {"N": 3, "T": "float32", "Tidx": "int32"}),
        ("IdentityN", ["f", "i"], None, {"T": ["float32", "int64"]}),
        ("Split", ["axis", "f"], {"num_split": 2}, {"T": "float32", "num_split": 2}),
        ("DynamicStitch", ["axis", "axis", "f", "f"], None, {"N": 2, "T": "float32"}),
        ("Mean", ["f", "axis"], {"keep_dims": True}, {"T": "float32", "Tidx": "int32", "keep_dims": True}),
        ("Shape", ["f"], {"out_type": np.int64}, {"T": "float32", "out_type": "int64"}),
        ("Cast", ["f"], {"DstT": np.dtype("float16")}, {"SrcT": "float32", "DstT": "float16"}),
        ("Conv2D", ["f", "f"], {"strides": [1, 1, 1, 1], "padding": "SAME"}, {"padding": b"SAME"}),
        ("LeakyRelu", ["f"], {"alpha": 1}, {"alpha": 1.0}),
        ("Squeeze", ["f"], {"squeeze_dims": []}, {"squeeze_dims": []}),
        ("PartitionedCall", ["f"], {"Tout": ["int64"], "f": "g"}, {"Tin": ["float32"], "f": "g"}),
        ("Identity", ["i"], {"_class": ["loc:@f"]}, {"_class": [b"loc:@f"]}),
        ("Assign", ["v", "f"], {"validate_shape": False}, {"T": "float32", "validate_shape": False}),
    ],
)
def test_attributes_follow_from_the_inputs(builder, op_type, inputs, attrs, expected):
    builder.placeholder("f", "float32", None)
    builder.placeholder("i", "int64", None)
    builder.variable("v", "float32", ())
    builder.constant("axis", 0)
    builder.operation("o", op_type, inputs, attrs)
    operation = builder.build().get_operation_by_name("o")
    for name, value in expected.items():
        assert operation.get_attr(name) == value


def test_outputs_of_operations(builder):
    builder.placeholder("x", "float32", None)
    split = builder.operation("split", "Split", [builder.constant("axis", 0), "x"], {"num_split": 2})
    assert [tensor.name for tensor in split.outputs] == ["split:0", "split:1"]
    builder.operation("joined", "Pack", [split.outputs[1], "split:1", split])
    assert list(node(builder.build(), "joined").input) == ["split:1", "split:1", "split"]
    assert builder.operation("nothing", "NoOp", ["^split"]).outputs == ()


def test_an_operation_that_is_not_in_the_catalogue(builder):
    builder.placeholder("x", "float32", None)
    own = builder.operation(
        "own",
        "MyOwn",
        ["x"],
        {
            "t": DType("int8", np.int8, 6),
            "s": "text",
            "shape": (2, None),
            "ints": [1, 2],
            "value": np.array([1.0]),
            "flag": True,
            "ratio": 0.5,
            "unknown": None,
        },
    )
    assert own.outputs == ()
    builder.operation("next", "Identity", ["own:3"], {"T": "int8"})
    with pytest.raises(UsageError, match="needs the attribute T"):
        builder.operation("nexter", "Identity", ["own:3"])
    graph = builder.build()
    operation = graph.get_operation_by_name("own")
    assert operation.get_attr("t") == "int8"
    assert operation.get_attr("s") == b"text"
    assert operation.get_attr("shape") == (2, None)
    assert operation.get_attr("ints") == [1, 2]
    assert operation.get_attr("value").tolist() == [1.0]
    assert operation.get_attr("flag") is True
    assert operation.get_attr("ratio") == 0.5
    assert operation.get_attr("unknown") is None
    assert graph.get_operation_by_name("next").inputs[0].name == "own:3"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a b", "NoOp", []), "legal name"),
        (("x", "NoOp", []), "already"),
        (("o", "", []), "needs a type"),
        (("o", "MatMul", ["x"]), "does not take 1 inputs"),
        (("o", "MatMul", ["x", "x", "x"]), "does not take 3 inputs"),
        (("o", "MatMul", ["x", "i"]), "wrong type in 'b'"),
        (("o", "LogicalNot", ["x"]), "expected bool, found float32"),
        (("o", "Relu", ["y"]), "does not exist"),
        (("o", "Relu", ["xx"]), "Did you mean 'x'"),
        (("o", "Relu", ["x:1"]), "does not exist"),
        (("o", "Relu", ["x:00"]), "does not exist"),
        (("o", "Relu", ["^x:0"]), "does not exist"),
        (("o", "Relu", [3]), "neither a handle nor a name"),
        (("o", "Cast", ["x"]), "needs the attribute DstT"),
        (("o", "Conv2D", ["x", "x"]), "needs attributes strides, padding"),
        (("o", "MatMul", ["x", "x"], {"transpose": True}), "no attribute 'transpose'.*transpose_a"),
        (("o", "MatMul", ["x", "x"], {"transpose_a": 1}), "'transpose_a'.*unsuitable"),
        (("o", "Cast", ["x"], {"DstT": "float33"}), "'DstT'.*unsuitable"),
        (("o", "Cast", ["x"], {"DstT": 3.5}), "'DstT'.*unsuitable"),
        (("o", "Conv2D", ["x", "x"], {"strides": 1, "padding": "SAME"}), "a list is needed"),
        (("o", "Conv2D", ["x", "x"], {"strides": [1.5], "padding": "SAME"}), "whole number"),
        (("o", "Placeholder", [], {"dtype": "int8", "shape": (-2,)}), "size of a dimension"),
        (("o", "Pack", ["x", "x"], {"N": 3}), "does not take 2 inputs"),
        (("o", "Own", [], {"a": object()}), "unknown kind"),
        (("o", "Own", [], {"a": [1, "b"]}), "mixes kinds"),
        (("o", "Own", [], {3: 1}), "without a name"),
        (("o", "If", ["x", "x"]), "needs"),
        (("o", "NoOp", [], None, "caf\udce9"), "device"),
    ],
    ids=range(28),
)
def test_what_does_not_fit_is_refused_and_nothing_is_added(builder, arguments, says):
    builder.placeholder("x", "float32", None)
    builder.placeholder("i", "int32", None)
    with pytest.raises(UsageError, match=says):
        builder.operation(*arguments)
    assert [op.name for op in builder.build().get_operations()] == ["x", "i"]


@pytest.mark.parametrize("shape", [None, (None,), (-1,), "3", (2.5,), 3])
def test_a_variable_needs_a_complete_shape(builder, shape):
    with pytest.raises(UsageError):
        builder.variable("v", "float32", shape)


def test_types_that_do_not_exist(builder):
    for dtype in ("float33", "datetime64", np.dtype("M8[s]"), object()):
        with pytest.raises(UsageError):
            builder.placeholder("x", dtype, None)


def test_collections(builder):
    x = builder.placeholder("x", "float32", None)
    step = builder.variable("step", "int64", ())
    train = builder.operation("train", "NoOp", ["^step"])
    builder.collection("handles", [x, train])
    builder.collection("names", ["x:0", "train", step])
    builder.collection("texts", ["x:1", "x:y", b"x"])
    builder.collection("ints", [1, np.int64(2), True])
    builder.collection("floats", [0.5, np.float32(2)])
    builder.collection("global_step", [step])
    builder.collection("empty", [])
    graph = builder.build()
    operation, tensor = graph.get_operation_by_name("train"), graph.get_tensor_by_name("x:0")
    assert graph.get_collection("handles") == [tensor, operation]
    assert graph.get_collection("names") == [tensor, operation, graph.get_tensor_by_name("step:0")]
    assert graph.get_collection("texts") == [b"x:1", b"x:y", b"x"]
    assert graph.get_collection("ints") == [1, 2, 1]
    assert graph.get_collection("floats") == [0.5, 2.0]
    assert [v.name for v in graph.get_collection("variables")] == ["step:0"]
    assert [v.name for v in graph.get_collection("global_step")] == ["step:0"]
    assert graph.get_collection("trainable_variables") == []  # whole numbers have no gradient
    assert "empty" not in graph.get_all_collection_keys()


def test_a_collection_that_was_set_replaces_the_automatic_one(builder):
    builder.variable("a", "float32", ())
    b = builder.variable("b", "float32", ())
    builder.variable("c", "float32", (), trainable=False)
    assert [v.name for v in builder.build().get_collection("trainable_variables")] == ["a:0", "b:0"]
    builder.collection("trainable_variables", [b])
    assert [v.name for v in builder.build().get_collection("trainable_variables")] == ["b:0"]


def test_collections_that_make_no_sense(builder):
    x = builder.placeholder("x", "float32", None)
    for name, items in (
        ("mixed", [1, "a"]),
        ("objects", [object()]),
        ("variables", [x]),
        ("variables", ["text"]),
        ("savers", ["x"]),
        ("", [1]),
    ):
        with pytest.raises(UsageError):
            builder.collection(name, items)


def test_a_variable_is_its_own_initializer_so_that_nothing_pretends_a_value(builder):
    builder.variable("w", "float32", (2,))
    (variable,) = builder.build().variables
    assert (variable.initializer_name, variable.snapshot_name) == ("w", "w:0")


def test_with_saver_adds_what_tensorflows_saver_adds(builder):
    x = builder.placeholder("x", "float32", None)
    builder.variable("w", "float32", (2,))
    builder.variable("a", "int64", ())
    builder.operation("r", "VarHandleOp", [], {"dtype": "int4", "shape": (3,), "shared_name": "r"})
    plain = builder.build()
    graph = with_saver(plain, max_to_keep=3, keep_checkpoint_every_n_hours=2.5)
    assert plain.saver_def is None
    saver_def = graph.saver_def
    assert saver_def is not None
    assert (saver_def.filename_tensor_name, saver_def.save_tensor_name, saver_def.restore_op_name) == (
        "save/Const:0",
        "save/control_dependency:0",
        "save/restore_all",
    )
    assert (saver_def.max_to_keep, saver_def.keep_checkpoint_every_n_hours, saver_def.version) == (3, 2.5, 2)
    save = graph.get_operation_by_name("save/SaveV2")
    assert value_of(save.inputs[1]) == [b"a", b"r", b"w"]
    assert [tensor.name for tensor in save.inputs[3:]] == ["a:0", "save/Read/r:0", "w:0"]
    assert save.get_attr("dtypes") == ["int64", "int4", "float32"]
    restore = graph.get_operation_by_name("save/RestoreV2")
    assert [tensor.dtype for tensor in restore.outputs] == ["int64", "int4", "float32"]
    assignments = graph.get_operation_by_name("save/restore_all").control_inputs
    assert [(op.type, op.inputs[0].name, op.inputs[1].name) for op in assignments] == [
        ("Assign", "a:0", "save/RestoreV2:0"),
        ("AssignVariableOp", "r:0", "save/RestoreV2:1"),
        ("Assign", "w:0", "save/RestoreV2:2"),
    ]
    assert graph.get_operation_by_name("save/control_dependency").control_inputs == (save,)
    assert [tensor.name for tensor in graph.placeholders] == [x.name]
    assert with_saver(graph) is graph
    assert with_saver(GraphBuilder().build()).saver_def is None


def test_with_saver_under_other_names(builder):
    builder.variable("w", "float32", (2,))
    builder.variable("save/Const", "float32", (2,))
    graph = with_saver(builder.build(), {"x/y z": "save/Const", "w": "w"}, sharded=True)
    assert graph.saver_def is not None
    assert graph.saver_def.restore_op_name == "save_1/restore_all"
    assert graph.saver_def.sharded
    save = graph.get_operation_by_name("save_1/SaveV2")
    assert value_of(save.inputs[1]) == [b"x/y z", b"w"]
    assert [tensor.name for tensor in save.inputs[3:]] == ["save/Const:0", "w:0"]
    with pytest.raises(UsageError, match="no variable 'v'"):
        with_saver(builder.build(), {"v": "v"})


def test_with_saver_saves_the_parts_of_a_partitioned_variable(fixtures_dir):
    # The graph of a partitioned variable, as TensorFlow describes it.
    from ckptstore.format.protos import message_class
    from ckptstore.graph import Graph

    meta = message_class("MetaGraphDef")()
    for part in range(2):
        variable = meta.graph_def.node.add(name=f"p/part_{part}", op="VariableV2")
        variable.attr["dtype"].type = 1
        for size in (5, 3):
            variable.attr["shape"].shape.dim.add(size=size)
        definition = message_class("VariableDef")(variable_name=f"p/part_{part}:0")
        info = definition.save_slice_info_def
        info.full_name = "p"
        info.full_shape.extend([10, 3])
        info.var_offset.extend([5 * part, 0])
        info.var_shape.extend([5, 3])
        meta.collection_def["variables"].bytes_list.value.append(definition.SerializeToString())
    save = with_saver(Graph(meta.SerializeToString())).get_operation_by_name("save/SaveV2")
    assert value_of(save.inputs[1]) == [b"p", b"p"]
    assert value_of(save.inputs[2]) == [b"10 3 0,5:0,3", b"10 3 5,5:0,3"]
