"""Examine every checkpoint of a directory, for ``ckptstore ls`` and ``ckptstore verify``."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ckptstore.bundle.verify.verify import BundleFault
from ckptstore.directory.catalog import PrefixFiles, fault_of, list_checkpoints
from ckptstore.directory.latest import find_latest, record_location
from ckptstore.directory.paths import UNNAMED, resolve
from ckptstore.directory.published_index import read_published_index
from ckptstore.directory.record_update import RecordSnapshot, read_record
from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    CkptStoreWarning,
    CorruptError,
    IncompleteBundleError,
    NotFoundError,
    TransientError,
    UnsupportedError,
    UsageError,
)
from ckptstore.format.naming import data_name, index_name, meta_name, parse_file_name, series_of, split_step
from ckptstore.storage.abilities import KnowsWriters, ListsUploads
from ckptstore.storage.base import Location
from ckptstore.storage.values import ObjectInfo
from ckptstore.view.directory_listing import CheckpointFacts, DirectoryFacts, RecordFacts, State
from ckptstore.view.problems import Problem

__all__ = ["Survey", "survey"]

# What TensorFlow's record calls a sharded V1 checkpoint.
_V1_SHARDS = re.compile(r"-\?{5}-of-[0-9]{5}$")


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts, and the first failure to read something (access, network), if any."""

    facts: DirectoryFacts
    failure: CkptStoreError | None


def survey(directory: Location, *, with_uploads: bool = False) -> Survey:
    """Check the record and every checkpoint of `directory`: index, and presence and size of its shards.

    Parameters
    ----------
    directory : Location
    with_uploads : bool
        Look for unfinished uploads, too.

    Raises
    ------
    AccessError, TransientError, UsageError
        If the directory itself cannot be listed. Who may read its record sees what that lists.
    """
    problem = None
    found: dict[str, PrefixFiles] | None = None
    try:
        found = list_checkpoints(directory)
    except AccessError as error:
        problem = error
    surveyed = _DirectorySurvey(directory, found)
    if problem is not None and surveyed.record.state != "present":
        raise problem
    found = found or {}
    names = [*found, *(name for name in surveyed.listed if name not in found)]
    items = [item for name in names if (item := surveyed.facts(name)) is not None]
    facts = DirectoryFacts(
        url=directory.url or ".",
        now_s=time.time(),
        record=surveyed.record,
        checkpoints=_in_order(items, list(surveyed.listed)),
        latest=None if surveyed.latest is None else surveyed.latest.url,
        latest_problem=surveyed.latest_problem,
        listing_problem=None if problem is None else Problem.of_error(problem),
        unfinished=_unfinished(directory) if with_uploads else (),
    )
    return Survey(facts, surveyed.failure)


class _DirectorySurvey:
    """The survey of one directory; a file that cannot be read does not hide the others."""

    def __init__(self, directory: Location, found: dict[str, PrefixFiles] | None) -> None:
        self.failure: CkptStoreError | None = None
        self._directory = directory
        self._found = found or {}
        self._is_listed = found is not None
        self.listed: dict[str, Location] = {}
        self._being_deleted: set[str] = set()
        self._pins: frozenset[str] = frozenset()
        self._notes: Mapping[str, Mapping[str, float]] = {}
        self.latest_problem: Problem | None = None
        self.record = self._read_record()
        self.latest = self._find_latest()

    def _read_record(self) -> RecordFacts:
        location = record_location(self._directory, None)
        try:
            snapshot = read_record(location)
        except (AccessError, TransientError, UsageError, UnsupportedError) as error:
            self._keep_first_failure(error)
            return RecordFacts(location.url, "unreadable", Problem.of_error(error))
        self._being_deleted = {pending.prefix for pending in snapshot.record.pending}
        self._pins, self._notes = frozenset(snapshot.record.pins), snapshot.record.notes
        self._add_paths(snapshot)
        if snapshot.fault is not None:
            return RecordFacts(location.url, "unreadable", Problem.of_error(snapshot.fault))
        state = snapshot.record.state
        if state is None:
            return RecordFacts(location.url, "missing")
        place = self._place_of(state.model_checkpoint_path)
        prefix = None if place is None else self._name_of(place) or UNNAMED
        return RecordFacts(location.url, "present", latest=state.model_checkpoint_path, latest_prefix=prefix)

    def _add_paths(self, snapshot: RecordSnapshot) -> None:
        state = snapshot.record.state
        for path in (*state.all_model_checkpoint_paths, state.model_checkpoint_path) if state else ():
            place = self._place_of(path)
            if place is not None:
                self.listed[self._name_of(place)] = place

    def _place_of(self, path: str) -> Location | None:
        """Return the place that a path of the record means, the first one where files are."""
        places = resolve(self._directory, path)
        return next((place for place in places if self._name_of(place) in self._found), [*places, None][0])

    def _name_of(self, place: Location) -> str:
        """Return the prefix relative to the directory, as the listing has it."""
        return _V1_SHARDS.sub("", place.key[len(self._directory.key) + 1 :])

    def _find_latest(self) -> Location | None:
        try:
            with warnings.catch_warnings():
                # The table shows the same.
                warnings.simplefilter("ignore", CkptStoreWarning)
                return find_latest(self._directory)
        except CorruptError:
            # The table shows the state of each.
            return None
        except (AccessError, TransientError, UsageError, UnsupportedError) as error:
            self._keep_first_failure(error)
            self.latest_problem = Problem.of_error(error)
            return None

    def _keep_first_failure(self, error: CkptStoreError) -> None:
        # A directory in the place of the record, or a record of a newer release, is only shown.
        if self.failure is None and isinstance(error, (AccessError, TransientError)):
            self.failure = error

    def facts(self, name: str) -> CheckpointFacts | None:
        """Return the facts of one prefix; None if its files only look like a checkpoint's by their names."""
        place = self.listed.get(name) or self._directory.child(name)
        found = self._found.get(name) or self._found_below(place) or PrefixFiles(name)
        files = [info for info in (found.index, found.meta, *found.data.values()) if info is not None]
        version = 2
        if found.index is not None:
            state, problem = self._state(place)
        elif found.data:
            state, problem = "torn", self._unpublished(place, found)
        elif found.meta is not None and name not in self.listed:
            state, problem = "graph only", None
        else:
            # Neither index nor data: V1, or only a line of the record.
            state, problem = self._state(place)
            if name not in self.listed and state != "complete":
                # Other files are named like the shards of V1, TFRecords for example.
                return None
            if self._is_listed:
                files += self._v1_files(name)
            version = 2 if state == "gone" else 1
        newest = found.index or max(files, key=lambda info: info.mtime_s, default=None)
        return CheckpointFacts(
            prefix=name or UNNAMED,
            url=place.url,
            step=split_step(name)[1],
            version=version,
            state=state,
            problem=problem,
            size_bytes=sum(info.size_bytes for info in files),
            mtime_s=None if newest is None else newest.mtime_s,
            graph=found.meta is not None,
            listed=name in self.listed,
            latest=self.latest is not None and self._name_of(self.latest) == name,
            published=found.index is not None or version == 1,
            pinned=name in self._pins,
            metrics=self._notes.get(name, {}),
        )

    def _found_below(self, place: Location) -> PrefixFiles | None:
        """Return the files of a prefix that the record lists in another directory, or without a listing."""
        parent = place.parent
        if not self._is_listed:
            return _asked_for(place)
        if parent.key == self._directory.key:
            return None
        return list_checkpoints(parent, place.name).get(place.name)

    def _state(self, place: Location) -> tuple[State, Problem | None]:
        try:
            fault = fault_of(place)
        except (AccessError, TransientError, UsageError, UnsupportedError) as error:
            self._keep_first_failure(error)
            return "unreadable", Problem.of_error(error)
        if fault is None:
            return "complete", None
        if isinstance(fault, BundleFault):
            return "torn", Problem.of_fault(fault)
        if isinstance(fault, NotFoundError):
            return "gone", Problem.of_error(
                NotFoundError("the record lists it, but its files are missing", url=place.url)
            )
        return "torn", Problem.of_error(fault)

    def _unpublished(self, place: Location, found: PrefixFiles) -> Problem:
        storage = place.storage
        if found.prefix in self._being_deleted:
            what = "no index: it is being deleted"
            hint = "The next save completes the deletion."
        elif isinstance(storage, KnowsWriters) and any(
            storage.is_abandoned(info.key) for info in found.data.values()
        ):
            what = "no index: the save died before it was published"
            hint = "Readers never see it; the next run that saves here removes it."
        else:
            what = "no index: the save is still running, or it died"
            hint = "Readers do not see it."
        return Problem.of_error(IncompleteBundleError(what, url=place.url, hint=hint))

    def _v1_files(self, name: str) -> list[ObjectInfo]:
        place = self._directory.child(name)
        files = []
        for info in place.storage.list(place.key):
            parsed = parse_file_name(info.key.rpartition("/")[2])
            if info.key == place.key or (
                parsed is not None and (parsed.kind, parsed.prefix) == ("v1-shard", place.name)
            ):
                files.append(info)
        return files


def _unfinished(directory: Location) -> Sequence[ObjectInfo]:
    """Return the unfinished uploads in the directory; none where they cannot be listed."""
    if isinstance(directory.storage, ListsUploads):
        with suppress(CkptStoreError):
            return directory.storage.stale_uploads(directory.child("").key, 0.0)
    return ()


def _asked_for(place: Location) -> PrefixFiles:
    """Return the files of a checkpoint in a directory that cannot be listed, each asked for by its name."""
    found = PrefixFiles(place.name, index=_info(place.suffixed(index_name(""))))
    if found.index is not None:
        published = read_published_index(place.parent, place.name)
        for shard in published.shards if published is not None else ():
            info = _info(place.suffixed(data_name("", *shard)))
            if info is not None:
                found.data[shard] = info
        found.meta = _info(place.suffixed(meta_name("")))
    return found


def _info(place: Location) -> ObjectInfo | None:
    try:
        return place.storage.head(place.key)
    except (NotFoundError, AccessError):
        # Who may not list is refused what is missing.
        return None


def _in_order(items: list[CheckpointFacts], recorded: list[str]) -> list[CheckpointFacts]:
    """Return what is gone first, in the order of the record; then the checkpoints, the newest last."""
    gone = {item.prefix: item for item in items if item.state == "gone"}
    names = [*(name for name in recorded if name in gone), *sorted(gone.keys() - set(recorded))]
    return [
        *(gone[name] for name in names),
        *_newest_last([item for item in items if item.prefix not in gone]),
    ]


def _newest_last(items: list[CheckpointFacts]) -> list[CheckpointFacts]:
    """Return the checkpoints of each basename by step, in the order in which the latest is chosen."""
    groups: dict[str, list[tuple[tuple[int, ...], CheckpointFacts]]] = {}
    for item in items:
        series = series_of(item.prefix)
        groups.setdefault(series.name, []).append((series.place, item))
    for group in groups.values():
        group.sort(key=lambda ranked: (ranked[0], ranked[1].mtime_s or 0.0, ranked[1].prefix))
    return [item for group in sorted(groups.values(), key=_age_rank) for _, item in group]


def _age_rank(group: list[tuple[tuple[int, ...], CheckpointFacts]]) -> tuple[bool, bool, float]:
    # Graphs without a checkpoint come first, out of the way.
    is_checkpoint = any(item.state != "graph only" for _, item in group)
    return is_checkpoint, bool(group[-1][0]), max(item.mtime_s or 0.0 for _, item in group)
