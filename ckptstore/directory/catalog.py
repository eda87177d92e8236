"""The files in a directory of checkpoints: one listing, sorted by prefix."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ckptstore.bundle.verify.verify import BundleFault, verify_bundle
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError, UsageError
from ckptstore.format.naming import output_of_part, parse_file_name, series_of, split_step
from ckptstore.format.record_facts import ShardName
from ckptstore.storage.base import Location
from ckptstore.storage.values import ObjectInfo

__all__ = [
    "Distance",
    "PrefixFiles",
    "doubt_about",
    "fault_of",
    "list_checkpoints",
    "nearest_first",
    "newest_first",
    "quick_check",
    "sorted_by_prefix",
]

# Some object stores round times to seconds.
_SAME_TIME_S = 1.0

# November 2015, the first release of TensorFlow. An unpacked archive may say 1980.
_EARLIEST_S = 1_446_336_000.0

_CLOCKS_DIFFER_S = 24 * 3600.0


class Distance(enum.IntEnum):
    """How far a checkpoint is from the one that the record names."""

    SAME_BASENAME = 0
    LISTED = 1
    UNLISTED = 2


@dataclass(slots=True)
class PrefixFiles:
    """The files of one prefix, as the listing shows them.

    Attributes
    ----------
    prefix : str
        Relative to the directory.
    index : ObjectInfo or None
        None: there is no checkpoint, only leftovers or a save in progress.
    data : dict
        Shard number and count → file.
    """

    prefix: str
    index: ObjectInfo | None = None
    data: dict[ShardName, ObjectInfo] = field(default_factory=dict)
    meta: ObjectInfo | None = None

    @property
    def step(self) -> int | None:
        """The step in the prefix's name."""
        return split_step(self.prefix)[1]

    @property
    def mtime_s(self) -> float:
        """When the newest of its files was written, the index if there is one; seconds since 1970."""
        if self.index is not None:
            return self.index.mtime_s
        files = [*self.data.values(), *([self.meta] if self.meta else [])]
        return max(info.mtime_s for info in files)


def list_checkpoints(
    directory: Location, start: str = "", is_wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, PrefixFiles]:
    """List `directory` once and sort its files by prefix.

    Parameters
    ----------
    directory : Location
    start : str, optional
        Only files whose names begin with it.
    is_wanted : callable, optional
        Only prefixes for which it is true.
    """
    return sorted_by_prefix(directory.storage.list(directory.child(start).key), is_wanted)


def sorted_by_prefix(
    files: Iterable[ObjectInfo], is_wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, PrefixFiles]:
    """Return the files of checkpoints among `files`, by prefix; see `list_checkpoints`.

    A part that is to be merged is not a checkpoint, whatever files it has.
    """
    found: dict[str, PrefixFiles] = {}
    for info in files:
        parsed = parse_file_name(info.key.rpartition("/")[2])
        # A V1 shard may be any file of that name; such checkpoints are found through the record.
        if parsed is None or parsed.kind == "v1-shard" or not is_wanted(parsed.prefix):
            continue
        if output_of_part(parsed.prefix) is not None:
            continue
        item = found.setdefault(parsed.prefix, PrefixFiles(parsed.prefix))
        if parsed.kind == "index":
            item.index = info
        elif parsed.kind == "data":
            assert parsed.shard is not None
            assert parsed.num_shards is not None
            item.data[parsed.shard, parsed.num_shards] = info
        elif parsed.kind == "meta":
            item.meta = info
    unnamed = found.get("")
    if unnamed is not None and (unnamed.index is None or not unnamed.data):
        # Hidden files of other programs have such names.
        del found[""]
    return found


def fault_of(prefix: Location) -> BundleFault | CkptStoreError | None:
    """Return why the checkpoint at `prefix` cannot be restored, None if it can.

    It can if the index is readable and every data file is there and long enough.

    Raises
    ------
    AccessError, TransientError
        If the storage cannot answer.
    """
    return quick_check(prefix)[0]


def quick_check(prefix: Location) -> tuple[BundleFault | CkptStoreError | None, str | None]:
    """Return what `fault_of` does, and the version of the index that was looked at, if there was one."""
    try:
        report = verify_bundle(prefix, quick=True)
    except (NotFoundError, CorruptError, UsageError) as error:
        # UsageError: a name that no file can have, or a directory where a file should be. It came from a
        # record or a listing and not from the caller.
        return error, None
    return (report.faults[0] if report.faults else None), report.index_version


def newest_first(found: dict[str, PrefixFiles]) -> Iterator[PrefixFiles]:
    """Yield the prefixes that have an index, the newest first.

    Among prefixes that differ in their step only, the step decides, because times do not survive a copy of
    the directory. Prefixes without a step come last. Otherwise the time of the newest decides.
    """
    groups: dict[str, list[tuple[tuple[int, ...], float, PrefixFiles]]] = {}
    for item in found.values():
        if item.index is not None:
            series = series_of(item.prefix)
            groups.setdefault(series.name, []).append((series.place, item.index.mtime_s, item))
    for group in groups.values():
        group.sort(key=lambda ranked: (*ranked[:2], ranked[2].prefix), reverse=True)

    def rank(group: list[tuple[tuple[int, ...], float, PrefixFiles]]) -> tuple[bool, float, str]:
        place, mtime_s, item = group[0]
        return bool(place), mtime_s, item.prefix

    for group in sorted(groups.values(), key=rank, reverse=True):
        for _, _, item in group:
            yield item


def nearest_first(
    found: dict[str, PrefixFiles], named: str, listed: Collection[str]
) -> list[tuple[Distance, PrefixFiles]]:
    """Return the prefixes that have an index in the order in which they may take the place of `named`.

    Another basename has other tensors, and one that is not listed may belong to any program.

    Parameters
    ----------
    named : str
        The prefix that the record names as the latest, without its directory.
    listed : collection of str
        Prefixes that the record lists, relative to the directory.
    """
    name = series_of(named).name

    def distance(item: PrefixFiles) -> Distance:
        if series_of(item.prefix).name == name:
            return Distance.SAME_BASENAME
        return Distance.LISTED if item.prefix in listed else Distance.UNLISTED

    return sorted(((distance(item), item) for item in newest_first(found)), key=lambda pair: pair[0])


def doubt_about(found: dict[str, PrefixFiles], chosen: str, now_s: float) -> str | None:
    """Return why it is not certain that `chosen` is the newest of `found`; None if it is.

    Parameters
    ----------
    now_s : float
        Present time of the storage, seconds since 1970.
    """
    item = found[chosen]
    series = series_of(chosen)
    newest: dict[str, PrefixFiles] = {}
    for other in newest_first(found):
        other_series = series_of(other.prefix)
        if other_series.name != series.name and bool(other_series.place) == bool(series.place):
            newest.setdefault(other_series.name, other)
        elif other is not item and other_series == series:
            newest.setdefault(other.prefix, other)
    for other in newest.values():
        if abs(other.mtime_s - item.mtime_s) < _SAME_TIME_S:
            return f"{other.prefix} was written at the same time, so it may be the newer one"
        for one in (item, other):
            if not _EARLIEST_S <= one.mtime_s <= now_s + _CLOCKS_DIFFER_S:
                when = "in the future" if one.mtime_s > now_s else "before there were such checkpoints"
                return f"the time of {one.prefix} lies {when}, so {other.prefix} may be the newer one"
    return None
