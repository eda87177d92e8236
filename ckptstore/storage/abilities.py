"""What a storage may do beyond the nine primitives: one type per ability.

A backend derives from the types whose promises it keeps, and a caller asks by type:
``isinstance(storage, SupportsCopies)``. There are no defaults. What is lost without each:

============================  ================================================================================
`SupportsViews`               Data files are never memory-mapped: the bytes are read.
`SupportsCopies`              A data file whose tensors are unchanged is sent again by every save.
`SupportsRelaxedDurability`   ``durability="cache"`` saves no time.
`KnowsWriters`                Only its age shows that a file is left over: what a dead save has left behind
                              stays until it is old enough to be collected.
`ListsUploads`                Unfinished uploads are dropped by ``ckptstore gc`` without being shown before.
`MarksUploads`                A first save that was killed cannot be told from a checkpoint that is still
                              being copied: the next run has to be told to begin anew.
`DeletesOnce`                 A delete that is given up must not arrive later: it could hit what another job
                              has written since.
`KnowsServerTime`             Ages are judged by the clock of this machine.
`ProbesCapabilities`          `Storage.capabilities` has to be true everywhere; nothing is tried.
`Diagnosable`                 ``ckptstore doctor`` tries the primitives and knows nothing about the backend.
============================  ================================================================================

`Storage.parallel_reads` and the sizes of an `Upload` are figures with safe defaults, not abilities.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.storage.base import Storage
    from ckptstore.storage.finding import Finding
    from ckptstore.storage.values import Capabilities, ObjectInfo, PutOutcome

__all__ = [
    "DeletesOnce",
    "Diagnosable",
    "KnowsServerTime",
    "KnowsWriters",
    "ListsUploads",
    "MarksUploads",
    "ProbesCapabilities",
    "SupportsCopies",
    "SupportsRelaxedDurability",
    "SupportsViews",
    "now_s",
]


class SupportsViews(ABC):
    """Objects can be used as memory without being read first."""

    @abstractmethod
    def view(self, key: str, *, version: str) -> memoryview | None:
        """Return all bytes of `key` as read-only memory, without reading them now.

        None where this object cannot be mapped safely: use `Storage.read_into`. The memory stays valid as
        long as the view, a slice of it or an array over it. Raises as `Storage.get`.
        """


class SupportsCopies(ABC):
    """Objects can be copied without moving their bytes through this process."""

    @abstractmethod
    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        """Create `target_key` with the bytes of `source_key`, if nothing is there.

        Parameters
        ----------
        source_key : str
            A file that a published index names, not one under way.
        target_key : str
            `KnowsWriters` never answers True for it.
        version : str
            Of the source.

        Returns
        -------
        Committed, Lost, Ambiguous or None
            None where this object cannot be copied: write the bytes.

        Raises
        ------
        NotFoundError
            If the source is missing or has another version by now.
        """


class SupportsRelaxedDurability(ABC):
    """Writes wait until they survive a power cut, and the wait can be left out."""

    @abstractmethod
    def without_sync(self) -> Storage:
        """Return the storage of the same objects whose writes do not wait until they survive a power cut.

        The same one with each call: a `Saver` recognises by it what it has saved before. That of such a
        storage is the storage itself.
        """

    @abstractmethod
    def make_durable(self, key: str, version: str) -> None:
        """Wait until `version` of `key` survives a power cut, if it was written through `without_sync`.

        Raises
        ------
        NotFoundError
            If another version is there.
        """


class KnowsWriters(ABC):
    """Whether the writer of an object is alive can be found out."""

    @abstractmethod
    def is_abandoned(self, key: str) -> bool:
        """Return whether an upload whose writer is provably dead made `key`, and nobody else needs it.

        False where that cannot be proved, and for what is marked as needed.
        """

    @abstractmethod
    def is_in_use(self, key: str) -> bool:
        """Return whether the upload that made `key` is still open; False where that is not known."""

    @abstractmethod
    def mark_needed(self, keys: Sequence[str]) -> None:
        """Mark what a published index names, as far as possible: `is_abandoned` answers False for good.

        So nothing is lost when the index is away for a moment, or a directory is moved file by file. Missing
        objects are left out.
        """

    @abstractmethod
    def mark_unneeded(self, keys: Sequence[str]) -> None:
        """Undo `mark_needed` for what another index is about to replace, unless it has other names."""


class ListsUploads(ABC):
    """Unfinished uploads can be looked at, those of other processes included."""

    @abstractmethod
    def stale_uploads(self, prefix: str, min_age_s: float) -> Sequence[ObjectInfo]:
        """Return what `Storage.abort_stale_uploads` would drop now.

        The key is that of the object that the upload would have made, or of the unfinished file; the size is
        that of what has arrived.
        """


class MarksUploads(ABC):
    """An object shows whether a save wrote it here, or another program."""

    @abstractmethod
    def is_upload(self, key: str) -> bool:
        """Return whether an `upload` under this very key made the object; False where that is not known.

        Not asked for what a published index names.

        Raises
        ------
        NotFoundError
            If nothing is there.
        """


class DeletesOnce(ABC):
    """A delete may arrive after its sender has given it up, and it can be sent once all the same."""

    @abstractmethod
    def delete_once(self, keys: Sequence[str]) -> None:
        """Delete as `Storage.delete_many`, but name no object in a second request, whatever happens.

        While the caller's own object is there, nobody else creates one of its name; and a single delete that
        has reached it reaches nothing later. Where an answer is lost, the object is left as it is, deleted or
        not.

        Raises
        ------
        CkptStoreError
            If one of the objects was perhaps not deleted.
        """


class KnowsServerTime(ABC):
    """The clock that sets `ObjectInfo.mtime_s` is another machine's, and its time is known."""

    @abstractmethod
    def now_s(self) -> float:
        """Return the time by that clock, in seconds since 1970."""


class ProbesCapabilities(ABC):
    """What the storage really does depends on the server, which has to be asked."""

    @abstractmethod
    def probe(self, key: str) -> Capabilities:
        """Return what is really true where `key` lies; asks the server once."""


class Diagnosable(ABC):
    """The backend can explain itself to somebody who has trouble with it."""

    @abstractmethod
    def diagnose(self, directory_key: str, *, read_only: bool = False) -> Sequence[Finding]:
        """Return what this backend knows about itself and a directory; `read_only`: without any write.

        What prevents every save is a finding with the state ``"failed"``; nothing is raised.
        """

    def scratch(self, directory_key: str) -> AbstractContextManager[str]:
        """Return a directory for the objects of `diagnosis`, removed afterwards if it was made for them.

        By default the directory itself, which is right where directories need not be made.
        """
        return nullcontext(directory_key)


def now_s(storage: Storage) -> float:
    """Return the time by the clock that sets `ObjectInfo.mtime_s`, in seconds since 1970."""
    return storage.now_s() if isinstance(storage, KnowsServerTime) else time.time()
