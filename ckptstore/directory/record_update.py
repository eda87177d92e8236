"""Reading the record, and replacing it by compare-and-swap: one of the two modules that commit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from ckptstore.errors import AmbiguousOutcomeError, CorruptError, DeadlineError, NotFoundError
from ckptstore.format.record_protocol import Record, format_record, parse_record
from ckptstore.storage.base import Ambiguous, Committed, Location
from ckptstore.storage.retry import Backoff

__all__ = ["RECORD_NAME", "RecordSnapshot", "new_write_id", "read_record", "update_record"]

RECORD_NAME = "checkpoint"


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """The record at one moment.

    Attributes
    ----------
    record : Record
        Empty if there is none or it cannot be read.
    version : str or None
        None if nothing is there.
    fault : CorruptError or None
        Why the bytes that are there cannot be read.
    """

    record: Record
    version: str | None
    fault: CorruptError | None = None


def new_write_id() -> str:
    """Return a fresh id that makes the bytes of one record write unique."""
    return uuid.uuid4().hex


def read_record(location: Location) -> RecordSnapshot:
    """Return the record at `location`.

    Raises
    ------
    AccessError, TransientError, UsageError
        From the storage: a record that cannot be reached is never taken for a missing one.
    UnsupportedError
        If a newer ckptstore wrote it.
    """
    try:
        got = location.storage.get(location.key)
    except NotFoundError:
        return RecordSnapshot(Record(), None)
    try:
        return RecordSnapshot(parse_record(got.data, source=location.url), got.version)
    except CorruptError as fault:
        return RecordSnapshot(Record(), got.version, fault)


def update_record(
    location: Location,
    change: Callable[[RecordSnapshot], Record],
    *,
    first: RecordSnapshot | None = None,
    timeout_s: float,
) -> Record:
    """Replace the record by what `change` makes of it, again and again until nobody came in between.

    Parameters
    ----------
    location : Location
        Of the record.
    change : callable
        From the present snapshot to the new record; called once an attempt. What it raises ends the update.
    first : RecordSnapshot, optional
        A snapshot just read, to save one request.
    timeout_s : float
        Bound on the whole; a bound in tries would fail under contention (eight writers needed up to 16).

    Returns
    -------
    Record
        The one that was written.

    Raises
    ------
    DeadlineError
        If others were faster until `timeout_s` was over.
    AmbiguousOutcomeError
        If the answer to the write was lost.

    Guarantees
    ----------
    A crash at any point leaves the old record or the new one.
    """
    backoff = Backoff(timeout_s)
    snapshot = read_record(location) if first is None else first
    while True:
        record = change(snapshot)
        data = format_record(record)
        storage = location.storage
        # COMMIT POINT: the record names the checkpoint as the latest.
        if snapshot.version is None:
            outcome = storage.put_new(location.key, data)
        else:
            outcome = storage.put_if(location.key, data, snapshot.version)
        if isinstance(outcome, Committed):
            return record
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "the record may or may not have been written",
                url=location.url,
                actual=outcome.reason,
                hint="Nothing was cleaned up; look at the record before you save again.",
            )
        if not backoff.wait():
            raise DeadlineError(
                f"other writers changed the record {backoff.attempts} times in a row",
                url=location.url,
                expected=f"a quiet moment within {timeout_s:g} s",
                hint="Let fewer jobs share this directory, or save less often.",
            )
        snapshot = read_record(location)
