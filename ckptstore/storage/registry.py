"""Which storage serves a URL: one for each scheme and set of options, as long as somebody uses it."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import secrets
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ckptstore.config import client_environment
from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.credentials import lasting_options
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.gcs.options import GCS_OPTIONS
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.reentry import refuse_reentry
from ckptstore.storage.url import UrlLike, parse_url
from ckptstore.suggest import did_you_mean

if TYPE_CHECKING:
    from ckptstore.storage.object_store.storage import ObjectStorage

__all__ = ["locate", "use_wrapper"]


class _Backend(NamedTuple):
    """How to open the storage of one scheme, and which options it knows.

    Attributes
    ----------
    options : frozenset of str or None
        None: only its client knows them, and checks them.
    extra : str
        The optional dependencies that install its client; empty if it needs none.
    """

    open: Callable[..., Storage]
    options: frozenset[str] | None
    extra: str = ""


def _open_s3(**options: Any) -> Storage:
    # On first use, and without loading the client of another service.
    from ckptstore.storage.s3.transport import open_s3

    return open_s3(**options)


def _open_gcs(**options: Any) -> Storage:
    from ckptstore.storage.gcs.transport import open_gcs

    return open_gcs(**options)


def _open_generic(protocol: str, /, **options: Any) -> Storage:
    from ckptstore.storage.generic.storage import GenericStorage

    return GenericStorage(protocol, **options)


# The options of s3fs.S3FileSystem that have an effect here, allow_http, and direct.
_S3_OPTIONS = frozenset(
    {
        *("anon", "key", "secret", "token", "username", "password", "profile", "session"),
        *("endpoint_url", "use_ssl", "client_kwargs", "config_kwargs", "cache_regions", "allow_http"),
        *("direct",),
        *("requester_pays", "s3_additional_kwargs"),
    }
)

_BACKENDS = {
    "file": _Backend(LocalStorage, frozenset()),
    "memory": _Backend(MemoryStorage, frozenset()),
    "s3": _Backend(_open_s3, _S3_OPTIONS, "s3"),
    "gs": _Backend(_open_gcs, GCS_OPTIONS, "gcs"),
}

# A client takes some 15 MiB, a thread and several descriptors. Who passes new credentials every hour would
# collect them for ever; who alternates between two accounts should not pay for a new one each time.
_MOST_IDLE = 2

_LOCKS = ForkSafeLocks()
_instances: weakref.WeakValueDictionary[Hashable, Storage] = weakref.WeakValueDictionary()
# Those without a client are kept, and of the others the last few; any other one lives as long as its users.
_kept: dict[Hashable, Storage] = {}
_recent: OrderedDict[Hashable, Storage] = OrderedDict()
_wrappers: list[_Wrapper] = []


def _forget_all() -> None:
    _instances.clear()
    _kept.clear()
    _recent.clear()


# A child opens its own: connections and clients do not survive a fork.
os.register_at_fork(after_in_child=_forget_all)


def locate(url: UrlLike, storage_options: Mapping[str, Any] | None = None) -> Location:
    """Return the place that `url` names; nothing is read or written.

    Parameters
    ----------
    url : str, bytes or os.PathLike
        A local path or a URL.
    storage_options : mapping, optional
        Options of the backend.

    Raises
    ------
    UsageError
        If the URL or an option is not one that ckptstore knows.
    UnsupportedError
        If a package that the backend needs is not installed.
    """
    scheme, key, text = parse_url(url)
    refuse_reentry(text)
    # Every other scheme that parse_url accepts is a file system that fsspec knows.
    backend = _BACKENDS.get(scheme) or _Backend(functools.partial(_open_generic, scheme), None)
    options = dict(storage_options or {})
    _check_options(options, backend.options, text)
    try:
        storage = _instance(scheme, backend, options, key.partition("/")[0])
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"{scheme}:// needs a package that is not installed: {error.name}",
            url=text,
            hint=f"Install it: pip install 'ckptstore[{backend.extra}]'.",
        ) from error
    for wrapper in _wrappers:
        storage = wrapper.around(storage)
    return Location(storage, key, text)


def _check_options(options: Mapping[str, Any], known: frozenset[str] | None, url: str) -> None:
    if known is None:
        return
    for name in options:
        if name not in known:
            raise UsageError(
                f"unknown storage option {name!r}",
                url=url,
                expected=f"one of {', '.join(sorted(known))}"
                if known
                else "no options for this kind of storage",
                hint=did_you_mean(name, known, limit=1),
            )


def _instance(scheme: str, backend: _Backend, options: Mapping[str, Any], bucket: str) -> Storage:
    try:
        lasting = lasting_options(scheme, options)
        # Clients read the environment too: another endpoint there is another storage. Two buckets may need
        # the credentials of two accounts, and what lasts of the options does not tell these apart.
        identity = (
            scheme,
            _frozen(options if lasting is None else lasting),
            None if lasting is None else bucket,
            client_environment() if backend.extra else "",
        )
    except TypeError:
        # An option that cannot be compared: no other call can share this storage.
        return backend.open(**options)
    dropped: list[object] = []
    with _LOCKS[0]:
        storage = _instances.get(identity)
        if storage is None:
            storage = _instances[identity] = backend.open(**options)
        if lasting is not None:
            cast("ObjectStorage", storage).transport.renew(options)
        if backend.options is not None and not backend.extra:
            _kept[identity] = storage
        else:
            _recent[identity] = storage
            _recent.move_to_end(identity)
            dropped += [_recent.popitem(last=False) for _ in range(len(_recent) - _MOST_IDLE)]
    # Outside of the lock: what ends with a client may need it. Clients are full of cycles: 41 sets of options
    # took 94 MiB until the collector came by, and take 47 MiB so.
    if dropped:
        dropped.clear()
        gc.collect()
    return storage


# Of what the identities are made of, for this process: they hold no secret, and nothing that tells one.
_DIGEST_KEY = secrets.token_bytes(32)


def _frozen(value: Any) -> Hashable:
    """Return something hashable that is equal for equal options; in place of every text stands its digest."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, str | bytes):
        text = value.encode(errors="surrogatepass") if isinstance(value, str) else value
        return type(value), hashlib.blake2b(text, key=_DIGEST_KEY, digest_size=32).digest()
    hash(value)
    return value  # type: ignore[no-any-return]


class _Wrapper:
    def __init__(self, wrap: Callable[[Storage], Storage]) -> None:
        self._wrap = wrap
        self._wrapped: dict[Storage, Storage] = {}

    def around(self, inner: Storage) -> Storage:
        with _LOCKS[0]:
            if inner not in self._wrapped:
                self._wrapped[inner] = self._wrap(inner)
            return self._wrapped[inner]


@contextmanager
def use_wrapper(wrap: Callable[[Storage], Storage]) -> Iterator[None]:
    """Replace every storage that `locate` returns by ``wrap(storage)`` while the block runs.

    For tests: counting, failing or recording storages (`ckptstore.testing`). `wrap` is called once for each
    storage. Blocks may be nested; the inner one wraps outermost.

    Threads
    -------
    Holds for all threads of the process.
    """
    wrapper = _Wrapper(wrap)
    _wrappers.append(wrapper)
    try:
        yield
    finally:
        _wrappers.remove(wrapper)
