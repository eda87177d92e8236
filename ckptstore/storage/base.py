"""The storage seam: the nine primitives that a backend must have, and what each promises.

Everything that ckptstore does to a file or object goes through a `Storage`: `get`, `read_into`, `head`,
`put_new`, `put_if`, `upload`, `delete_if` with `delete_many`, `list` and `abort_stale_uploads`; `get_unless`
and `get_into` are made of them where a backend has nothing better. What a backend may do beyond them is in
`abilities`. It states in `Capabilities` what it really does, and ``ckptstore.testing.StorageContract`` proves
it. Storage knows nothing of tensors.

Keys are exact: no globs, no normalisation, no recursion. *version* is opaque text that changes with the
content (S3 ETag, GCS generation, local ``inode:mtime_ns:size``, memory counter).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.storage.upload import Upload
    from ckptstore.storage.values import Buffer, Capabilities, GetResult, ObjectInfo, PutOutcome, SuffixRange
    from ckptstore.types import ByteRange

__all__ = ["Location", "Storage"]


class Storage(ABC):
    """Named bytes under one root.

    Attributes
    ----------
    capabilities : Capabilities
        What holds for every key. See `ProbesCapabilities` for a server that has to be asked.
    parallel_reads : int
        How many `read_into` calls at the same time are faster than one.

    Raises
    ------
    NotFoundError, AccessError, StorageFullError, TransientError, UsageError
        Every method; each names the URL. "Not found" is only concluded where the place itself could be read.

    Threads
    -------
    Safe for concurrent use.
    """

    capabilities: Capabilities
    parallel_reads: int = 1

    @abstractmethod
    def url_of(self, key: str) -> str:
        """Return the URL of `key` for messages; never holds a secret."""

    @property
    def server(self) -> str | None:
        """What tells servers with the same URLs apart, without secrets; None: that cannot be told."""
        return None

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

    def get_into(self, key: str, byte_range: ByteRange, buffer: memoryview) -> tuple[str, int]:
        """Fill a writable buffer with one range, which is not empty, of whatever version is there.

        For the first read of an object that nothing is known of. By default through memory of its own.
        Raises as `get`.

        Returns
        -------
        tuple of str and int
            Version, and size of the whole object in bytes.
        """
        data, version, size_bytes = self.get(key, byte_range)
        buffer[:] = data
        return version, size_bytes

    @abstractmethod
    def head(self, key: str) -> ObjectInfo:
        """Return size, version and what the store keeps beside them. Raises `NotFoundError`."""

    def get_unless(
        self, key: str, version: str, byte_range: ByteRange | SuffixRange | None = None
    ) -> GetResult | None:
        """Return what `get` does, or None while `version` is there.

        For whoever asks again and again. By default two requests once something changed; a store that knows
        conditional reads answers with one. Raises as `get`.
        """
        return None if self.head(key).version == version else self.get(key, byte_range)

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
