"""Find the newest checkpoint that can be restored: by the record, and where that fails by a listing."""

from __future__ import annotations

import warnings

from ckptstore.directory.catalog import fault_of, list_checkpoints, newest_first
from ckptstore.directory.paths import resolve
from ckptstore.directory.record_update import RECORD_NAME, RecordSnapshot, read_state
from ckptstore.errors import CkptStoreWarning, TransientError, UsageError, abridged
from ckptstore.format.naming import parse_file_name
from ckptstore.storage.base import Location

__all__ = ["find_latest", "record_location"]

# A directory may hold ten thousand torn checkpoints.
_MOST_PASSED_OVER = 5

# How often the search starts again because the directory changed meanwhile.
_MOST_LOOKS = 6


def record_location(directory: Location, latest_filename: str | None) -> Location:
    """Return where the record of `directory` lies.

    Raises
    ------
    UsageError
        If `latest_filename` names a path, or a file of a checkpoint.
    """
    name = latest_filename or RECORD_NAME
    if "/" in name:
        raise UsageError(
            "'latest_filename' must not contain path components",
            actual=repr(name),
            hint="Give a bare file name.",
        )
    parsed = parse_file_name(name)
    if parsed is not None and parsed.kind != "v1-shard":
        raise UsageError(
            "'latest_filename' is the name of a checkpoint's file, which the record would overwrite",
            actual=repr(name),
            hint="Choose another name.",
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
        From the storage. What cannot be reached is never "no checkpoint", nor is one that is always replaced
        before it can be checked.
    """
    record = record_location(directory, latest_filename)
    snapshot = read_state(record)
    for _ in range(_MOST_LOOKS):
        place, trouble = _named_by(snapshot, directory, record, allow_external_paths)
        if place is not None:
            return place
        # Retention may have taken it since the record was read: the record has moved on then. Only one that
        # did not change is out of date.
        now = snapshot if snapshot.version is None else read_state(record)
        if now.version == snapshot.version:
            found, passed_over = _first_complete(directory) if recover else (None, [])
            if found is not None:
                _warn(f"{trouble}; taking {found.url}, the newest complete checkpoint there")
                return found
            # What the listing showed may be gone for the same reason.
            now = read_state(record) if passed_over else snapshot
            if now.version == snapshot.version:
                if passed_over or snapshot.version is not None:
                    _warn("; ".join([f"{trouble}; no complete checkpoint found", *passed_over]))
                return None
        snapshot = now
    raise TransientError(
        f"the latest checkpoint was replaced {_MOST_LOOKS} times while it was looked for",
        url=record.url,
        hint="Keep more checkpoints, or save less often.",
    )


def _named_by(
    snapshot: RecordSnapshot, directory: Location, record: Location, allow_external_paths: bool
) -> tuple[Location | None, str]:
    """Return the checkpoint that the record calls the latest, or why it cannot be taken."""
    state = snapshot.record.state
    if snapshot.fault is not None:
        return None, f"the record cannot be read: {snapshot.fault}"
    if state is None:
        return None, f"there is no record {record.url}"
    faults = []
    for place in resolve(directory, state.model_checkpoint_path, allow_external_paths=allow_external_paths):
        fault = fault_of(place)
        if fault is None:
            return place, ""
        faults.append(str(fault))
    reason = "; ".join(faults) or "it leads nowhere"
    named = repr(abridged(state.model_checkpoint_path))
    return None, f"the record names {named}, which cannot be restored: {reason}"


def _first_complete(directory: Location) -> tuple[Location | None, list[str]]:
    passed_over: list[str] = []
    for item in newest_first(list_checkpoints(directory)):
        place = directory.child(item.prefix)
        fault = fault_of(place)
        if fault is None:
            return place, passed_over
        if len(passed_over) < _MOST_PASSED_OVER:
            passed_over.append(f"{place.name}: {fault}")
    return None, passed_over


def _warn(text: str) -> None:
    warnings.warn(text, CkptStoreWarning, stacklevel=4)
