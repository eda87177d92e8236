"""``tf.train.Saver`` without TensorFlow: a mapping name → array takes the place of the session."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ckptstore.bundle.plan import SavePlan, WriteItem, plan_save, write_item
from ckptstore.checkpoint import restore_values
from ckptstore.directory.graphs import is_graph_suffix
from ckptstore.directory.latest import record_location
from ckptstore.directory.publish import put_meta
from ckptstore.directory.retention import Entry, KeepNewest, Retention, SaverRetention
from ckptstore.directory.run import process_run
from ckptstore.directory.save import CheckpointWriter, write_checkpoint
from ckptstore.errors import TensorNotFoundError, UnsupportedError, UsageError
from ckptstore.format.metagraph import SaverDef
from ckptstore.format.naming import numbered
from ckptstore.graph.arrays import meta_graph_for_arrays
from ckptstore.graph.export import export_meta_graph_bytes, read_meta_graph
from ckptstore.graph.graph import Graph
from ckptstore.graph.saver_nodes import with_saver
from ckptstore.management import get_checkpoint_mtimes
from ckptstore.meta_graph_files import export_meta_graph, load_meta_graph
from ckptstore.saver_arguments import check_list, check_var_list, step_number
from ckptstore.storage.base import Location
from ckptstore.storage.checks import check_prefix_name
from ckptstore.storage.registry import locate

__all__ = ["Saver", "import_meta_graph"]

PathText = str | os.PathLike[str]
Options = Mapping[str, Any] | None
VarList = Sequence[str] | set[str] | frozenset[str] | Mapping[str, str]

_V2 = 2
_DEFAULT_NAMES = SaverDef("save/Const:0", "save/control_dependency:0", "save/restore_all")
_SECONDS_PER_HOUR = 3600.0


class Saver:
    """Saves arrays as TensorFlow checkpoints, keeps the newest ones, restores them.

    Positional arguments and defaults are those of ``tf.train.Saver``; see docs/differences-from-tensorflow.md
    for the cases where TensorFlow's behaviour would lose data.

    Parameters
    ----------
    var_list : sequence or mapping, optional
        Names to save and restore, or checkpoint name → name in `values`. None: all.
    reshape : bool
        On restore, take a tensor of another shape if the number of elements agrees.
    sharded : bool
        One data file for each device that the graph places a variable on; one file without a graph.
    max_to_keep : int or None
        Checkpoints that stay. None or 0: nothing is deleted, and the record lists the newest.
    keep_checkpoint_every_n_hours : float
        Of those that leave, one every so many hours stays for good. The clock survives a restart.
    name, restore_sequentially, filename :
        Accepted for compatibility; there is no graph to build here.
    saver_def : SaverDef, optional
        Takes the place of `max_to_keep`, `keep_checkpoint_every_n_hours` and `sharded`.
    builder : None
        TensorFlow's graph builders are not supported.
    defer_build : bool
        `build` must be called before `save` and `restore`.
    allow_empty : bool
        Let a save without any tensor write the graph only and return None.
    write_version : int
        2. V1 checkpoints are read, not written.
    pad_step_number : bool
        Steps as eight digits.
    save_relative_paths : bool
        Paths in the record are always relative here; TensorFlow reads both.
    clock : callable
        Seconds since 1970; for tests.
    run : str, optional
        Identity for fencing. By default one for each process; hosts of one job pass the same.
    graph : Graph, optional
        The network that goes into ``.meta``. Without it one is made from the arrays.

    Attributes
    ----------
    graph : Graph or None
        May be set at any time.

    Raises
    ------
    UsageError, UnsupportedError
        If an argument is wrong, or asks for what only TensorFlow can do.

    Threads
    -------
    One thread at a time.
    """

    def __init__(
        self,
        var_list: VarList | None = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float = 10000.0,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: SaverDef | None = None,
        builder: None = None,
        defer_build: bool = False,
        allow_empty: bool = False,
        write_version: int = _V2,
        pad_step_number: bool = False,
        save_relative_paths: bool = False,
        filename: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        run: str | None = None,
        graph: Graph | None = None,
    ) -> None:
        if builder is not None:
            raise UnsupportedError("a saver builder needs TensorFlow's graph", hint="Leave `builder` out.")
        if write_version != _V2:
            raise UnsupportedError(
                "only V2 checkpoints are written",
                expected=_V2,
                actual=write_version,
                hint="V1 checkpoints can be read.",
            )
        if defer_build and var_list is not None:
            raise UsageError(
                "If `var_list` is provided then build cannot be deferred",
                hint="Either set defer_build=False or var_list=None.",
            )
        if saver_def is not None:
            saver_def = SaverDef.coerce(saver_def)
            max_to_keep = saver_def.max_to_keep
            keep_checkpoint_every_n_hours = saver_def.keep_checkpoint_every_n_hours
            sharded = saver_def.sharded
        if max_to_keep is not None and not isinstance(max_to_keep, int | np.integer):
            raise UsageError("max_to_keep must be an integer or None", actual=repr(max_to_keep))
        if max_to_keep is not None and max_to_keep < 0:
            raise UsageError(
                "max_to_keep must not be negative: TensorFlow then deletes the checkpoint it just wrote",
                actual=max_to_keep,
                hint="Give 0 or None to keep everything.",
            )
        self._names = check_var_list(var_list)
        if self._names is not None and not self._names and not allow_empty:
            raise UsageError("No variables to save", hint="Name at least one, or set allow_empty=True.")
        self._reshape = reshape
        self._sharded = sharded
        self._max_to_keep = int(max_to_keep or 0)
        self._keep_hours = float(keep_checkpoint_every_n_hours)
        self._allow_empty = allow_empty
        self._pad_step_number = pad_step_number
        self._clock = clock
        self._run = run
        self._built = not defer_build
        self._name = name
        self._saver_def = saver_def
        self._retention = self._make_retention()
        self._writers: dict[tuple[Any, str, str], CheckpointWriter] = {}
        self._pid = os.getpid()
        self._set_checkpoints: list[tuple[str, float]] = []
        self._awaiting_set: set[tuple[Any, str, str]] | None = None
        self._generated: tuple[object, bytes] | None = None
        self._saving: tuple[Graph, Graph] | None = None
        self.graph = graph

    def _make_retention(self) -> Retention:
        if not self._max_to_keep:
            return KeepNewest()
        return SaverRetention(self._max_to_keep, self._keep_hours * _SECONDS_PER_HOUR, float(self._clock()))

    def build(self) -> None:
        """Allow `save` and `restore` after ``defer_build=True``; there is nothing to build."""
        self._built = True

    def _check_built(self) -> None:
        if not self._built:
            raise UsageError("`build()` should be called before save if defer_build==True")

    def save(
        self,
        values: Mapping[str, Any],
        save_path: PathText,
        global_step: Any = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = "meta",
        write_meta_graph: bool = True,
        write_state: bool = True,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
        *,
        storage_options: Options = None,
    ) -> str | None:
        """Save arrays as one checkpoint, make it the latest, delete what retention lets go.

        Parameters
        ----------
        values : mapping
            Name → array-like.
        save_path : str or PathLike
            Prefix or URL; missing directories are made.
        global_step : int, optional
            Appended to the prefix as ``-<step>``; also a numpy integer or a 0-d integer array.
        latest_filename : str, optional
            Name of the record, ``checkpoint`` by default.
        meta_graph_suffix : str
            Of the graph's file.
        write_meta_graph : bool
            Write ``PREFIX.meta``. Without it the last graph there is still never deleted.
        write_state : bool
            Write the record and delete old checkpoints. With False only the files of this checkpoint are
            written.
        strip_default_attrs : bool
            Leave attributes with default values out of the graph.
        save_debug_info : bool
            Must be False: there is no debug information without TensorFlow.
        storage_options : mapping, optional
            Goes to the backend as it is.

        Returns
        -------
        str or None
            The prefix of the checkpoint; None if there was nothing to save and `allow_empty` is set.

        Raises
        ------
        UsageError
            A wrong argument or an array that cannot be stored; nothing was written.
        TensorNotFoundError
            `var_list` asks for a name that `values` lacks; nothing was written.
        FencedError
            Another run took over; nothing of this save stays.
        StorageFullError, AccessError, TransientError, ConflictError, AmbiguousOutcomeError
            From the storage. The previous checkpoint still restores.

        Guarantees
        ----------
        Durable when it returns. A crash at any point leaves the complete old or the complete new checkpoint.
        """
        self._check_built()
        if save_debug_info:
            raise UnsupportedError("there is no debug information to save without TensorFlow's graph")
        if not is_graph_suffix(meta_graph_suffix):
            raise UsageError(
                "the graph's suffix must be a short text without a slash that no other file has",
                actual=repr(meta_graph_suffix),
                hint="Leave 'meta_graph_suffix' out for 'meta'.",
            )
        base = locate(save_path, storage_options)
        check_prefix_name(base)
        path = base.url
        if global_step is not None:
            path = numbered(path, step_number(global_step), self._pad_step_number)
        prefix = locate(path, storage_options)
        check_prefix_name(prefix)
        record = record_location(prefix.parent, latest_filename)
        if record.name == prefix.name:
            raise UsageError(
                f"'latest_filename' collides with 'save_path': {record.name!r} and {path!r}",
                hint="Choose another name for one of them.",
            )
        plan = self._plan(values)
        meta = self._meta_graph(plan, strip_default_attrs) if write_meta_graph else None
        if not any(shard.items for shard in plan.shards):
            if meta is not None:
                put_meta(prefix.parent, prefix.name, meta, suffix=meta_graph_suffix)
            return None
        if write_state:
            writer = self._writer(prefix, record)
            writer.save(
                prefix.name, plan, run=self._run or process_run(), meta=meta, suffix=meta_graph_suffix
            )
        else:
            write_checkpoint(prefix.parent, prefix.name, plan, meta=meta, suffix=meta_graph_suffix)
        return prefix.url

    def _writer(self, prefix: Location, record: Location) -> CheckpointWriter:
        if self._pid != os.getpid():
            # Those of the parent, which goes on with them.
            self._pid = os.getpid()
            self._writers.clear()
        key = (prefix.storage, prefix.parent.key, record.name)
        writer = self._writers.get(key)
        if writer is None:
            writer = CheckpointWriter(prefix.parent, record.name, self._retention, self._clock)
            self._writers[key] = writer
        if self._awaiting_set is not None and key not in self._awaiting_set:
            self._awaiting_set.add(key)
            places = [(locate(path), time_s) for path, time_s in self._set_checkpoints]
            here = [(place.name, time_s) for place, time_s in places if place.parent.key == prefix.parent.key]
            writer.set_window(tuple(Entry(name, time_s) for name, time_s in here))
            names = {name for name, _ in here}
            self._set_checkpoints = [
                item
                for item, (place, _) in zip(self._set_checkpoints, places, strict=True)
                if place.parent.key != prefix.parent.key or place.name not in names
            ]
        return writer

    def _plan(self, values: Mapping[str, Any]) -> SavePlan:
        if not isinstance(values, Mapping):
            raise UsageError(
                "save takes a mapping from name to array in the place of a session",
                actual=type(values).__name__,
            )
        names = self._names
        if names is None:
            for name in values:
                if not isinstance(name, str):
                    raise UsageError("a tensor's name must be text", expected="str", actual=repr(name))
            names = {name: name for name in sorted(values)}
        if not names and not self._allow_empty:
            raise UsageError("No variables to save", hint="Give at least one array, or set allow_empty=True.")
        items: list[WriteItem] = []
        for stored_name, name in names.items():
            if name not in values:
                raise TensorNotFoundError.among(name, values, "the values to save have no such array")
            items.append(write_item(stored_name, values[name]))
        if not self._sharded or self.graph is None:
            return plan_save(items)
        return plan_save(items, lambda stored_name: self._device_of(names[stored_name]))

    def _device_of(self, name: str) -> str:
        assert self.graph is not None
        try:
            return self.graph.get_operation_by_name(name).device
        except TensorNotFoundError:
            return ""

    def _meta_graph(self, plan: SavePlan, strip_default_attrs: bool) -> bytes:
        if self.graph is not None:
            graph = self._with_saver(self.graph)
            saver_def = None if graph.saver_def is None else self._settings(graph.saver_def)
            return export_meta_graph_bytes(
                graph, saver_def=saver_def, strip_default_attrs=strip_default_attrs
            )
        specs = [(item.name, item.dtype, item.full_shape) for shard in plan.shards for item in shard.items]
        if self._generated is None or self._generated[0] != specs:
            unique = list({name: (name, dtype, shape) for name, dtype, shape in specs}.values())
            graph = meta_graph_for_arrays(
                unique,
                max_to_keep=self._max_to_keep,
                keep_checkpoint_every_n_hours=self._keep_hours,
                sharded=self._sharded,
            )
            self._generated = (specs, export_meta_graph_bytes(graph))
        return self._generated[1]

    def _with_saver(self, graph: Graph) -> Graph:
        """Return `graph` with the operations that save and restore, made once for each graph."""
        if self._saving is None or self._saving[0] is not graph:
            self._saving = (graph, with_saver(graph))
        return self._saving[1]

    def _settings(self, base: SaverDef) -> SaverDef:
        """Return `base` with the settings of this Saver."""
        return replace(
            base,
            max_to_keep=self._max_to_keep,
            sharded=self._sharded,
            keep_checkpoint_every_n_hours=self._keep_hours,
        )

    def restore(
        self, values: MutableMapping[str, Any], save_path: PathText, *, storage_options: Options = None
    ) -> None:
        """Fill `values` with the tensors of a checkpoint.

        Existing arrays are filled in place, missing keys get new writable arrays. Names, shapes and types are
        checked before any array changes. When retention or an overwrite removes the checkpoint while it is
        read, it is opened again.

        Parameters
        ----------
        values : mutable mapping
            Name → array. Without `var_list` it receives every tensor of the file.
        save_path : str or PathLike
            Prefix or URL, such as `latest_checkpoint` returns.

        Raises
        ------
        UsageError
            A shape (without ``reshape=True``) or type that differs, or `save_path` None.
        TensorNotFoundError
            The file lacks a name of `values` or `var_list`.
        NotFoundError
            There is no such checkpoint.
        CorruptError
            A file is damaged; the message names tensor, file and bytes.
        """
        self._check_built()
        if save_path is None:
            raise UsageError(
                "Can't load save_path when it is None",
                hint="latest_checkpoint returns None when there is no checkpoint yet.",
            )
        restore_values(locate(save_path, storage_options), values, self._names, reshape=self._reshape)

    @property
    def last_checkpoints(self) -> list[str]:
        """Prefixes that retention still counts, oldest first; empty without `max_to_keep`."""
        if not self._max_to_keep:
            return []
        entries = [(path, time_s) for path, time_s in self._set_checkpoints]
        for writer in self._writers.values():
            entries += [(writer.directory.child(entry.prefix).url, entry.time_s) for entry in writer.window]
        return [path for path, _ in entries]

    def set_last_checkpoints(self, last_checkpoints: Sequence[str]) -> None:
        """Let retention count these prefixes, oldest first; as in TensorFlow none of them is ever deleted."""
        check_list(last_checkpoints)
        self.set_last_checkpoints_with_time([(path, float("inf")) for path in last_checkpoints])

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Sequence[tuple[str, float]]) -> None:
        """Let retention count these ``(prefix, seconds since 1970)``, oldest first, and nothing else."""
        check_list(last_checkpoints_with_time)
        self._set_checkpoints = [
            (os.fsdecode(path), float(time_s)) for path, time_s in last_checkpoints_with_time
        ]
        self._awaiting_set = set()
        for writer in self._writers.values():
            writer.set_window(())

    def recover_last_checkpoints(
        self, checkpoint_paths: Sequence[str], *, storage_options: Options = None
    ) -> None:
        """Let retention count those of these prefixes that exist, dated by their files."""
        check_list(checkpoint_paths)
        dated = []
        for path in checkpoint_paths:
            times = get_checkpoint_mtimes([path], storage_options=storage_options)
            dated += [(path, time_s) for time_s in times]
        self.set_last_checkpoints_with_time(dated)

    def as_saver_def(self) -> SaverDef:
        """Return the settings as TensorFlow's ``SaverDef``; the graph's own names where there is a graph."""
        base = self._with_saver(self.graph).saver_def if self.graph is not None else self._saver_def
        return self._settings(base or _DEFAULT_NAMES)

    def to_proto(self, export_scope: str | None = None) -> SaverDef | None:
        """Return `as_saver_def` without `export_scope` in its names; None if they lie outside of it."""
        saver_def = self.as_saver_def()
        return saver_def if export_scope is None else saver_def.without_scope(export_scope)

    @staticmethod
    def from_proto(saver_def: SaverDef, import_scope: str | None = None) -> Saver:
        """Return a Saver with the settings of `saver_def`."""
        return Saver(saver_def=SaverDef.coerce(saver_def), name=import_scope)

    def export_meta_graph(
        self,
        filename: PathText | None = None,
        collection_list: Sequence[str] | None = None,
        as_text: bool = False,
        export_scope: str | None = None,
        clear_devices: bool = False,
        clear_extraneous_savers: bool = False,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
        *,
        storage_options: Options = None,
    ) -> bytes:
        """Return the graph as a serialized ``MetaGraphDef``, and write it to `filename` if given.

        An imported graph that did not change comes back with identical bytes.

        Raises
        ------
        UsageError
            If this Saver has no graph.
        """
        graph = self.graph
        if graph is None and self._generated is not None:
            graph = read_meta_graph(self._generated[1], source="<generated graph>")
        if graph is None:
            raise UsageError(
                "this Saver has no graph to export",
                hint="Set `saver.graph`, import one with import_meta_graph, or save first: one is made then.",
            )
        return export_meta_graph(
            filename,
            graph=graph,
            collection_list=collection_list,
            as_text=as_text,
            export_scope=export_scope,
            clear_devices=clear_devices,
            clear_extraneous_savers=clear_extraneous_savers,
            strip_default_attrs=strip_default_attrs,
            save_debug_info=save_debug_info,
            storage_options=storage_options,
        )


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
        If it is no MetaGraphDef, binary or text.
    """
    graph = load_meta_graph(path_or_proto, clear_devices, import_scope, storage_options=storage_options)
    if graph.saver_def is not None:
        saver_arguments.setdefault("saver_def", graph.saver_def)
    return Saver(graph=graph, **saver_arguments)
