"""Checkpoints while ``model.fit`` runs: saved by epoch or by batches, found again by the next start."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from ckptstore.directory.retention_rules import Best
from ckptstore.errors import UsageError
from ckptstore.keras.saving import load, load_state, save_state
from ckptstore.keras.weights import import_keras, to_numpy
from ckptstore.reading.open_checkpoint import open_checkpoint
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint_management import get_checkpoint_state, latest_checkpoint
from ckptstore.train.saver import Saver
from ckptstore.types import Options, PathText
from ckptstore.warn import warn

if TYPE_CHECKING:
    _Callback: Any = object
else:
    try:
        from keras.callbacks import Callback as _Callback
    except ImportError:
        # The constructor says what to install.
        _Callback = object

__all__ = ["ModelCheckpoint"]

# How names of metrics begin or end that are the better the smaller, and the larger.
_SMALLER: Final = re.compile(r"loss|error|map?e|mse|msle|perplexity|divergence")
_LARGER: Final = re.compile(r"acc|auc|precision|recall|f1|fbeta|iou|r2|cosine_similarity|true_")

_LOG = logging.getLogger("ckptstore")


class ModelCheckpoint(_Callback):  # type: ignore[misc] # a class of any kind, for mypy
    """A callback of Keras that saves the model while it is trained, and resumes from the newest checkpoint.

    As ``keras.callbacks.ModelCheckpoint``, for any URL. What is saved is what Keras calls weights: variables
    of the model and its optimizer. The step of a checkpoint is the number of epochs that are over, or of
    steps of the optimizer if `save_freq` is a number.

    Parameters
    ----------
    filepath : str or PathLike
        Prefix or URL; the step is appended. With fields such as ``{epoch:02d}`` or ``{val_loss:.2f}`` it is
        formatted, and no step is appended.
    monitor : str
        Name of the metric that says which is best.
    verbose : int
        1: tell the logger ``ckptstore`` of each save, at level INFO.
    save_best_only : bool
        Save only when the metric is better than before, and keep the best checkpoint only. With a `saver` its
        rules count, such as ``retention=[Best(3, "val_loss")]``.
    save_weights_only : bool
        Accepted for compatibility: the configuration of the model is never saved.
    mode : {"auto", "min", "max"}
        Whether a smaller or a larger value is better. ``"auto"`` goes by the name of the metric.
    save_freq : {"epoch"} or int
        After each epoch, or after so many batches.
    initial_value_threshold : float, optional
        Save only what is better than this.
    saver : Saver, optional
        Whose options and retention count. None: one of this callback, which keeps the newest five.
    resume : bool
        When training begins, restore the newest checkpoint there is, and go on after its epoch. A checkpoint
        inside an epoch repeats that epoch from its first batch. No checkpoint: begin anew.
    storage_options : mapping, optional
        For the backend.

    Raises
    ------
    UnsupportedError
        If Keras is not installed, or is Keras 2.
    UsageError
        If an argument is wrong.

    Notes
    -----
    The metrics of the epoch go with each checkpoint: ``ckptstore ls`` shows them and `Best` chooses by them.
    Resuming sets the first epoch as ``keras.callbacks.BackupAndRestore`` does. If all epochs are over, `fit`
    trains none. Batches are not counted, and the states of random numbers of layers such as Dropout are no
    weights in Keras: they begin anew.

    Threads
    -------
    Keras calls it in the thread that trains.
    """

    def __init__(
        self,
        filepath: PathText,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Literal["auto", "min", "max"] = "auto",
        save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        saver: Saver | None = None,
        resume: bool = True,
        storage_options: Options = None,
    ) -> None:
        import_keras()
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise UsageError("mode must be 'auto', 'min' or 'max'", actual=repr(mode))
        if save_freq != "epoch" and (type(save_freq) is not int or save_freq < 1):
            raise UsageError("save_freq must be 'epoch' or a number of batches", actual=repr(save_freq))
        self.filepath = locate(filepath, storage_options).url
        self.monitor = monitor
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.best = None if initial_value_threshold is None else float(initial_value_threshold)
        self._is_max = _is_max(monitor, mode) if save_best_only else False
        self._saver = saver
        self._resumes = resume
        self._storage_options = storage_options
        self._epoch = 0
        self._last_batch: int | None = None
        self._batches = 0
        self._has_set_epoch = False

    # Of Keras's `Callback`.

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore the newest checkpoint, the first time."""
        del logs
        if self._resumes:
            # Another `fit` in this process goes on with what the model is then.
            self._resumes = False
            self._resume()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        del logs
        self._epoch = epoch
        self._last_batch = None

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save after so many batches."""
        if self.save_freq == "epoch":
            return
        # Keras may run several batches in one call.
        self._batches += batch + 1 if self._last_batch is None else batch - self._last_batch
        self._last_batch = batch
        if self._batches >= int(self.save_freq):
            self._batches = 0
            self._save(self._epoch, batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save after an epoch."""
        self._epoch = epoch + 1
        if self.save_freq == "epoch":
            self._save(epoch + 1, None, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let a later `fit` begin with the epoch that it is told."""
        del logs
        if self._has_set_epoch:
            self._has_set_epoch = False
            self.model._initial_epoch = None  # noqa: SLF001 - as BackupAndRestore sets it

    # What they do.

    def _resume(self) -> None:
        newest = self._newest()
        if newest is None:
            return
        with open_checkpoint(newest, storage_options=self._storage_options) as opened:
            load(self.model, opened)
            state = load_state(opened)
        epoch, best = state.get("epoch"), state.get("best")
        if type(epoch) is not int or epoch < 0:
            warn(f"{newest} does not say after which epoch it was saved: training begins with the first one")
            return
        if type(best) is float and (self.best is None or self._is_better(best)):
            self.best = best
        # `fit` reads it after this; there is no other way for a callback to say so.
        self.model._initial_epoch = epoch  # noqa: SLF001
        self._has_set_epoch = True
        if self.verbose:
            _LOG.info("resumed from %s, after epoch %d", newest, epoch)

    def _newest(self) -> str | None:
        place = locate(self.filepath, self._storage_options)
        if "{" in place.url:
            if "{" in place.parent.url:
                raise UsageError(
                    "the newest checkpoint cannot be found where the directory has fields",
                    actual=self.filepath,
                    hint="Put the fields into the last part of the path, or pass resume=False.",
                )
            return latest_checkpoint(place.parent.url, storage_options=self._storage_options)
        newest = latest_checkpoint(place.parent.url, storage_options=self._storage_options)
        is_ours = re.compile(re.escape(place.name) + r"-\d+").fullmatch
        if newest is None or is_ours(newest.rpartition("/")[2]):
            return newest
        # Something else was saved there last.
        state = get_checkpoint_state(place.parent.url, storage_options=self._storage_options)
        paths = [] if state is None else list(state.all_model_checkpoint_paths)
        return next((path for path in reversed(paths) if is_ours(path.rpartition("/")[2])), None)

    def _save(self, epoch: int, batch: int | None, logs: Mapping[str, Any]) -> None:
        metrics = _numbers(logs)
        if self.save_best_only:
            value = metrics.get(self.monitor)
            if value is None:
                warn(f"the metric {self.monitor!r} that says which is best is not there: the model is saved")
            elif not self._is_better(value):
                return
            else:
                self.best = value
        model = self.model
        path, step = self.filepath, None
        if "{" in path:
            path = self._formatted(epoch if batch is None else epoch + 1, batch, logs)
        else:
            step = epoch if batch is None else _steps_of(model)
        state = {"epoch": epoch, "batch": None if batch is None else batch + 1, "best": self.best}
        if self._saver is None:
            rules = [Best(1, self.monitor, "max" if self._is_max else "min")] if self.save_best_only else None
            self._saver = Saver(retention=rules)
        prefix = save_state(model, path, step, self._saver, state, metrics, self._storage_options)
        if self.verbose:
            _LOG.info("saved %s after epoch %d", prefix, epoch)

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        return self.best is None or (value > self.best if self._is_max else value < self.best)

    def _formatted(self, epoch: int, batch: int | None, logs: Mapping[str, Any]) -> str:
        fields = {"epoch": epoch, **logs} | ({} if batch is None else {"batch": batch + 1})
        try:
            return self.filepath.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                "filepath cannot be formatted",
                expected=f"fields among {', '.join(sorted(fields))}",
                actual=self.filepath,
            ) from error


def _is_max(monitor: str, mode: str) -> bool:
    if mode != "auto":
        return mode == "max"
    name = monitor.removeprefix("val_")
    if _SMALLER.search(name):
        return False
    if _LARGER.search(name):
        return True
    raise UsageError(
        "it is not known whether a smaller or a larger value of this metric is better",
        actual=repr(monitor),
        hint="Pass mode='min' or mode='max'.",
    )


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in logs.items():
        array = to_numpy(value) if not isinstance(value, int | float) else value
        if getattr(array, "ndim", 0) == 0:
            found[name] = float(array)
    return found


def _steps_of(model: Any) -> int:
    return int(to_numpy(model.optimizer.iterations))
