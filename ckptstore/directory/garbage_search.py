"""Files that no checkpoint needs: what killed saves left behind, and what overwrites replaced.

* A data file is garbage when the index of its prefix, read now, does not name it and no unfinished delete of
  a record does. Data files that are numbered like those of one whole save belong to the index beside them.
* What is left of a pinned checkpoint stays.
* A graph is garbage when its prefix has no index and it lies beside such data files, or when it is all that
  is left of a step. A graph that was exported there, and the last one of its checkpoints, stay.
* Parts of a bundle, when the youngest of them is old: their merge never came, or died before it had removed
  them.
* TensorFlow's temporary files, those of our own questions to a server, and messages between the ranks of a
  job, by their names.

All of them only when they are so old that no save can still be under way, and never while their writer is
known to live. An index is never garbage, except that of a part: it may be a checkpoint that retention
preserved. Unfinished deletes are left to the next save, which knows them by name and version.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckptstore.directory.catalog import PrefixFiles, sorted_by_prefix
from ckptstore.directory.garbage import Garbage, GarbageFile, Reason, stale_uploads
from ckptstore.directory.paths import owner_of, relative_prefix
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.record_entries import listed_paths
from ckptstore.directory.record_update import read_record
from ckptstore.errors import AccessError, CkptStoreError, CorruptError, TransientError
from ckptstore.format.naming import MESSAGE_PREFIX, index_name, output_of_part, parse_file_name
from ckptstore.format.record_facts import Record, ShardName
from ckptstore.storage.abilities import KnowsWriters, now_s
from ckptstore.storage.base import Location
from ckptstore.storage.values import ObjectInfo

__all__ = ["find_garbage"]

# tensor_bundle.cc: "<file>.tempstate" and a random 64-bit number; file_io.py, atomic_write_string_to_file:
# ".tmp" and 32 hex digits.
_TEMPSTATE = re.compile(r"(?P<final>.+)\.tempstate[0-9]{1,20}", re.DOTALL)
_TMP = re.compile(r"(?P<final>.+)\.tmp[0-9a-f]{32}", re.DOTALL)
_QUESTION = re.compile(r"\.ckptstore-(probe|doctor)-[0-9a-f]{12}(-[a-z]+)?")


def find_garbage(directory: Location, records: Sequence[Location], *, min_age_s: float) -> Garbage:
    """Return the files of `directory` that no checkpoint needs.

    Parameters
    ----------
    directory : Location
    records : sequence of Location
        Every record in it; a missing one lists nothing.
    min_age_s : float
        Younger files may belong to a save under way. Far above the longest save; 24 h is customary.

    Raises
    ------
    CorruptError
        If a record is there and cannot be read: what it says is still to be deleted is not known.
    AccessError, TransientError
        If the directory or a record cannot be read.
    """
    search = _GarbageSearch(directory, records, min_age_s)
    return search.run()


@dataclass(slots=True)
class _GarbageSearch:
    """One search of a directory."""

    directory: Location
    records: Sequence[Location]
    min_age_s: float
    now_s: float = 0.0
    pending: dict[str, set[ShardName]] = field(default_factory=dict)
    superseded: dict[str, set[ShardName]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    pins: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    files: list[GarbageFile] = field(default_factory=list)
    young: list[GarbageFile] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, CkptStoreError]] = field(default_factory=list)

    def run(self) -> Garbage:
        # Before anything else: what this listing shows, a save had finished writing when the rest is read.
        listed = self._list()
        for record in self.records:
            snapshot = read_record(record)
            if snapshot.fault is not None:
                raise CorruptError(
                    f"what is still to be deleted by name is not known: {snapshot.fault.what}",
                    url=record.url,
                    hint="ckptstore repair writes it anew; then collect again.",
                )
            self._add_lines(snapshot.record)
        found = sorted_by_prefix(listed.values())
        self.known |= {owner_of(item.prefix) for item in found.values() if item.index is not None}
        # Again: where files are listed while a save goes on, its graph may show up and its data, which came
        # before, not. What is there now was there before it.
        again = self._list()
        alive = sorted_by_prefix(again.values())
        self.now_s = now_s(self.directory.storage)
        self.others = _beginnings(listed.values())
        graphless = _basenames_without_graph(found.values())
        for item in found.values():
            self._judge(item, alive.get(item.prefix), graphless)
        self._judge_parts(listed.values())
        self._judge_temporaries(listed.values())
        return Garbage(
            url=self.directory.url or ".",
            now_s=self.now_s,
            min_age_s=self.min_age_s,
            files=tuple(file for file in _by_name(self.files) if again.get(file.info.key) == file.info),
            young=_by_name(self.young),
            in_use=tuple(self.in_use),
            pending=tuple(self.waiting),
            graphs=tuple(self.graphs),
            pinned=tuple(self.pinned),
            unreadable=tuple(self.unreadable),
            uploads=self._uploads(),
        )

    def _uploads(self) -> tuple[GarbageFile, ...]:
        try:
            return stale_uploads(self.directory, self.min_age_s)
        except (AccessError, TransientError):
            # The collection tries to drop them, and reports why that fails.
            return ()

    def _list(self) -> dict[str, ObjectInfo]:
        return {info.key: info for info in self.directory.storage.list(self.directory.child("").key)}

    def _add_lines(self, record: Record) -> None:
        for lines, named in ((record.pending, self.pending), (record.superseded, self.superseded)):
            for line in lines:
                named.setdefault(line.prefix, set()).update(line.shards)
        self.pins.update(record.pins)
        self.known |= {name.basename for name in record.owners}
        for path, _ in listed_paths(record.state):
            name = relative_prefix(self.directory, path)
            if name is not None:
                self.known.add(owner_of(name))
                self.listed.add(name)

    def _judge(self, item: PrefixFiles, alive: PrefixFiles | None, graphless: Collection[str]) -> None:
        sets: dict[int, list[ShardName]] = {}
        for shard in item.data:
            sets.setdefault(shard[1], []).append(shard)
        if item.index is not None and _is_one_save(sets):
            # They belong together, no need to open the index.
            return
        if item.prefix in self.others:
            # A V1 checkpoint, which has no index, and its graph.
            return
        storage = self.directory.storage
        if (
            alive is not None
            and isinstance(storage, KnowsWriters)
            and any(storage.is_in_use(info.key) for info in alive.data.values())
        ):
            self.in_use.append(item.prefix)
            return
        # Read now, whatever the listing showed: a writer that is gone published its index before, or never
        # will.
        try:
            published = read_published_index(self.directory, item.prefix)
        except (AccessError, TransientError) as error:
            self.unreadable.append((item.prefix, error))
            return
        if published is not None and not published.shards:
            if item.data:
                fault = CorruptError(
                    "the index names no data file, or cannot be read",
                    url=self.directory.child(index_name(item.prefix)).url,
                    hint="ckptstore verify shows what is wrong with it.",
                )
                self.unreadable.append((item.prefix, fault))
            return
        pending = self.pending.get(item.prefix, set())
        self.waiting += [self._name(item.data[shard]) for shard in item.data if shard in pending]
        if published is None:
            self._judge_unpublished(item, pending, graphless)
        else:
            self._judge_replaced(item, published, sets, pending)

    def _judge_unpublished(
        self, item: PrefixFiles, pending: set[ShardName], graphless: Collection[str]
    ) -> None:
        """Judge the files of a prefix that has no index: a save that died, or one that is under way."""
        if item.prefix in self.pins:
            # Whoever lost its index may bring it back.
            self.pinned.append(item.prefix)
            return
        files = [
            GarbageFile(self._name(info), info, "unpublished")
            for shard, info in item.data.items()
            if shard not in pending
        ]
        if item.meta is not None and item.prefix in self.pending:
            self.waiting.append(self._name(item.meta))
        elif item.meta is not None:
            reason = self._reason_of_graph(item, item.meta, graphless)
            if reason is None:
                self.graphs.append(self._name(item.meta))
            else:
                files.append(GarbageFile(self._name(item.meta), item.meta, reason))
        # Together: a save whose last file is young is not over, however long the first one took.
        self._add(files, max((file.info.mtime_s for file in files), default=0.0))

    def _reason_of_graph(
        self, item: PrefixFiles, meta: ObjectInfo, graphless: Collection[str]
    ) -> Reason | None:
        """Return why a graph beside no index is garbage; None if it may have been put there on its own."""
        if item.data:
            # A save writes the data first. What was there before has no step in its name.
            is_of_this_save = item.step is not None or meta.mtime_s >= min(
                i.mtime_s for i in item.data.values()
            )
            return "unpublished" if is_of_this_save else None
        basename = owner_of(item.prefix)
        is_leftover = item.step is not None and basename in self.known and basename not in graphless
        return "graph alone" if is_leftover else None

    def _judge_replaced(
        self,
        item: PrefixFiles,
        published: PublishedIndex,
        sets: dict[int, list[ShardName]],
        pending: set[ShardName],
    ) -> None:
        """Judge the data files beside an index that names others."""
        superseded = self.superseded.get(item.prefix, set())
        is_whole = all(shard in item.data for shard in published.shards)
        for count, shards in sets.items():
            if count in published.counts:
                continue
            files = [
                GarbageFile(self._name(item.data[shard]), item.data[shard], "replaced")
                for shard in shards
                if shard not in pending
            ]
            since_s = max((file.info.mtime_s for file in files), default=0.0)
            if item.index is not None and (superseded.intersection(shards) or not is_whole):
                # A reader may hold the index that named them: they are not needed since it was replaced. Or
                # the index is one of a dead save, or still to be replaced by a copy under way.
                since_s = max(since_s, item.index.mtime_s)
            self._add(files, since_s)

    def _judge_parts(self, infos: Iterable[ObjectInfo]) -> None:
        """Judge the parts of each bundle together: while one of them is young, a merge may still come."""
        parts: dict[str, list[GarbageFile]] = {}
        for info in infos:
            parsed = parse_file_name(self._name(info))
            output = None if parsed is None else output_of_part(parsed.prefix)
            if parsed is None or output is None or parsed.kind == "v1-shard":
                continue
            # Whoever chose that name for a checkpoint keeps it.
            if parsed.prefix not in self.listed and parsed.prefix not in self.pins:
                parts.setdefault(output, []).append(GarbageFile(self._name(info), info, "unmerged"))
        storage = self.directory.storage
        for output, files in parts.items():
            if isinstance(storage, KnowsWriters) and any(storage.is_in_use(file.info.key) for file in files):
                self.in_use.append(output)
            else:
                self._add(files, max(file.info.mtime_s for file in files))

    def _judge_temporaries(self, infos: Iterable[ObjectInfo]) -> None:
        records = {record.name for record in self.records}
        for info in infos:
            name = self._name(info)
            is_ours = _QUESTION.fullmatch(name) or name.startswith(MESSAGE_PREFIX)
            if is_ours or _is_temporary_of_tensorflow(name, records):
                self._add([GarbageFile(name, info, "temporary")], info.mtime_s)

    def _add(self, files: list[GarbageFile], since_s: float) -> None:
        is_old = self.now_s - since_s >= self.min_age_s
        (self.files if is_old or self.min_age_s == 0 else self.young).extend(files)

    def _name(self, info: ObjectInfo) -> str:
        return info.key.rpartition("/")[2]


def _is_one_save(sets: Mapping[int, Sequence[ShardName]]) -> bool:
    """Return whether the data files look like those of one save: the first of a name numbers all of them."""
    return all(len(sets) == 1 and len(shards) == count for count, shards in sets.items())


def _beginnings(infos: Iterable[ObjectInfo]) -> set[str]:
    """Return the names that would be prefixes of V1 checkpoints, if the files are such."""
    names = set()
    for info in infos:
        name = info.key.rpartition("/")[2]
        parsed = parse_file_name(name)
        names.add(parsed.prefix if parsed is not None and parsed.kind == "v1-shard" else name)
    return names


def _is_temporary_of_tensorflow(name: str, records: Collection[str]) -> bool:
    if match := _TEMPSTATE.fullmatch(name):
        parsed = parse_file_name(match["final"])
        return parsed is not None and parsed.kind in ("index", "data")
    if match := _TMP.fullmatch(name):
        parsed = parse_file_name(match["final"])
        return match["final"] in records or (parsed is not None and parsed.kind == "meta")
    return False


def _basenames_without_graph(found: Iterable[PrefixFiles]) -> set[str]:
    """Return the basenames that have checkpoints, of which none has a graph: a lone one may be theirs."""
    has_graph: dict[str, bool] = {}
    for item in found:
        if item.index is not None:
            basename = owner_of(item.prefix)
            has_graph[basename] = has_graph.get(basename, False) or item.meta is not None
    return {basename for basename, has in has_graph.items() if not has}


def _by_name(files: Iterable[GarbageFile]) -> tuple[GarbageFile, ...]:
    return tuple(sorted(files, key=lambda file: file.name))
