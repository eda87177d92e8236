"""Open the checkpoint with a prefix, whichever version of the format it has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from ckptstore.bundle.read.index_file import IndexFile, TableFile
from ckptstore.bundle.read.other_names import decoded_name_hint, saved_model_hint, similar_file_hint
from ckptstore.bundle.read.reader import BundleReader, StoredTensor
from ckptstore.bundle.read.reader_v1 import ReaderV1
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.errors import (
    AccessError,
    CorruptError,
    IncompleteBundleError,
    NotFoundError,
    TensorNotFoundError,
    UsageError,
)
from ckptstore.format.naming import index_name, parse_file_name, parse_v1_pattern, v1_shard_name
from ckptstore.storage.base import Location
from ckptstore.storage.prefix_names import names_a_bucket

__all__ = ["BundleReader", "Opener", "StoredTensor", "open_bundle", "reopening"]

_T = TypeVar("_T")

# How often a whole restore starts again because the files were replaced under it.
_MAX_OPENINGS = 5


class Opener(Protocol):
    """Opens V2 checkpoints in another way than straight from their storage."""

    def open_v2(self, location: Location) -> ReaderV2:
        """Return a reader of the checkpoint at `location`; errors as of `open_bundle`."""


def open_bundle(
    location: Location, *, memory_budget: int | None = None, opener: Opener | None = None
) -> BundleReader:
    """Open the checkpoint with this prefix, V2 or V1.

    Parameters
    ----------
    location : Location
        The prefix. For a V1 checkpoint: the file itself, the prefix of its shards, or TensorFlow's text
        ``PREFIX-?????-of-00003``.
    memory_budget : int, optional
        Becomes the reader's.
    opener : Opener, optional
        Opens it if it is of V2.

    Returns
    -------
    BundleReader
        It read the index, or only a part of it if that is large, and no data file.

    Raises
    ------
    NotFoundError
        If there is neither an index nor a V1 file.
    IncompleteBundleError
        If some shards of a V1 checkpoint are missing.
    TruncatedFileError, FormatError, ChecksumError
        If the index is damaged.
    """
    reader = _open(location, _open_v2 if opener is None else opener.open_v2)
    reader.memory_budget = memory_budget
    return reader


def _open(location: Location, open_v2: Callable[[Location], ReaderV2]) -> BundleReader:
    if location.url.endswith("/") and not location.key.endswith("/"):
        # TensorFlow's saver.save(sess, "dir/") writes dir/.index.
        with suppress(NotFoundError):
            return open_v2(Location(location.storage, f"{location.key}/", location.url))
    if names_a_bucket(location):
        raise NotFoundError(
            "there is no checkpoint with this prefix: the URL names a bucket and nothing in it",
            url=location.url,
            hint="Pass a prefix in it; latest_checkpoint() finds the newest one in a bucket or directory.",
        )
    try:
        return open_v2(location)
    except NotFoundError as error:
        missing = error
    name = location.name
    parsed = parse_file_name(name)
    if parsed is not None and parsed.kind != "v1-shard":
        # TensorFlow opens x.index as an empty V1 checkpoint.
        prefix = location.url[: len(location.url) - len(name)] + parsed.prefix
        raise NotFoundError(
            "there is no checkpoint with this prefix: it names one file of a checkpoint",
            url=location.url,
            hint=f"Pass the prefix: {prefix}",
        ) from missing
    files = _v1_files(location) if name else []
    if not files:
        raise NotFoundError(
            "there is no checkpoint with this prefix",
            url=location.url,
            expected=f"a file {index_name(name)}",
            hint=saved_model_hint(location)
            or decoded_name_hint(location)
            or "Pass a prefix, not a directory; latest_checkpoint() finds the newest one in a directory.",
        ) from missing
    return ReaderV1(location, files)


def _open_v2(location: Location) -> ReaderV2:
    return ReaderV2(location, IndexFile(location.suffixed(index_name(""))))


def _v1_files(location: Location) -> list[TableFile]:
    """Return the files of a V1 checkpoint; an empty list without one."""
    pattern = parse_v1_pattern(location.name)
    if pattern is not None:
        return _v1_shards(location, *pattern)
    try:
        return [TableFile(location)]
    except NotFoundError:
        counts = _shard_counts(location, location.name)
    except UsageError:
        # A directory, or something else that is not a file.
        return []
    if len(counts) > 1:
        raise UsageError(
            "there are several V1 checkpoints with this prefix",
            url=location.url,
            actual=" and ".join(f"{count} shards" for count in sorted(counts)),
            hint=f"Say which, e.g. {location.name}-?????-of-{min(counts):05d}",
        )
    return _v1_shards(location, location.name, counts.pop()) if counts else []


def _v1_shards(location: Location, prefix: str, count: int) -> list[TableFile]:
    """Return all shards, or an empty list if not one of them exists."""
    files: list[TableFile] = []
    directory = location.parent
    for number in range(count):
        shard = directory.child(v1_shard_name(prefix, number, count))
        try:
            files.append(TableFile(shard))
        except NotFoundError as error:
            if not files and count not in _shard_counts(location, prefix):
                return []
            raise IncompleteBundleError(
                "a shard of the V1 checkpoint is missing",
                url=shard.url,
                expected=f"{count} shards",
                hint="Restore another checkpoint or copy the file again." + similar_file_hint(shard),
            ) from error
    return files


def _shard_counts(location: Location, prefix: str) -> set[int]:
    """Return the counts in the names of the V1 shards that are listed beside `location`."""
    start = location.parent.child(f"{prefix}-").key
    try:
        parsed = [parse_file_name(info.key.rpartition("/")[2]) for info in location.storage.list(start)]
    except AccessError:
        # Two requests have shown that the files do not exist; only the search for shards is not allowed.
        return set()
    return {
        found.num_shards
        for found in parsed
        if found is not None and found.kind == "v1-shard" and found.prefix == prefix
    }


def reopening(
    reader: BundleReader, action: Callable[[BundleReader], _T], opener: Opener | None = None
) -> tuple[BundleReader, _T]:
    """Do something with the whole of a checkpoint; start again if it was replaced meanwhile.

    Parameters
    ----------
    reader : BundleReader
    action : callable
        Gets a reader and must use nothing that an earlier call of it found: two saves are never mixed.
    opener : Opener, optional
        That of `open_bundle`.

    Returns
    -------
    reader : BundleReader
        The one that succeeded.
    result
        What `action` returned.

    Raises
    ------
    NotFoundError
        If the checkpoint is gone.
    CkptStoreError
        What `action` raised, if the checkpoint is still the same, or was replaced five times.
    """
    for attempt in range(_MAX_OPENINGS):
        if attempt:
            reader = open_bundle(reader.location, memory_budget=reader.memory_budget, opener=opener)
        try:
            return reader, action(reader)
        except TensorNotFoundError:
            raise
        except (NotFoundError, CorruptError) as error:
            if reader.is_current():
                raise
            last = error
    raise NotFoundError(
        f"the checkpoint was replaced {_MAX_OPENINGS} times while it was being read",
        url=reader.location.url,
        hint="Ask for the latest checkpoint again, or save less often under one name.",
    ) from last
