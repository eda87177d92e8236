"""The list of checkpoints in a record: the owner of each entry, and the list that a save writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from ckptstore.directory.paths import inside, relative_prefix
from ckptstore.directory.retention import Entry
from ckptstore.format.record import CheckpointState
from ckptstore.storage.base import Location

__all__ = ["is_listed", "listed_paths", "newest_own", "other_entries", "own_entries", "restate"]

# For a listed checkpoint without a time; TensorFlow's CheckpointManager never deletes one with this time.
UNKNOWN_TIME_S = 0.0


def listed_paths(state: CheckpointState | None) -> list[tuple[str, float | None]]:
    """Return each listed path and its time, the latest one included even where the list leaves it out."""
    if state is None:
        return []
    paths = list(state.all_model_checkpoint_paths)
    times: Sequence[float | None] = state.all_model_checkpoint_timestamps
    if len(times) != len(paths):
        times = [None] * len(paths)
    result = list(zip(paths, times, strict=True))
    if state.model_checkpoint_path not in paths:
        result.append((state.model_checkpoint_path, None))
    return result


def is_listed(directory: Location, state: CheckpointState | None, prefix: str) -> bool:
    """Return whether `state` lists `prefix`, a direct child of `directory`."""
    if state is None:
        return False
    paths = (*state.all_model_checkpoint_paths, state.model_checkpoint_path)
    # By its name, as nearly all of up to ten thousand are; or by a longer path.
    return prefix in paths or any(inside(directory, path) == prefix for path in paths if "/" in path)


def own_entries(
    directory: Location,
    state: CheckpointState | None,
    is_own: Callable[[str], bool],
    mtimes_s: Mapping[str, float],
    now_s: float,
) -> list[Entry]:
    """Return the entries of one owner or several, in the order of the record.

    Only direct children of `directory` can be owned: nothing outside of it is ever deleted.

    Parameters
    ----------
    is_own : callable
        Whether a prefix, a direct child of `directory`, is theirs.
    mtimes_s : mapping
        Prefix → time of its index, for a record without times; where that fails too, `now_s`.
    """
    entries: dict[str, Entry] = {}
    for path, time_s in listed_paths(state):
        name = inside(directory, path)
        if name is not None and is_own(name):
            entries.pop(name, None)
            entries[name] = Entry(name, mtimes_s.get(name, now_s) if time_s is None else time_s)
    return list(entries.values())


def newest_own(
    directory: Location, state: CheckpointState | None, is_own: Callable[[str], bool]
) -> str | None:
    """Return the last prefix in the list for which `is_own` is true."""
    for path in reversed(() if state is None else state.all_model_checkpoint_paths):
        name = inside(directory, path)
        if name is not None and is_own(name):
            return name
    return None


def other_entries(
    directory: Location,
    state: CheckpointState | None,
    is_own: Callable[[str], bool],
    judged: Collection[str],
) -> list[tuple[str, float | None]]:
    """Return the listed paths that are neither `judged` nor own ones.

    They are relative to `directory` where they lie inside.

    Parameters
    ----------
    judged : collection of str
        What retention has looked at: it stays in the window, or leaves the list. The user may have set
        what is not our own.
    """
    others = []
    for path, time_s in listed_paths(state):
        name = relative_prefix(directory, path)
        if name is None:
            others.append((path, time_s))
        elif "/" in name or (name not in judged and not is_own(name)):
            others.append((name, time_s))
    return others


def restate(
    others: Sequence[tuple[str, float | None]], window: Sequence[Entry], latest: str, last_preserved_s: float
) -> CheckpointState:
    """Return the record's four fields: the others' entries, then our window, `latest` as the newest."""
    paths = [path for path, _ in others]
    times = [UNKNOWN_TIME_S if time_s is None else time_s for _, time_s in others]
    for entry in window:
        paths.append(entry.prefix)
        times.append(entry.time_s)
    return CheckpointState(
        model_checkpoint_path=latest,
        all_model_checkpoint_paths=tuple(paths),
        all_model_checkpoint_timestamps=tuple(times),
        last_preserved_timestamp=last_preserved_s,
    )
