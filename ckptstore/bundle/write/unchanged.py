"""Which tensors of a save have the same bytes as in the previous checkpoint, and need not be sent again.

A data file can be used again only as a whole. So tensors that did not change get a file of their own, which
can be reused as long as none of them changes (docs/design/011-unchanged-tensors.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptstore.bundle.write.item_bytes import encoded, entry_crc32c
from ckptstore.bundle.write.plan import SavePlan, ShardPlan, StoredShard, WriteItem
from ckptstore.format.crc32c import combine, crc32c, mask, unmask
from ckptstore.format.entry import HEADER_KEY, BundleEntry, decode_entry, decode_header, name_to_key
from ckptstore.format.naming import data_name
from ckptstore.format.table import Table

__all__ = ["MOST_SHARDS", "split_unchanged", "stored_crc32c", "stored_shards"]

# More reusable files than this are joined to one: each costs a request, now and at every restore.
MOST_SHARDS = 8


def stored_shards(
    index: bytes, prefix: str, versions: Mapping[int, str], *, source: str
) -> list[StoredShard]:
    """Return the data files that an index names, those that hold nothing but whole tensors end to end.

    Parameters
    ----------
    index : bytes
        Of a checkpoint.
    prefix : str
        Its name, without the directory.
    versions : mapping of int to str
        Of the data files, by number, as far as they are known.
    source : str
        URL for error messages.

    Raises
    ------
    CorruptError
        If the index is damaged.
    """
    count, by_shard = 0, dict[int, list[tuple[bytes, BundleEntry]]]()
    for key, value in Table.from_bytes(index, source=source).items():
        if key == HEADER_KEY:
            header = decode_header(value, source=source)
            if header.big_endian:
                return []
            count = header.num_shards
            continue
        entry = decode_entry(value, source=source, tensor=key.decode(errors="replace"))
        # Of a partitioned tensor only the boxes have bytes, under keys that are not its name.
        if not entry.slices:
            by_shard.setdefault(entry.shard_id, []).append((key, entry))
    found = []
    for number, entries in sorted(by_shard.items()):
        entries.sort(key=lambda item: (item[1].offset, item[1].size_bytes))
        end = 0
        for _, entry in entries:
            if entry.offset != end:
                break
            end += entry.size_bytes
        else:
            name = data_name(prefix, number, count)
            found.append(StoredShard(name, tuple(entries), end, versions.get(number)))
    return found


def split_unchanged(plan: SavePlan, previous: Sequence[StoredShard]) -> SavePlan:
    """Return `plan` with the tensors that did not change in data files of their own.

    Files of `previous` all of whose tensors are the same come as they are, with `ShardPlan.source`; other
    tensors that did not change since make one new file; what changed stays where it was.

    Parameters
    ----------
    plan : SavePlan
        Of whole tensors. Each that may be the same is read once, for its checksum.
    previous : sequence of StoredShard
        Of the checkpoint before.
    """
    items = {name_to_key(item.name): item for shard in plan.shards for item in shard.items}
    same = {
        key
        for stored in previous
        for key, entry in stored.entries
        if key in items and _is_same(items[key], entry)
    }
    if not same:
        return plan
    reused = _reusable(previous, same)
    in_reused = {key for stored in reused for key in _keys(stored)}
    shards = _changed(plan, same)
    for stored in reused:
        shard = _shard("", tuple(items[key] for key in _keys(stored)))
        shards.append(ShardPlan(shard.label, shard.items, shard.size_bytes, stored))
    new = tuple(item for key, item in items.items() if key in same and key not in in_reused)
    return SavePlan((*shards, _shard("", new)) if new else tuple(shards))


def stored_crc32c(shard: ShardPlan) -> int:
    """Return the unmasked checksum that the data file `shard.source` must have, by its index."""
    assert shard.source is not None
    whole = 0
    for item, (_, entry) in zip(shard.items, shard.source.entries, strict=True):
        # The checksum of strings in an index is not that of their bytes.
        crc = crc32c(encoded(item)[0]) if item.array.dtype.hasobject else unmask(entry.masked_crc32c)
        whole = combine(whole, crc, entry.size_bytes)
    return whole


def _reusable(previous: Sequence[StoredShard], same: set[bytes]) -> list[StoredShard]:
    """Return the data files all of whose tensors are in `same`; none if there are too many."""
    reusable = [stored for stored in previous if stored.size_bytes and same.issuperset(_keys(stored))]
    return reusable if len(reusable) <= MOST_SHARDS else []


def _changed(plan: SavePlan, same: set[bytes]) -> list[ShardPlan]:
    """Return the shards of `plan` without the tensors in `same`, and without those that are empty then."""
    changed = [
        _shard(shard.label, tuple(item for item in shard.items if name_to_key(item.name) not in same))
        for shard in plan.shards
    ]
    return [shard for shard in changed if shard.items]


def _keys(stored: StoredShard) -> Iterable[bytes]:
    return (key for key, _ in stored.entries)


def _shard(label: str, items: tuple[WriteItem, ...]) -> ShardPlan:
    return ShardPlan(label, items, sum(item.size_bytes for item in items))


def _is_same(item: WriteItem, entry: BundleEntry) -> bool:
    planned = (item.dtype.as_datatype_enum, item.shape, item.size_bytes)
    if item.slice is not None or planned != (entry.dtype_enum, entry.shape, entry.size_bytes):
        return False
    return mask(entry_crc32c(item)) == entry.masked_crc32c
