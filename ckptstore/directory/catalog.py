"""The files in a directory of checkpoints: one listing, sorted by prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ckptstore.bundle.verify.verify import BundleFault, verify_bundle
from ckptstore.directory.paths import owner_of
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError, UsageError
from ckptstore.format.naming import parse_file_name, split_step
from ckptstore.format.record_protocol import ShardName
from ckptstore.storage.base import Location
from ckptstore.storage.values import ObjectInfo

__all__ = ["PrefixFiles", "fault_of", "list_checkpoints", "newest_first", "sorted_by_prefix"]


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
    """Return the files of checkpoints among `files`, by prefix; see `list_checkpoints`."""
    found: dict[str, PrefixFiles] = {}
    for info in files:
        parsed = parse_file_name(info.key.rpartition("/")[2])
        # A V1 shard may be any file of that name; such checkpoints are found through the record.
        if parsed is None or parsed.kind == "v1-shard" or not is_wanted(parsed.prefix):
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
    return found


def fault_of(prefix: Location) -> BundleFault | CkptStoreError | None:
    """Return why the checkpoint at `prefix` cannot be restored, None if it can.

    It can if the index is readable and every data file is there and long enough.

    Raises
    ------
    AccessError, TransientError
        If the storage cannot answer.
    """
    try:
        faults = verify_bundle(prefix, quick=True).faults
    except (NotFoundError, CorruptError, UsageError) as error:
        # UsageError: a name that no file can have, or a directory where a file should be. It came from a
        # record or a listing and not from the caller.
        return error
    return faults[0] if faults else None


def newest_first(found: dict[str, PrefixFiles]) -> Iterator[PrefixFiles]:
    """Yield the prefixes that have an index, the newest first.

    Within one basename the step decides, because times do not survive a copy of the directory; between
    basenames the time of the newest one.
    """
    groups: dict[str, list[PrefixFiles]] = {}
    for item in found.values():
        if item.index is not None:
            groups.setdefault(owner_of(item.prefix), []).append(item)
    for group in groups.values():
        group.sort(key=lambda item: (-1 if item.step is None else item.step, item.mtime_s), reverse=True)
    for group in sorted(groups.values(), key=lambda group: group[0].mtime_s, reverse=True):
        yield from group
