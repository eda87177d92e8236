"""The catalogue of operations and what follows from a definition."""

from __future__ import annotations

from typing import Any

import pytest

from ckptstore.errors import FormatError
from ckptstore.format.protos import message_class
from ckptstore.graph import read_meta_graph
from ckptstore.graph.graph import file_of
from ckptstore.graph.op_catalog import CATALOG
from ckptstore.graph.op_defs import Definitions, argument_types, builtin_definition


def known(name: str) -> Any:
    """Return the definition of an operation that the catalogue has."""
    definition = builtin_definition(name)
    assert definition is not None
    return definition


def bare(op_def):
    """A definition without what the catalogue leaves out: texts, limits, and what marks its behaviour."""
    copy = message_class("OpDef")(name=op_def.name)
    for arguments, kept in ((op_def.input_arg, copy.input_arg), (op_def.output_arg, copy.output_arg)):
        for argument in arguments:
            one = kept.add()
            one.CopyFrom(argument)
            for field in ("description", "handle_data", "experimental_full_type"):
                one.ClearField(field)
    for attr in op_def.attr:
        one = copy.attr.add(name=attr.name, type=attr.type)
        if attr.HasField("default_value"):
            one.default_value.CopyFrom(attr.default_value)
    return copy


@pytest.mark.parametrize("name", ["ref", "res"])
def test_the_catalogue_agrees_with_the_definitions_in_tensorflows_files(fixtures_dir, name):
    data = (fixtures_dir / "09_with_meta" / f"{name}.meta").read_bytes()
    compared = 0
    for op_def in file_of(read_meta_graph(data, source=name)).message.meta_info_def.stripped_op_list.op:
        ours = builtin_definition(op_def.name)
        if ours is not None:
            assert ours == bare(op_def), op_def.name
            compared += 1
    assert compared >= 17


def test_every_statement_can_be_read():
    names = [
        name
        for line in CATALOG.splitlines()
        if line[:1].isalpha()
        for name in line.partition("(")[0].split(", ")
    ]
    for name in ("MatMul", "SaveV2", "RestoreV2", "Conv2D", "While", "SquaredDifference"):
        assert known(name).name == name
    for name in filter(None, names):
        assert builtin_definition(name.rstrip(",")) is not None, name
    assert builtin_definition("NoSuchOperation") is None


def test_a_statement_with_everything():
    conv = known("Conv2D")
    assert [argument.name for argument in conv.input_arg] == ["input", "filter"]
    attrs = {attr.name: attr for attr in conv.attr}
    assert list(attrs["dilations"].default_value.list.i) == [1, 1, 1, 1]
    assert attrs["data_format"].default_value.s == b"NHWC"
    assert attrs["use_cudnn_on_gpu"].default_value.b is True
    assert attrs["explicit_paddings"].default_value.WhichOneof("value") == "list"
    assert not attrs["T"].HasField("default_value")
    assign = known("Assign")
    assert (assign.input_arg[0].is_ref, assign.input_arg[0].type_attr) == (True, "T")
    split = known("Split")
    assert (split.output_arg[0].number_attr, split.input_arg[0].type) == ("num_split", 3)
    assert known("RestoreV2").output_arg[0].type_list_attr == "dtypes"
    assert known("Placeholder").attr[1].default_value.shape.unknown_rank


def types(op_type, limit=100, **attributes):
    op_def = known(op_type)
    node = message_class("NodeDef")()
    for name, (field, value) in attributes.items():
        if field == "types":
            node.attr[name].list.type.extend(value)
        else:
            setattr(node.attr[name], field, value)
    return argument_types(op_def.output_arg, node.attr, op_def, limit=limit, source="/m.meta", operation="o")


def test_output_types():
    assert types("MatMul", T=("type", 19)) == [19]
    assert types("MatMul") == [0]
    assert types("NoOp") == []
    assert types("Shape") == [3]
    assert types("Merge", T=("type", 1), N=("i", 2)) == [1, 3]
    assert types("Split", T=("type", 1), num_split=("i", 3)) == [1, 1, 1]
    assert types("Split", T=("type", 1)) is None
    assert types("RestoreV2", dtypes=("types", [1, 7])) == [1, 7]
    assert types("RestoreV2") is None
    with pytest.raises(FormatError, match="impossible number"):
        types("Split", T=("type", 1), num_split=("i", 101))


def test_the_files_own_definitions_come_first():
    own = message_class("OpDef")(name="NoOp", summary="own")
    function = message_class("FunctionDef")()
    function.signature.name = "f"
    definitions = Definitions([own], [function])
    no_op, f = definitions.find("NoOp"), definitions.find("f")
    assert no_op is not None
    assert f is not None
    assert (no_op.summary, f.name) == ("own", "f")
    assert definitions.find("MatMul") is builtin_definition("MatMul")
    assert definitions.find("nothing") is None
