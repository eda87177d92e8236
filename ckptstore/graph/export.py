"""Read graphs from ``.meta`` files and write them."""

from __future__ import annotations

from collections.abc import Iterable

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.format.metagraph import (
    SaverDef,
    decode_saver_def,
    encode_saver_def,
    format_meta_graph_text,
    iter_nodes,
    parse_meta_graph,
    serialize_meta_graph,
)
from ckptstore.format.metagraph import (
    clear_devices as empty_devices,
)
from ckptstore.format.metagraph_scope import (
    add_scope,
    drop_nodes,
    export_out_of_scope,
    map_names,
    operation_name,
)
from ckptstore.format.protos import Proto, message_class
from ckptstore.graph.arrays import meta_graph_for_arrays
from ckptstore.graph.graph import Graph, file_of
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.operation_names import check_scope

__all__ = ["export_meta_graph_bytes", "meta_graph_for_arrays", "read_meta_graph"]

_SAVERS = "savers"
_SAVE_AND_RESTORE_OPS = frozenset({
    "SaveV2", "Save", "SaveSlice", "SaveSlices", "LegacySave", "LegacySaveSlice",
    "RestoreV2", "Restore", "RestoreSlice", "LegacyRestore", "LegacyRestoreSlice",
})  # fmt: skip


def read_meta_graph(
    data: bytes, *, source: str, clear_devices: bool = False, import_scope: str | None = None
) -> Graph:
    """Return the graph in a ``.meta`` file.

    Parameters
    ----------
    data : bytes
        The whole file, binary or text.
    source : str
        URL for error messages.
    clear_devices : bool
        Whether to drop the requested devices of operations, those inside functions included.
    import_scope : str, optional
        Prefix for all names, followed by a slash, as in TensorFlow's importer.

    Raises
    ------
    FormatError
        If `data` is not a ``.meta``.
    UsageError
        If `import_scope` cannot begin a name.
    """
    message, is_text = parse_meta_graph(data, source=source)
    if not clear_devices and not import_scope:
        return Graph(GraphFile(data, source=source, message=message, is_text=is_text))
    if clear_devices:
        empty_devices(message)
    if import_scope:
        add_scope(message, check_scope(import_scope), source=source)
    return Graph(GraphFile.of_message(message, source=source))


def export_meta_graph_bytes(
    graph: Graph,
    *,
    saver_def: SaverDef | None = None,
    collection_list: Iterable[str] | None = None,
    as_text: bool = False,
    export_scope: str | None = None,
    clear_devices: bool = False,
    clear_extraneous_savers: bool = False,
    strip_default_attrs: bool = False,
) -> bytes:
    """Return the ``.meta`` file for `graph`.

    Parameters
    ----------
    graph : Graph
    saver_def : SaverDef, optional
        How to save and restore; as the graph states it if omitted.
    collection_list : iterable of str, optional
        The collections to include; all of them if omitted.
    as_text : bool
        Whether to return the text form.
    export_scope : str, optional
        Only the operations below this scope, under their names within it. See
        `ckptstore.format.metagraph_scope.export_out_of_scope` for inputs from outside.
    clear_devices : bool
        Whether to drop the requested devices of operations, those inside functions included.
    clear_extraneous_savers : bool
        Whether to drop the nodes of all savers except the one of `saver_def`: everything in the same scope as
        an operation that saves or restores.
    strip_default_attrs : bool
        Whether to drop attributes with their default value.

    Returns
    -------
    bytes
        The bytes that the graph was read from if nothing changes; else a deterministic form. Unknown fields
        are kept in both.

    Raises
    ------
    UnsupportedError
        With `strip_default_attrs`, if an operation is not defined in the graph or the catalogue; with
        `as_text`, if the graph has fields that text cannot express.
    UsageError
        If `export_scope` cannot begin a name.
    """
    requested = (
        saver_def,
        collection_list,
        export_scope,
        clear_devices,
        clear_extraneous_savers,
        strip_default_attrs,
    )
    file = file_of(graph)
    if as_text == file.is_text and not any(option not in (None, False, "") for option in requested):
        return file.data
    message = message_class("MetaGraphDef")()
    message.CopyFrom(file.message)
    changed = False
    if saver_def is not None:
        wanted = encode_saver_def(saver_def)
        # Compared as messages: the hours are a 32-bit float in the file.
        if decode_saver_def(wanted) != graph.saver_def:
            message.saver_def.CopyFrom(wanted)
            changed = True
    if collection_list is not None:
        kept = _collection_names(collection_list)
        for key in [key for key in message.collection_def if key not in kept]:
            del message.collection_def[key]
            changed = True
    if clear_extraneous_savers:
        _clear_extraneous_savers(message, file.source)
        changed = True
    if export_scope:
        export_out_of_scope(message, check_scope(export_scope), source=file.source)
        changed = True
    if clear_devices:
        changed = changed or any(node.device for node in iter_nodes(message))
        empty_devices(message)
    if strip_default_attrs:
        _strip_default_attributes(message, file)
        changed = True
    if not changed and as_text == file.is_text:
        return file.data
    return format_meta_graph_text(message) if as_text else serialize_meta_graph(message)


def _collection_names(collection_list: Iterable[str]) -> set[str]:
    if isinstance(collection_list, (str, bytes)):
        raise UsageError("collection_list is a list of names", actual=repr(collection_list))
    return set(collection_list)


def _clear_extraneous_savers(message: Proto, source: str) -> None:
    """Drop the scopes of savers that are not the graph's own; TensorFlow's rule is one saver per scope."""
    retained = set()
    if message.HasField("saver_def"):
        for name in (message.saver_def.save_tensor_name, message.saver_def.restore_op_name):
            retained.add(_scope(operation_name(name)))
    savers = {node.name for node in message.graph_def.node if node.op in _SAVE_AND_RESTORE_OPS}
    scopes = {_scope(name) for name in savers} - savers - retained - {""}

    def extraneous(name: str) -> bool:
        scope = _scope(operation_name(name))
        while scope:
            if scope in scopes:
                return True
            scope = _scope(scope)
        return False

    drop_nodes(message, extraneous)
    map_names(message, lambda name: name, keep=lambda name: not extraneous(name), source=source)
    if _SAVERS in message.collection_def and message.HasField("saver_def"):
        entries = message.collection_def[_SAVERS].bytes_list.value
        entries[:] = [message.saver_def.SerializeToString(deterministic=True)]


def _scope(name: str) -> str:
    return name.rpartition("/")[0]


def _strip_default_attributes(message: Proto, file: GraphFile) -> None:
    functions = {function.signature.name for function in message.graph_def.library.function}
    unknown = set()
    for node in iter_nodes(message):
        if node.op in functions:
            continue
        op_def = file.definitions.find(node.op)
        if op_def is None:
            unknown.add(node.op)
            continue
        for attr in op_def.attr:
            has_default = attr.name in node.attr and attr.HasField("default_value")
            if has_default and node.attr[attr.name] == attr.default_value:
                del node.attr[attr.name]
    if unknown:
        raise UnsupportedError(
            "default attributes cannot be stripped: the graph has operations without a definition",
            url=file.source,
            actual=", ".join(sorted(unknown)[:10]),
        )
    message.meta_info_def.stripped_default_attrs = True
