"""``tf.train.Saver`` without TensorFlow: a mapping name → array takes the place of the session.

This module is the interface. The room ``saving/`` does the work: it checks arguments (`arguments`) and
options (`options`), makes a task of a call (`prepare`), runs the task (`task`) when its turn comes
(`save_queue`), and knows the graph (`saver_graph`) and the directories with the checkpoints that retention
counts in each (`directories`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from ckptstore.directory.retention_rules import RetentionRule
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import UsageError
from ckptstore.format.metagraph import SaverDef
from ckptstore.graph.graph import Graph
from ckptstore.reading.open_checkpoint import restore_values
from ckptstore.reading.options import ReadOptions
from ckptstore.reading.rank_restore import restore_values_alike
from ckptstore.saving.arguments import (
    KEEP_HOURS,
    MAX_TO_KEEP,
    V2,
    GraphArguments,
    SaverSettings,
    SaveTarget,
    VarList,
    check_list,
    check_supported,
    check_var_list,
    target_of,
)
from ckptstore.saving.directories import SaverDirectories
from ckptstore.saving.handle import SaveHandle
from ckptstore.saving.options import Durability, QueuePolicy, SaveOptions
from ckptstore.saving.prepare import SavePreparation
from ckptstore.saving.ranks import CheckReplicas, Ranks
from ckptstore.saving.report import SaveReport
from ckptstore.saving.save_queue import SaveQueue
from ckptstore.saving.saver_graph import SaverGraph
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint_management import get_checkpoint_mtimes
from ckptstore.train.meta_graph import export_meta_graph
from ckptstore.transfer.blocks import release_blocks
from ckptstore.transfer.progress import Progress
from ckptstore.types import Options, PathText

__all__ = ["Saver"]


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
        Identity for fencing: when another run takes over a basename, saves of the present one raise
        `FencedError`. By default one for each process. Several processes that save as one pass the same text;
        of two that save one prefix at the same time, one gets a `ConflictError`.
    graph : Graph, optional
        The network that goes into ``.meta``. Without it one is made from the arrays.
    deadline_s : float, optional
        Seconds that one save may take as a whole, from its turn on. Then nothing of it stays, unless it was
        published already; the error says so. None: as long as it makes progress.
    memory_budget : int, optional
        Bytes that saving may hold beyond the arrays themselves, snapshots included. None: no limit.
    durability : {"disk", "cache"}
        ``"disk"``: a save outlives a power failure once it returns. ``"cache"``: the local disk is not waited
        for, so it outlives the end of the process only; for scratch directories. No difference elsewhere.
    progress : {"rich", "tqdm", "log"} or callable, optional
        A bar on a terminal, lines in the log, or a function that gets an `Event` now and then, from any
        thread.
    reuse_unchanged : bool
        Tensors with the bytes of the previous checkpoint go into data files of their own, which are linked or
        copied by the storage and do not travel again (docs/design/011-unchanged-tensors.md).
    fresh_start : bool
        Save although the directory has checkpoints of this basename and none of them can be restored now.
        Otherwise the first save raises `CorruptError`, which lists them: they may still be being copied.
        Their files stay until the same names are saved.
    queue : {"wait", "skip", "refuse"}
        What `save_async` does when another save of this Saver is in flight. ``"wait"``: its turn comes after
        those before it. ``"skip"``: so it does, unless a newer one takes its place while it waits, and its
        handle raises `SaveCancelledError`. ``"refuse"``: it raises `ConflictError` at once. `save` always
        waits.
    retention : sequence of rules, optional
        A checkpoint stays if one of these keeps it: `Latest`, `EveryNSteps`, `EveryHours`, `Best`,
        `YoungerThan`, or an object of your own with ``keep(entries, now_s)``. The newest always stays. In the
        place of `max_to_keep` and `keep_checkpoint_every_n_hours`, also of those in `saver_def`.
    coordinator : Coordinator, optional
        Save one checkpoint together with the other processes of the job: see `ckptstore.coordinator`. Every
        rank makes its Savers, and calls `save` and `save_async`, in the same order and with the same path,
        step and options, and passes what it holds: arrays, or a `Piece` for each of its boxes. All of them
        return the same prefix, or raise an error of the same class. Only the record, the graph and the
        options of the chief, rank 0, count.
    check_replicas : {"first", "always", "never"}
        Compare the bytes of what several ranks hold: at the first save of a layout, at each, or not at all.
    stall_s : float
        Seconds that a rank may write without getting on before it counts as missing. `deadline_s` is 600 with
        a coordinator, unless it is given; less where the engine would end the job before (JAX: 85).
    storage_options : mapping, optional
        For every call that gets none of its own.

    Attributes
    ----------
    graph : Graph or None
        May be set at any time.
    coordinator : Coordinator or None
        As it was given.
    last_report : SaveReport or None
        What the last `save` took, by rank. None before it, or if it is not known.

    Raises
    ------
    UsageError, UnsupportedError
        If an argument is wrong, or asks for what only TensorFlow can do.

    Notes
    -----
    A Saver is a context manager: leaving the block is `close`. It can be used again afterwards.

    Threads
    -------
    One thread at a time.

    Examples
    --------
    >>> import numpy as np
    >>> with Saver(max_to_keep=2) as saver:
    ...     handle = saver.save_async({"w": np.ones(3)}, "memory://docs/saver/model", 1)
    ...     handle.result()
    'memory://docs/saver/model-1'
    """

    def __init__(
        self,
        var_list: VarList | None = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = MAX_TO_KEEP,
        keep_checkpoint_every_n_hours: float = KEEP_HOURS,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: SaverDef | None = None,
        builder: None = None,
        defer_build: bool = False,
        allow_empty: bool = False,
        write_version: int = V2,
        pad_step_number: bool = False,
        save_relative_paths: bool = False,
        filename: str | None = None,
        *,
        clock: Callable[[], float] = time.time,
        run: str | None = None,
        graph: Graph | None = None,
        deadline_s: float | None = None,
        memory_budget: int | None = None,
        durability: Durability = "disk",
        progress: Progress = None,
        reuse_unchanged: bool = False,
        queue: QueuePolicy = "wait",
        fresh_start: bool = False,
        retention: Sequence[RetentionRule] | None = None,
        coordinator: Coordinator | None = None,
        check_replicas: CheckReplicas = "first",
        stall_s: float = 120.0,
        storage_options: Options = None,
    ) -> None:
        check_supported(
            builder=builder, write_version=write_version, defer_build=defer_build, var_list=var_list
        )
        self._saver_def = None if saver_def is None else SaverDef.coerce(saver_def)
        self._settings = SaverSettings.checked(
            self._saver_def, max_to_keep, keep_checkpoint_every_n_hours, sharded, retention
        )
        self._names = check_var_list(var_list)
        if self._names is not None and not self._names and not allow_empty:
            raise UsageError("No variables to save", hint="Name at least one, or set allow_empty=True.")
        self._options = SaveOptions(
            deadline_s, memory_budget, durability, progress, reuse_unchanged, queue, fresh_start
        )
        self._reshape = reshape
        self._built = not defer_build
        self._pad_step_number = pad_step_number
        self._storage_options = storage_options
        self._directories = SaverDirectories(self._settings.retention(clock), clock, run, storage_options)
        self._graph = SaverGraph(graph, self._settings)
        self._ranks = (
            None if coordinator is None else Ranks(coordinator, check_replicas, stall_s, self._options)
        )
        self._preparation = SavePreparation(
            self._names,
            self._settings,
            self._options,
            self._graph,
            self._directories,
            allow_empty,
            self._ranks,
        )
        self._last_report: SaveReport | None = None
        self._queue = SaveQueue(queue)
        # Failures after the last reference to the Saver is gone become warnings.
        weakref.finalize(self, self._queue.report_as_warnings)

    @property
    def graph(self) -> Graph | None:
        """The network that goes into ``.meta``."""
        return self._graph.graph

    @graph.setter
    def graph(self, graph: Graph | None) -> None:
        self._graph.graph = graph

    @property
    def coordinator(self) -> Coordinator | None:
        """What the ranks that save together talk through."""
        return None if self._ranks is None else self._ranks.coordinator

    def build(self) -> None:
        """Allow `save` and `restore` after ``defer_build=True``; there is nothing to build."""
        self._built = True

    def _check_built(self) -> None:
        if not self._built:
            raise UsageError("`build()` should be called before save if defer_build==True")

    def _options_of(self, storage_options: Options) -> Options:
        return self._storage_options if storage_options is None else storage_options

    def _target(
        self, save_path: PathText, global_step: Any, latest_filename: str | None, storage_options: Options
    ) -> SaveTarget:
        return target_of(
            save_path,
            global_step,
            latest_filename,
            self._options_of(storage_options),
            pad_step_number=self._pad_step_number,
        )

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
        metrics: Mapping[str, float] | None = None,
        storage_options: Options = None,
    ) -> str | None:
        """Save arrays as one checkpoint, make it the latest, delete what retention drops.

        Waits for saves of `save_async` that are in flight.

        Parameters
        ----------
        values : mapping
            Name → array-like, `Piece`, or a sequence of pieces that make up the tensor; those are stored as
            the slices of a partitioned tensor. The arrays must stand still until this returns: of one that
            another thread changes meanwhile, any mixture is saved, or the save fails. `save_async` copies
            them.
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
        metrics : mapping, optional
            Name → number, which the record keeps as long as it lists the checkpoint; `Best` chooses by them.
            A value may be NaN or infinite: a save does not fail because a loss has diverged. Of many ranks
            those of rank 0 count.
        storage_options : mapping, optional
            Goes to the backend as it is. By default those of the Saver.

        Returns
        -------
        str or None
            The prefix of the checkpoint; None if there was nothing to save and `allow_empty` is set.

        Raises
        ------
        UsageError
            A wrong argument, an array that cannot be stored, or pieces that overlap or leave a hole; nothing
            was written. Or an array changed while it was being saved; nothing of this save stays.
        TensorNotFoundError
            `var_list` asks for a name that `values` lacks; nothing was written.
        CorruptError
            The directory has checkpoints of this basename, and none of them can be restored; nothing was
            written. See `fresh_start`.
        FencedError
            Another run took over; nothing of this save stays.
        DeadlineError
            It took longer than `deadline_s`. Nothing of it stays, unless the message says that it is
            published and only the record does not name it.
        StorageFullError, AccessError, TransientError, ConflictError, AmbiguousOutcomeError
            From the storage. The previous checkpoint still restores.
        CkptStoreError
            The unreported failure of an earlier `save_async`. Nothing is saved then; the next call saves.

        Guarantees
        ----------
        Durable when it returns. A crash at any point leaves the complete old or the complete new checkpoint.
        Ctrl-C cancels the save: nothing of it stays, unless it was being published. On an object store a
        request that was under way may still arrive: no reader sees what it leaves, and ``ckptstore gc``
        removes it.

        Threads
        -------
        One thread at a time. A signal handler that interrupts a save or a request in its own thread cannot
        save or read: that raises `UsageError`. Let it set a flag, or cancel a background save.
        """
        with self._told_to_ranks():
            self._check_built()
            graph = GraphArguments(meta_graph_suffix, write_meta_graph, strip_default_attrs, save_debug_info)
            target = self._target(save_path, global_step, latest_filename, storage_options)
            task = self._preparation.prepare(values, target, graph, write_state=write_state, metrics=metrics)
        with task.releasing():
            self._queue.wait()
            self._queue.raise_failure()
            prefix = task.run()
            self._last_report = task.report
            return prefix

    def save_async(
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
        snapshot: bool = True,
        metrics: Mapping[str, float] | None = None,
        storage_options: Options = None,
    ) -> SaveHandle:
        """Save arrays in the background; parameters as `save`.

        Everything is checked before it returns. Saves happen in the order of the calls, one at a time.

        Parameters
        ----------
        snapshot : bool
            Copy the arrays, and return when they may be changed again. With a `memory_budget` below their
            size the copy and the save overlap. False: return at once; the caller must not change the arrays
            until ``handle.staged``.

        Returns
        -------
        SaveHandle
            Ask it for the `result`.

        Raises
        ------
        UsageError, TensorNotFoundError
            As `save`; nothing was written.
        ConflictError
            With ``queue="refuse"``, if another save is in flight.
        TransientError
            There is no memory for the copy; nothing was written.
        CkptStoreError
            The unreported failure of an earlier `save_async`. Nothing is saved then; the next call saves.

        Guarantees
        ----------
        A failure is reported once: by the handle's `result`, by the next save, or by `close`, whichever comes
        first; each call of `result` raises it. When the interpreter exits, what is in flight is
        finished, unless it makes no progress.
        """
        with self._told_to_ranks():
            self._check_built()
            graph = GraphArguments(meta_graph_suffix, write_meta_graph, strip_default_attrs, save_debug_info)
            target = self._target(save_path, global_step, latest_filename, storage_options)
            task = self._preparation.prepare(values, target, graph, write_state=write_state, metrics=metrics)
        try:
            return SaveHandle(self._queue.submit(task, snapshot=snapshot))
        except BaseException as error:
            task.release(error)
            raise

    @contextmanager
    def _told_to_ranks(self) -> Iterator[None]:
        """Tell the other ranks of an error: they wait for this one."""
        try:
            yield
        except BaseException as error:
            if self._ranks is not None:
                self._ranks.refuse(error)
            raise

    @property
    def last_report(self) -> SaveReport | None:
        """What the last `save` took, by rank."""
        return self._last_report

    def close(self) -> None:
        """Wait for the saves in flight, and raise the first unreported failure.

        The memory of snapshots is given back. The Saver can be used again.

        Raises
        ------
        CkptStoreError
            The failure of a background save.
        """
        self._queue.wait()
        release_blocks()
        self._queue.raise_failure()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"A background save failed, too: {failure}")

    def restore(
        self,
        values: MutableMapping[str, Any],
        save_path: PathText | None,
        *,
        only_changed: bool = False,
        storage_options: Options = None,
    ) -> None:
        """Fill `values` with the tensors of a checkpoint.

        Existing arrays are filled in place, missing keys get new writable arrays. Names, shapes and types are
        checked before any array changes. When retention or an overwrite removes the checkpoint while it is
        read, it is opened again. A save in flight is not waited for: until it is published, there is only
        what was there before. With a coordinator all ranks call this alike: they read one version of the
        checkpoint, and what is wrong on one rank is raised on all, before any array changes.

        Parameters
        ----------
        values : mutable mapping
            Name → array, `Piece` or sequence of pieces. Without `var_list` it receives every tensor of the
            file; with a coordinator only those that it has, unless it is empty.
        save_path : str or PathLike
            Prefix or URL, such as `latest_checkpoint` returns; its None is refused here.
        only_changed : bool
            Leave arrays alone that have the checksum in the index; see `OpenCheckpoint.restore`.

        Raises
        ------
        UsageError
            A shape (without ``reshape=True``) or type that differs, arrays that share memory, or `save_path`
            None.
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
        place = locate(save_path, self._options_of(storage_options))
        options = ReadOptions(self._options.memory_budget, self._options.progress)
        with options.transfer(place.url) as transfer:
            if self._ranks is None:
                restore_values(
                    place,
                    values,
                    self._names,
                    reshape=self._reshape,
                    only_changed=only_changed,
                    transfer=transfer,
                )
            else:
                restore_values_alike(
                    self._ranks.coordinator,
                    place,
                    values,
                    self._names,
                    reshape=self._reshape,
                    only_changed=only_changed,
                    transfer=transfer,
                )

    @property
    def last_checkpoints(self) -> list[str]:
        """Prefixes that retention still counts, oldest first; empty if everything is kept.

        Those that are saved: the prefix of a save in flight comes when it is published.
        """
        if not self._settings.max_to_keep and self._settings.rules is None:
            return []
        return self._directories.paths

    def set_last_checkpoints(self, last_checkpoints: Sequence[str]) -> None:
        """Let retention count these prefixes, oldest first; as in TensorFlow none of them is ever deleted."""
        check_list(last_checkpoints)
        self.set_last_checkpoints_with_time([(path, float("inf")) for path in last_checkpoints])

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Sequence[tuple[str, float]]) -> None:
        """Let retention count these ``(prefix, seconds since 1970)``, oldest first, and nothing else.

        Waits for saves in flight, which retention would count after these.
        """
        check_list(last_checkpoints_with_time)
        self._queue.wait()
        self._directories.set(last_checkpoints_with_time)

    def recover_last_checkpoints(
        self, checkpoint_paths: Sequence[str], *, storage_options: Options = None
    ) -> None:
        """Let retention count those of these prefixes that exist, dated by their files."""
        # Whatever a record lists: a tuple here, a container of protobuf from TensorFlow.
        check_list(checkpoint_paths, Iterable)
        dated = []
        for path in checkpoint_paths:
            times = get_checkpoint_mtimes([path], storage_options=self._options_of(storage_options))
            dated += [(path, time_s) for time_s in times]
        self.set_last_checkpoints_with_time(dated)

    def as_saver_def(self) -> SaverDef:
        """Return the settings as TensorFlow's ``SaverDef``; the graph's own names where there is a graph."""
        return self._graph.saver_def(self._saver_def)

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
        return export_meta_graph(
            filename,
            graph=self._graph.to_export(),
            collection_list=collection_list,
            as_text=as_text,
            export_scope=export_scope,
            clear_devices=clear_devices,
            clear_extraneous_savers=clear_extraneous_savers,
            strip_default_attrs=strip_default_attrs,
            save_debug_info=save_debug_info,
            storage_options=self._options_of(storage_options),
        )
