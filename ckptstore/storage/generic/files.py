"""Files of one fsspec protocol by key: the calls that `GenericStorage` makes, with typed errors.

Only calls of fsspec that name one file: ``info``, ``cat_file``, ``pipe_file``, ``put_file``,
``rm_file``, ``ls``, and ``makedirs`` where a directory is missing. Not ``rm``, ``mv``, ``glob``, ``exists``,
transactions or kept listings, which do more than they say.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import Any, TypeVar

from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    DeadlineError,
    NotFoundError,
    TransientError,
    UnsupportedError,
    UsageError,
    from_os_error,
)
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.redact import Redactor
from ckptstore.storage.values import ObjectInfo

__all__ = ["Files", "is_served"]

_T = TypeVar("_T")

# Served by a backend of their own, read-only, or around another file system, which no URL may build.
_NOT_SERVED = frozenset(
    (
        *("file", "local", "memory", "s3", "s3a", "gs", "gcs", "http", "https", "data", "git", "github"),
        *("gist", "dvc", "zip", "tar", "libarchive", "reference", "dir", "generic", "cached", "blockcache"),
        *("filecache", "simplecache", "async_wrapper", "asyncwrapper", "asynclocal", "dask", "pyscript"),
    )
)

# What differs between two states of a file, best first.
_TAGS = ("ETag", "etag", "generation", "version_id")
_TIMES = (
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "modificationTime",
    "modify",
    "created",
)

_DENIED = re.compile(r"Auth|Credential|Permission|Forbidden|AccessDenied")
_LONGEST_TEXT = 300


def is_served(protocol: str) -> bool:
    """Return whether fsspec has a file system of this name that is not built around another one."""
    if protocol in _NOT_SERVED:
        return False
    from fsspec.registry import known_implementations, registry

    return protocol in known_implementations or protocol in registry


class Files:
    """The files below ``PROTOCOL://``; keys are what follows that in a URL.

    Parameters
    ----------
    options : mapping
        For the file system's class; they win over what the URL says.

    Raises
    ------
    CkptStoreError
        Every method, for whatever the client raises.

    Threads
    -------
    Safe for concurrent use; calls of a client that is not written for asyncio are made one after the other.
    """

    def __init__(self, protocol: str, options: Mapping[str, Any]) -> None:
        self._protocol = protocol
        self._options = dict(options)
        self._redact = Redactor(options)
        self._locks = ForkSafeLocks(2)
        self._opened: dict[tuple[int, str], Any] = {}

    def __repr__(self) -> str:
        return f"Files({self._protocol!r})"

    def url_of(self, key: str) -> str:
        """Return the URL of `key`; it has no password, because such URLs are refused."""
        return f"{self._protocol}://{key}"

    @property
    def reads_in_parallel(self) -> bool:
        """Whether several reads can run at the same time."""
        from fsspec import get_filesystem_class

        return bool(get_filesystem_class(self._protocol).async_impl)

    def info(self, key: str) -> ObjectInfo:
        """Return what is known about a file; a directory is not a file."""
        return self._call(key, "cannot look at the file", lambda fs, path: self._info(key, fs.info(path)))

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``[start, stop)``, fewer if the file is shorter."""
        if start == stop:
            return b""
        return self._call(
            key, "cannot read the file", lambda fs, path: bytes(fs.cat_file(path, start=start, end=stop))
        )

    def write(self, key: str, data: bytes) -> None:
        """Write a file under its name."""
        self._put(key, lambda fs, path: fs.pipe_file(path, data))

    def write_from(self, key: str, local_path: str) -> None:
        """Write a file with the content of one on this machine."""
        self._put(key, lambda fs, path: fs.put_file(local_path, path))

    def remove(self, key: str) -> None:
        """Remove a file."""
        self._call(key, "cannot remove the file", lambda fs, path: fs.rm_file(path))

    def children(self, directory_key: str) -> list[ObjectInfo]:
        """Return the files in a directory, none if it does not exist."""

        def look(fs: Any, path: str) -> list[ObjectInfo]:
            found = []
            for entry in fs.ls(path, detail=True):
                head, _, name = str(entry["name"]).rstrip("/").rpartition("/")
                # Many list a file as a directory that contains the file.
                if entry["type"] != "directory" and head.strip("/") == path.strip("/"):
                    found.append(self._info(f"{directory_key}/{name}", entry))
            return found

        try:
            return self._call(directory_key, "cannot list the directory", look)
        except NotFoundError:
            return []

    def _put(self, key: str, write: Callable[[Any, str], object]) -> None:
        def put(fs: Any, path: str) -> None:
            try:
                write(fs, path)
            except Exception:
                if not _make_parents(fs, path):
                    raise
                write(fs, path)

        self._call(key, "cannot write the file", put)

    def _call(self, key: str, what: str, call: Callable[[Any, str], _T]) -> _T:
        try:
            fs, path = self._find(key)
            # Most blocking clients were written for one thread.
            with nullcontext() if fs.async_impl else self._locks[1]:
                fs.invalidate_cache()
                return call(fs, path)
        except CkptStoreError:
            raise
        except Exception as error:  # noqa: BLE001 - a hundred clients, each with errors of its own
            failure = self._error_of(error, what, self.url_of(key))
        # Not "from error": an error of a client may contain the options, with their secrets.
        raise failure

    def _find(self, key: str) -> tuple[Any, str]:
        """Return file system and path; the URL may say more than the path, the host for example."""
        import fsspec

        url = self.url_of(key)
        kind = fsspec.get_filesystem_class(self._protocol)
        path = str(kind._strip_protocol(url))
        if not path.endswith(key.partition("/")[2]):
            # "m?1" for example: the client cuts off what follows the question mark.
            raise UsageError(
                f"the client of {self._protocol}:// reads this name as another one",
                url=url,
                actual=path,
                hint="Choose a name without '?' and '#'.",
            )
        settings = {**kind._get_kwargs_from_urls(url), **self._options}
        identity = os.getpid(), repr(sorted(kind._get_kwargs_from_urls(url).items()))
        with self._locks[0]:
            fs = self._opened.get(identity)
            if fs is None:
                fs = kind(**settings, skip_instance_cache=True)
                # Not as an option: some clients pass unknown options on.
                if hasattr(fs, "dircache"):
                    fs.dircache.use_listings_cache = False
                self._opened[identity] = fs
        return fs, path

    @staticmethod
    def _info(key: str, entry: Mapping[str, Any]) -> ObjectInfo:
        if entry["type"] == "directory":
            raise FileNotFoundError("a directory is there")
        size_bytes = int(entry["size"] or 0)
        changed = next((entry[name] for name in _TIMES if entry.get(name) is not None), None)
        tag = next((entry[name] for name in _TAGS if entry.get(name) is not None), None)
        # Some return a time as a number in a listing, and as a date for one file.
        stamp = changed.timestamp() if isinstance(changed, datetime) else changed
        version = f"{tag}:{size_bytes}" if tag else f"{stamp}:{size_bytes}:{entry.get('ino', '')}"
        return ObjectInfo(key, size_bytes, version, _seconds(changed))

    def _error_of(self, error: Exception, what: str, url: str) -> CkptStoreError:
        text = f"{what}: {self._redact(f'{type(error).__name__}: {error}')[:_LONGEST_TEXT]}"
        status = next(
            (
                value
                for value in (getattr(error, name, None) for name in ("status_code", "status", "code"))
                if isinstance(value, int)
            ),
            0,
        )
        if isinstance(error, FileNotFoundError) or status == 404:
            return NotFoundError(text, url=url, hint="Check the path.")
        if status in (401, 403) or _DENIED.search(type(error).__name__):
            return AccessError(
                text, url=url, hint="Check the credentials, and the permissions that they carry."
            )
        if isinstance(error, TimeoutError):
            return DeadlineError(text, url=url, hint="Check the network and the server.")
        if isinstance(error, OSError) and error.errno is not None:
            return from_os_error(error, what, url)
        if isinstance(error, ImportError | NotImplementedError):
            return UnsupportedError(
                text,
                url=url,
                hint=f"Install what fsspec needs for {self._protocol}://, or use another place.",
            )
        if isinstance(error, TypeError | ValueError):
            return UsageError(text, url=url, hint="Check the storage options.")
        return TransientError(text, url=url, hint="Try again; if that fails too, check the server.")


def _make_parents(fs: Any, path: str) -> bool:
    """Make the directory of `path`; False if it exists, or lies in a bucket that does not exist."""
    parent = path.rpartition("/")[0]
    top, _, below = parent.strip("/").partition("/")
    if not below or _is_there(fs, parent):
        return False
    # The first segment is a bucket or a share on many of these, which only its owner creates.
    if not _is_there(fs, f"/{top}" if path.startswith("/") else top):
        return False
    fs.makedirs(parent, exist_ok=True)
    return True


def _is_there(fs: Any, path: str) -> bool:
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _seconds(changed: Any) -> float:
    """Return a time of change in seconds since 1970; now if it is unknown, so that nothing seems old."""
    if isinstance(changed, datetime):
        return changed.timestamp()
    if isinstance(changed, int | float):
        return changed / 1000 if changed > 1e11 else float(changed)
    try:
        return datetime.fromisoformat(str(changed)).timestamp()
    except ValueError:
        return time.time()
