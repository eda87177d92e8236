"""From the arguments of `Saver.save` to a task: everything is checked here, and nothing is written yet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ckptstore.bundle.write.plan import SavePlan, plan_save
from ckptstore.config import process_run
from ckptstore.saving.arguments import (
    SaverSettings,
    check_graph_arguments,
    items_of,
    target_of,
)
from ckptstore.saving.directories import SaverDirectories
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.saver_graph import SaverGraph
from ckptstore.saving.task import (
    SaveTask,
    Write,
    save_graph,
    save_with_record,
    save_without_record,
    split_by_change,
)
from ckptstore.types import Options, PathText

__all__ = ["SaverTasks"]


class SaverTasks:
    """Makes the task of each save of one Saver.

    Parameters
    ----------
    names : mapping or None
        Checkpoint name → name in the values; None: all.
    settings : SaverSettings
    options : SaveOptions
    graph : SaverGraph
    directories : SaverDirectories
    allow_empty, pad_step_number, run :
        As for `Saver`.

    Threads
    -------
    One thread at a time.
    """

    def __init__(
        self,
        names: Mapping[str, str] | None,
        settings: SaverSettings,
        options: SaveOptions,
        graph: SaverGraph,
        directories: SaverDirectories,
        *,
        allow_empty: bool,
        pad_step_number: bool,
        run: str | None,
    ) -> None:
        self._names = names
        self._settings = settings
        self._options = options
        self._graph = graph
        self._directories = directories
        self._allow_empty = allow_empty
        self._pad_step_number = pad_step_number
        self._run = run

    def make(
        self,
        values: Mapping[str, Any],
        save_path: PathText,
        global_step: Any,
        latest_filename: str | None,
        meta_graph_suffix: str,
        write_meta_graph: bool,
        write_state: bool,
        strip_default_attrs: bool,
        save_debug_info: bool,
        storage_options: Options,
    ) -> SaveTask:
        """Check everything there is to check, and return what is left to do; arguments as `Saver.save`.

        Raises
        ------
        UsageError, UnsupportedError, TensorNotFoundError
            If an argument is wrong, or an array cannot be stored.
        """
        check_graph_arguments(meta_graph_suffix, save_debug_info=save_debug_info)
        prefix, record, step = target_of(
            save_path, global_step, latest_filename, storage_options, pad_step_number=self._pad_step_number
        )
        prefix = self._options.place(prefix)
        plan = self._plan(values)
        meta = None
        if write_meta_graph:
            meta = self._graph.to_bytes(plan, strip_default_attrs=strip_default_attrs)
        write: Write
        arrange = None
        if not any(shard.items for shard in plan.shards):
            write = partial(save_graph, meta, meta_graph_suffix, prefix)
        elif write_state:
            writer = self._directories.writer(prefix, record)
            write = partial(
                save_with_record, writer, self._run or process_run(), meta, meta_graph_suffix, prefix
            )
            if self._options.reuse_unchanged:
                arrange = partial(split_by_change, writer)
        else:
            write = partial(save_without_record, meta, meta_graph_suffix, prefix)
        return SaveTask(prefix.url, plan, write, self._options, step, arrange)

    def _plan(self, values: Mapping[str, Any]) -> SavePlan:
        items = items_of(values, self._names, allow_empty=self._allow_empty)
        if not self._settings.sharded or self._graph.graph is None:
            return plan_save(items)
        names = self._names or {}
        return plan_save(
            items, lambda stored_name: self._graph.device_of(names.get(stored_name, stored_name))
        )
