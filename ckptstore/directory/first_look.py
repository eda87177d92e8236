"""What a run that becomes an owner looks at: what the record lists, and which files there are."""

from __future__ import annotations

from functools import partial

from ckptstore.directory.catalog import PrefixFiles, list_checkpoints
from ckptstore.directory.incomplete import nothing_restorable
from ckptstore.directory.moved import moved_here
from ckptstore.directory.owner_names import common_basename, is_beside, may_have_saved, start_of
from ckptstore.directory.record_entries import own_entries
from ckptstore.directory.record_update import RecordSnapshot, read_record
from ckptstore.errors import AccessError, CorruptError
from ckptstore.format.record_facts import OwnerName
from ckptstore.storage.base import Location
from ckptstore.warn import warn

__all__ = ["check_listed", "list_files"]

# How often a starting run looks again because another one saves meanwhile.
_MOST_LOOKS = 6


def check_listed(
    directory: Location, record: Location, name: OwnerName, snapshot: RecordSnapshot, *, fresh_start: bool
) -> tuple[RecordSnapshot, list[str], CorruptError | None]:
    """Raise if the record lists checkpoints of the same basename, and none of them can be restored.

    Parameters
    ----------
    directory : Location
    record : Location
    name : OwnerName
    snapshot : RecordSnapshot
        Of `record`.
    fresh_start : bool
        Do not raise.

    Returns
    -------
    snapshot : RecordSnapshot
        The record by then.
    listed : list of str
        What it lists of the same basename, whoever owns it, the newest last.
    fault : CorruptError or None
        With `fresh_start`, what is not raised.

    Raises
    ------
    CorruptError
    """
    is_listed = partial(is_beside, name)
    listed: list[str] = []
    for _ in range(_MOST_LOOKS):
        state = snapshot.record.state and moved_here(directory, snapshot.record.state)
        listed = [entry.prefix for entry in own_entries(directory, state, is_listed, {}, 0.0)]
        if not listed:
            break
        fault = nothing_restorable(directory, listed, lambda: list_files(directory, name, beside=True) or {})
        if fault is None:
            break
        # Retention of a run that still saves may have taken them: the record has moved on then.
        now = read_record(record)
        if now.version == snapshot.version:
            if not fresh_start:
                raise fault
            return snapshot, listed, fault
        snapshot = now
    return snapshot, listed, None


def list_files(directory: Location, name: OwnerName, *, beside: bool) -> dict[str, PrefixFiles] | None:
    """Return the files of `name`, with those of the same basename if these are `beside` it.

    None if listing is not allowed: saving works without it.
    """
    try:
        if beside:
            return list_checkpoints(directory, common_basename(name), partial(is_beside, name))
        return list_checkpoints(directory, start_of(name), partial(may_have_saved, name))
    except AccessError as error:
        warn(f"the directory cannot be listed; dead saves are neither adopted nor cleaned up: {error}")
        return None
