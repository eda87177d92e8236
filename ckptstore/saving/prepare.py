"""From the arguments of `Saver.save` to a task: everything is checked here, and nothing is written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptstore.bundle.write.plan import SavePlan, plan_save
from ckptstore.directory.bare_write import BareSink
from ckptstore.directory.save_request import CheckpointSink, SaveRequest
from ckptstore.errors import UsageError
from ckptstore.saving.arguments import GraphArguments, SaverSettings, SaveTarget, check_metrics, items_of
from ckptstore.saving.directories import SaverDirectories
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.rank_task.task_of import task_of
from ckptstore.saving.ranks import Ranks
from ckptstore.saving.saver_graph import SaverGraph
from ckptstore.saving.task import SaveTask

__all__ = ["SavePreparation"]


@dataclass(frozen=True, slots=True)
class SavePreparation:
    """Makes the task of each save of one Saver.

    Parameters
    ----------
    names : mapping or None
        Checkpoint name → name in the values; None: all.
    allow_empty : bool
        As for `Saver`.
    ranks : Ranks or None
        The other processes that hold a part of what is saved.

    Threads
    -------
    One thread at a time.
    """

    names: Mapping[str, str] | None
    settings: SaverSettings
    options: SaveOptions
    graph: SaverGraph
    directories: SaverDirectories
    allow_empty: bool
    ranks: Ranks | None = None

    def prepare(
        self,
        values: Mapping[str, Any],
        target: SaveTarget,
        graph: GraphArguments,
        *,
        write_state: bool,
        metrics: object = None,
    ) -> SaveTask:
        """Check values and metrics, and return what is left to do.

        Raises
        ------
        UsageError, TensorNotFoundError
            If an array is missing or cannot be stored, or a metric is not a number or cannot be recorded.
        """
        prefix = self.options.place(target.prefix)
        numbers = check_metrics(metrics)
        if numbers and not write_state:
            raise UsageError(
                "metrics stand in the record, and write_state=False writes none",
                hint="Leave one of the two out.",
            )
        plan = self.plan(values)
        # The graph that is made of the tensors needs those of all ranks.
        waits_for_ranks = self.ranks is not None and self.graph.graph is None
        is_chief = self.ranks is None or self.ranks.is_chief
        make_meta = partial(self.graph.to_bytes, strip_default_attrs=graph.strip_default_attrs)
        writes_graph = graph.write and is_chief
        meta = make_meta(plan) if writes_graph and not waits_for_ranks else None
        request = SaveRequest(
            prefix,
            plan,
            self.directories.run,
            meta,
            graph.suffix,
            target.step,
            self.options.fresh_start,
            metrics=numbers,
        )
        sink: CheckpointSink = BareSink()
        if write_state and (request.has_tensors or self.ranks is not None):
            sink = self.directories.writer(prefix, target.record)
        return task_of(
            request,
            sink,
            self.options,
            self.ranks,
            record=target.record.name if write_state else None,
            make_meta=make_meta if writes_graph and waits_for_ranks else None,
        )

    def plan(self, values: Mapping[str, Any]) -> SavePlan:
        """Return what a save of `values` writes; errors as `prepare`."""
        if self.ranks is not None:
            # One rank may hold nothing, or only a part of a tensor.
            return plan_save(items_of(values, self.names, allow_empty=True, all_pieces=False))
        items = items_of(values, self.names, allow_empty=self.allow_empty)
        if not self.settings.sharded or self.graph.graph is None:
            return plan_save(items)
        names = self.names or {}
        return plan_save(items, lambda stored_name: self.graph.device_of(names.get(stored_name, stored_name)))
