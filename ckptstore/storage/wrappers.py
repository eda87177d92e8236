"""Storages around storages: one method through which every call passes."""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from ckptstore.storage.abilities import (
    DeletesOnce,
    Diagnosable,
    KnowsServerTime,
    KnowsWriters,
    ListsUploads,
    MarksUploads,
    ProbesCapabilities,
    SupportsCopies,
    SupportsRelaxedDurability,
    SupportsViews,
)
from ckptstore.storage.base import Storage
from ckptstore.storage.upload import Upload

if TYPE_CHECKING:
    from ckptstore.storage.values import Capabilities, PutOutcome
    from ckptstore.types import ByteRange

__all__ = ["StorageWrapper"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


def _intercepted(method: _F, *, key_at: int = 0) -> _F:
    """Return a method that makes the call of the same name to `inner`, through `StorageWrapper.intercept`.

    Its argument number `key_at` is the key, or the keys, that the call concerns.
    """
    name = method.__name__
    key_name = [*inspect.signature(method).parameters][1 + key_at]

    @functools.wraps(method, updated=())  # not its mark as abstract
    def forward(self: StorageWrapper, *args: Any, **options: Any) -> Any:
        keys = args[key_at] if key_at < len(args) else options[key_name]
        return self.intercept(
            name,
            [keys] if isinstance(keys, str) else keys,
            lambda: getattr(self.inner, name)(*args, **options),
        )

    return cast("_F", forward)


def _forwarded(method: _F) -> _F:
    """Return a method that makes the call of the same name to `inner`, without `intercept`."""
    name = method.__name__

    @functools.wraps(method, updated=())  # not its mark as abstract
    def forward(self: StorageWrapper, *args: Any, **options: Any) -> Any:
        return getattr(self.inner, name)(*args, **options)

    return cast("_F", forward)


class StorageWrapper(Storage):
    """Forward every call to `inner`, through `intercept`.

    A wrapper has the abilities of `inner`, so that ``isinstance(wrapper, SupportsCopies)`` holds where it
    holds for `inner`.

    Attributes
    ----------
    inner : Storage
    hides : tuple of type
        Abilities that the wrapper does not have even if `inner` has them; for a subclass to set.

    Threads
    -------
    As safe as `inner` and the subclass's `intercept`.
    """

    hides: ClassVar[tuple[type, ...]] = ()

    def __new__(cls, inner: Storage, *args: Any, **options: Any) -> Self:
        return cls._with_abilities_of(inner, cls.hides)

    @classmethod
    def _with_abilities_of(cls, inner: Storage, hides: tuple[type, ...]) -> Self:
        abilities = tuple(
            ability
            for ability in _FORWARDERS
            if isinstance(inner, ability) and ability not in hides and not issubclass(cls, ability)
        )
        return cast("Self", object.__new__(_with_abilities(cls, abilities)))

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

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
            Makes the call to `inner` and returns its result.
        """
        return call()

    def on_upload(self, upload: Upload) -> None:
        """Called with each new upload of `inner`; override this to keep a reference to it."""

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.inner.capabilities

    @property
    def parallel_reads(self) -> int:  # type: ignore[override]
        return self.inner.parallel_reads

    def url_of(self, key: str) -> str:
        return self.inner.url_of(key)

    @property
    def server(self) -> str | None:
        return self.inner.server

    get = _intercepted(Storage.get)
    read_into = _intercepted(Storage.read_into)
    head = _intercepted(Storage.head)
    get_unless = _intercepted(Storage.get_unless)
    put_new = _intercepted(Storage.put_new)
    put_if = _intercepted(Storage.put_if)
    delete_if = _intercepted(Storage.delete_if)
    delete_many = _intercepted(Storage.delete_many)
    list = _intercepted(Storage.list)
    abort_stale_uploads = _intercepted(Storage.abort_stale_uploads)

    def get_into(self, key: str, byte_range: ByteRange, buffer: memoryview) -> tuple[str, int]:
        if type(self).get is not StorageWrapper.get:
            return super().get_into(key, byte_range, buffer)
        # The same request: whoever counts, delays or breaks a `get` means this one too.
        return self.intercept("get", [key], lambda: self.inner.get_into(key, byte_range, buffer))

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        def begin() -> Upload:
            upload = self.inner.upload(key, size_bytes)
            self.on_upload(upload)
            return upload

        return _WrappedUpload(self, key, self.intercept("upload", [key], begin))


class _ForwardsViews(SupportsViews):
    view = _intercepted(SupportsViews.view)


class _ForwardsCopies(SupportsCopies):
    copy_from = _intercepted(SupportsCopies.copy_from, key_at=1)


class _ForwardsRelaxedDurability(SupportsRelaxedDurability):
    # No request, and nothing that another process can see.
    make_durable = _forwarded(SupportsRelaxedDurability.make_durable)

    def without_sync(self) -> Storage:
        assert isinstance(self, StorageWrapper)
        inner = cast("SupportsRelaxedDurability", self.inner).without_sync()
        if inner is self.inner:
            return self
        # The same one with each call, also when two threads make the first.
        return cast("Storage", self.__dict__.setdefault("_unsynced", _WithoutSync(inner, self)))


class _ForwardsWriters(KnowsWriters):
    is_abandoned = _intercepted(KnowsWriters.is_abandoned)
    is_in_use = _intercepted(KnowsWriters.is_in_use)
    # No requests: they belong to the call before or after.
    mark_needed = _forwarded(KnowsWriters.mark_needed)
    mark_unneeded = _forwarded(KnowsWriters.mark_unneeded)


class _ForwardsUploads(ListsUploads):
    stale_uploads = _intercepted(ListsUploads.stale_uploads)


class _ForwardsMarks(MarksUploads):
    is_upload = _intercepted(MarksUploads.is_upload)


class _ForwardsDeletes(DeletesOnce):
    delete_once = _intercepted(DeletesOnce.delete_once)


class _ForwardsServerTime(KnowsServerTime):
    now_s = _forwarded(KnowsServerTime.now_s)


class _ForwardsProbes(ProbesCapabilities):
    probe = _forwarded(ProbesCapabilities.probe)


class _ForwardsDiagnosis(Diagnosable):
    diagnose = _intercepted(Diagnosable.diagnose)
    scratch = _forwarded(Diagnosable.scratch)


_FORWARDERS: dict[type, type] = {
    SupportsViews: _ForwardsViews,
    SupportsCopies: _ForwardsCopies,
    SupportsRelaxedDurability: _ForwardsRelaxedDurability,
    KnowsWriters: _ForwardsWriters,
    ListsUploads: _ForwardsUploads,
    MarksUploads: _ForwardsMarks,
    DeletesOnce: _ForwardsDeletes,
    KnowsServerTime: _ForwardsServerTime,
    ProbesCapabilities: _ForwardsProbes,
    Diagnosable: _ForwardsDiagnosis,
}


@functools.cache
def _with_abilities(cls: type[StorageWrapper], abilities: tuple[type, ...]) -> type[StorageWrapper]:
    """Return `cls`, extended by what forwards the calls of `abilities`."""
    if not abilities:
        return cls
    bases = (cls, *(_FORWARDERS[ability] for ability in abilities))
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return cast("type[StorageWrapper]", ABCMeta(cls.__name__, bases, names))


class _WithoutSync(StorageWrapper):
    """The storage without sync inside, and the state of the outer wrapper: what it counts, or its crash."""

    def __new__(cls, inner: Storage, outer: StorageWrapper) -> Self:
        return cls._with_abilities_of(inner, outer.hides)

    def __init__(self, inner: Storage, outer: StorageWrapper) -> None:
        super().__init__(inner)
        self._outer = outer

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        return self._outer.intercept(primitive, keys, call)

    def on_upload(self, upload: Upload) -> None:
        self._outer.on_upload(upload)


class _WrappedUpload(Upload):
    def __init__(self, storage: StorageWrapper, key: str, inner: Upload) -> None:
        super().__init__(storage.url_of(key))
        self._storage = storage
        self._keys = [key]
        self._inner = inner
        self.part_size_bytes = inner.part_size_bytes
        self.parallel = inner.parallel

    def check_open(self) -> None:
        super().check_open()
        self._inner.check_open()

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        self._storage.intercept(
            "upload.send", self._keys, lambda: self._inner.send(number, pieces, crc32c, is_last=is_last)
        )

    def _send_shared(self, number: int, pieces: Sequence[memoryview], is_last: bool) -> Sequence[int]:
        return self._storage.intercept(
            "upload.send", self._keys, lambda: self._inner.send_shared(number, pieces, is_last=is_last)
        )

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        return self._storage.intercept("upload.commit", self._keys, self._inner.commit)

    def _abort(self) -> None:
        self._storage.intercept("upload.abort", self._keys, self._inner.abort)

    def _close(self) -> None:
        self._storage.intercept("upload.close", self._keys, self._inner.close)
