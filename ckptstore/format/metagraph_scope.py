"""Rename everything in a ``MetaGraphDef`` that contains a node's name: import into a scope, export from one.

Mirrors TensorFlow `tensorflow/python/framework/meta_graph.py` and
`tensorflow/core/common_runtime/graph_constructor.cc`, as measured on TensorFlow 2.21: nodes, their inputs,
``loc:@`` entries of ``_class``, the frame names of while loops, collections, saver. Functions, devices and
shared names stay as they are. Signatures, which TensorFlow drops on import, are renamed too.
"""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.format.metagraph import COLLECTION_MESSAGES, parse_entry
from ckptstore.format.protos import Proto

__all__ = ["UNBOUND_INPUTS", "add_scope", "drop_nodes", "export_out_of_scope", "map_names", "operation_name"]

UNBOUND_INPUTS = "unbound_inputs"
"""The collection that lists the inputs of an exported scope that come from outside it."""

_UNBOUND_PREFIX = "$unbound_inputs_"
_COLOCATION = "loc:@"

Rename = Callable[[str], str]

# Per message: the fields with names of nodes or tensors (the first is the subject of the message), and the
# fields with messages that have such fields.
_NAME_FIELDS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "VariableDef": (
        ("variable_name", "initializer_name", "snapshot_name", "initial_value_name"),
        (("save_slice_info_def", "SaveSliceInfoDef"),),
    ),
    "SaveSliceInfoDef": (("full_name",), ()),
    "SaverDef": (("filename_tensor_name", "save_tensor_name", "restore_op_name"), ()),
    "QueueRunnerDef": (("queue_name", "enqueue_op_name", "close_op_name", "cancel_op_name"), ()),
    "ValuesDef": (("values",), ()),
    "CondContextDef": (
        ("context_name", "pred_name", "pivot_name"),
        (("values_def", "ValuesDef"), ("nested_contexts", "ControlFlowContextDef")),
    ),
    "WhileContextDef": (
        (
            "context_name",
            "pivot_name",
            "pivot_for_pred_name",
            "pivot_for_body_name",
            "maximum_iterations_name",
            "loop_exit_names",
            "loop_enter_names",
        ),
        (("values_def", "ValuesDef"), ("nested_contexts", "ControlFlowContextDef")),
    ),
    "ControlFlowContextDef": ((), (("cond_ctxt", "CondContextDef"), ("while_ctxt", "WhileContextDef"))),
    "TensorInfo": (
        ("name",),
        (("coo_sparse", "TensorInfo.CooSparse"), ("composite_tensor", "TensorInfo.CompositeTensor")),
    ),
    "TensorInfo.CooSparse": (("values_tensor_name", "indices_tensor_name", "dense_shape_tensor_name"), ()),
    "TensorInfo.CompositeTensor": ((), (("components", "TensorInfo"),)),
}


def operation_name(name: str) -> str:
    """Return ``a`` for the name of a tensor ``a:0``, a control input ``^a``, a colocation ``loc:@a``."""
    return name.removeprefix("^").removeprefix(_COLOCATION).partition(":")[0]


def add_scope(meta: Proto, scope: str, *, source: str) -> None:
    """Put ``scope/`` before every name, in place.

    Raises
    ------
    FormatError
        If an entry of a collection is not a message of its type.
    """

    def rename(name: str) -> str:
        for mark in ("^", _COLOCATION):
            if name.startswith(mark):
                return f"{mark}{scope}/{name[len(mark) :]}"
        return f"{scope}/{name}" if name else name

    for node in meta.graph_def.node:
        node.name = rename(node.name)
        _rename_node_attributes(node, rename, keep=lambda name: True)
        inputs = [rename(name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
    map_names(meta, rename, keep=lambda name: True, source=source)
    for key, collection in meta.collection_def.items():
        if key not in COLLECTION_MESSAGES and collection.WhichOneof("kind") == "bytes_list":
            # TensorFlow treats free text in a collection as names, too.
            values = collection.bytes_list.value
            values[:] = [_rename_text(value, rename) for value in values]


def export_out_of_scope(meta: Proto, scope: str, *, source: str) -> None:
    """Keep only the nodes below ``scope/`` and remove that from their names, in place.

    Inputs from outside the scope get TensorFlow's mark ``$unbound_inputs_`` and are listed in the collection
    `UNBOUND_INPUTS`. References of collections, signatures and the saver to other nodes are dropped.

    Raises
    ------
    FormatError
        If an entry of a collection is not a message of its type.
    """
    prefix = scope + "/"
    unbound: list[bytes] = []

    def inside(name: str) -> bool:
        return operation_name(name).startswith(prefix)

    def rename(name: str) -> str:
        return name.replace(prefix, "", 1) if inside(name) else name

    def rename_input(name: str) -> str:
        if inside(name):
            return rename(name)
        mark = "^" if name.startswith("^") else ""
        name = f"{mark}{_UNBOUND_PREFIX}{name.removeprefix('^')}"
        unbound.append(name.encode())
        return name

    drop_nodes(meta, lambda name: not name.startswith(prefix))
    for node in meta.graph_def.node:
        node.name = rename(node.name)
        _rename_node_attributes(node, rename, keep=inside)
        inputs = [rename_input(name) for name in node.input]
        del node.input[:]
        node.input.extend(inputs)
    map_names(meta, rename, keep=inside, source=source)
    if unbound:
        meta.collection_def[UNBOUND_INPUTS].bytes_list.value[:] = unbound


def drop_nodes(meta: Proto, unwanted: Callable[[str], bool]) -> None:
    """Remove the nodes whose name is `unwanted` from the graph; collections stay as they are."""
    nodes = list(meta.graph_def.node)
    del meta.graph_def.node[:]
    meta.graph_def.node.extend(node for node in nodes if not unwanted(node.name))


def map_names(meta: Proto, rename: Rename, *, keep: Callable[[str], bool], source: str) -> None:
    """Rename in collections, signatures, assets and the saver; remove entries whose subject `keep` rejects.

    Raises
    ------
    FormatError
        If an entry of a collection is not a message of its type.
    """
    for key in list(meta.collection_def):
        collection = meta.collection_def[key]
        kind = collection.WhichOneof("kind")
        if kind == "node_list":
            names = [name for name in collection.node_list.value if keep(name)]
            dropped_all = bool(collection.node_list.value) and not names
            collection.node_list.value[:] = [rename(name) for name in names]
            if dropped_all:
                del meta.collection_def[key]
        elif kind == "bytes_list" and key in COLLECTION_MESSAGES:
            message_name = COLLECTION_MESSAGES[key]
            messages = [
                parse_entry(message_name, value, key, source=source) for value in collection.bytes_list.value
            ]
            kept = [message for message in messages if keep(_subject(message, message_name))]
            for message in kept:
                _rename_fields(message, message_name, rename)
            collection.bytes_list.value[:] = [m.SerializeToString(deterministic=True) for m in kept]
            if messages and not kept:
                del meta.collection_def[key]
    for key in list(meta.signature_def):
        signature = meta.signature_def[key]
        infos = [*signature.inputs.values(), *signature.outputs.values()]
        if not all(keep(_subject(info, "TensorInfo")) for info in infos):
            del meta.signature_def[key]
            continue
        for info in infos:
            _rename_fields(info, "TensorInfo", rename)
    for asset in meta.asset_file_def:
        _rename_fields(asset.tensor_info, "TensorInfo", rename)
    if meta.HasField("saver_def"):
        if keep(meta.saver_def.restore_op_name):
            _rename_fields(meta.saver_def, "SaverDef", rename)
        else:
            meta.ClearField("saver_def")


def _rename_node_attributes(node: Proto, rename: Rename, *, keep: Callable[[str], bool]) -> None:
    if "_class" in node.attr:
        places = node.attr["_class"].list.s
        mark = _COLOCATION.encode()
        places[:] = [
            _rename_text(place, rename) if place.startswith(mark) else place
            for place in places
            if not place.startswith(mark) or keep(place.decode("utf-8", "replace"))
        ]
        if not places:
            del node.attr["_class"]
    if node.op in ("Enter", "RefEnter") and "frame_name" in node.attr:
        frame = node.attr["frame_name"]
        frame.s = _rename_text(frame.s, rename)


def _rename_text(value: bytes, rename: Rename) -> bytes:
    try:
        return rename(value.decode("utf-8")).encode("utf-8")
    except UnicodeDecodeError:
        return value


def _subject(message: Proto, message_name: str) -> str:
    """Return the name of the node or tensor that the message is about."""
    names, parts = _NAME_FIELDS[message_name]
    if names and getattr(message, names[0]):
        return str(getattr(message, names[0]))
    for field, part_name in parts:
        part = getattr(message, field)
        for one in part if _is_repeated(message, field) else (part,):
            subject = _subject(one, part_name)
            if subject:
                return subject
    return ""


def _rename_fields(message: Proto, message_name: str, rename: Rename) -> None:
    names, parts = _NAME_FIELDS[message_name]
    for field in names:
        value = getattr(message, field)
        if _is_repeated(message, field):
            value[:] = [rename(name) for name in value]
        elif value:
            setattr(message, field, rename(value))
    for field, part_name in parts:
        if _is_repeated(message, field):
            for part in getattr(message, field):
                _rename_fields(part, part_name, rename)
        elif message.HasField(field):
            _rename_fields(getattr(message, field), part_name, rename)
    if message_name == "ValuesDef":
        renamed = {rename(key): rename(value) for key, value in message.external_values.items()}
        message.external_values.clear()
        message.external_values.update(renamed)


def _is_repeated(message: Proto, field: str) -> bool:
    # Releases of protobuf differ in how a descriptor says so; a repeated value has a length in all of them.
    return hasattr(type(getattr(message, field)), "__len__") and not isinstance(getattr(message, field), str)
