"""``tf.train.CheckpointManager`` without TensorFlow."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ckptstore.config import process_run
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.latest import find_latest
from ckptstore.directory.record_update import RECORD_NAME
from ckptstore.directory.retention import ManagerRetention, Retention
from ckptstore.directory.retention_rules import RetentionRule, RulesRetention, check_rules
from ckptstore.directory.save_request import SaveRequest
from ckptstore.distributed.agreement import Agreement
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import CkptStoreWarning, CorruptError, UsageError
from ckptstore.format.naming import numbered
from ckptstore.frameworks import instead_of
from ckptstore.saving.arguments import SECONDS_PER_HOUR, both_given, check_metrics
from ckptstore.saving.options import Durability, SaveOptions
from ckptstore.saving.rank_task.task_of import task_of
from ckptstore.saving.ranks import CheckReplicas, Ranks
from ckptstore.saving.task import SaveTask
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint import Checkpoint
from ckptstore.transfer.progress import Progress

__all__ = ["CheckpointManager"]


class CheckpointManager:
    """Saves a `Checkpoint` under growing numbers and keeps the newest ones.

    Positional arguments and defaults are those of ``tf.train.CheckpointManager``.

    Parameters
    ----------
    checkpoint : Checkpoint
    directory : str or PathLike
        Directory or URL, made at the first save.
    max_to_keep : int or None
        Checkpoints that stay; None keeps all.
    keep_checkpoint_every_n_hours : float, optional
        Of those that leave, one every so many hours stays for good. The clock survives a restart.
    checkpoint_name : str
        Basename: checkpoints are called ``<checkpoint_name>-<number>``.
    step_counter : int-like, optional
        The training step, e.g. a 0-d array; needed for `checkpoint_interval`.
    checkpoint_interval : int, optional
        Save only when the step has grown by so much.
    init_fn : callable, optional
        Called by `restore_or_initialize` when there is nothing to restore.
    last_checkpoint_step : int, optional
        The step of the last save, for a manager that goes on without restoring.
    clock : callable
        Seconds since 1970; for tests.
    run : str, optional
        Identity for fencing: when another run takes over the basename, saves of the present one raise
        `FencedError`. By default one for each process. Several processes that save as one pass the same text.
    storage_options : mapping, optional
        Goes to the backend as it is.
    durability : {"disk", "cache"}
        ``"disk"``: a save outlives a power failure once it returns. ``"cache"``: the local disk is not waited
        for, so it outlives the end of the process only; for scratch directories. No difference elsewhere.
    deadline_s, memory_budget, progress, reuse_unchanged, fresh_start :
        How each save is made; as for `Saver`. With `fresh_start` checkpoints that cannot be restored are
        "no checkpoint" for `latest_checkpoint` and `restore_or_initialize`, too.
    retention : sequence of rules, optional
        As for `Saver`; `max_to_keep` must be None then.
    coordinator, check_replicas, stall_s :
        Many ranks, one checkpoint: as for `Saver`. All ranks make their manager, save and restore alike, and
        have the same objects: the graph of them is stored once.

    Raises
    ------
    UsageError
        If `max_to_keep` is not positive, rules are given beside it, or an interval without a counter.

    Threads
    -------
    One thread at a time.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Any = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
        *,
        clock: Callable[[], float] = time.time,
        run: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
        memory_budget: int | None = None,
        durability: Durability = "disk",
        progress: Progress = None,
        reuse_unchanged: bool = False,
        fresh_start: bool = False,
        retention: Sequence[RetentionRule] | None = None,
        coordinator: Coordinator | None = None,
        check_replicas: CheckReplicas = "first",
        stall_s: float = 120.0,
    ) -> None:
        if retention is not None and (max_to_keep is not None or keep_checkpoint_every_n_hours is not None):
            raise both_given()
        if max_to_keep is not None and max_to_keep <= 0:
            raise UsageError("Expected a positive integer or `None` for `max_to_keep`", actual=max_to_keep)
        if checkpoint_interval is not None and step_counter is None:
            raise UsageError("`step_counter` should be passed if `checkpoint_interval` is not None")
        if not isinstance(checkpoint, Checkpoint):
            raise UsageError(
                "a manager saves a ckptstore.Checkpoint",
                actual=f"{type(checkpoint).__module__}.{type(checkpoint).__name__}",
                hint=instead_of(checkpoint)
                or "Put the values into one: ckptstore.Checkpoint(net=net, step=step).",
            )
        self._checkpoint = checkpoint
        self._options = SaveOptions(
            deadline_s, memory_budget, durability, progress, reuse_unchanged, fresh_start=fresh_start
        )
        self._coordinator = coordinator
        self._ranks = (
            None if coordinator is None else Ranks(coordinator, check_replicas, stall_s, self._options)
        )
        self._directory = self._options.place(locate(directory, storage_options))
        self._prefix = self._directory.child(checkpoint_name)
        check_prefix_name(self._prefix)
        self._step_counter = step_counter
        self._checkpoint_interval = checkpoint_interval
        self._init_fn = init_fn
        self._last_checkpoint_step = last_checkpoint_step
        self._run = run
        self._storage_options = storage_options
        hours = keep_checkpoint_every_n_hours
        keeps: Retention = ManagerRetention(
            max_to_keep, None if hours is None else hours * SECONDS_PER_HOUR, float(clock())
        )
        if retention is not None:
            keeps = RulesRetention(check_rules(retention))
        self._writer = CheckpointWriter(self._directory, None, keeps, clock)
        self._writer.peek(checkpoint_name)
        # The fault: why there is no latest one, although there are checkpoints.
        self._latest, self._fault = self._look_for_latest()
        if self._fault is not None:
            warnings.warn(f"nothing is restored: {self._fault}", CkptStoreWarning, stacklevel=2)

    def _look_for_latest(self) -> tuple[str | None, CorruptError | None]:
        try:
            found = self._find_latest()
        except CorruptError as error:
            if self._options.fresh_start:
                text = f"beginning anew, as fresh_start says: {error}"
                warnings.warn(text, CkptStoreWarning, stacklevel=3)
                return None, None
            return None, error
        return found, None

    def _find_latest(self) -> str | None:
        def find() -> str | None:
            found = find_latest(self._directory)
            return None if found is None else found.url

        if self._coordinator is None:
            return find()
        with Agreement(self._coordinator, "find the latest checkpoint") as agreement:
            prefix = agreement.ask_chief(lambda: {"prefix": find()})["prefix"]
        return None if prefix is None else str(prefix)

    @property
    def directory(self) -> str:
        """The directory, as it was given."""
        return self._directory.url

    @property
    def checkpoint_interval(self) -> int | None:
        """Least growth of the step between two saves."""
        return self._checkpoint_interval

    @property
    def checkpoint(self) -> Checkpoint:
        """What is saved."""
        return self._checkpoint

    @property
    def latest_checkpoint(self) -> str | None:
        """Prefix of the newest checkpoint that this manager saved, or found when it was made.

        Raises
        ------
        CorruptError
            If there were checkpoints, and none of them could be restored.
        """
        if self._fault is not None:
            raise self._fault
        return self._latest

    @property
    def checkpoints(self) -> list[str]:
        """Prefixes that retention counts, oldest first."""
        return [self._directory.child(entry.prefix).url for entry in self._writer.window]

    def save(
        self,
        checkpoint_number: Any = None,
        check_interval: bool = True,
        options: object = None,
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> str | None:
        """Save the checkpoint under the next number, make it the latest, delete what retention drops.

        Parameters
        ----------
        checkpoint_number : int-like, optional
            In the place of the save counter.
        check_interval : bool
            Whether `checkpoint_interval` counts for this save.
        options : None
            TensorFlow's ``CheckpointOptions`` are not supported.
        metrics : mapping, optional
            As for `Saver.save`.

        Returns
        -------
        str or None
            The prefix; None if the interval has not passed, or this very step is saved already.

        Raises
        ------
        CkptStoreError
            As `Saver.save`.
        """
        if options is not None:
            warnings.warn("CheckpointOptions have no effect here", CkptStoreWarning, stacklevel=2)
        if self._checkpoint_interval is not None:
            step = _number(self._step_counter, "step_counter")
            if step == self._last_checkpoint_step:
                return None
            last = self._last_checkpoint_step
            if check_interval and last is not None and step < last + self._checkpoint_interval:
                return None
        try:
            task = self._prepare(checkpoint_number, metrics)
        except BaseException as error:
            if self._ranks is not None:
                self._ranks.refuse(error)
            raise
        with task.releasing():
            task.run()
        self._latest, self._fault = task.url, None
        if self._step_counter is not None:
            self._last_checkpoint_step = _number(self._step_counter, "step_counter")
        return self._latest

    def _prepare(self, checkpoint_number: Any, metrics: Mapping[str, float] | None) -> SaveTask:
        numbers = check_metrics(metrics)
        # Before writing, as in TensorFlow: the number that a save carries is the counter that it stores.
        counter = self._checkpoint.save_counter
        counter += 1
        number = (
            int(counter) if checkpoint_number is None else _number(checkpoint_number, "checkpoint_number")
        )
        location = self._directory.child(numbered(self._prefix.name, number))
        plan = self._checkpoint.plan(with_counter=True)
        request = SaveRequest(
            location,
            plan,
            self._run or process_run(),
            step=number,
            fresh_start=self._options.fresh_start,
            metrics=numbers,
        )
        return task_of(request, self._writer, self._options, self._ranks, record=RECORD_NAME)

    def restore_or_initialize(self) -> str | None:
        """Restore the latest checkpoint, or call `init_fn` if there is none.

        Returns
        -------
        str or None
            The prefix that was restored.

        Raises
        ------
        CorruptError
            If there are checkpoints and none of them can be restored now; `init_fn` is not called.
        CkptStoreError
            As `Checkpoint.restore`.
        """
        if self._fault is not None:
            # Perhaps the copy is done by now.
            self._latest, self._fault = self._look_for_latest()
            if self._fault is not None:
                raise self._fault
        if self._latest is not None:
            self._restore(self._latest)
            if self._step_counter is not None:
                self._last_checkpoint_step = _number(self._step_counter, "step_counter")
            return self._latest
        if self._init_fn is not None:
            self._init_fn()
        return None

    def _restore(self, prefix: str) -> None:
        def restore() -> dict[str, str]:
            self._checkpoint.restore(prefix, storage_options=self._storage_options)
            return {"prefix": prefix}

        if self._coordinator is None:
            restore()
            return
        with Agreement(self._coordinator, f"restore {prefix}") as agreement:
            agreement.all_or_none(restore)

    def sync(self) -> None:
        """Do nothing: `save` returns when its checkpoint is durable."""


def _number(value: Any, what: str) -> int:
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iu":
        raise UsageError(f"{what} must be an integer or a 0-d integer array", actual=repr(value))
    return int(array)
