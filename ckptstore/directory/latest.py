"""Find the newest checkpoint that can be restored: by the record, and where that fails by a listing."""

from __future__ import annotations

import itertools
import warnings
from urllib.parse import unquote

from ckptstore.directory.catalog import (
    Distance,
    PrefixFiles,
    doubt_about,
    fault_of,
    list_checkpoints,
    nearest_first,
    newest_first,
)
from ckptstore.directory.incomplete import Incomplete
from ckptstore.directory.paths import basename_of, resolve
from ckptstore.directory.record_entries import listed_paths
from ckptstore.directory.record_update import RECORD_NAME, RecordSnapshot, read_state
from ckptstore.errors import (
    AccessError,
    CkptStoreWarning,
    NotFoundError,
    TransientError,
    UsageError,
    abridged,
)
from ckptstore.format.naming import index_name, parse_file_name
from ckptstore.format.record import CheckpointState
from ckptstore.storage.abilities import now_s
from ckptstore.storage.base import Location, Storage

__all__ = ["check_is_directory", "find_latest", "look_for_latest", "record_location"]

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
    CorruptError
        If there are checkpoints and none of them can be restored, or the record names none that can and
        `recover` is False.
    AccessError, TransientError, UsageError
        From the storage. What cannot be reached is never "no checkpoint", nor is one that is always replaced
        before it can be checked.
    """
    found, remark = look_for_latest(
        directory, latest_filename, recover=recover, allow_external_paths=allow_external_paths
    )
    if remark:
        warnings.warn(f"{remark}; taking that", CkptStoreWarning, stacklevel=3)
    return found


def look_for_latest(
    directory: Location,
    latest_filename: str | None = None,
    *,
    recover: bool = True,
    allow_external_paths: bool = False,
) -> tuple[Location | None, str]:
    """Find the newest checkpoint that can be restored; parameters and errors as `find_latest`.

    Returns
    -------
    found : Location or None
    remark : str
        Why it is not the one that the record names; empty if it is.
    """
    record = record_location(directory, latest_filename)
    snapshot = read_state(record)
    for _ in range(_MOST_LOOKS):
        incomplete = Incomplete()
        place, trouble = _named_by(snapshot, directory, record, allow_external_paths, incomplete)
        if place is not None:
            return place, ""
        # Retention may have taken it since the record was read: the record has moved on then. Only one that
        # did not change is out of date.
        now = snapshot if snapshot.version is None else read_state(record)
        if now.version == snapshot.version:
            if recover:
                place, remark = _search(directory, snapshot.record.state, allow_external_paths, incomplete)
                if place is not None:
                    return place, f"{trouble}; {place.url} is the newest complete checkpoint there{remark}"
            # What the listing showed may be gone for the same reason.
            now = read_state(record) if incomplete else snapshot
            if now.version == snapshot.version:
                if incomplete:
                    raise incomplete.error(directory)
                return None, ""
        snapshot = now
    raise TransientError(
        f"the latest checkpoint was replaced {_MOST_LOOKS} times while it was looked for",
        url=record.url,
        hint="Keep more checkpoints, or save less often.",
    )


def check_is_directory(directory: Location) -> None:
    """Raise if `directory`, in which nothing was found, is the name of something else.

    Raises
    ------
    UsageError
        If it is a prefix, a file of a checkpoint, a record, or percent-encoded.
    """
    parsed = parse_file_name(directory.name)
    parent = directory.parent.url or "."
    what = None
    if directory.name == RECORD_NAME:
        what = "the record of a directory"
    elif parsed is not None and parsed.kind != "v1-shard":
        what = f"a file of checkpoint {parsed.prefix!r}"
    if what is not None and _is_file(directory.storage, directory.key):
        raise UsageError(
            f"this is {what}, not a directory", url=directory.url, hint=f"Pass the directory: {parent}"
        )
    if _is_file(directory.storage, index_name(directory.key)):
        raise UsageError(
            "this is the prefix of a checkpoint, not a directory",
            url=directory.url,
            hint=f"It can be restored as it is. The latest one is found in the directory: {parent}",
        )
    plain = unquote(directory.key)
    if plain != directory.key and next(iter(directory.storage.list(f"{plain}/")), None) is not None:
        raise UsageError(
            "names in URLs are taken as they are, percent signs included, and this directory is empty",
            url=directory.url,
            hint=f"Pass {unquote(directory.url)}",
        )


def _is_file(storage: Storage, key: str) -> bool:
    try:
        storage.head(key)
    except (NotFoundError, UsageError, AccessError):
        return False
    return True


def _named_by(
    snapshot: RecordSnapshot,
    directory: Location,
    record: Location,
    allow_external_paths: bool,
    incomplete: Incomplete,
) -> tuple[Location | None, str]:
    """Return the checkpoint that the record calls the latest, or why it cannot be taken."""
    state = snapshot.record.state
    if snapshot.fault is not None:
        incomplete.add(record.name, "the record cannot be read", str(snapshot.fault))
        return None, f"the record cannot be read: {snapshot.fault}"
    if state is None:
        return None, f"there is no record {record.url}"
    faults = []
    for place in resolve(directory, state.model_checkpoint_path, allow_external_paths=allow_external_paths):
        fault = fault_of(place)
        if fault is None:
            return place, ""
        faults.append(fault)
    reason = "; ".join(map(str, faults)) or "it leads nowhere"
    named = f"the record names {abridged(state.model_checkpoint_path)!r}"
    text = f"{named}, which cannot be restored: {reason}"
    incomplete.add(record.name, f"{named}: {faults[0].what if faults else reason}", text)
    return None, text


def _search(
    directory: Location, state: CheckpointState | None, allow_external_paths: bool, incomplete: Incomplete
) -> tuple[Location | None, str]:
    """Return another checkpoint than the one that the record names, and what is to be said about it."""
    files = list_checkpoints(directory)
    candidates = (
        ((directory.child(item.prefix), "") for item in newest_first(files))
        if state is None
        else _nearest(directory, files, state, allow_external_paths)
    )
    for place, remark in candidates:
        if incomplete.is_restorable(place, place.name):
            doubt = doubt_about(files, place.name, now_s(directory.storage)) if state is None else None
            return place, remark if doubt is None else f"; {doubt}"
    incomplete.add_unpublished(directory, files.values())
    return None, ""


def _nearest(
    directory: Location, files: dict[str, PrefixFiles], state: CheckpointState, allow_external_paths: bool
) -> list[tuple[Location, str]]:
    named = basename_of(state.model_checkpoint_path)
    paths = [path for path, _ in listed_paths(state) if path != state.model_checkpoint_path]
    places = [resolve(directory, path, allow_external_paths=allow_external_paths) for path in paths]
    listed = {place.key: place for place in itertools.chain.from_iterable(places)}
    names = {place.name for place in listed.values() if place.parent.key == directory.key}
    nearest = nearest_first(files, named, names)
    candidates: dict[Distance, list[tuple[Location, str]]] = {distance: [] for distance in Distance}
    other = f"; it is of another basename than {abridged(named)!r}"
    remarks = {Distance.LISTED: other, Distance.UNLISTED: f"{other}, and the record does not list it"}
    for distance, item in nearest:
        candidates[distance].append((directory.child(item.prefix), remarks.get(distance, "")))
    # Of V1, in a directory below, or wherever the caller allows.
    seen = {place.key for place, _ in itertools.chain.from_iterable(candidates.values())}
    elsewhere = [(place, "") for key, place in reversed(listed.items()) if key not in seen]
    candidates[Distance.LISTED] += elsewhere[:_MOST_ELSEWHERE]
    return [*itertools.chain.from_iterable(candidates.values())]
