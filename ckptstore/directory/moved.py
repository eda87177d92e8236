"""A record that people and programs wrote: its paths become names of the files beside it.

Those of a directory that was moved lead to the old place, and who goes back to a checkpoint by hand may give
another path than the list has.
"""

from __future__ import annotations

import ntpath
import posixpath
from dataclasses import replace

from ckptstore.directory.catalog import fault_of
from ckptstore.directory.paths import basename_of, is_of_windows, relative_prefix, resolve
from ckptstore.format.record import CheckpointState
from ckptstore.storage.base import Location

__all__ = ["moved_here"]


def moved_here(directory: Location, state: CheckpointState) -> CheckpointState:
    """Return `state` with names in the place of paths to where `directory` was before.

    It was there if the path of the latest checkpoint leads out of the directory, and that checkpoint lies
    complete beside the record. Paths to other places stay: a Saver of TensorFlow that saves into two
    directories lists both.

    Inside of the directory the latest checkpoint gets the name that it has in the list: ``./model-1``, or one
    of its files, is what somebody went back to by hand.
    """
    latest = state.model_checkpoint_path
    if relative_prefix(directory, latest) is not None and not is_of_windows(latest):
        return _as_listed(directory, state)
    name = basename_of(latest)
    if not name or fault_of(directory.child(name)) is not None:
        return state
    home = _home_of(latest)
    paths = tuple(
        basename_of(path) if _home_of(path) == home else path for path in state.all_model_checkpoint_paths
    )
    return replace(state, model_checkpoint_path=name, all_model_checkpoint_paths=paths)


def _as_listed(directory: Location, state: CheckpointState) -> CheckpointState:
    latest, paths = state.model_checkpoint_path, state.all_model_checkpoint_paths
    if not paths or latest == paths[-1] or latest in paths:
        return state
    listed = {directory.child(name).key: path for path in paths if (name := relative_prefix(directory, path))}
    for place in resolve(directory, latest):
        if place.key in listed:
            return replace(state, model_checkpoint_path=listed[place.key])
    return state


def _home_of(path: str) -> str:
    if is_of_windows(path):
        return ntpath.normpath(ntpath.dirname(path)).casefold()
    return posixpath.normpath(posixpath.dirname(path))
