"""The s3fs instance behind an S3 storage: one for each set of options and process."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Sized
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from aiobotocore.credentials import AioCredentials
from botocore.credentials import ReadOnlyCredentials, RefreshableCredentials
from s3fs import S3FileSystem

from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.bucket_names import check_endpoint_names_no_bucket
from ckptstore.storage.credentials import SessionKeys, session_keys
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.event_loop import LoopThread
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.server_clock import skew_of
from ckptstore.storage.redact import Redactor
from ckptstore.storage.s3.errors import fault_of, redirected
from ckptstore.storage.s3.http_session import current_attempts
from ckptstore.storage.s3.settings import additional_of, check_options, client_settings
from ckptstore.storage.url import check_not_in_the_clear, is_within

__all__ = ["Blueprint", "S3Client", "SentBody", "call_s3"]

_T = TypeVar("_T")

# Up to here "Expect: 100-continue" costs a round trip and saves nothing; and while a client waits for the
# server to agree, its read timeout does not run.
_EXPECT_FROM_BYTES = 1024 * 1024

_PIECE_BYTES = 64 * 1024


class _S3FileSystem(S3FileSystem):  # type: ignore[misc]
    # fsspec takes options for the protocol "s3" from files and the environment; for this name it finds none.
    protocol = ("ckptstore+s3",)

    @staticmethod
    def close_session(loop: object, s3: object) -> None:
        """Do nothing: s3fs calls this wherever it is collected, in a forked child too. See `_close`."""


async def call_s3(fs: S3FileSystem, method: str, **arguments: Any) -> dict[str, Any]:
    """Call one method of the service's client through s3fs, which has no public name for it that is async."""
    answer: dict[str, Any] = await fs._call_s3(method, **arguments)
    return answer


class SentBody:
    """A body that is sent piece by piece out of the caller's memory, and can be sent again.

    botocore asks for ``read``, ``seek``, ``tell`` and the length, and never reads, as the checksum is given;
    aiohttp iterates.
    """

    def __init__(self, pieces: Sequence[memoryview], attempts: Attempts) -> None:
        self._pieces = pieces
        self._size_bytes = sum(map(len, pieces))
        self._attempts = attempts
        self._position = 0

    def __len__(self) -> int:
        return self._size_bytes

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size_bytes)[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        whole = b"".join(self._pieces)
        stop = self._size_bytes if size < 0 else min(self._size_bytes, self._position + size)
        piece = whole[self._position : stop]
        self._position = stop
        return piece

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        # Each pass from the start: a repeated request iterates again.
        position = 0
        for whole in self._pieces:
            for start in range(0, len(whole), _PIECE_BYTES):
                piece = whole[start : start + _PIECE_BYTES]
                yield piece
                position += len(piece)
                self._attempts.record_sent(position)


class Blueprint(NamedTuple):
    """One request as the client prepared and signed it, and what it would be sent with.

    Attributes
    ----------
    name : str
        Of the object in it, the end of the URL's path.
    credentials : object
        The client's own; None if they cannot be found.
    verify : str, bool or None
        Which certificates are trusted, in botocore's form; None if that cannot be found.
    certificate : tuple of str
        Files of the certificate that the client presents, and of its key; empty without one.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    credentials: Any
    verify: Any
    certificate: tuple[str, ...]
    has_proxy: bool
    own_connections: str  # the setting that shapes the client's connections in a way of its own
    connect_timeout_s: float
    read_timeout_s: float
    most_connections: int

    def __repr__(self) -> str:
        return "Blueprint()"


class _Captured(Exception):  # noqa: N818 - carries a request out of the client, instead of sending it
    def __init__(self, request: Any) -> None:
        super().__init__()
        self.request = request


_NAME = "ckptstore-blueprint"
_NEEDED: dict[str, dict[str, Any]] = {
    "get_object": {},
    "put_object": {"Body": b""},
    "upload_part": {"Body": b"", "PartNumber": 1, "UploadId": "x"},
}
_is_capturing: ContextVar[bool] = ContextVar("ckptstore_is_capturing", default=False)


class S3Client:
    """Makes single calls through s3fs, each once, within the deadline of its operation.

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
    skew_s : float
        How far the server's clock is ahead of ours, by its last answer.
    additional : Additional
        What ``s3_additional_kwargs`` say about single requests.
    server : str
        What the server calls itself, by its last answer.
    redact : Redactor
        Of the secrets in the options.
    wants_direct : bool
        False if the options say ``direct=False``.

    Threads
    -------
    Safe for concurrent use, and after a fork.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        # What came in place of the credentials that it was opened with.
        self._renewed: SessionKeys | None = None
        # Without credentials there is nothing to protect.
        self._allow_http = bool(self._options.pop("allow_http", False)) or bool(options.get("anon"))
        self.wants_direct = bool(self._options.pop("direct", True))
        check_options(self._options)
        self.additional = additional_of(self._options)
        self.redact = Redactor(options)
        self._locks = ForkSafeLocks()
        self._thread: LoopThread | None = None
        self._fs: _S3FileSystem | None = None
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._endpoint = ""
        self._frozen: dict[int, tuple[Any, Any]] = {}
        self.skew_s = 0.0
        self.server = ""

    def renew(self, options: Mapping[str, Any]) -> None:
        """Use the keys and the session token in `options` from now on, also for what is repeated.

        Parameters
        ----------
        options : mapping
            Those it was opened with, apart from the credentials.
        """
        keys = session_keys(options)
        if keys == self._renewed or keys is None:
            return
        # A server may still repeat those before.
        before = () if self._renewed is None else self._renewed._asdict()
        self.redact = Redactor({"first": self._options, "before": dict(before), "now": keys._asdict()})
        self._renewed = keys

    def call(
        self, use: Callable[[_S3FileSystem], Awaitable[_T]], attempts: Attempts, bucket: str | None = None
    ) -> _T:
        """Run `use` with the file system, as one attempt.

        Raises
        ------
        Fault
        """
        fs, thread = self._open()

        async def run() -> _T:
            current_attempts.set(attempts)
            await self._connect(fs, bucket)
            return await use(fs)

        try:
            return thread.call(run, attempts)
        except (Fault, CkptStoreError):
            raise
        except Exception as error:
            fault = fault_of(error, self.redact)
            if fault is None:
                raise
        # Not "from error": the client's exceptions may hold the credentials.
        raise fault

    def request(self, method: str, attempts: Attempts, **arguments: Any) -> dict[str, Any]:
        """Call one method of the service's client through s3fs and return its answer."""

        async def use(fs: _S3FileSystem) -> dict[str, Any]:
            answer = await call_s3(fs, method, **arguments)
            headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
            self.note_date(headers.get("date"))
            self.server = headers.get("server", "")
            return answer

        return self.call(use, attempts, arguments.get("Bucket"))

    def note_date(self, date: str | None) -> None:
        """Record the server's clock, from the ``Date`` of an answer that just came."""
        self.skew_s = skew_of(date, self.skew_s)

    def blueprint(self, kind: str, bucket: str, attempts: Attempts) -> Blueprint:
        """Have the client prepare and sign a request of that kind, and return it instead of sending it."""

        async def use(fs: _S3FileSystem) -> Blueprint:
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

    def current_credentials(self, credentials: Any, attempts: Attempts) -> Any:
        """Return the keys of a blueprint's `credentials`, renewed if it is time.

        Raises
        ------
        Fault
            If they cannot be renewed.
        """
        if self._renewed is not None:
            return ReadOnlyCredentials(*self._renewed)
        known = self._frozen.get(id(credentials))
        if known is not None and known[0] is credentials:
            is_refreshable = isinstance(credentials, RefreshableCredentials)
            if not is_refreshable or not credentials.refresh_needed():
                return known[1]

        async def use(fs: _S3FileSystem) -> Any:
            return await credentials.get_frozen_credentials()

        frozen = self.call(use, attempts)
        self._frozen[id(credentials)] = credentials, frozen
        return frozen

    def endpoint(self, attempts: Attempts) -> str:
        """Return the URL that requests go to, as options, environment and profile say."""
        if not self._endpoint:

            async def nothing(fs: _S3FileSystem) -> None:
                pass

            self.call(nothing, attempts)
        return self._endpoint

    def _open(self) -> tuple[_S3FileSystem, LoopThread]:
        with self._locks[0]:
            if self._fs is None or self._thread is None or self._thread.pid != os.getpid():
                thread = LoopThread()
                try:
                    fs = _S3FileSystem(loop=thread.loop, **client_settings(self._options))
                except (KeyError, TypeError, ValueError) as error:
                    thread.close()
                    raise self._misfit(error) from None
                fs.retries = 1
                thread.kept.append(fs)
                self._fs, self._thread = fs, thread
                self._hooked = weakref.WeakSet()
                self._frozen = {}
                weakref.finalize(self, _close, fs, thread)
            return self._fs, self._thread

    def _misfit(self, error: Exception) -> UsageError:
        return UsageError(
            f"the client does not take these storage options: {self.redact(str(error))}",
            hint="They are those of s3fs.S3FileSystem.",
        )

    async def _connect(self, fs: _S3FileSystem, bucket: str | None) -> None:
        try:
            self._use_renewed(await fs.set_session())
        except TypeError as error:
            raise self._misfit(error) from None
        client = await fs.get_s3(bucket)
        self._use_renewed(client)
        endpoint = str(client.meta.endpoint_url)
        if bucket:
            check_endpoint_names_no_bucket(endpoint, bucket, self.redact(endpoint))
        if client in self._hooked:
            return
        if not self._allow_http:
            check_not_in_the_clear(endpoint, self.redact(endpoint))
        client.meta.events.register_last("before-call.s3", _drop_expect)
        client.meta.events.register_first("before-send.s3", _before_send(endpoint))
        self._endpoint = self.redact(endpoint)
        self._hooked.add(client)

    def _use_renewed(self, client: Any) -> None:
        # For each request: s3fs opens a client for each region, with the credentials that it has got itself.
        if self._renewed is not None:
            client._request_signer._credentials = AioCredentials(*self._renewed)


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
