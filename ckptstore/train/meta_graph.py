"""Graphs in and out of ``.meta`` files at URLs."""

from __future__ import annotations

from collections.abc import Sequence

from ckptstore.directory.publish import put_graph
from ckptstore.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from ckptstore.graph.export import export_meta_graph_bytes, read_meta_graph
from ckptstore.graph.graph import Graph
from ckptstore.storage.registry import locate
from ckptstore.types import Options, PathText

__all__ = ["export_meta_graph", "load_meta_graph"]


# The limit of protobuf, and so TensorFlow's.
_LARGEST_GRAPH_BYTES = 2**31 - 1


def load_meta_graph(
    path_or_proto: PathText | bytes,
    clear_devices: bool = False,
    import_scope: str | None = None,
    *,
    storage_options: Options = None,
) -> Graph:
    """Read a graph from a file or URL, from bytes, or from an object with ``SerializeToString``.

    Parameters and errors as `ckptstore.import_meta_graph`.
    """
    if isinstance(path_or_proto, bytes):
        data, source = path_or_proto, "<MetaGraphDef>"
    elif hasattr(path_or_proto, "SerializeToString"):
        data, source = path_or_proto.SerializeToString(), "<MetaGraphDef>"
    else:
        place = locate(path_or_proto, storage_options)
        try:
            size_bytes = place.storage.head(place.key).size_bytes
            if size_bytes > _LARGEST_GRAPH_BYTES:
                raise FormatError(
                    "this file is too large for a graph",
                    url=place.url,
                    expected=f"at most {_LARGEST_GRAPH_BYTES} bytes",
                    actual=size_bytes,
                    hint="Give the .meta file itself, e.g. PREFIX.meta.",
                )
            data, source = place.storage.get(place.key).data, place.url
        except NotFoundError as error:
            error.hint = (
                "Give the .meta file itself, e.g. PREFIX.meta; saves with write_meta_graph=False have none."
            )
            raise
    return read_meta_graph(data, source=source, clear_devices=clear_devices, import_scope=import_scope)


def export_meta_graph(
    filename: PathText | None = None,
    *,
    graph: Graph | None = None,
    collection_list: Sequence[str] | None = None,
    as_text: bool = False,
    export_scope: str | None = None,
    clear_devices: bool = False,
    clear_extraneous_savers: bool = False,
    strip_default_attrs: bool = False,
    save_debug_info: bool = False,
    storage_options: Options = None,
) -> bytes:
    """Return a graph as a serialized ``MetaGraphDef``, and write it to `filename` if given.

    An imported graph that did not change comes back with identical bytes.

    Parameters
    ----------
    filename : str or PathLike, optional
        File or URL to write; replaced at once if it is there.
    graph : Graph
        As `import_meta_graph` or `GraphBuilder.build` gives it.
    collection_list : sequence of str, optional
        The collections to keep; all by default.
    as_text : bool
        Text form instead of binary.
    export_scope : str, optional
        Only what lies in this scope, which is taken off the names.
    clear_devices : bool
        Drop device placements.
    clear_extraneous_savers : bool
        Drop the nodes of all savers but the graph's own.
    strip_default_attrs : bool
        Leave attributes with default values out.
    save_debug_info : bool
        Must be False.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    bytes

    Raises
    ------
    UsageError
        Without a graph.
    UnsupportedError
        For what needs TensorFlow's op registry or debug information.
    """
    if graph is None:
        raise UsageError("there is no graph to export", hint="Pass graph=…, e.g. that of an imported Saver.")
    if save_debug_info:
        raise UnsupportedError("there is no debug information to save without TensorFlow's graph")
    data = export_meta_graph_bytes(
        graph,
        collection_list=collection_list,
        as_text=as_text,
        export_scope=export_scope,
        clear_devices=clear_devices,
        clear_extraneous_savers=clear_extraneous_savers,
        strip_default_attrs=strip_default_attrs,
    )
    if filename is not None:
        put_graph(locate(filename, storage_options), data)
    return data
