"""The storage seam: nine primitives, and what each promises.

Everything that ckptstore does to a file or object goes through a `Storage`. A backend states in
`Capabilities` what it really does; ``ckptstore.testing.StorageContract`` proves it. Storage knows nothing of
tensors.

Keys are exact: no globs, no normalisation, no recursion. *version* is opaque text that changes with the
content (S3 ETag, GCS generation, local ``dev:inode:mtime_ns:size``, memory counter).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.storage.finding import Finding
    from ckptstore.storage.upload import Upload
    from ckptstore.storage.values import Buffer, Capabilities, GetResult, ObjectInfo, PutOutcome, SuffixRange
    from ckptstore.types import ByteRange

__all__ = ["Location", "Storage"]


class Storage(ABC):
    """Named bytes under one root.

    Attributes
    ----------
    capabilities : Capabilities
    knows_writers : bool
        Whether `is_in_use` can tell. Where it cannot, only age says that a file is left over.
    parallel_reads : int
        How many `read_into` calls at the same time are faster than one.
    has_views : bool
        Whether `view` is worth asking; where it is not, nobody asks for the version that it needs.

    Raises
    ------
    NotFoundError, AccessError, StorageFullError, TransientError, UsageError
        Every method; each names the URL. "Not found" is only concluded where the place itself could be read.

    Threads
    -------
    Safe for concurrent use.
    """

    capabilities: Capabilities
    knows_writers: bool = False
    parallel_reads: int = 1
    has_views: bool = False

    @abstractmethod
    def url_of(self, key: str) -> str:
        """Return the URL of `key` for messages; never holds a secret."""

    def probe(self, key: str) -> Capabilities:
        """Return what is really true where `key` lies; asks the server once where that depends on it."""
        return self.capabilities

    @abstractmethod
    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        """Return bytes of one object.

        Parameters
        ----------
        key : str
        byte_range : ByteRange or SuffixRange, optional
            Never empty. Without it, everything.
        version : str, optional
            Raise `NotFoundError` if the object there has another version by now.

        Raises
        ------
        NotFoundError
            If nothing is there.
        TruncatedFileError
            If the object ends before the range does.
        """

    @abstractmethod
    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        """Fill each writable buffer with the bytes of its range, straight into the caller's memory.

        Ranges may be empty, in any order, and overlap. Raises as `get`.
        """

    def view(self, key: str, *, version: str) -> memoryview | None:
        """Return all bytes of `key` as read-only memory, without reading them now.

        None where there is no such way, or none that is safe: use `read_into`. The memory stays as long as
        the view, or a slice of it or an array over it. Raises as `get`.
        """
        return None

    @abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Return size, version and what the store keeps beside them. Raises `NotFoundError`."""

    @abstractmethod
    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        """Create `key` only if nothing is there. Missing directories are made."""

    @abstractmethod
    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        """Replace `key` only if `version` is still there; readers see the old bytes or the new ones."""

    @abstractmethod
    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        """Begin a large object; `size_bytes` is what it will have, if that is known.

        Missing directories are made.
        """

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        """Create `target_key` with the bytes of `source_key` without moving them, if nothing is there.

        Parameters
        ----------
        source_key : str
            A file that a published index names, not one under way.
        target_key : str
            Nobody can tell whether its writer lives.
        version : str
            Of the source.

        Returns
        -------
        Committed, Lost, Ambiguous or None
            None where it cannot be done: write the bytes.

        Raises
        ------
        NotFoundError
            If the source is missing or has another version by now.
        """
        return None

    @abstractmethod
    def delete_if(self, key: str, version: str) -> bool:
        """Delete `key` if `version` is there; False if another is. Nothing there counts as done."""

    @abstractmethod
    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete exactly these keys, missing ones count as done; raise after all were tried."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with `prefix` and has no ``/`` after it, ascending by key.

        Unfinished uploads are not listed. A directory that does not exist has no objects.
        """

    @abstractmethod
    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        """Drop unfinished uploads below `prefix`: older than `min_age_s`, or of a provably dead writer.

        Returns
        -------
        int
            How many were dropped.
        """

    def without_sync(self) -> Storage:
        """Return the same place, written to without waiting until it survives a power cut.

        Itself where that makes no difference.
        """
        return self

    def make_durable(self, key: str, version: str) -> None:  # noqa: B027 - most have nothing to do
        """Wait until what is there survives a power cut, if it was put in the `without_sync` storage.

        Nothing to do where everything does. Elsewhere raises `NotFoundError` if another version is there.
        """

    def now_s(self) -> float:
        """Return the time by the storage's clock, the one of `mtime_s`; seconds since 1970."""
        return time.time()

    def diagnose(self, directory_key: str) -> Iterable[Finding]:
        """Say what this backend knows of itself and of a directory, for somebody who has trouble with it.

        What hinders every save is a failed finding; nothing is raised.
        """
        return ()

    def scratch(self, directory_key: str) -> AbstractContextManager[str]:
        """Return a directory where `diagnosis` may put its objects; removed afterwards if it was made."""
        return nullcontext(directory_key)

    def is_abandoned(self, key: str) -> bool:
        """Tell whether the writer of `key` is provably dead. False where that cannot be proved."""
        return False

    def is_in_use(self, key: str) -> bool:
        """Tell whether the upload that made `key` is not closed yet. False where that cannot be told."""
        return False


@dataclass(frozen=True, slots=True)
class Location:
    """A key in a storage, together with the text by which the user named it."""

    storage: Storage
    key: str
    url: str

    @property
    def name(self) -> str:
        """The last segment."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The directory that holds this; its URL is empty where the user's text named none."""
        head, slash, _ = self.url.rpartition("/")
        # Of "/model" and "memory://model" the directory keeps its slashes: it is the root.
        keep = head if head.strip("/") and not head.endswith((":/", "://")) else head + slash
        return Location(self.storage, self.key.rpartition("/")[0], keep)

    def child(self, name: str) -> Location:
        """Return the entry `name` of this directory."""
        joint = "" if not self.url or self.url.endswith("/") else "/"
        return Location(self.storage, f"{self.key}/{name}", f"{self.url}{joint}{name}")

    def suffixed(self, text: str) -> Location:
        """Return the location whose last segment has `text` appended."""
        return Location(self.storage, self.key + text, self.url + text)
