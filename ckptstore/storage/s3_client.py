"""The s3fs instance behind an S3 storage: one for each set of options and process."""

from __future__ import annotations

import ipaddress
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sized
from typing import Any, TypeVar
from urllib.parse import urlsplit

from s3fs import S3FileSystem

from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.event_loop import LoopThread
from ckptstore.storage.faults import Fault
from ckptstore.storage.locks import ForkSafeLocks
from ckptstore.storage.redact import Redactor
from ckptstore.storage.retry import Operation
from ckptstore.storage.s3_errors import fault_of
from ckptstore.storage.server_clock import skew_of

__all__ = ["S3Client", "SentBody"]

_T = TypeVar("_T")

# Ten connections, the default, run 60 ranges in seven waves.
_CONFIG: dict[str, Any] = {
    "max_pool_connections": 64,
    "connect_timeout": 5,
    "read_timeout": 30,
    # Every upload carries a CRC32C of ours, and what is read has checksums of its own.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}

# Up to here "Expect: 100-continue" costs a round trip and saves nothing; and while a client waits for the
# server's word, its read timeout does not run.
_EXPECT_FROM_BYTES = 1024 * 1024

_PIECE_BYTES = 64 * 1024


class _FileSystem(S3FileSystem):  # type: ignore[misc]
    # fsspec takes options for the protocol "s3" from files and the environment; for this name it finds none.
    protocol = ("ckptstore+s3",)

    @staticmethod
    def close_session(loop: object, s3: object) -> None:
        """Do nothing: s3fs calls this wherever it is collected, in a forked child too. See `_close`."""


class SentBody:
    """A body that is sent piece by piece out of the caller's memory, and can be sent again.

    botocore asks for ``read``, ``seek``, ``tell`` and the length, and never reads, as the checksum is given;
    aiohttp iterates.
    """

    def __init__(self, data: memoryview, operation: Operation) -> None:
        self._data = data
        self._operation = operation
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._data))[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = len(self._data) if size < 0 else min(len(self._data), self._position + size)
        piece = bytes(self._data[self._position : stop])
        self._position = stop
        return piece

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        # Each pass from the start: whoever repeats a request iterates anew.
        for start in range(0, len(self._data), _PIECE_BYTES):
            piece = self._data[start : start + _PIECE_BYTES]
            yield piece
            self._operation.sent(start + len(piece))


class S3Client:
    """Makes single calls through s3fs, each once, within the deadline of its operation.

    Parameters
    ----------
    options : mapping
        Those of `s3fs.S3FileSystem`, and ``allow_http``.

    Attributes
    ----------
    skew_s : float
        How far the server's clock is ahead of ours, by its last answer.
    redact : Redactor
        Of the secrets in the options.

    Threads
    -------
    Safe for concurrent use, and after a fork.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._allow_http = bool(self._options.pop("allow_http", False))
        self.redact = Redactor(options)
        self._locks = ForkSafeLocks()
        self._thread: LoopThread | None = None
        self._fs: _FileSystem | None = None
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._endpoint = ""
        self.skew_s = 0.0

    def call(
        self, use: Callable[[_FileSystem], Awaitable[_T]], operation: Operation, bucket: str | None = None
    ) -> _T:
        """Run `use` with the file system, as one attempt.

        Raises
        ------
        Fault
        """
        fs, thread = self._opened()

        async def run() -> _T:
            await self._connected(fs, bucket)
            return await use(fs)

        try:
            return thread.call(run, operation)
        except (Fault, CkptStoreError):
            raise
        except Exception as error:
            fault = fault_of(error, self.redact)
            if fault is None:
                raise
        # Not "from error": what the client raises may hold what it was given.
        raise fault

    def request(self, method: str, operation: Operation, **arguments: Any) -> dict[str, Any]:
        """Call one method of the service's client through s3fs and return its answer."""

        async def use(fs: _FileSystem) -> dict[str, Any]:
            answer: dict[str, Any] = await fs._call_s3(method, **arguments)
            headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
            self.skew_s = skew_of(headers.get("date"), self.skew_s)
            return answer

        return self.call(use, operation, arguments.get("Bucket"))

    def endpoint(self, operation: Operation) -> str:
        """Return the URL that requests go to, as options, environment and profile say."""
        if not self._endpoint:

            async def nothing(fs: _FileSystem) -> None:
                pass

            self.call(nothing, operation)
        return self._endpoint

    def _opened(self) -> tuple[_FileSystem, LoopThread]:
        with self._locks[0]:
            if self._fs is None or self._thread is None or self._thread.pid != os.getpid():
                thread = LoopThread()
                try:
                    fs = _FileSystem(loop=thread.loop, **self._settings())
                except (KeyError, TypeError, ValueError) as error:
                    thread.close()
                    raise self._misfit(error) from None
                fs.retries = 1
                thread.kept.append(fs)
                self._fs, self._thread = fs, thread
                self._hooked = weakref.WeakSet()
                weakref.finalize(self, _close, fs, thread)
            return self._fs, self._thread

    def _settings(self) -> dict[str, Any]:
        settings = dict(self._options)
        config = _CONFIG | dict(settings.get("config_kwargs") or {})
        # One attempt: repeating is our business, and only we know what an answer that was lost means.
        config["retries"] = {"mode": "standard", "total_max_attempts": 1}
        # With a checksum given, botocore would hash the whole body a second time for the signature.
        config["s3"] = {"payload_signing_enabled": False} | dict(config.get("s3") or {})
        settings["config_kwargs"] = config
        # A cached listing answers with what was there; a cached instance with another's settings.
        settings["use_listings_cache"] = False
        settings["skip_instance_cache"] = True
        return settings

    def _misfit(self, error: Exception) -> UsageError:
        return UsageError(
            f"the client does not take these storage options: {self.redact(str(error))}",
            hint="They are those of s3fs.S3FileSystem.",
        )

    async def _connected(self, fs: _FileSystem, bucket: str | None) -> None:
        try:
            await fs.set_session()
        except TypeError as error:
            raise self._misfit(error) from None
        client = await fs.get_s3(bucket)
        _send_once(client)
        if client in self._hooked:
            return
        endpoint = str(client.meta.endpoint_url)
        self._check_endpoint(endpoint)
        client.meta.events.register_last("before-call.s3", _drop_expect)
        self._endpoint = self.redact(endpoint)
        self._hooked.add(client)

    def _check_endpoint(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme == "http" and not self._allow_http and not _is_loopback(parts.hostname or ""):
            raise UsageError(
                "the endpoint is not encrypted and not on this machine",
                url=self.redact(endpoint),
                expected="https",
                hint="Where the network in between is trusted, say so: storage option allow_http=True.",
            )


def _send_once(client: Any) -> None:
    """Keep aiohttp from sending a request again by itself when a kept connection breaks.

    Its sessions are made with the first request, which has no kept connection. Where a release has no such
    switch, write ids still tell the two apart.
    """
    sessions = getattr(getattr(client, "_endpoint", None), "http_session", None)
    for session in (getattr(sessions, "_sessions", None) or {}).values():
        session._retry_connection = False


def _close(fs: _FileSystem, thread: LoopThread) -> None:
    """Close the connections of a client that is collected, or at the end of the process."""
    if thread.pid != os.getpid() or thread.loop.is_closed():
        return

    async def close() -> None:
        if fs._s3 is not None:
            await fs._s3creator.__aexit__(None, None, None)
        thread.loop.stop()

    # The collector may run in the thread of the loop, so nothing can be waited for.
    thread.loop.call_soon_threadsafe(lambda: thread.loop.create_task(close()))


def _drop_expect(params: dict[str, Any], model: Any = None, **_: Any) -> None:
    body = params.get("body")
    is_small = not isinstance(body, Sized) or len(body) <= _EXPECT_FROM_BYTES
    # A part carries no condition that could save sending it.
    if is_small or getattr(model, "name", "") == "UploadPart":
        params["headers"].pop("Expect", None)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
