"""Finding the newest checkpoint that can be restored: by the record, and where that fails by looking."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from ckptstore.directory.catalog import fault_of, list_checkpoints, newest_first
from ckptstore.directory.paths import resolve
from ckptstore.directory.record_update import RECORD_NAME, read_record
from ckptstore.errors import CkptStoreWarning, UsageError, abridged
from ckptstore.storage.base import Location

__all__ = ["find_latest", "record_location"]

# A directory may hold ten thousand torn checkpoints.
_MOST_PASSED_OVER = 5


def record_location(directory: Location, latest_filename: str | None) -> Location:
    """Return where the record of `directory` lies.

    Raises
    ------
    UsageError
        If `latest_filename` names a path.
    """
    name = latest_filename or RECORD_NAME
    if "/" in name:
        raise UsageError(
            "'latest_filename' must not contain path components",
            actual=repr(name),
            hint="Give a bare file name.",
        )
    return directory.child(name)


def find_latest(
    directory: Location,
    latest_filename: str | None = None,
    *,
    recover: bool = True,
    allow_external_paths: bool = False,
) -> Location | None:
    """Return the newest checkpoint of `directory` that can be restored.

    Parameters
    ----------
    directory : Location
    latest_filename : str, optional
        Of the record.
    recover : bool
        Look for complete checkpoints where the record is missing, stale or unreadable.
    allow_external_paths : bool
        Follow paths of the record that lead out of its directory.

    Raises
    ------
    AccessError, TransientError, UsageError
        From the storage. What cannot be reached is never "no checkpoint".
    """
    record = record_location(directory, latest_filename)
    snapshot = read_record(record)
    state = snapshot.record.state
    if snapshot.fault is not None:
        trouble = f"the record cannot be read: {snapshot.fault}"
    elif state is None:
        trouble = f"there is no record {record.url}"
    else:
        places = resolve(directory, state.model_checkpoint_path, allow_external_paths=allow_external_paths)
        faults = []
        for place in places:
            fault = fault_of(place)
            if fault is None:
                return place
            faults.append(str(fault))
        reason = "; ".join(faults) or "it leads nowhere"
        named = repr(abridged(state.model_checkpoint_path))
        trouble = f"the record names {named}, which cannot be restored: {reason}"
    found: Location | None = None
    passed_over: list[str] = []
    if recover:
        found, passed_over = _first_complete(directory)
    if found is not None:
        _warn(f"{trouble}; taking {found.url}, the newest complete checkpoint there")
    elif passed_over or snapshot.version is not None:
        _warn("; ".join([f"{trouble}; no complete checkpoint found", *passed_over]))
    return found


def _first_complete(directory: Location) -> tuple[Location | None, list[str]]:
    passed_over: list[str] = []
    for place in _candidates(directory):
        fault = fault_of(place)
        if fault is None:
            return place, passed_over
        if len(passed_over) < _MOST_PASSED_OVER:
            passed_over.append(f"{place.name}: {fault}")
    return None, passed_over


def _candidates(directory: Location) -> Iterator[Location]:
    for item in newest_first(list_checkpoints(directory)):
        yield directory.child(item.prefix)


def _warn(text: str) -> None:
    warnings.warn(text, CkptStoreWarning, stacklevel=4)
