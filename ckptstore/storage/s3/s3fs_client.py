"""The s3fs instance behind an S3 storage, and botocore's client below it: one of each for a process.

Whatever ckptstore needs of them that has no public name stands here. Loading them takes a second of CPU time.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sized
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from aiobotocore.credentials import AioCredentials
from botocore.credentials import RefreshableCredentials
from s3fs import S3FileSystem

from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.bucket_names import check_endpoint_names_no_bucket
from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.event_loop import LoopThread
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.s3.blueprint import Blueprint
from ckptstore.storage.s3.client_settings import client_settings
from ckptstore.storage.s3.errors import fault_of
from ckptstore.storage.s3.http_session import current_attempts
from ckptstore.storage.s3.refusals import redirected
from ckptstore.storage.s3.renewed_keys import RenewedKeys
from ckptstore.storage.s3.server_name import server_name
from ckptstore.storage.url import check_not_in_the_clear, is_within

__all__ = ["S3fsClient", "call_s3"]

_T = TypeVar("_T")

# Up to here "Expect: 100-continue" costs a round trip and saves nothing; and while a client waits for the
# server to agree, its read timeout does not run.
_EXPECT_FROM_BYTES = 1024 * 1024

_NAME = "ckptstore-blueprint"
_NEEDED: dict[str, dict[str, Any]] = {
    "get_object": {},
    "put_object": {"Body": b""},
    "delete_object": {},
    "upload_part": {"Body": b"", "PartNumber": 1, "UploadId": "x"},
}
_is_capturing: ContextVar[bool] = ContextVar("ckptstore_is_capturing", default=False)


class _S3FileSystem(S3FileSystem):  # type: ignore[misc]
    # fsspec takes options for the protocol "s3" from files and the environment; for this name it finds none.
    protocol = ("ckptstore+s3",)

    @staticmethod
    def close_session(loop: object, s3: object) -> None:
        """Do nothing: s3fs calls this wherever it is collected, in a forked child too. See `close`."""


async def call_s3(fs: S3FileSystem, method: str, **arguments: Any) -> dict[str, Any]:
    """Call one method of the service's client through s3fs, which has no public name for it that is async."""
    answer: dict[str, Any] = await fs._call_s3(method, **arguments)
    return answer


class _Captured(Exception):  # noqa: N818 - carries a request out of the client, instead of sending it
    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


class S3fsClient:
    """Runs coroutines with one s3fs instance, on a loop of its own.

    Parameters
    ----------
    options : mapping
        Those of `S3Client`, after the check of their names.
    keys : RenewedKeys
        What may come in place of the keys in them.
    allow_http : bool
        Whether credentials may travel over plain http.

    Raises
    ------
    UsageError
        If s3fs does not take the options.

    Attributes
    ----------
    pid : int
        The process that it works in.
    endpoint : str
        The URL that requests go to, without secrets; empty before the first one.
    server_name : str
        As `server_name`; empty before the first one.

    Threads
    -------
    Safe for concurrent use; not after a fork.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        keys: RenewedKeys,
        *,
        allow_http: bool,
    ) -> None:
        self._options = options
        self._keys = keys
        self._allow_http = allow_http
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._frozen: dict[int, tuple[Any, SessionKeys]] = {}
        self.endpoint = ""
        self.server_name = ""
        self._thread = LoopThread()
        try:
            self._fs = _S3FileSystem(loop=self._thread.loop, **client_settings(options))
        except (KeyError, TypeError, ValueError) as error:
            self._thread.close()
            raise self._misfit(error) from None
        self._fs.retries = 1
        self._thread.kept.append(self._fs)
        self.pid = self._thread.pid

    def closer(self) -> Callable[[], None]:
        """Return what closes the connections; it does not keep this object."""
        fs, thread = self._fs, self._thread
        return lambda: _close(fs, thread)

    def call(self, use: Callable[[Any], Awaitable[_T]], attempts: Attempts, bucket: str | None = None) -> _T:
        """Run `use` with the file system, as one attempt.

        Raises
        ------
        Fault
        """

        async def run() -> _T:
            current_attempts.set(attempts)
            await self._connect(bucket)
            return await use(self._fs)

        try:
            return self._thread.call(run, attempts)
        except (Fault, CkptStoreError):
            raise
        except Exception as error:
            fault = fault_of(error, self._keys.redact)
            if fault is None:
                raise
        # Not "from error": the client's exceptions may hold the credentials.
        raise fault

    def blueprint(self, kind: str, bucket: str, attempts: Attempts) -> Blueprint:
        """Have the client prepare and sign a request of that kind, and return it instead of sending it."""

        async def use(fs: Any) -> Blueprint:
            client = await fs.get_s3(bucket)
            method = getattr(client, kind)
            arguments = fs._get_s3_method_kwargs(method, Bucket=bucket, Key=_NAME, **_NEEDED[kind])
            token = _is_capturing.set(True)
            try:
                await method(**arguments)
            except _Captured as captured:
                given = self._options.get("config_kwargs") or {}
                own = next((name for name in ("connector_args", "tcp_keepalive") if name in given), "")
                return _blueprint(client, captured.request, own)
            finally:
                _is_capturing.reset(token)
            raise Fault(Kind.GARBLED, "the client sent nothing")

        return self.call(use, attempts, bucket)

    def current_keys(self, credentials: Any, attempts: Attempts) -> SessionKeys:
        """Return the keys of a blueprint's `credentials`, renewed if it is time.

        Raises
        ------
        Fault
            If they cannot be renewed.
        """
        known = self._frozen.get(id(credentials))
        if known is not None and known[0] is credentials:
            is_refreshable = isinstance(credentials, RefreshableCredentials)
            if not is_refreshable or not credentials.refresh_needed():
                return known[1]

        async def use(fs: Any) -> Any:
            return await credentials.get_frozen_credentials()

        frozen = self.call(use, attempts)
        keys = SessionKeys(frozen.access_key, frozen.secret_key, frozen.token or "")
        self._frozen[id(credentials)] = credentials, keys
        return keys

    def _misfit(self, error: Exception) -> UsageError:
        return UsageError(
            f"the client does not take these storage options: {self._keys.redact(str(error))}",
            hint="They are those of s3fs.S3FileSystem.",
        )

    async def _connect(self, bucket: str | None) -> None:
        try:
            self._use_newest(await self._fs.set_session())
        except TypeError as error:
            raise self._misfit(error) from None
        client = await self._fs.get_s3(bucket)
        self._use_newest(client)
        endpoint = str(client.meta.endpoint_url)
        if bucket:
            check_endpoint_names_no_bucket(endpoint, bucket, self._keys.redact(endpoint))
        if client in self._hooked:
            return
        if not self._allow_http:
            check_not_in_the_clear(endpoint, self._keys.redact(endpoint))
        client.meta.events.register_last("before-call.s3", _drop_expect)
        client.meta.events.register_first("before-send.s3", _before_send(endpoint))
        self.endpoint = self._keys.redact(endpoint)
        self.server_name = server_name(endpoint, self.endpoint)
        self._hooked.add(client)

    def _use_newest(self, client: Any) -> None:
        # For each request: s3fs opens a client for each region, with the credentials that it has got itself.
        if self._keys.newest is not None:
            client._request_signer._credentials = AioCredentials(*self._keys.newest)


def _close(fs: _S3FileSystem, thread: LoopThread) -> None:
    """Close the connections of a client that is collected, or at the end of the process."""
    if thread.pid != os.getpid() or thread.loop.is_closed():
        return

    async def close() -> None:
        if fs._s3 is not None:
            await fs._s3creator.__aexit__(None, None, None)
        thread.loop.stop()

    # The garbage collector may run in the thread of the loop, so do not wait for anything.
    with suppress(RuntimeError):  # closed in between
        thread.loop.call_soon_threadsafe(lambda: thread.loop.create_task(close()))


def _drop_expect(params: dict[str, Any], model: Any = None, **_: Any) -> None:
    body = params.get("body")
    is_small = not isinstance(body, Sized) or len(body) <= _EXPECT_FROM_BYTES
    # A part carries no condition that could save sending it.
    if is_small or getattr(model, "name", "") == "UploadPart":
        params["headers"].pop("Expect", None)


def _before_send(endpoint: str) -> Callable[..., None]:
    def look_at(request: Any, **_: Any) -> None:
        if not is_within(request.url, endpoint):
            # The client's own redirector goes where an answer says.
            raise redirected(request.url)
        if _is_capturing.get():
            raise _Captured(request)

    return look_at


def _blueprint(client: Any, request: Any, own_connections: str) -> Blueprint:
    """Collect what is known of a prepared request; most of it has no public name."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    proxies = getattr(getattr(session, "_proxy_config", None), "proxy_url_for", lambda url: None)
    certificate = (getattr(session, "_cert_file", None), getattr(session, "_key_file", None))
    config = client.meta.config
    headers = {
        name: value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
    }
    return Blueprint(
        _NAME,
        request.url,
        headers,
        getattr(getattr(client, "_request_signer", None), "_credentials", None),
        getattr(session, "_verify", None),
        tuple(str(file) for file in certificate if file),
        bool(proxies(request.url)),
        own_connections,
        float(config.connect_timeout),
        float(config.read_timeout),
        int(config.max_pool_connections),
    )
