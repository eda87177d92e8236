"""Lightning's ModelCheckpoint for directories of ckptstore: it looks there as ckptstore does."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from lightning.pytorch.strategies import Strategy

from ckptstore.errors import NotFoundError, UnsupportedError, UsageError
from ckptstore.lightning.plugin import CheckpointIO, prefix_of
from ckptstore.reading.open_checkpoint import open_checkpoint
from ckptstore.torch.habit import TorchHabit
from ckptstore.torch.loads import skeleton_of
from ckptstore.train.checkpoint_management import checkpoint_exists, latest_checkpoint
from ckptstore.types import Options, PathText

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(LightningModelCheckpoint):  # type: ignore[misc]
    """Lightning's ModelCheckpoint, for a `CheckpointIO` of ckptstore.

    All its arguments hold, but for ``save_last="link"``. ``ckpt_path="last"`` is the newest complete
    checkpoint in `dirpath`, whatever it is called, and ``ckpt_path="best"`` the one that the newest knows as
    the best, also in a new process. Where Lightning would begin from scratch beside a checkpoint, or a
    directory cannot be read, an error is raised.

    Parameters
    ----------
    dirpath : str or PathLike
        Directory or URL.
    *arguments, **options
        As for Lightning's.
    storage_options : mapping, optional
        For looking; give the same to the `CheckpointIO`.

    Raises
    ------
    UsageError
        Without `dirpath`, or for ``save_last="link"``; when training begins, if the Trainer has another
        CheckpointIO, or did not take the checkpoint that was found.
    UnsupportedError
        When training begins, if the strategy (FSDP, ModelParallel, DeepSpeed) saves without a CheckpointIO.

    Threads
    -------
    One thread at a time, that of the Trainer.
    """

    def __init__(
        self, dirpath: PathText, *arguments: Any, storage_options: Options = None, **options: Any
    ) -> None:
        if not dirpath:
            raise UsageError("a directory is needed: dirpath=")
        self._storage_options = storage_options
        self._best = ""
        self._is_set_up = False
        self._found: str | None = None
        super().__init__(os.fspath(dirpath), *arguments, **options)
        if self.save_last == "link":
            raise UsageError(
                "a checkpoint of several files cannot be a link", hint="Pass save_last=True, or leave it out."
            )

    @property
    def best_model_path(self) -> str:
        """The best checkpoint; before the Trainer begins, the one that the newest in `dirpath` knows."""
        if not self._best and not self._is_set_up:
            return self._stored_best()
        return self._best

    @best_model_path.setter
    def best_model_path(self, path: str) -> None:
        self._best = path

    @property
    def _fs(self) -> _Directory:
        # In the place of a file system of fsspec, with options and endpoints of its own.
        return _Directory(self._storage_options)

    @_fs.setter
    def _fs(self, fs: Any) -> None:
        del fs

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that the Trainer saves as it is needed here; the Trainer calls it."""
        strategy = trainer.strategy
        if type(strategy).save_checkpoint is not Strategy.save_checkpoint:
            raise UnsupportedError(
                f"the strategy {type(strategy).__name__} saves without a CheckpointIO, on local disks only",
                hint="Save the shards of all ranks in a callback with ckptstore.torch.save, which takes"
                " DTensors, or use a strategy such as DDP.",
            )
        plugin = strategy.checkpoint_io
        # One that saves in the background wraps another.
        plugin = getattr(plugin, "checkpoint_io", plugin)
        if not isinstance(plugin, CheckpointIO):
            raise UsageError(
                "the Trainer saves with another CheckpointIO",
                expected="ckptstore.lightning.CheckpointIO",
                actual=f"{type(plugin).__module__}.{type(plugin).__name__}",
                hint="Pass Trainer(plugins=[ckptstore.lightning.CheckpointIO()]).",
            )
        self._is_set_up = True
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that training goes on from what was found; the Trainer calls it."""
        if self._found is not None and not trainer.ckpt_path:
            raise UsageError(
                "there is a checkpoint to go on from, and Lightning has not taken it",
                url=self._found,
                hint="Pass it: trainer.fit(model, ckpt_path=…). Lightning looks with fsspec, which knows no"
                " storage_options of ours.",
            )
        super().on_train_start(trainer, pl_module)

    def _find_last_checkpoints(self, trainer: Any) -> set[str]:
        """Return the index of the newest checkpoint: Lightning asks whether there is such a file."""
        del trainer
        self._found = self._newest()
        return set() if self._found is None else {f"{self._found}.index"}

    def _newest(self) -> str | None:
        return latest_checkpoint(self.dirpath, storage_options=self._storage_options)

    def _stored_best(self) -> str:
        newest = self._newest()
        if newest is None:
            return ""
        with open_checkpoint(newest, storage_options=self._storage_options) as checkpoint:
            tree = skeleton_of(checkpoint, TorchHabit())
        callbacks = tree.get("callbacks", {}) if isinstance(tree, dict) else {}
        found = str(callbacks.get(self.state_key, {}).get("best_model_path", ""))
        if found and not checkpoint_exists(found, storage_options=self._storage_options):
            raise NotFoundError(
                "the best checkpoint that the newest one names is not there",
                url=found,
                hint=f"Pass another path; the newest is {newest}.",
            )
        return found

    def _should_remove_checkpoint(self, trainer: Any, previous: str, current: str) -> bool:
        """Return whether Lightning may delete a checkpoint: never the one that training went on from."""
        resumed = trainer.ckpt_path
        if previous == current or (resumed and prefix_of(resumed) == previous):
            return False
        return str(previous).startswith(f"{str(self.dirpath).rstrip('/')}/")


class _Directory:
    """What a ModelCheckpoint asks a file system for."""

    def __init__(self, storage_options: Options) -> None:
        self._storage_options = storage_options

    def exists(self, path: PathText) -> bool:
        return checkpoint_exists(path, storage_options=self._storage_options)

    def isdir(self, path: PathText) -> bool:
        del path
        # Lightning would warn of a directory that is not empty, which is what going on needs.
        return False

    def ls(self, path: PathText, detail: bool = False) -> list[str]:
        del path, detail
        return []
