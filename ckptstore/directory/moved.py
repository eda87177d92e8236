"""The record of a directory that was moved: paths to the old place become names of the files beside it."""

from __future__ import annotations

import ntpath
import posixpath
from dataclasses import replace

from ckptstore.directory.catalog import fault_of
from ckptstore.directory.paths import basename_of, is_of_windows, relative_prefix
from ckptstore.format.record import CheckpointState
from ckptstore.storage.base import Location

__all__ = ["moved_here"]


def moved_here(directory: Location, state: CheckpointState) -> CheckpointState:
    """Return `state` with names in the place of paths to where `directory` was before.

    It was there if the path of the latest checkpoint leads out of the directory, and that checkpoint lies
    complete beside the record. Paths to other places stay: a Saver of TensorFlow that saves into two
    directories lists both.
    """
    latest = state.model_checkpoint_path
    if relative_prefix(directory, latest) is not None and not is_of_windows(latest):
        return state
    name = basename_of(latest)
    if not name or fault_of(directory.child(name)) is not None:
        return state
    home = _home_of(latest)
    paths = tuple(
        basename_of(path) if _home_of(path) == home else path for path in state.all_model_checkpoint_paths
    )
    return replace(state, model_checkpoint_path=name, all_model_checkpoint_paths=paths)


def _home_of(path: str) -> str:
    if is_of_windows(path):
        return ntpath.normpath(ntpath.dirname(path)).casefold()
    return posixpath.normpath(posixpath.dirname(path))
