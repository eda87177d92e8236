"""The client of S3 for one set of options; s3fs does its work, and is loaded on first use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.server_clock import skew_of
from ckptstore.storage.s3.blueprint import Blueprint
from ckptstore.storage.s3.renewed_keys import RenewedKeys
from ckptstore.storage.s3.settings import additional_of, check_options, has_plain_config

if TYPE_CHECKING:
    from ckptstore.storage.s3.s3fs_client import S3fsClient

__all__ = ["S3Client"]

_T = TypeVar("_T")


class S3Client:
    """Makes single calls through s3fs, each once, within the deadline of its operation.

    It is loaded, and its client made, with the first call: reads that need neither do without.

    Parameters
    ----------
    options : mapping
        Those of `s3fs.S3FileSystem`, and ``allow_http`` and ``direct``.

    Raises
    ------
    UsageError
        If an option holds a name that is not known.

    Attributes
    ----------
    options : mapping
        Those that it was made with.
    skew_s : float
        How far the server's clock is ahead of ours, by its last answer.
    additional : Additional
        What ``s3_additional_kwargs`` say about single requests.
    server : str
        What the server calls itself, by its last answer.
    keys : RenewedKeys
        The newest ones.
    wants_direct : bool
        False if the options say ``direct=False``.

    Threads
    -------
    Safe for concurrent use, and after a fork.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options: Mapping[str, Any] = dict(options)
        # Without credentials there is nothing to protect.
        self.allow_http = bool(options.get("allow_http") or options.get("anon"))
        self.wants_direct = bool(options.get("direct", True))
        check_options(self.options)
        if not has_plain_config(self.options):
            from ckptstore.storage.s3.client_settings import check_config

            check_config(self.options)
        self.additional = additional_of(self.options)
        self.keys = RenewedKeys(options)
        self.skew_s = 0.0
        self.server = ""
        self._locks = ForkSafeLocks()
        self._opened: S3fsClient | None = None
        self._endpoint = ""
        self._server_name = ""

    def redact(self, text: str) -> str:
        """Return `text` without the secrets in the options, or in what came in their place."""
        return self.keys.redact(text)

    def call(self, use: Callable[[Any], Awaitable[_T]], attempts: Attempts, bucket: str | None = None) -> _T:
        """Run `use` with the file system, as one attempt.

        Raises
        ------
        Fault
        """
        return self._open().call(use, attempts, bucket)

    def request(self, method: str, attempts: Attempts, **arguments: Any) -> dict[str, Any]:
        """Call one method of the service's client through s3fs and return its answer."""
        from ckptstore.storage.s3.s3fs_client import call_s3

        async def use(fs: Any) -> dict[str, Any]:
            answer = await call_s3(fs, method, **arguments)
            headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
            self.note_answer(headers.get("date"), headers.get("server"))
            return answer

        return self.call(use, attempts, arguments.get("Bucket"))

    def note_answer(self, date: str | None, server: str | None) -> None:
        """Record the server's clock and name, from ``Date`` and ``Server`` of an answer that just came."""
        self.skew_s = skew_of(date, self.skew_s)
        self.server = server or ""

    def blueprint(self, kind: str, bucket: str, attempts: Attempts) -> Blueprint:
        """Have the client prepare and sign a request of that kind, and return it instead of sending it."""
        return self._open().blueprint(kind, bucket, attempts)

    def current_keys(self, credentials: Any, attempts: Attempts) -> SessionKeys:
        """Return the keys of a blueprint's `credentials`, or of `RoleKeys`, renewed if it is time.

        Raises
        ------
        NoKeysError
            If they are those of a role, and cannot be found.
        Fault
            If they cannot be renewed.
        """
        if self.keys.newest is not None:
            return self.keys.newest
        if isinstance(credentials, SessionKeys):
            return credentials
        if hasattr(credentials, "current"):
            keys: SessionKeys = credentials.current(attempts)
            return keys
        return self._open().current_keys(credentials, attempts)

    def server_name(self, attempts: Attempts) -> str:
        """Return what tells the server from others."""
        self.endpoint(attempts)
        return self._server_name

    def endpoint(self, attempts: Attempts) -> str:
        """Return the URL that requests go to, as options, environment and profile say."""
        if not self._endpoint:

            async def nothing(fs: Any) -> None:
                pass

            opened = self._open()
            opened.call(nothing, attempts)
            self._server_name = opened.server_name
            self._endpoint = opened.endpoint
        return self._endpoint

    def _open(self) -> S3fsClient:
        with self._locks[0]:
            if self._opened is None or self._opened.pid != os.getpid():
                from ckptstore.storage.s3.s3fs_client import S3fsClient

                self._opened = S3fsClient(self.options, self.keys, allow_http=self.allow_http)
                weakref.finalize(self, self._opened.closer())
            return self._opened
