"""Pins: a line of the record that keeps a checkpoint from being deleted until it is taken away.

A save deletes only what the record says is pending, and a line becomes pending by compare-and-swap on the
record from which the victims were chosen. So the record has an order of every pin and every delete
(docs/design/020-retention-rules.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.directory.latest import record_location
from ckptstore.directory.record_entries import is_listed
from ckptstore.directory.record_update import RecordSnapshot, update_record, with_new_write_ids
from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.format.naming import index_name
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Location
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from ckptstore.types import Options, PathText

__all__ = ["add_pin", "is_there", "pin", "remove_pin", "unpin"]

_TIMEOUT_S = 60.0


class _NothingToDoError(Exception):
    """The record says so already."""


def pin(prefix: PathText, *, latest_filename: str | None = None, storage_options: Options = None) -> None:
    """Keep a checkpoint until `unpin`: retention, ``prune`` and ``gc`` do not delete it.

    It takes no place in any window, and stays in the list of the record if it is in it. Saves may be running.

    Parameters
    ----------
    prefix : str or PathLike
        Prefix or URL of a checkpoint.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default; retention goes by the record that lists a checkpoint.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If there is no such checkpoint, if retention has just decided to delete it, or if there is no record.
    CorruptError
        If the record cannot be read.
    DeadlineError, AmbiguousOutcomeError, AccessError, TransientError
        From the storage.

    Guarantees
    ----------
    When it returns, no save deletes the checkpoint, whatever it had decided before. Not where the storage has
    no conditional writes.

    Threads
    -------
    Safe for concurrent use.
    """
    place, record = _places(prefix, latest_filename, storage_options)
    add_pin(place, record)


def unpin(prefix: PathText, *, latest_filename: str | None = None, storage_options: Options = None) -> None:
    """Take a pin away; if the checkpoint is listed, retention counts it again from the next save on.

    Parameters
    ----------
    prefix : str or PathLike
        Prefix or URL; of a checkpoint that is not there any more, too.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If nothing of this name is pinned, and there is no such checkpoint.
    CorruptError
        If the record cannot be read.
    DeadlineError, AmbiguousOutcomeError, AccessError, TransientError
        From the storage.

    Threads
    -------
    Safe for concurrent use.
    """
    place, record = _places(prefix, latest_filename, storage_options)
    remove_pin(place, record)


def _places(
    prefix: PathText, latest_filename: str | None, storage_options: Options
) -> tuple[Location, Location]:
    place = locate(prefix, storage_options)
    check_prefix_name(place)
    return place, record_location(place.parent, latest_filename)


def add_pin(place: Location, record: Location) -> bool:
    """Pin the checkpoint at `place` in `record`; return whether it was not pinned before."""

    def change(snapshot: RecordSnapshot) -> Record:
        present = _readable(snapshot, record)
        if _is_leaving(place, present):
            raise NotFoundError(
                "retention has decided to delete this checkpoint, and is doing so",
                url=place.url,
                hint="Copy what is left of it, if it is needed. Pin the next one earlier.",
            )
        # Now, not before: what was deleted meanwhile was pending in a record, and this is a later one.
        if not is_there(place):
            raise _no_checkpoint(place)
        if place.name in present.pins:
            raise _NothingToDoError
        return with_new_write_ids(replace(present, pins=(*present.pins, place.name)))

    return _update(record, change)


def remove_pin(place: Location, record: Location) -> bool:
    """Take the pin of `place` out of `record`; return whether there was one."""

    def change(snapshot: RecordSnapshot) -> Record:
        present = _readable(snapshot, record)
        if place.name not in present.pins:
            if not is_there(place):
                raise _no_checkpoint(place)
            raise _NothingToDoError
        pins = tuple(name for name in present.pins if name != place.name)
        return with_new_write_ids(replace(present, pins=pins))

    return _update(record, change)


def is_there(place: Location) -> bool:
    """Return whether there is a checkpoint at `place`, whole or not.

    Raises
    ------
    AccessError, TransientError
        If the storage cannot answer.
    """
    try:
        open_bundle(place)
    except NotFoundError:
        return False
    except CorruptError:
        return True
    return True


def _is_leaving(place: Location, record: Record) -> bool:
    """Return whether exactly what stands at `place` is to be deleted."""
    versions = {line.version for line in record.pending if line.prefix == place.name}
    if not versions or is_listed(place.parent, record.state, place.name):
        return False
    index = place.suffixed(index_name(""))
    try:
        return index.storage.head(index.key).version in versions
    except NotFoundError:
        return False


def _update(record: Location, change: Callable[[RecordSnapshot], Record]) -> bool:
    try:
        update_record(record, change, timeout_s=_TIMEOUT_S)
    except _NothingToDoError:
        return False
    return True


def _readable(snapshot: RecordSnapshot, record: Location) -> Record:
    if snapshot.fault is not None:
        raise snapshot.fault
    if snapshot.version is None:
        raise NotFoundError(
            "there is no record that could hold a pin",
            url=record.url,
            hint="Nothing deletes checkpoints here now. ckptstore repair makes a record of what is there.",
        )
    return snapshot.record


def _no_checkpoint(place: Location) -> NotFoundError:
    return NotFoundError(
        "there is no such checkpoint",
        url=place.url,
        hint="ckptstore ls shows those that there are.",
    )
