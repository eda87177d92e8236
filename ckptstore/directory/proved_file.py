"""Whether a data file that an earlier process wrote still has the bytes that its index says.

Only such a file is linked or copied into another checkpoint: damage would go along, and the checkpoint that
was whole before would be deleted some day.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ckptstore.bundle.write.plan import ShardPlan
from ckptstore.bundle.write.unchanged import stored_crc32c
from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreError
from ckptstore.storage.base import Location
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.values import ObjectInfo
from ckptstore.types import ByteRange
from ckptstore.warn import warn

__all__ = ["proved_version"]

_WINDOW_SIZE_BYTES = 8 * 1024 * 1024

# Files that were read in this process, by backend and version, with their checksum. Not by name: the version
# of a local file holds for all links to it.
_READ: OrderedDict[tuple[str, str], int] = OrderedDict()
_MOST_READ = 1024
_LOCKS = ForkSafeLocks()


def proved_version(directory: Location, shard: ShardPlan, check: Callable[[], object]) -> str | None:
    """Return the version of the file that `shard.source` names; None unless it has the bytes of `shard`.

    A store tells the checksum of what it has. Elsewhere the file is read, once in each process.

    Parameters
    ----------
    check : callable
        Called now and then while the file is read; what it raises ends the save.

    Raises
    ------
    NotFoundError
        If the file is not there.
    """
    assert shard.source is not None
    location = directory.child(shard.source.name)
    info = location.storage.head(location.key)
    wanted = stored_crc32c(shard)
    found: int | None = None
    if info.size_bytes == shard.source.size_bytes:
        if location.storage.capabilities.checksum_proved_by_store:
            found = info.crc32c
            if found is None:
                # A copy made by a server that calculates no checksums of copies.
                return None
        else:
            found = _crc32c_of(location, info, check)
    if found == wanted:
        return info.version
    warn(f"a data file of the checkpoint before is damaged, and is not used again: {location.url}")
    return None


def _crc32c_of(location: Location, info: ObjectInfo, check: Callable[[], object]) -> int | None:
    """Return the checksum of all bytes of a file; None if they cannot be read."""
    key = location.storage.capabilities.backend, info.version
    with _LOCKS[0]:
        known = _READ.get(key)
    if known is not None:
        return known
    window = memoryview(bytearray(min(_WINDOW_SIZE_BYTES, info.size_bytes)))
    crc = 0
    for start in range(0, info.size_bytes, _WINDOW_SIZE_BYTES):
        check()
        stop = min(start + _WINDOW_SIZE_BYTES, info.size_bytes)
        part = window[: stop - start]
        try:
            location.storage.read_into(location.key, [ByteRange(start, stop)], [part], version=info.version)
        except CkptStoreError:
            return None
        crc = crc32c(part, crc)
    with _LOCKS[0]:
        _READ[key] = crc
        if len(_READ) > _MOST_READ:
            _READ.popitem(last=False)
    return crc
