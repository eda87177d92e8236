"""What holds in a directory of checkpoints after any crash, freeze or race: named assertions.

They check plain data: *files* is a mapping from the names in one directory to their bytes. `read_directory`
makes one from any storage; a simulation supplies its own.

Tests give every array of a save the same *mark*, a value that no other save has, so that a restore tells
which save it got.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, NamedTuple

from ckptstore.directory.paths import owner_of
from ckptstore.directory.record_update import RECORD_NAME
from ckptstore.errors import CkptStoreError, CorruptError, FencedError, RanksMissingError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import HEADER_KEY, decode_entry, decode_header
from ckptstore.format.naming import data_name, index_name, parse_file_name
from ckptstore.format.record_facts import Record
from ckptstore.format.record_protocol import parse_record
from ckptstore.format.table import Table
from ckptstore.storage.base import Location

__all__ = [
    "InvariantViolation",
    "assert_acknowledged_save_is_kept",
    "assert_checkpoint_is_complete",
    "assert_chief_is_missing",
    "assert_failure_was_due",
    "assert_fence_holds",
    "assert_index_is_there",
    "assert_listed_checkpoints_restore",
    "assert_no_orphans",
    "assert_nothing_is_forgotten",
    "assert_one_save",
    "assert_ranks_agree",
    "assert_reader_is_not_behind",
    "assert_reader_was_served",
    "assert_save_is_whole",
    "data_files_of",
    "listed_prefixes",
    "read_directory",
    "read_record_of",
]

Files = Mapping[str, bytes]

_NOT_PLAIN = {dtype.as_datatype_enum for dtype in dtypes.ALL if dtype.dtype.hasobject}


class InvariantViolation(AssertionError):  # noqa: N818
    """A promise was broken.

    Parameters
    ----------
    name : str
        The invariant, one upper-case word.
    text : str
        What was seen.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


def read_directory(directory: Location) -> dict[str, bytes]:
    """Return name → bytes of all files of `directory`; for small checkpoints at a quiet moment."""
    storage = directory.storage
    start = directory.child("").key
    return {info.key[len(start) :]: storage.get(info.key).data for info in storage.list(start)}


def read_record_of(files: Files, record_name: str = RECORD_NAME) -> Record | None:
    """Return the record among `files`, None if there is none; raises `FormatError` if it is damaged."""
    data = files.get(record_name)
    return None if data is None else _parsed_record(data)


def listed_prefixes(record: Record) -> tuple[str, ...]:
    """Return the checkpoints that a record lists, the latest among them."""
    if record.state is None:
        return ()
    paths = record.state.all_model_checkpoint_paths
    latest = record.state.model_checkpoint_path
    return paths if latest in paths else (*paths, latest)


def data_files_of(files: Files, prefix: str) -> tuple[str, ...]:
    """Return the names of the data files that the index of `prefix` names; raises `KeyError` without one."""
    return tuple(dict.fromkeys(name for name, _ in _named_by(files[index_name(prefix)], prefix)))


def assert_one_save(values: Mapping[str, Any], mark_of: Callable[[Any], Hashable] | None = None) -> Hashable:
    """MIXED: all arrays of one restore come from the same save. Returns its mark.

    Parameters
    ----------
    values : mapping
        What was restored, by name.
    mark_of : callable, optional
        From an array to the mark of its save; by default its first element.
    """
    marks = {
        name: mark_of(array) if mark_of is not None else array.flat[0].item()
        for name, array in values.items()
    }
    first = next(iter(marks.values()), None)
    if any(mark != first for mark in marks.values()):
        raise InvariantViolation("MIXED", f"one restore returned several saves: {marks}")
    return first


def assert_index_is_there(files: Files, prefix: str) -> None:
    """DANGL: a checkpoint that the record names has an index."""
    if index_name(prefix) not in files:
        raise InvariantViolation("DANGL", f"the record names {prefix!r}, which has no index")


def assert_checkpoint_is_complete(files: Files, prefix: str) -> None:
    """CORR: every byte that the index of `prefix` names is there, and is the one that was written."""
    try:
        named = _named_by(files[index_name(prefix)], prefix)
    except CorruptError as error:
        raise InvariantViolation("CORR", f"the index of {prefix!r} cannot be read: {error}") from error
    for name, part in named:
        data = files.get(name)
        if data is None:
            raise InvariantViolation("CORR", f"{prefix!r} names {name!r}, which is not there")
        if not _is_intact(data, part):
            raise InvariantViolation("CORR", f"{name!r} does not hold what the index of {prefix!r} says")


def assert_listed_checkpoints_restore(files: Files, record_name: str = RECORD_NAME) -> None:
    """DANGL and CORR for everything that the record lists."""
    record = read_record_of(files, record_name)
    for prefix in () if record is None else listed_prefixes(record):
        assert_index_is_there(files, prefix)
        assert_checkpoint_is_complete(files, prefix)


def assert_acknowledged_save_is_kept(found: Hashable, allowed: Collection[Hashable]) -> None:
    """LOST: the latest checkpoint is the last acknowledged save of the newest epoch, or a later one.

    Parameters
    ----------
    found : hashable
        Mark of the latest checkpoint; None if there is none.
    allowed : collection
        Mark of the last acknowledged save, and those of all saves begun later by its run or a newer one.
        Empty if no save was acknowledged.
    """
    if allowed and found not in allowed:
        raise InvariantViolation(
            "LOST", f"the latest checkpoint is of save {found!r}; acknowledged: {allowed!r}"
        )


def assert_nothing_is_forgotten(before: Record, after: Record, max_to_keep: int) -> None:
    """LOST: an entry leaves the record's list only because its owner's window is full.

    Parameters
    ----------
    before, after : Record
        Two records, one written over the other.
    max_to_keep : int
        Of every saver of the directory.
    """
    old, new = listed_prefixes(before), listed_prefixes(after)
    for prefix in old:
        if prefix not in new:
            owner = owner_of(prefix)
            if sum(owner_of(other) == owner for other in new) < max_to_keep:
                raise InvariantViolation("LOST", f"{prefix!r} left the list {old}, which became {new}")


def assert_no_orphans(files: Files, record_name: str = RECORD_NAME) -> None:
    """ORPHAN: after ``gc`` every data file is named by an index, or by the record as still to be deleted."""
    record = read_record_of(files, record_name)
    for name in files:
        parsed = parse_file_name(name)
        if parsed is None or parsed.kind != "data":
            continue
        if index_name(parsed.prefix) in files and name in data_files_of(files, parsed.prefix):
            continue
        if record is None or (parsed.shard, parsed.num_shards) not in record.shards_named(parsed.prefix):
            raise InvariantViolation("ORPHAN", f"nothing names {name!r} any more")


def assert_fence_holds(before: Record, after: Record) -> None:
    """FENCE: a record is written over by the run that owns it, or by one with a higher epoch."""
    for name, owner in before.owners.items():
        new = after.owners.get(name)
        if new is None and name.form == "exact" and name.basename not in listed_prefixes(after):
            continue
        if new is None:
            raise InvariantViolation("FENCE", f"the owner of {name.basename!r} left the record")
        if new.epoch < owner.epoch or (new.run != owner.run and new.epoch == owner.epoch):
            raise InvariantViolation(
                "FENCE",
                f"run {new.run!r} of epoch {new.epoch} wrote over run {owner.run!r} of epoch {owner.epoch}",
            )


def assert_failure_was_due(error: BaseException, run: str, basename: str, record: Record | None) -> None:
    """SPURIOUS: a save on a storage that only loses answers fails for one reason: another run took over.

    Parameters
    ----------
    error : BaseException
        What the save raised.
    run : str
        Of the save.
    basename : str
        Of the save.
    record : Record or None
        As it is when the error arrives.
    """
    owners = () if record is None else record.owners.values()
    others = [owner for owner in owners if owner.basename == basename and owner.run != run]
    if isinstance(error, FencedError) and others:
        return
    name = "SPURIOUS" if isinstance(error, CkptStoreError) else "ERROR"
    raise InvariantViolation(name, f"run {run!r} failed with {type(error).__name__}: {error}") from error


def assert_reader_was_served(mark: Hashable, had_checkpoint: bool, tries: int) -> None:
    """STARV: a reader that comes when there is a checkpoint gets one, within a few tries.

    Parameters
    ----------
    mark : hashable
        Of the save that it got, None for nothing.
    had_checkpoint : bool
        Whether a record named a checkpoint when it began.
    tries : int
        How often it resolved the latest checkpoint.
    """
    if had_checkpoint and mark is None:
        raise InvariantViolation("STARV", f"a reader got nothing in {tries} tries")


def assert_reader_is_not_behind(mark: Hashable, published: int, published_at_start: int) -> None:
    """STALE: a reader gets the checkpoint that was the latest when it began, or a newer one.

    Parameters
    ----------
    mark : hashable
        Of the save that it got.
    published, published_at_start : int
        Numbers that grow with the time when an index was put in place: of that save, and of the one that was
        the latest when the reader began.
    """
    if published < published_at_start:
        raise InvariantViolation("STALE", f"a reader got save {mark!r}, older than the latest when it began")


def assert_save_is_whole(files: Files, prefix: str, size_bytes: int) -> None:
    """WHOLE and MIXED: the index of `prefix` names all bytes of one save, and none of another.

    Parameters
    ----------
    size_bytes : int
        Of the checkpoint, whose tensors hold nothing but the mark of the save, as int32.
    """
    assert_checkpoint_is_complete(files, prefix)
    named = _named_by(files[index_name(prefix)], prefix)
    data = b"".join(files[name][part.start : part.stop] for name, part in named)
    if len(data) != size_bytes:
        raise InvariantViolation("WHOLE", f"{prefix!r} has {len(data)} bytes instead of {size_bytes}")
    if len({data[at : at + 4] for at in range(0, len(data), 4)}) > 1:
        raise InvariantViolation("MIXED", f"{prefix!r} holds bytes of several saves")


def assert_ranks_agree(outcomes: Mapping[int, str], *, is_published: bool) -> None:
    """AGREE: no rank was told that a save is committed, and another one, or the storage, that it failed.

    Parameters
    ----------
    outcomes : mapping
        Rank → ``"committed"``, ``"failed"``, ``"fenced"``, or ``"unknown"`` if it could not be found out.
    is_published : bool
        Whether its index was in place at any time.
    """
    told = set(outcomes.values())
    if "failed" in told and ("committed" in told or is_published):
        text = "its index is published" if is_published else "its index was never published"
        raise InvariantViolation("AGREE", f"ranks were told {dict(outcomes)!r}, and {text}")


def assert_chief_is_missing(error: RanksMissingError, rank: int, disturbed: Collection[int]) -> None:
    """BLAME: whoever calls the chief missing is right, unless it could not hear the chief itself.

    Parameters
    ----------
    rank : int
        That raised `error`.
    disturbed : collection of int
        The ranks that were dead, stood still or were cut off since the save began.
    """
    if 0 in error.ranks and not {0, rank}.intersection(disturbed):
        raise InvariantViolation(
            "BLAME", f"rank {rank} says that the chief is missing; disturbed were {sorted(disturbed)}"
        )


class _Part(NamedTuple):
    """Bytes of one data file that an index names."""

    start: int
    stop: int
    masked_crc32c: int | None  # of strings it is not that of the bytes


# The same bytes are parsed once: a simulation looks after every request.
@functools.lru_cache(maxsize=512)
def _parsed_record(data: bytes) -> Record:
    return parse_record(data, source=RECORD_NAME)


@functools.lru_cache(maxsize=512)
def _named_by(index: bytes, prefix: str) -> tuple[tuple[str, _Part], ...]:
    items = dict(Table.from_bytes(index, source=index_name(prefix)).items())
    count = decode_header(items.pop(HEADER_KEY, b""), source=index_name(prefix)).num_shards
    entries = [decode_entry(value, source=index_name(prefix), tensor=repr(k)) for k, value in items.items()]
    return tuple(
        (
            data_name(prefix, entry.shard_id, count),
            _Part(
                entry.offset,
                entry.offset + entry.size_bytes,
                None if entry.dtype_enum in _NOT_PLAIN else entry.masked_crc32c,
            ),
        )
        for entry in entries
        if not entry.slices
    )


@functools.lru_cache(maxsize=512)
def _is_intact(data: bytes, part: _Part) -> bool:
    if len(data) < part.stop:
        return False
    return part.masked_crc32c in (None, mask(crc32c(data[part.start : part.stop])))
