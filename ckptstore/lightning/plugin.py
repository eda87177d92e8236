"""What a strategy of Lightning saves and loads checkpoints with: a tree of tensors and JSON, no pickle."""

from __future__ import annotations

import os
from typing import Any

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.torch import load, save
from ckptstore.train.checkpoint_management import remove_checkpoint
from ckptstore.train.saver import Saver
from ckptstore.types import Options, PathText

__all__ = ["CheckpointIO", "prefix_of"]

_INDEX = ".index"


def prefix_of(path: PathText) -> str:
    """Return the prefix of the checkpoint that Lightning calls `path`, which may name its index."""
    return os.fspath(path).removesuffix(_INDEX)


class CheckpointIO:
    """Saves and loads the checkpoints of a Trainer: ``Trainer(plugins=[CheckpointIO()])``.

    A path of Lightning, such as ``s3://bucket/run/epoch=1-step=8.ckpt``, is the prefix of a checkpoint. All
    that Lightning puts into it is saved: weights, optimizers, schedulers, loops, callbacks, hyper-parameters.
    What is neither a tensor nor plain data (an object in ``save_hyperparameters()``, for example) is refused
    with its place in the checkpoint, before anything is written. Which checkpoints stay is for the
    `ModelCheckpoint` to say.

    Parameters
    ----------
    storage_options : mapping, optional
        Goes to the backend as it is.
    memory_budget : int, optional
        As for `ckptstore.Saver`.

    Raises
    ------
    UnsupportedError
        If Lightning is not installed.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self, *, storage_options: Options = None, memory_budget: int | None = None) -> None:
        _register(type(self))
        self.storage_options = storage_options
        # Lightning deletes; and on many ranks it is rank 0 that saves.
        self._saver = Saver(max_to_keep=None, memory_budget=memory_budget, storage_options=storage_options)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: PathText, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint; a Trainer calls it.

        Parameters
        ----------
        checkpoint : dict
            What the Trainer has collected.
        path : str or PathLike
            Prefix or URL.
        storage_options : mapping, optional
            By default those of the plug-in.

        Raises
        ------
        UsageError
            If it holds what cannot be saved. Nothing was written.
        CkptStoreError
            As `ckptstore.Saver.save`.
        """
        save(checkpoint, prefix_of(path), saver=self._saver, storage_options=self._options(storage_options))

    def load_checkpoint(
        self, path: PathText, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint as new tensors; no code of it is run, whatever `weights_only` says.

        Parameters
        ----------
        path : str or PathLike
            Prefix or URL, as it was saved.
        map_location : torch.device or str, optional
            Where the tensors are to be. None: the CPU.
        weights_only : bool, optional
            Has no effect.

        Raises
        ------
        NotFoundError
            If there is no such checkpoint.
        UsageError
            If `map_location` is a function or a mapping.
        CkptStoreError
            As `ckptstore.torch.load`.
        """
        del weights_only
        if map_location is not None and (callable(map_location) or isinstance(map_location, dict)):
            raise UsageError("map_location must be a device", actual=type(map_location).__name__)
        found: dict[str, Any] = {}
        single = _alone()
        load(found, prefix_of(path), coordinator=single, storage_options=self.storage_options)
        return found if map_location is None else _moved(found, map_location)

    def remove_checkpoint(self, path: PathText) -> None:
        """Delete a checkpoint, its index first; one that is not there counts as done.

        Parameters
        ----------
        path : str or PathLike
            Prefix or URL.
        """
        remove_checkpoint(prefix_of(path), storage_options=self.storage_options)

    def teardown(self) -> None:
        """End it; a Trainer calls it."""
        self._saver.close()

    def _options(self, given: Any | None) -> Any | None:
        return self.storage_options if given is None else given


def _alone() -> Any:
    from ckptstore.distributed.engines import coordinator

    # Lightning calls this on every rank, each of which gets all of it.
    return coordinator("single")


def _moved(value: Any, device: Any) -> Any:
    """Return a tree of dictionaries, lists and tuples with its tensors on a device."""
    if hasattr(value, "to") and hasattr(value, "untyped_storage"):
        return value.to(device)
    if isinstance(value, dict):
        for key, one in value.items():
            value[key] = _moved(one, device)
        return value
    if type(value) in (list, tuple):
        return type(value)(_moved(one, device) for one in value)
    return value


def _register(kind: type) -> None:
    """Let Lightning take objects of this class for its own plug-ins; its two packages each have a class."""
    found = False
    for base in (_of_lightning(), _of_pytorch_lightning()):
        if base is not None:
            base.register(kind)
            found = True
    if not found:
        raise UnsupportedError("this needs the package lightning", hint="Install it: pip install lightning.")


def _of_lightning() -> Any:
    import importlib.util

    if importlib.util.find_spec("lightning") is None:
        return None
    from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

    return CheckpointIO


def _of_pytorch_lightning() -> Any:
    import sys

    # Only for programs that use it: it takes seconds.
    if "lightning_fabric" not in sys.modules:
        return None
    from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

    return CheckpointIO
