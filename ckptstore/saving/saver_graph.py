"""The graph of a Saver: the one it was given, or one made from the arrays that it saves."""

from __future__ import annotations

from dataclasses import replace

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.errors import TensorNotFoundError, UsageError
from ckptstore.format.metagraph import SaverDef
from ckptstore.graph.arrays import meta_graph_for_arrays
from ckptstore.graph.export import export_meta_graph_bytes, read_meta_graph
from ckptstore.graph.graph import Graph
from ckptstore.graph.saver_nodes import with_saver
from ckptstore.saving.arguments import SaverSettings

__all__ = ["SaverGraph"]

_DEFAULT_NAMES = SaverDef("save/Const:0", "save/control_dependency:0", "save/restore_all")


class SaverGraph:
    """The graph that goes into ``.meta``, and the ``SaverDef`` in it.

    Parameters
    ----------
    graph : Graph or None
        None: a graph is made from the arrays.
    settings : SaverSettings
        Of the Saver.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self, graph: Graph | None, settings: SaverSettings) -> None:
        self.graph = graph
        self._settings = settings
        self._generated: tuple[object, bytes] | None = None
        self._saving: tuple[Graph, Graph] | None = None

    def to_export(self) -> Graph:
        """Return the given graph, or the one made for the last save.

        Raises
        ------
        UsageError
            If there is none yet.
        """
        if self.graph is not None:
            return self.graph
        if self._generated is None:
            raise UsageError(
                "this Saver has no graph to export",
                hint="Set `saver.graph`, import one with import_meta_graph, or save first: one is made then.",
            )
        return read_meta_graph(self._generated[1], source="<generated graph>")

    def device_of(self, name: str) -> str:
        """Return the device on which the graph places the variable `name`; empty if none is given."""
        assert self.graph is not None
        try:
            return self.graph.get_operation_by_name(name).device
        except TensorNotFoundError:
            return ""

    def to_bytes(self, plan: SavePlan, *, strip_default_attrs: bool) -> bytes:
        """Return the ``MetaGraphDef`` to save along with `plan`."""
        if self.graph is not None:
            graph = self._with_saver(self.graph)
            saver_def = None if graph.saver_def is None else self._stated(graph.saver_def)
            return export_meta_graph_bytes(
                graph, saver_def=saver_def, strip_default_attrs=strip_default_attrs
            )
        items = [item for shard in plan.shards for item in shard.items]
        # Columns instead of an object per item: most saves only compare.
        columns = (
            [item.name for item in items],
            [item.dtype for item in items],
            [item.full_shape for item in items],
        )
        if self._generated is None or self._generated[0] != columns:
            unique = list({spec[0]: spec for spec in zip(*columns, strict=True)}.values())
            graph = meta_graph_for_arrays(
                unique,
                max_to_keep=self._settings.max_to_keep,
                keep_checkpoint_every_n_hours=self._settings.keep_hours,
                sharded=self._settings.sharded,
            )
            self._generated = (columns, export_meta_graph_bytes(graph))
        return self._generated[1]

    def saver_def(self, base: SaverDef | None) -> SaverDef:
        """Return the settings as TensorFlow's ``SaverDef``; names as in the graph, or those of `base`."""
        if self.graph is not None:
            base = self._with_saver(self.graph).saver_def
        return self._stated(base or _DEFAULT_NAMES)

    def _with_saver(self, graph: Graph) -> Graph:
        """Return `graph` with the operations that save and restore, made once for each graph."""
        if self._saving is None or self._saving[0] is not graph:
            self._saving = (graph, with_saver(graph))
        return self._saving[1]

    def _stated(self, base: SaverDef) -> SaverDef:
        return replace(
            base,
            max_to_keep=self._settings.max_to_keep,
            sharded=self._settings.sharded,
            keep_checkpoint_every_n_hours=self._settings.keep_hours,
        )
