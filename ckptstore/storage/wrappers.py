"""Storages around storages: one hook through which every call passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from ckptstore.storage.base import Storage
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Capabilities, GetResult, ObjectInfo, PutOutcome, SuffixRange

if TYPE_CHECKING:
    from ckptstore.storage.finding import Finding
    from ckptstore.storage.values import Buffer
    from ckptstore.types import ByteRange

__all__ = ["StorageWrapper"]

_T = TypeVar("_T")


class StorageWrapper(Storage):
    """Pass every call on to `inner`, through `intercept`.

    Threads
    -------
    As safe as `inner` and what overrides `intercept`.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.inner.capabilities

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        """Make one call; override this.

        Parameters
        ----------
        primitive : str
            The method's name; for those of an upload ``"upload.send"``, ``"upload.commit"``,
            ``"upload.abort"``, ``"upload.close"``.
        keys : sequence of str
            The key or prefix concerned; several for ``"delete_many"``.
        call : callable
            Makes the call to `inner` and returns its answer.
        """
        return call()

    def on_upload(self, upload: Upload) -> None:
        """Hear of an upload of `inner` that was begun; override this to keep hold of it."""

    def url_of(self, key: str) -> str:
        return self.inner.url_of(key)

    def probe(self, key: str) -> Capabilities:
        return self.inner.probe(key)

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        return self.intercept("get", [key], lambda: self.inner.get(key, byte_range, version=version))

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self.intercept(
            "read_into", [key], lambda: self.inner.read_into(key, ranges, buffers, version=version)
        )

    def view(self, key: str, *, version: str) -> memoryview | None:
        return self.intercept("view", [key], lambda: self.inner.view(key, version=version))

    def head(self, key: str) -> ObjectInfo:
        return self.intercept("head", [key], lambda: self.inner.head(key))

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        return self.intercept("put_new", [key], lambda: self.inner.put_new(key, data))

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        return self.intercept("put_if", [key], lambda: self.inner.put_if(key, data, version))

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        def begin() -> Upload:
            upload = self.inner.upload(key, size_bytes)
            self.on_upload(upload)
            return upload

        return _WrappedUpload(self, key, self.intercept("upload", [key], begin))

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        return self.intercept(
            "copy_from", [target_key], lambda: self.inner.copy_from(source_key, target_key, version)
        )

    def delete_if(self, key: str, version: str) -> bool:
        return self.intercept("delete_if", [key], lambda: self.inner.delete_if(key, version))

    def delete_many(self, keys: Sequence[str]) -> None:
        self.intercept("delete_many", keys, lambda: self.inner.delete_many(keys))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.intercept("list", [prefix], lambda: self.inner.list(prefix))

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        return self.intercept(
            "abort_stale_uploads", [prefix], lambda: self.inner.abort_stale_uploads(prefix, min_age_s)
        )

    def is_abandoned(self, key: str) -> bool:
        return self.intercept("is_abandoned", [key], lambda: self.inner.is_abandoned(key))

    @property
    def parallel_reads(self) -> int:  # type: ignore[override]
        return self.inner.parallel_reads

    @property
    def has_views(self) -> bool:  # type: ignore[override]
        return self.inner.has_views

    @property
    def knows_writers(self) -> bool:  # type: ignore[override]
        return self.inner.knows_writers

    def is_in_use(self, key: str) -> bool:
        return self.intercept("is_in_use", [key], lambda: self.inner.is_in_use(key))

    def without_sync(self) -> Storage:
        """Return the unsynced `inner`, every call to which passes through `intercept` of this one."""
        inner = self.inner.without_sync()
        return self if inner is self.inner else _WithoutSync(self, inner)

    def make_durable(self, key: str, version: str) -> None:
        # No request, and nothing that anybody sees.
        self.inner.make_durable(key, version)

    def now_s(self) -> float:
        return self.inner.now_s()

    def diagnose(self, directory_key: str) -> Iterable[Finding]:
        return self.intercept("diagnose", [directory_key], lambda: list(self.inner.diagnose(directory_key)))

    def scratch(self, directory_key: str) -> AbstractContextManager[str]:
        return self.inner.scratch(directory_key)


class _WithoutSync(StorageWrapper):
    """Another storage inside, and all that the outer wrapper knows: what it counts, or that it died."""

    def __init__(self, outer: StorageWrapper, inner: Storage) -> None:
        super().__init__(inner)
        self._outer = outer

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        return self._outer.intercept(primitive, keys, call)

    def on_upload(self, upload: Upload) -> None:
        self._outer.on_upload(upload)


class _WrappedUpload(Upload):
    def __init__(self, storage: StorageWrapper, key: str, inner: Upload) -> None:
        super().__init__()
        self._storage = storage
        self._keys = [key]
        self._inner = inner
        self.part_size_bytes = inner.part_size_bytes
        self.parallel = inner.parallel

    def _check_open(self) -> None:
        self._inner._check_open()

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        self._storage.intercept(
            "upload.send", self._keys, lambda: self._inner.send(number, pieces, crc32c, is_last=is_last)
        )

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        return self._storage.intercept("upload.commit", self._keys, self._inner.commit)

    def abort(self) -> None:
        self._storage.intercept("upload.abort", self._keys, self._inner.abort)

    def close(self) -> None:
        self._storage.intercept("upload.close", self._keys, self._inner.close)
