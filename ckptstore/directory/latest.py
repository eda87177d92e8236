"""Find the newest checkpoint that can be restored: by the record, and where that fails by a listing."""

from __future__ import annotations

import itertools
import posixpath
import warnings
from dataclasses import dataclass, field

from ckptstore.directory.catalog import (
    Distance,
    doubt_about,
    fault_of,
    list_checkpoints,
    nearest_first,
    newest_first,
)
from ckptstore.directory.paths import resolve
from ckptstore.directory.record_entries import listed_paths
from ckptstore.directory.record_update import RECORD_NAME, RecordSnapshot, read_state
from ckptstore.errors import CkptStoreWarning, TransientError, UsageError, abridged
from ckptstore.format.naming import parse_file_name
from ckptstore.format.record import CheckpointState
from ckptstore.storage.abilities import now_s
from ckptstore.storage.base import Location

__all__ = ["find_latest", "record_location"]

# A directory may hold ten thousand torn checkpoints.
_MOST_PASSED_OVER = 5

# Listed checkpoints that the listing of the directory does not show.
_MOST_ELSEWHERE = 20

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
            search = _search(directory, snapshot.record.state, allow_external_paths) if recover else _Search()
            if search.found is not None:
                taken = f"taking {search.found.url}, the newest complete checkpoint there"
                _warn(f"{trouble}; {taken}{search.remark}")
                return search.found
            passed_over = search.passed_over
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


@dataclass(slots=True)
class _Search:
    """The search for another checkpoint than the one that the record names.

    Attributes
    ----------
    found : Location or None
        The nearest complete one.
    remark : str
        What is to be said about it.
    passed_over : list of str
        Why the others were not taken, the first few.
    """

    found: Location | None = None
    remark: str = ""
    passed_over: list[str] = field(default_factory=list)

    def try_it(self, place: Location, name: str) -> bool:
        fault = fault_of(place)
        if fault is None:
            self.found = place
            return True
        if len(self.passed_over) < _MOST_PASSED_OVER:
            self.passed_over.append(f"{name}: {fault}")
        return False


def _search(directory: Location, state: CheckpointState | None, allow_external_paths: bool) -> _Search:
    search = _Search()
    files = list_checkpoints(directory)
    if state is None:
        for item in newest_first(files):
            if search.try_it(directory.child(item.prefix), item.prefix):
                doubt = doubt_about(files, item.prefix, now_s(directory.storage))
                search.remark = "" if doubt is None else f"; {doubt}"
                break
        return search
    named = posixpath.basename(state.model_checkpoint_path.rstrip("/"))
    places = [resolve(directory, path, allow_external_paths=allow_external_paths) for path in _listed(state)]
    listed = {place.key: place for place in itertools.chain.from_iterable(places)}
    names = {place.name for place in listed.values() if place.parent.key == directory.key}
    candidates = nearest_first(files, named, names)
    unlisted = [item for distance, item in candidates if distance is Distance.UNLISTED]
    for distance, item in candidates[: len(candidates) - len(unlisted)]:
        if search.try_it(directory.child(item.prefix), item.prefix):
            if distance is Distance.LISTED:
                search.remark = f"; it is of another basename than {abridged(named)!r}"
            return search
    # Of V1, in a directory below, or wherever the caller allows.
    seen = {directory.child(item.prefix).key for _, item in candidates}
    elsewhere = [place for key, place in reversed(listed.items()) if key not in seen]
    for place in elsewhere[:_MOST_ELSEWHERE]:
        if search.try_it(place, place.name):
            return search
    for item in unlisted:
        if search.try_it(directory.child(item.prefix), item.prefix):
            search.remark = (
                f"; it is of another basename than {abridged(named)!r}, and the record does not list it"
            )
            break
    return search


def _listed(state: CheckpointState) -> list[str]:
    return [path for path, _ in listed_paths(state) if path != state.model_checkpoint_path]


def _warn(text: str) -> None:
    warnings.warn(text, CkptStoreWarning, stacklevel=4)
