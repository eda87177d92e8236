"""Reading the record, and replacing it by compare-and-swap: one of the two modules that commit."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ckptstore.errors import AmbiguousOutcomeError, CorruptError, DeadlineError, FormatError, NotFoundError
from ckptstore.format.record import as_utf8, parse_state
from ckptstore.format.record_facts import Record
from ckptstore.format.record_protocol import format_record, parse_record
from ckptstore.format.record_salvage import salvage_record
from ckptstore.storage.base import Location
from ckptstore.storage.retry import Backoff
from ckptstore.storage.values import Ambiguous, Committed, GetResult, SuffixRange

__all__ = [
    "RECORD_NAME",
    "RecordSnapshot",
    "new_write_id",
    "read_record",
    "read_state",
    "read_state_unless",
    "update_record",
    "with_new_write_ids",
]

RECORD_NAME = "checkpoint"

# A hundred thousand checkpoints with long names. Reading takes some 30 times the size of the file in memory,
# so a file of any size must not be read just because it has the name of a record.
_LARGEST_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class RecordSnapshot:
    """The record at one moment.

    Attributes
    ----------
    record : Record
        Empty if there is none or it cannot be read; without protocol lines if those cannot be read.
    version : str or None
        None if nothing is there.
    fault : CorruptError or None
        Why the bytes that are there cannot be read.
    data : bytes or None
        The bytes that are there, in UTF-8; None if nothing is, or if it is too large to be a record.
    is_recoded : bool
        Whether the file itself is in another encoding, which TensorFlow does not read.
    """

    record: Record
    version: str | None
    fault: CorruptError | None = None
    data: bytes | None = field(default=None, repr=False)
    is_recoded: bool = False


def new_write_id() -> str:
    """Return a fresh id that makes the bytes of one record write unique."""
    return uuid.uuid4().hex


def with_new_write_ids(record: Record) -> Record:
    """Return `record` with fresh ids: no two records of a directory have the same bytes, and version."""
    owners = {name: replace(owner, write_id=new_write_id()) for name, owner in record.owners.items()}
    return replace(record, owners=owners)


def read_record(location: Location) -> RecordSnapshot:
    """Return the record at `location`.

    Raises
    ------
    AccessError, TransientError, UsageError
        From the storage: a record that cannot be reached is never taken for a missing one.
    UnsupportedError
        If a newer ckptstore wrote it.
    """
    return _snapshot(location, parse_record)


def read_state(location: Location) -> RecordSnapshot:
    """Return TensorFlow's fields of the record at `location`: all that a reader needs.

    Raises
    ------
    AccessError, TransientError, UsageError
        As `read_record`.
    """
    return _snapshot(location, _only_state)


def read_state_unless(location: Location, version: str) -> RecordSnapshot | None:
    """Return what `read_state` does, or None while the record has this version: one conditional request.

    Raises
    ------
    AccessError, TransientError, UsageError
        As `read_record`.
    """
    try:
        got = location.storage.get_unless(location.key, version, SuffixRange(_LARGEST_BYTES))
    except NotFoundError:
        return RecordSnapshot(Record(), None)
    return None if got is None else _parsed(got, location, _only_state)


def _only_state(data: bytes, *, source: str) -> Record:
    return Record(parse_state(data, source=source))


def _snapshot(location: Location, parse: Callable[..., Record]) -> RecordSnapshot:
    try:
        # One request reads all of it, unless it is too large to be a record.
        got = location.storage.get(location.key, SuffixRange(_LARGEST_BYTES))
    except NotFoundError:
        return RecordSnapshot(Record(), None)
    return _parsed(got, location, parse)


def _parsed(got: GetResult, location: Location, parse: Callable[..., Record]) -> RecordSnapshot:
    if got.size_bytes > _LARGEST_BYTES:
        fault = FormatError(
            "the record is too large to be one",
            url=location.url,
            expected=f"at most {_LARGEST_BYTES} bytes",
            actual=f"{got.size_bytes} bytes",
            hint="Look at the file. The checkpoints beside it are not affected.",
        )
        return RecordSnapshot(Record(), got.version, fault)
    data = as_utf8(got.data)
    try:
        return RecordSnapshot(
            parse(data, source=location.url), got.version, data=data, is_recoded=data != got.data
        )
    except CorruptError as fault:
        try:
            # A damaged protocol line must lose neither the list nor the lines that say which entries no saver
            # owns, or are pinned.
            state = parse_state(data, source=location.url)
            salvaged = salvage_record(data, source=location.url)
            record = Record(state, kept=salvaged.kept, pins=salvaged.record.pins, notes=salvaged.record.notes)
        except CorruptError:
            record = Record()
        return RecordSnapshot(record, got.version, fault, data, data != got.data)


def update_record(
    location: Location,
    change: Callable[[RecordSnapshot], Record],
    *,
    first: RecordSnapshot | None = None,
    timeout_s: float,
) -> RecordSnapshot:
    """Replace the record by what `change` makes of it; repeat while other writers change it meanwhile.

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
    RecordSnapshot
        What was written.

    Raises
    ------
    DeadlineError
        If other writers were faster until `timeout_s` was over.
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
        # COMMIT POINT: the record names the checkpoint as the latest, or as about to be published.
        if snapshot.version is None:
            outcome = storage.put_new(location.key, data)
        else:
            outcome = storage.put_if(location.key, data, snapshot.version)
        if isinstance(outcome, Committed):
            return RecordSnapshot(record, outcome.version)
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
