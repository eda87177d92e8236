"""Graphs in and out: identical bytes, scopes, devices, savers, defaults, text."""

from __future__ import annotations

import dataclasses

import pytest

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.metagraph import serialize_meta_graph
from ckptstore.format.protos import message_class
from ckptstore.graph import (
    GraphBuilder,
    export_meta_graph_bytes,
    meta_graph_for_arrays,
    read_meta_graph,
    with_saver,
)
from ckptstore.graph.graph import file_of

META = [
    "09_with_meta/ref.meta",
    "09_with_meta/res.meta",
    "10_checkpoint_record/saver/model.ckpt-00000268.meta",
]


@pytest.fixture(params=META)
def data(request, fixtures_dir):
    return (fixtures_dir / request.param).read_bytes()


@pytest.fixture
def ref(fixtures_dir):
    return (fixtures_dir / "09_with_meta" / "ref.meta").read_bytes()


def read(data, **options):
    return read_meta_graph(data, source="/m.meta", **options)


def test_an_unchanged_graph_gives_identical_bytes(data):
    graph = read(data)
    assert export_meta_graph_bytes(graph) == data
    assert export_meta_graph_bytes(graph, saver_def=graph.saver_def) == data
    assert export_meta_graph_bytes(graph, collection_list=graph.get_all_collection_keys()) == data


def test_unknown_fields_and_unusual_order_survive_an_unchanged_round_trip():
    odd = b"\x1a\x02\x20\x05" + b"\xfa\x07\x01x" + b"\x12\x07\x0a\x05\x12\x00\x0a\x01a" + b"\x0a\x00"
    graph = read(odd)
    assert export_meta_graph_bytes(graph) == odd
    assert graph.get_operation_by_name("a").type == ""


def test_unknown_fields_survive_a_change(ref):
    changed = export_meta_graph_bytes(read(ref + b"\xfa\x07\x03new"), collection_list=["my_nums"])
    assert changed.endswith(b"\xfa\x07\x03new")
    assert read(changed).get_all_collection_keys() == ["my_nums"]
    assert changed == export_meta_graph_bytes(read(ref + b"\xfa\x07\x03new"), collection_list=["my_nums"])


def test_text_out_and_in(data):
    graph = read(data)
    text = export_meta_graph_bytes(graph, as_text=True)
    assert text.startswith(b"meta_info_def {")
    again = read(text)
    assert file_of(again).is_text
    assert export_meta_graph_bytes(again, as_text=True) == text
    assert export_meta_graph_bytes(again) == data
    # A comment shows that text, too, comes back as it was.
    assert export_meta_graph_bytes(read(b"# hello\n" + text), as_text=True) == b"# hello\n" + text


def test_a_new_saver_def_is_written(ref):
    graph = read(ref)
    assert graph.saver_def is not None
    wanted = dataclasses.replace(graph.saver_def, max_to_keep=2, keep_checkpoint_every_n_hours=1.5)
    again = read(export_meta_graph_bytes(graph, saver_def=wanted))
    assert again.saver_def == wanted
    assert graph.saver_def.max_to_keep == 9


def test_hours_that_a_small_float_cannot_hold_do_not_count_as_a_change():
    builder = GraphBuilder()
    builder.variable("w", "float32", ())
    graph = with_saver(builder.build(), keep_checkpoint_every_n_hours=2.2)
    assert graph.saver_def is not None
    wanted = dataclasses.replace(graph.saver_def, keep_checkpoint_every_n_hours=2.2)
    assert export_meta_graph_bytes(graph, saver_def=wanted) == file_of(graph).data


def test_collection_list_must_be_a_list(ref):
    with pytest.raises(UsageError):
        export_meta_graph_bytes(read(ref), collection_list="variables")


def test_import_into_a_scope(ref):
    graph = read(ref, import_scope="net/a")
    plain = read(ref)
    assert [op.name for op in graph.get_operations()] == [f"net/a/{op.name}" for op in plain.get_operations()]
    assert graph.get_tensor_by_name("net/a/layer/w:0").shape == (3, 2)
    assert graph.saver_def.restore_op_name == "net/a/save/restore_all"
    assert [v.name for v in graph.get_collection("variables")] == [
        "net/a/layer/w:0",
        "net/a/layer/b:0",
        "net/a/global_step:0",
    ]
    assert graph.get_collection("my_ops") == [graph.get_tensor_by_name("net/a/y:0")]
    assert graph.get_operation_by_name("net/a/layer/w/Assign").get_attr("_class") == [b"loc:@net/a/layer/w"]
    assert [op.name for op in graph.get_operation_by_name("net/a/init").control_inputs] == [
        "net/a/global_step/Assign",
        "net/a/layer/b/Assign",
        "net/a/layer/w/Assign",
    ]
    # shared_name is what a running TensorFlow calls the variable: it is not renamed.
    assert graph.get_operation_by_name("net/a/global_step").get_attr("shared_name") == b"global_step"
    assert export_meta_graph_bytes(graph, export_scope="net/a") == ref
    assert export_meta_graph_bytes(graph, export_scope="net/a/") == ref


def test_a_part_of_the_network(ref):
    graph = read(export_meta_graph_bytes(read(ref), export_scope="layer"))
    assert [op.name for op in graph.get_operations()][:4] == ["w/initial_value", "w", "w/Assign", "w/read"]
    assert [v.name for v in graph.get_collection("variables")] == ["w:0", "b:0"]
    assert graph.saver_def is None
    assert "my_ops" not in graph.get_all_collection_keys()
    saver = message_class("MetaGraphDef").FromString(export_meta_graph_bytes(read(ref), export_scope="save"))
    assert saver.saver_def.restore_op_name == "restore_all"
    assert b"$unbound_inputs_layer/b" in saver.collection_def["unbound_inputs"].bytes_list.value
    assert all("unbound" not in node.name for node in saver.graph_def.node)


@pytest.mark.parametrize("scope", ["_s", "a b", "é"])
def test_a_scope_that_no_name_can_start_with(ref, scope):
    with pytest.raises(UsageError):
        read(ref, import_scope=scope)
    with pytest.raises(UsageError):
        export_meta_graph_bytes(read(ref), export_scope=scope)


def with_devices():
    builder = GraphBuilder()
    builder.operation("a", "NoOp", [], device="/gpu:0")
    builder.operation("b", "NoOp", [])
    return builder.build()


def test_clear_devices():
    graph = with_devices()
    assert graph.get_operation_by_name("a").device == "/gpu:0"
    assert read(file_of(graph).data, clear_devices=True).get_operation_by_name("a").device == ""
    assert read(export_meta_graph_bytes(graph, clear_devices=True)).get_operation_by_name("a").device == ""
    bare = read(export_meta_graph_bytes(graph, clear_devices=True))
    assert export_meta_graph_bytes(bare, clear_devices=True) == file_of(bare).data
    assert graph.get_operation_by_name("a").device == "/gpu:0"


def with_two_savers():
    builder = GraphBuilder()
    builder.variable("w", "float32", ())
    graph = with_saver(builder.build())
    message = message_class("MetaGraphDef")()
    message.CopyFrom(file_of(graph).message)
    for node in file_of(graph).message.graph_def.node:
        if node.name.startswith("save/"):
            copy = message.graph_def.node.add()
            copy.CopyFrom(node)
            copy.name = node.name.replace("save/", "save_1/")
            copy.input[:] = [name.replace("save/", "save_1/") for name in node.input]
    other = message_class("SaverDef")(restore_op_name="save_1/restore_all", max_to_keep=1)
    savers = message.collection_def["savers"].bytes_list.value
    savers.extend([message.saver_def.SerializeToString(), other.SerializeToString()])
    message.collection_def["ops"].node_list.value.extend(["save_1/restore_all", "w"])
    return read(serialize_meta_graph(message)), graph


def test_other_savers_can_be_dropped():
    both, one = with_two_savers()
    cleared = read(export_meta_graph_bytes(both, clear_extraneous_savers=True))
    assert [op.name for op in cleared.get_operations()] == [op.name for op in one.get_operations()]
    assert cleared.get_collection("savers") == [one.saver_def]
    assert cleared.get_collection("ops") == [cleared.get_operation_by_name("w")]
    assert len(both.get_operations()) > len(cleared.get_operations())


def test_default_attributes_can_be_stripped(ref):
    graph = read(ref)
    stripped = read(export_meta_graph_bytes(graph, strip_default_attrs=True))
    before = {node.name: node for node in file_of(graph).message.graph_def.node}
    after = {node.name: node for node in file_of(stripped).message.graph_def.node}
    assert "transpose_a" in before["MatMul"].attr
    assert sorted(after["MatMul"].attr) == ["T", "_output_shapes"]
    assert sorted(after["layer/w"].attr) == ["_output_shapes", "dtype", "shape"]
    assert file_of(stripped).message.meta_info_def.stripped_default_attrs
    assert stripped.get_operation_by_name("MatMul").get_attr("transpose_a") is False
    generated = meta_graph_for_arrays([("w", graph.get_tensor_by_name("x:0").dtype, (2,))])
    kept = read(export_meta_graph_bytes(generated, strip_default_attrs=True))
    assert list(file_of(kept).message.graph_def.node) == list(file_of(generated).message.graph_def.node)


def test_defaults_of_unknown_operations_cannot_be_stripped():
    builder = GraphBuilder()
    builder.operation("own", "MyOwn", [], {"a": 1})
    with pytest.raises(UnsupportedError, match="MyOwn"):
        export_meta_graph_bytes(builder.build(), strip_default_attrs=True)


def test_fields_without_a_text_form():
    graph = read(b"\x1a\x02\x20\x05\xfa\x07\x01x")
    with pytest.raises(UnsupportedError, match="text"):
        export_meta_graph_bytes(graph, as_text=True)


def test_no_meta_graph():
    for data in (b"", b"\xff" * 100, b"not a graph"):
        with pytest.raises(FormatError) as raised:
            read(data)
        assert raised.value.url == "/m.meta"
