"""The garbage that a search found, and its removal. `garbage_search` defines what garbage is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ckptstore.directory.collect import collect_graph, drop_leftovers, drop_stale_uploads
from ckptstore.errors import AccessError, CkptStoreError, TransientError
from ckptstore.format.naming import parse_file_name
from ckptstore.storage.abilities import KnowsWriters, ListsUploads
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.values import ObjectInfo

__all__ = [
    "Garbage",
    "GarbageFile",
    "GarbageReport",
    "Reason",
    "collect_garbage",
    "stale_uploads",
    "upload_age_s",
]

Reason: TypeAlias = Literal["unpublished", "replaced", "graph alone", "unmerged", "temporary", "unfinished"]
"""``unpublished``: no index ever named it, or it is gone. ``replaced``: the prefix was saved again since.
``graph alone``: its checkpoint is gone. ``unmerged``: a part of a bundle whose merge never came, or died.
``temporary``: left by TensorFlow, or by a question to the server.
``unfinished``: an upload that was never completed."""

# Where the storage knows which writers live, unfinished uploads of dead ones go at once. Those of writers of
# which it knows nothing, on another host for example, wait for so long at least.
_UPLOAD_AGE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class GarbageFile:
    """One file that no checkpoint needs."""

    name: str
    info: ObjectInfo
    reason: Reason

    @property
    def is_graph(self) -> bool:
        """Whether it is a ``.meta``."""
        parsed = parse_file_name(self.name)
        return parsed is not None and parsed.kind == "meta"


@dataclass(frozen=True, slots=True)
class Garbage:
    """The result of a search of a directory; nothing was changed.

    Attributes
    ----------
    url : str
        The directory.
    now_s : float
        By the clock of the storage, seconds since 1970.
    files : tuple of GarbageFile
        To be removed, ascending by name.
    young : tuple of GarbageFile
        Not needed either, but too young to be sure.
    in_use : tuple of str
        Prefixes whose writer lives.
    pending : tuple of str
        Files that a record lists as pending deletes: the next save deletes them.
    graphs : tuple of str
        Graphs without a checkpoint that are left alone.
    pinned : tuple of str
        Pinned prefixes without an index; their files are left alone.
    unreadable : tuple of (str, CkptStoreError)
        Prefixes whose index does not show which files it needs; their files are left alone.
    uploads : tuple of GarbageFile
        Unfinished uploads to be dropped, where the storage can list them.
    """

    url: str
    now_s: float
    min_age_s: float
    files: tuple[GarbageFile, ...]
    young: tuple[GarbageFile, ...] = ()
    in_use: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    graphs: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, CkptStoreError], ...] = ()
    uploads: tuple[GarbageFile, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the files to be removed together."""
        return sum(file.info.size_bytes for file in self.files)

    @property
    def failure(self) -> CkptStoreError | None:
        """Why not everything could be searched, if access or the network was the reason."""
        errors = (error for _, error in self.unreadable)
        return next((error for error in errors if isinstance(error, AccessError | TransientError)), None)

    def still(self, later: Garbage) -> Garbage:
        """Return what `later` found, without the files that were not found, in that version, before."""
        shown = set(self.files)
        return replace(later, files=tuple(file for file in later.files if file in shown))


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What a collection removed.

    Attributes
    ----------
    uploads_dropped : int
        Unfinished uploads.
    error : CkptStoreError or None
        Why not everything is gone.
    """

    garbage: Garbage
    removed: tuple[GarbageFile, ...]
    uploads_dropped: int
    error: CkptStoreError | None = None


def upload_age_s(storage: Storage, min_age_s: float) -> float:
    """Return from which age on unfinished uploads are dropped, for garbage of this age."""
    return max(min_age_s, _UPLOAD_AGE_S) if isinstance(storage, KnowsWriters) else min_age_s


def stale_uploads(directory: Location, min_age_s: float) -> tuple[GarbageFile, ...]:
    """Return the unfinished uploads that a collection drops; none where they cannot be listed."""
    if not isinstance(directory.storage, ListsUploads):
        return ()
    age_s = upload_age_s(directory.storage, min_age_s)
    found = directory.storage.stale_uploads(directory.child("").key, age_s)
    return tuple(GarbageFile(info.key.rpartition("/")[2], info, "unfinished") for info in found)


def collect_garbage(directory: Location, garbage: Garbage) -> GarbageReport:
    """Remove what was found, and drop unfinished uploads of the same age.

    Parameters
    ----------
    directory : Location
    garbage : Garbage
        Of this moment: a save may begin at any time.

    Guarantees
    ----------
    A crash at any point leaves garbage, which the next collection finds.
    """
    error: CkptStoreError | None = None
    try:
        # Graphs first: without the data beside it one could not be recognised as a leftover.
        for file in garbage.files:
            if file.is_graph:
                collect_graph(directory.child(file.name), file.info.version)
        rest = [file.name for file in garbage.files if not file.is_graph]
        if rest:
            drop_leftovers(directory, rest)
    except CkptStoreError as failure:
        error = failure
    removed: tuple[GarbageFile, ...] = ()
    uploads = 0
    min_age_s = upload_age_s(directory.storage, garbage.min_age_s)
    try:
        if garbage.files:
            left = {info.key: info.version for info in directory.storage.list(directory.child("").key)}
            removed = tuple(file for file in garbage.files if left.get(file.info.key) != file.info.version)
        uploads = drop_stale_uploads(directory.child(""), min_age_s)
    except CkptStoreError as failure:
        error = error or failure
    return GarbageReport(garbage, removed, uploads, error)
