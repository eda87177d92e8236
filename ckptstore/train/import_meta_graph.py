"""A Saver from a ``.meta`` file."""

from __future__ import annotations

from typing import Any

from ckptstore.train.meta_graph import load_meta_graph
from ckptstore.train.saver import Saver
from ckptstore.types import Options, PathText

__all__ = ["import_meta_graph"]


def import_meta_graph(
    path_or_proto: PathText | bytes,
    clear_devices: bool = False,
    import_scope: str | None = None,
    *,
    storage_options: Options = None,
    **saver_arguments: Any,
) -> Saver:
    """Read a ``.meta`` file and return a Saver for it, with the network as ``.graph``.

    Parameters
    ----------
    path_or_proto : str, PathLike, bytes or message
        File or URL; or a serialized ``MetaGraphDef``; or an object with ``SerializeToString``.
    clear_devices : bool
        Drop device placements.
    import_scope : str, optional
        Put before every name.
    storage_options : mapping, optional
        Goes to the backend as it is.
    **saver_arguments
        Keyword arguments of `Saver` that the file does not hold, such as ``clock``.

    Returns
    -------
    Saver
        With `max_to_keep`, `keep_checkpoint_every_n_hours` and `sharded` of the file's saver, if it has one.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    FormatError
        If it is not a MetaGraphDef, binary or text.
    """
    graph = load_meta_graph(path_or_proto, clear_devices, import_scope, storage_options=storage_options)
    if graph.saver_def is not None:
        saver_arguments.setdefault("saver_def", graph.saver_def)
    return Saver(graph=graph, **saver_arguments)
