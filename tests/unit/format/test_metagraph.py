"""The .meta file: reading both forms, renaming, and SaverDef."""

from __future__ import annotations

import types

import pytest

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.coding import encode_bytes_field
from ckptstore.format.metagraph import (
    SaverDef,
    clear_devices,
    decode_saver_def,
    encode_saver_def,
    format_meta_graph_text,
    iter_nodes,
    parse_meta_graph,
    serialize_meta_graph,
)
from ckptstore.format.metagraph_scope import add_scope, export_out_of_scope, operation_name
from ckptstore.format.protos import message_class

META = [
    "09_with_meta/ref.meta",
    "09_with_meta/res.meta",
    "10_checkpoint_record/saver/model.ckpt-00000379.meta",
]


def parse(text: str):
    return parse_meta_graph(text.encode(), source="/m.meta")[0]


@pytest.mark.parametrize("path", META)
def test_binary_and_text_say_the_same(fixtures_dir, path):
    data = (fixtures_dir / path).read_bytes()
    meta, is_text = parse_meta_graph(data, source=path)
    assert not is_text
    assert serialize_meta_graph(meta) == data
    again, is_text = parse_meta_graph(format_meta_graph_text(meta), source=path)
    assert is_text
    assert serialize_meta_graph(again) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00garbage", "not binary protobuf, and not text"),
        (b"hello { world", "as text"),
        (b"graph_def { node { name: 'a' } ", "as text"),
        (b"graph_def { nodes { } }", "as text"),
        (b"meta_info_def { any_info { [type.googleapis.com/tensorflow.Nope] { } } }", "as text"),
        (b"graph_def { node { attr { key: 'a' value { f: 1e } } } }", "as text"),
        (b"\x12\x05\x0a\x03\x0a\x01\xff", "not binary"),
    ],
    ids=range(8),
)
def test_what_is_no_meta_graph_is_a_format_error(data, says):
    with pytest.raises(FormatError, match=says) as raised:
        parse_meta_graph(data, source="/m.meta")
    assert raised.value.url == "/m.meta"


def test_endless_nesting_is_a_format_error():
    with pytest.raises(FormatError):
        parse("graph_def { node { experimental_type { " + "args { " * 5000)
    nested = b""
    for _ in range(150):
        nested = encode_bytes_field(2, nested)  # FullTypeDef.args, deeper than protobuf goes
    for field_number in (7, 1, 2):  # NodeDef.experimental_type, GraphDef.node, MetaGraphDef.graph_def
        nested = encode_bytes_field(field_number, nested)
    with pytest.raises(FormatError):
        parse_meta_graph(nested, source="x")


def test_unknown_fields_cannot_become_text():
    meta, _ = parse_meta_graph(b"\x1a\x02\x20\x05" + b"\xfa\x07\x01x", source="x")
    assert serialize_meta_graph(meta) == b"\x1a\x02\x20\x05\xfa\x07\x01x"
    with pytest.raises(UnsupportedError, match="text form"):
        format_meta_graph_text(meta)


def test_saver_def_round_trip():
    saver_def = SaverDef("a/Const:0", "a/c:0", "a/restore_all", 7, True, 2.5, 2)
    assert decode_saver_def(encode_saver_def(saver_def)) == saver_def
    assert SaverDef.coerce(saver_def) is saver_def
    assert SaverDef.coerce(encode_saver_def(saver_def)) == saver_def
    assert saver_def.without_scope("a") == SaverDef("Const:0", "c:0", "restore_all", 7, True, 2.5, 2)
    assert saver_def.without_scope("a/") == saver_def.without_scope("a")
    assert saver_def.without_scope("b") is None
    for value in (5, None, types.SimpleNamespace(max_to_keep=1)):
        with pytest.raises(UsageError, match="saver_def must be a SaverDef"):
            SaverDef.coerce(value)
    with pytest.raises(UsageError, match="settings"):
        encode_saver_def(SaverDef(max_to_keep=2**40))


def test_clear_devices_reaches_into_functions():
    meta = parse(
        "graph_def { node { name: 'a' device: '/cpu:0' }"
        " library { function { node_def { name: 'b' device: '/gpu:0' } } } }"
    )
    clear_devices(meta)
    assert [(node.name, node.device) for node in iter_nodes(meta)] == [("a", ""), ("b", "")]


CONTROL_FLOW = """
graph_def {
  node { name: "i" op: "Const" }
  node { name: "wl/Enter" op: "Enter" input: "i" attr { key: "frame_name" value { s: "wl/while_context" } } }
  node { name: "wl/Switch" op: "Switch" input: "wl/Enter:1" input: "^i"
         attr { key: "_class" value { list { s: "loc:@wl/Enter" s: "other" } } } }
  node { name: "v" op: "VarHandleOp" attr { key: "shared_name" value { s: "v" } } device: "/cpu:0" }
  library { function { signature { name: "f" } node_def { name: "inner" input: "x" } } }
}
collection_def { key: "ops" value { node_list { value: "v" value: "wl/Enter:0" } } }
collection_def { key: "texts" value { bytes_list { value: "free text" value: "^i" value: "\\377" } } }
collection_def { key: "floats" value { float_list { value: 2.5 } } }
signature_def { key: "s" value {
  inputs { key: "x" value { name: "i:0" } }
  outputs { key: "y" value { coo_sparse { values_tensor_name: "i:0" indices_tensor_name: "v:0" } } } } }
saver_def { filename_tensor_name: "save/Const:0" save_tensor_name: "save/c:0" restore_op_name: "save/r" }
asset_file_def { tensor_info { name: "i:0" } filename: "f" }
"""


def with_contexts():
    meta = parse(CONTROL_FLOW)
    context = message_class("WhileContextDef")(
        context_name="wl/while_context", pivot_name="wl/Switch:0", loop_exit_names=["wl/Exit:0"]
    )
    context.values_def.values.append("i:0")
    context.values_def.external_values["wl/Enter:0"] = "i:0"
    context.nested_contexts.add().cond_ctxt.pred_name = "i:0"
    variable = message_class("VariableDef")(variable_name="v:0", initializer_name="v/Assign")
    variable.save_slice_info_def.full_name = "whole"
    queue = message_class("QueueRunnerDef")(queue_name="i", enqueue_op_name=["v"])
    for key, message in (("while_context", context), ("variables", variable), ("queue_runners", queue)):
        meta.collection_def[key].bytes_list.value.append(message.SerializeToString())
    return meta


def entry(meta, key, name):
    return message_class(name).FromString(meta.collection_def[key].bytes_list.value[0])


def test_a_scope_is_put_before_everything_that_tensorflow_renames():
    meta = with_contexts()
    add_scope(meta, "a/b", source="x")
    nodes = {node.name: node for node in meta.graph_def.node}
    assert list(nodes) == ["a/b/i", "a/b/wl/Enter", "a/b/wl/Switch", "a/b/v"]
    assert list(nodes["a/b/wl/Switch"].input) == ["a/b/wl/Enter:1", "^a/b/i"]
    assert list(nodes["a/b/wl/Switch"].attr["_class"].list.s) == [b"loc:@a/b/wl/Enter", b"other"]
    assert nodes["a/b/wl/Enter"].attr["frame_name"].s == b"a/b/wl/while_context"
    assert nodes["a/b/v"].attr["shared_name"].s == b"v"
    assert nodes["a/b/v"].device == "/cpu:0"
    assert meta.graph_def.library.function[0].node_def[0].name == "inner"
    assert list(meta.collection_def["ops"].node_list.value) == ["a/b/v", "a/b/wl/Enter:0"]
    assert list(meta.collection_def["texts"].bytes_list.value) == [b"a/b/free text", b"^a/b/i", b"\xff"]
    assert list(meta.collection_def["floats"].float_list.value) == [2.5]
    assert meta.saver_def.filename_tensor_name == "a/b/save/Const:0"
    assert meta.saver_def.save_tensor_name == "a/b/save/c:0"
    assert meta.saver_def.restore_op_name == "a/b/save/r"
    assert meta.signature_def["s"].inputs["x"].name == "a/b/i:0"
    assert meta.signature_def["s"].outputs["y"].coo_sparse.indices_tensor_name == "a/b/v:0"
    assert meta.signature_def["s"].outputs["y"].coo_sparse.dense_shape_tensor_name == ""
    assert meta.asset_file_def[0].tensor_info.name == "a/b/i:0"
    context = entry(meta, "while_context", "WhileContextDef")
    assert (context.context_name, context.pivot_name) == ("a/b/wl/while_context", "a/b/wl/Switch:0")
    assert list(context.loop_exit_names) == ["a/b/wl/Exit:0"]
    assert dict(context.values_def.external_values) == {"a/b/wl/Enter:0": "a/b/i:0"}
    assert context.nested_contexts[0].cond_ctxt.pred_name == "a/b/i:0"
    assert context.maximum_iterations_name == ""
    variable = entry(meta, "variables", "VariableDef")
    assert variable.variable_name == "a/b/v:0"
    assert variable.initial_value_name == ""
    assert variable.save_slice_info_def.full_name == "a/b/whole"
    queue = entry(meta, "queue_runners", "QueueRunnerDef")
    assert (queue.queue_name, list(queue.enqueue_op_name)) == ("a/b/i", ["a/b/v"])


def test_exporting_the_scope_is_the_way_back():
    meta = with_contexts()
    before = serialize_meta_graph(meta)
    del meta.collection_def["texts"]
    without_text = serialize_meta_graph(meta)
    meta = with_contexts()
    add_scope(meta, "a/b", source="x")
    export_out_of_scope(meta, "a/b", source="x")
    assert meta.collection_def["texts"].bytes_list.value[0] == b"a/b/free text"
    del meta.collection_def["texts"]
    assert serialize_meta_graph(meta) == without_text != before


def test_what_lies_outside_an_exported_scope_is_dropped_or_marked():
    meta = with_contexts()
    export_out_of_scope(meta, "wl", source="x")
    nodes = {node.name: node for node in meta.graph_def.node}
    assert list(nodes) == ["Enter", "Switch"]
    assert list(nodes["Enter"].input) == ["$unbound_inputs_i"]
    assert list(nodes["Switch"].input) == ["Enter:1", "^$unbound_inputs_i"]
    assert list(nodes["Switch"].attr["_class"].list.s) == [b"loc:@Enter", b"other"]
    assert nodes["Enter"].attr["frame_name"].s == b"while_context"
    assert list(meta.collection_def["ops"].node_list.value) == ["Enter:0"]
    assert list(meta.collection_def["unbound_inputs"].bytes_list.value) == [
        b"$unbound_inputs_i",
        b"^$unbound_inputs_i",
    ]
    assert "variables" not in meta.collection_def
    assert not meta.signature_def
    assert not meta.HasField("saver_def")
    assert entry(meta, "while_context", "WhileContextDef").context_name == "while_context"


def test_a_damaged_collection_is_a_format_error():
    meta = parse('collection_def { key: "variables" value { bytes_list { value: "\\377" } } }')
    with pytest.raises(FormatError, match="VariableDef"):
        add_scope(meta, "a", source="/m.meta")


def test_operation_name():
    assert [operation_name(name) for name in ("a", "a:1", "^a", "loc:@a/b")] == ["a", "a", "a", "a/b"]
