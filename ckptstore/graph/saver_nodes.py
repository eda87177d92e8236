"""The nodes that save and restore a graph's variables.

Format
------
The nodes and names are those that TensorFlow's Saver adds (`tensorflow/python/training/saver.py`,
BaseSaverBuilder), as measured on TensorFlow 2.21::

    save/filename/input -> save/filename -> save/Const              the prefix
    save/SaveV2 (tensor_names, shape_and_slices, every variable)    save/control_dependency waits for it
    save/RestoreV2 (tensor_names, shape_and_slices)                 one output per variable
    save/Assign_k (variable, save/RestoreV2:k)                      save/restore_all waits for all of them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ckptstore.errors import UsageError
from ckptstore.format.metagraph import SaverDef, encode_saver_def
from ckptstore.format.protos import message_class
from ckptstore.graph import node_encoding as encode
from ckptstore.graph.graph import Graph, file_of
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.nodes import Variable
from ckptstore.graph.operation_names import unused_scope
from ckptstore.suggest import did_you_mean_or_known

__all__ = [
    "ASSIGNABLE_REFERENCES",
    "ASSIGNABLE_RESOURCES",
    "SavedVariable",
    "encode_saver_nodes",
    "saver_def_for",
    "with_saver",
]

# Types with an assignment kernel on a CPU in TensorFlow 2.21, by number. A session cannot run anything in a
# graph that has one operation without a kernel: such variables cannot be part of saving and restoring.
ASSIGNABLE_REFERENCES = frozenset(range(1, 24)) - {15, 20}
"""Types that ``Assign`` takes: all up to uint64 except qint16."""

ASSIGNABLE_RESOURCES = (ASSIGNABLE_REFERENCES - {16}) | {24, 25, 29, 30, 31, 32, 33}
"""Types that ``AssignVariableOp`` takes: not quint16, but two of float8 and those below one byte."""


class SavedVariable(NamedTuple):
    """One variable of the graph and its tensor in the checkpoint.

    Attributes
    ----------
    key : str
        The tensor's name in the bundle.
    operation : str
        The variable's operation.
    dtype_enum : int
    read : str
        The tensor that holds its value.
    is_resource : bool
        Whether the output of `operation` is a handle instead of the value.
    spec : str
        Shape and slice of a part of a partitioned variable; empty for a whole one.
    fixed_shape : bool
        Whether restoring a different shape is an error.
    """

    key: str
    operation: str
    dtype_enum: int
    read: str
    is_resource: bool = False
    spec: str = ""
    fixed_shape: bool = True


def saver_def_for(
    scope: str, *, max_to_keep: int, keep_checkpoint_every_n_hours: float, sharded: bool = False
) -> SaverDef:
    """Return the ``SaverDef`` for the nodes that `encode_saver_nodes` makes below `scope`."""
    return SaverDef(
        f"{scope}/Const:0",
        f"{scope}/control_dependency:0",
        f"{scope}/restore_all",
        max_to_keep,
        sharded,
        keep_checkpoint_every_n_hours,
    )


def encode_saver_nodes(variables: Sequence[SavedVariable], scope: str) -> bytes:
    """Return the nodes as a part of a ``GraphDef``; the data file has the order of `variables`."""
    return b"".join(_saver_nodes(variables, scope))


def _saver_nodes(variables: Sequence[SavedVariable], scope: str) -> Iterator[bytes]:
    string = encode.type_value(7)
    types = encode.type_list_value(variable.dtype_enum for variable in variables)
    names = encode.attributes(
        {"dtype": string, "value": encode.string_list_tensor([variable.key for variable in variables])}
    )
    specs = encode.attributes(
        {"dtype": string, "value": encode.string_list_tensor([variable.spec for variable in variables])}
    )
    with_default = encode.attributes({"dtype": string, "shape": encode.shape_value(())})
    filename = f"{scope}/Const"
    yield encode.node(
        f"{scope}/filename/input",
        "Const",
        (),
        encode.attributes({"dtype": string, "value": encode.string_tensor("model")}),
    )
    yield encode.node(
        f"{scope}/filename", "PlaceholderWithDefault", (f"{scope}/filename/input",), with_default
    )
    yield encode.node(filename, "PlaceholderWithDefault", (f"{scope}/filename",), with_default)
    for op, extra_inputs in (("SaveV2", [variable.read for variable in variables]), ("RestoreV2", [])):
        inputs = (f"{scope}/{op}/tensor_names", f"{scope}/{op}/shape_and_slices")
        yield encode.node(inputs[0], "Const", (), names)
        yield encode.node(inputs[1], "Const", (), specs)
        yield encode.node(
            f"{scope}/{op}", op, (filename, *inputs, *extra_inputs), encode.attributes({"dtypes": types})
        )
    yield encode.node(
        f"{scope}/control_dependency",
        "Identity",
        (filename, f"^{scope}/SaveV2"),
        encode.attributes({"T": string}),
    )
    assignments = []
    known_attributes: dict[tuple[int, bool, bool], bytes] = {}
    for index, variable in enumerate(variables):
        op = "AssignVariableOp" if variable.is_resource else "Assign"
        kind = (variable.dtype_enum, variable.is_resource, variable.fixed_shape)
        encoded = known_attributes.get(kind)
        if encoded is None:
            encoded = known_attributes[kind] = _assign_attributes(*kind)
        name = f"{scope}/Assign_{index}" if index else f"{scope}/Assign"
        restored = f"{scope}/RestoreV2:{index}" if index else f"{scope}/RestoreV2"
        assignments.append(f"^{name}")
        yield encode.node(name, op, (variable.operation, restored), encoded)
    yield encode.node(f"{scope}/restore_all", "NoOp", assignments, b"")


def _assign_attributes(dtype_enum: int, is_resource: bool, fixed_shape: bool) -> bytes:
    values = {"dtype" if is_resource else "T": encode.type_value(dtype_enum)}
    if not is_resource and not fixed_shape:
        values["validate_shape"] = encode.bool_value(False)
    return encode.attributes(values)


def with_saver(
    graph: Graph,
    variables: Mapping[str, str] | None = None,
    *,
    max_to_keep: int = 5,
    keep_checkpoint_every_n_hours: float = 10000.0,
    sharded: bool = False,
) -> Graph:
    """Return `graph` with the nodes that save and restore its variables.

    Parameters
    ----------
    graph : Graph
        Returned unchanged if it has such nodes already, or has no variable that TensorFlow could save.
    variables : mapping of str to str, optional
        The tensor's name in the checkpoint → the variable's operation, in the order of the data file. All
        variables under their own names, sorted, if omitted. A variable whose type TensorFlow cannot assign
        (qint16, some float8) is not saved: it would make the whole graph unusable.
    max_to_keep, keep_checkpoint_every_n_hours, sharded
        For the ``SaverDef``.

    Raises
    ------
    UsageError
        If `variables` names something that is not a variable of the graph.
    """
    file = file_of(graph)
    if file.message.HasField("saver_def"):
        return graph
    chosen = _chosen(graph, variables)
    scope = unused_scope("save", (operation.name for operation in graph.get_operations()))
    saved = [entry for key, variable in chosen for entry in _saved(key, variable, f"{scope}/Read")]
    if not saved:
        return graph
    reads = b"".join(
        encode.read_variable_node(entry.read, entry.operation, entry.dtype_enum)
        for entry in saved
        if entry.is_resource
    )
    saver_def = saver_def_for(
        scope,
        max_to_keep=max_to_keep,
        keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours,
        sharded=sharded,
    )
    message = message_class("MetaGraphDef")()
    message.CopyFrom(file.message)
    message.graph_def.MergeFromString(reads + encode_saver_nodes(saved, scope))
    message.saver_def.CopyFrom(encode_saver_def(saver_def))
    return Graph(GraphFile.of_message(message, source=file.source))


def _chosen(graph: Graph, variables: Mapping[str, str] | None) -> list[tuple[str, Variable]]:
    """Return the checkpoint's name for each variable, in the order of the data file."""
    known = {variable.op.name: variable for variable in graph.variables}
    if variables is None:
        named = [(v.save_slice[0] if v.save_slice else name, v) for name, v in known.items()]
        # As in TensorFlow's Saver: by the variable's name, not by the tensor's.
        return sorted(named, key=lambda pair: pair[1].op.name)
    for key, name in variables.items():
        if name not in known:
            raise UsageError(
                f"the graph has no variable {name!r} to save as {key!r}",
                url=file_of(graph).source,
                hint=did_you_mean_or_known(name, known, "variables"),
            )
    return [(key, known[name]) for key, name in variables.items()]


def _saved(key: str, variable: Variable, read_scope: str) -> Iterator[SavedVariable]:
    """Yield the entry of `variable`; nothing if TensorFlow could not restore it."""
    assignable = ASSIGNABLE_RESOURCES if variable.is_resource else ASSIGNABLE_REFERENCES
    if variable.dtype is None or variable.dtype.as_datatype_enum not in assignable:
        return
    name = variable.op.name
    part = variable.save_slice
    spec = ""
    if part is not None:
        _, full_shape, offset, shape = part
        extents = ":".join(f"{start},{length}" for start, length in zip(offset, shape, strict=False))
        spec = f"{' '.join(map(str, full_shape))} {extents}"
    yield SavedVariable(
        key,
        name,
        variable.dtype.as_datatype_enum,
        f"{read_scope}/{name}" if variable.is_resource else name,
        variable.is_resource,
        spec,
        variable.shape is not None and None not in variable.shape,
    )
