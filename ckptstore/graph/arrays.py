"""The ``.meta`` for plain arrays: a graph of variables only, which TensorFlow imports and restores.

After ``tf.compat.v1.train.import_meta_graph(prefix + ".meta")`` and ``saver.restore(session, prefix)``,
``session.run("w:0")`` is the array saved as ``w``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ckptstore.errors import UsageError
from ckptstore.format.coding import encode_varint_field
from ckptstore.format.metagraph import encode_saver_def
from ckptstore.graph import node_encoding as encode
from ckptstore.graph.graph import Graph
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.operation_names import legal_names, unused_scope
from ckptstore.graph.saver_nodes import (
    ASSIGNABLE_REFERENCES,
    ASSIGNABLE_RESOURCES,
    SavedVariable,
    encode_saver_nodes,
    saver_def_for,
)
from ckptstore.types import DType

__all__ = ["GRAPH_PRODUCER", "is_trainable", "meta_graph_for_arrays"]

GRAPH_PRODUCER = 2474
"""The graph version of TensorFlow 2.21, whose rules apply to the generated nodes."""

_TRAINABLE = frozenset({1, 2, 8, 14, 18, 19}) | frozenset(range(24, 29))


_ASSIGNABLE = ASSIGNABLE_REFERENCES | ASSIGNABLE_RESOURCES

Spec: TypeAlias = tuple[str, DType, Sequence[int]]
"""Key, type and shape of an array."""


def is_trainable(dtype: DType) -> bool:
    """Whether variables of this type have gradients: real and complex numbers with a fraction."""
    return dtype.as_datatype_enum in _TRAINABLE


def meta_graph_for_arrays(
    specs: Sequence[Spec],
    *,
    max_to_keep: int = 5,
    keep_checkpoint_every_n_hours: float = 10000.0,
    sharded: bool = False,
    source: str = "<graph>",
) -> Graph:
    """Return a graph with one variable per array, and the nodes to save and restore them.

    Each array is a ``VariableV2`` named by its key, so that ``key:0`` is its value. If the key is not a legal
    name for an operation, the variable gets a legal one, and the tensor in the checkpoint keeps the key.
    Types that TensorFlow can only assign to resource variables (float8_e5m2, float8_e4m3fn and those below
    one byte) are a ``VarHandleOp``, whose value is ``key/Read/ReadVariableOp:0``. Types that it can assign to
    neither (qint16, the other float8) are omitted: one of them would make the whole graph unusable there.

    Parameters
    ----------
    specs : sequence of (key, dtype, shape)
        In the order of the tensors in the data file; all keys are different.
    max_to_keep, keep_checkpoint_every_n_hours, sharded
        For the ``SaverDef``.
    source : str
        URL for error messages.

    Returns
    -------
    Graph
        The same bytes for the same arguments. Without arrays, a graph without a saver.

    Raises
    ------
    UsageError
        If a key is not UTF-8 text.
    """
    usable = [spec for spec in specs if spec[1].as_datatype_enum in _ASSIGNABLE]
    if not usable:
        return Graph(GraphFile(_meta_graph(b"", b"", {}), source=source, is_text=False))
    names = legal_names([key for key, _, _ in usable])
    saved = _saved_variables(usable, names)
    scope = unused_scope("save", names)
    saver_def = saver_def_for(
        scope,
        max_to_keep=max_to_keep,
        keep_checkpoint_every_n_hours=keep_checkpoint_every_n_hours,
        sharded=sharded,
    )
    try:
        saver_nodes = encode_saver_nodes(saved, scope)
    except UnicodeEncodeError as error:
        raise UsageError("a tensor's name is not UTF-8 text", actual=ascii(error.object)) from error
    data = _meta_graph(
        _variable_nodes(saved, [shape for _, _, shape in usable]) + saver_nodes,
        encode_saver_def(saver_def).SerializeToString(deterministic=True),
        _collections(saved),
    )
    return Graph(GraphFile(data, source=source, is_text=False))


def _saved_variables(specs: Sequence[Spec], names: Sequence[str]) -> list[SavedVariable]:
    taken: set[str] = set()
    saved = []
    for (key, dtype, _), name in zip(specs, names, strict=True):
        enum = dtype.as_datatype_enum
        is_resource = enum not in ASSIGNABLE_REFERENCES
        read = name
        if is_resource:
            taken = taken or set(names)
            read = _unused_name(f"{name}/Read/ReadVariableOp", taken)
        saved.append(SavedVariable(key, name, enum, read, is_resource))
    return saved


def _variable_nodes(saved: Sequence[SavedVariable], shapes: Sequence[Sequence[int]]) -> bytes:
    nodes = []
    known_attributes: dict[tuple[int, tuple[int, ...]], bytes] = {}
    for variable, shape in zip(saved, shapes, strict=True):
        name, enum = variable.operation, variable.dtype_enum
        if variable.is_resource:
            # Without a shared_name, TensorFlow would make a new variable for each run.
            handle = {
                "dtype": encode.type_value(enum),
                "shape": encode.shape_value(shape),
                "shared_name": encode.string_value(name),
            }
            nodes.append(encode.node(name, "VarHandleOp", (), encode.attributes(handle)))
            nodes.append(encode.read_variable_node(variable.read, name, enum))
            continue
        kind = (enum, tuple(shape))
        attributes = known_attributes.get(kind)
        if attributes is None:
            attributes = encode.attributes(
                {"dtype": encode.type_value(enum), "shape": encode.shape_value(shape)}
            )
            known_attributes[kind] = attributes
        nodes.append(encode.node(name, "VariableV2", (), attributes))
    return b"".join(nodes)


def _collections(saved: Sequence[SavedVariable]) -> dict[str, bytes]:
    """Return the collections, each an encoded ``BytesList`` (value=1)."""
    all_variables, trainable_variables = [], []
    for variable in saved:
        trainable = variable.dtype_enum in _TRAINABLE
        definition = encode.message_field(
            1,
            encode.variable_def(
                variable.operation, variable.read, is_resource=variable.is_resource, trainable=trainable
            ),
        )
        all_variables.append(definition)
        if trainable:
            trainable_variables.append(definition)
    return {"trainable_variables": b"".join(trainable_variables), "variables": b"".join(all_variables)}


def _unused_name(name: str, taken: set[str]) -> str:
    found = name
    number = 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _meta_graph(nodes: bytes, saver_def: bytes, collections: dict[str, bytes]) -> bytes:
    """Encode MetaGraphDef: graph_def=2 {node=1, versions=4 {producer=1}}, saver_def=3, collection_def=4."""
    versions = encode.message_field(4, encode_varint_field(1, GRAPH_PRODUCER))
    meta = encode.message_field(2, nodes + versions)
    if saver_def:
        meta += encode.message_field(3, saver_def)
    for key, entries in collections.items():
        if entries:
            # bytes_list is field 2 of CollectionDef.
            collection = encode.message_field(2, entries)
            meta += encode.message_field(4, encode.text_field(1, key) + encode.message_field(2, collection))
    return meta
