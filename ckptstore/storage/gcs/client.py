"""Requests to Google Cloud Storage, each sent once: with gcsfs's credentials, over its session or our own.

Imported with the first ``gs://`` URL only: gcsfs takes more than a second.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import inspect
import math
import os
import ssl
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import requests.exceptions
from gcsfs.core import GCSFileSystem
from google.auth import exceptions as google_errors
from yarl import URL

from ckptstore.config import proxy_for
from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.gcs.errors import redacted
from ckptstore.storage.gcs.messages import slices, with_query
from ckptstore.storage.gcs.plain_reads import CONNECT_S
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.bodies import read_body
from ckptstore.storage.object_store.event_loop import LoopThread
from ckptstore.storage.object_store.faults import PROXY_HINT, Fault, Kind
from ckptstore.storage.object_store.server_clock import skew_of
from ckptstore.storage.object_store.transport import DataPath, copy_into
from ckptstore.storage.wire.connections import Servers
from ckptstore.storage.wire.exchange import (
    DIRECT_FROM_BYTES,
    Accept,
    HttpRequest,
    HttpResponse,
    exchange,
)
from ckptstore.suggest import did_you_mean

__all__ = ["GcsClient", "check_session"]

_T = TypeVar("_T")

# Progress is noted after each; the buffers of the HTTP client are a quarter of it.
_SEND_BYTES = 256 * 1024

# gcsfs renews a token some minutes before it runs out.
_FRESH_S = 900.0

# Leaving must not wait for a server that is gone.
_CLOSE_TIMEOUT_S = 1.0


class _GcsFileSystem(GCSFileSystem):  # type: ignore[misc]  # gcsfs has no type information
    """gcsfs's plain file system; the default one asks a gRPC service first (71 s a request on an emulator).

    Under a protocol of its own, so that neither ``FSSPEC_GS_…`` variables nor fsspec's configuration files
    lead requests elsewhere.
    """

    protocol = ("ckptstore+gs",)

    @staticmethod
    def close_session(loop: Any, session: Any, asynchronous: bool = False) -> None:
        """Do nothing: gcsfs calls this in whatever thread drops it last, which must not touch the loop."""


_OPEN: weakref.WeakSet[GcsClient] = weakref.WeakSet()


class GcsClient:
    """One session and one set of credentials, of one process.

    Parameters
    ----------
    options : mapping
        Parameters of ``gcsfs.core.GCSFileSystem``.
    wants_direct : bool
        False: large bodies go through gcsfs's session as well.

    Raises
    ------
    Fault
        `Kind.FORBIDDEN` if the credentials cannot be loaded.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, options: Mapping[str, Any], wants_direct: bool = True) -> None:
        self._thread = LoopThread()
        self._session: aiohttp.ClientSession | None = None
        self.skew_s = 0.0
        try:
            self._fs = self._load_credentials(lambda: self._new_file_system(options), options.get("token"))
        except Fault:
            self._thread.close()
            raise
        # Stalls are noticed by missing progress; a bound on the whole would cut off slow transfers.
        timeout = options.get("requests_timeout")
        if not isinstance(timeout, aiohttp.ClientTimeout):
            timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_S)
        self._timeout = timeout
        self._root = self._fs._location.rstrip("/")
        self._origin = URL(self._root).origin()
        # With session_kwargs the session looks for a proxy itself, or is told one.
        self._proxied: dict[str, Any] = {}
        if not options.get("session_kwargs") and (proxy := proxy_for(self._root)):
            self._proxied = {"proxy": proxy}
        self.data_path = self._find_data_path(options, wants_direct)
        self._servers = Servers()
        _OPEN.add(self)

    def _load_credentials(self, load: Callable[[], _T], token: Any) -> _T:
        """Return what `load` returns; it may ask a server for credentials, which must not take for ever.

        Raises
        ------
        Fault
        """
        try:
            if token == "browser":  # waits for a person
                return load()
            attempts = Attempts(RetryPolicy(), RetryBudget())
            return self._thread.call(lambda: asyncio.to_thread(load), attempts)
        except Exception as error:  # noqa: BLE001 - Google's, requests', json's, open's: many libraries meet here
            fault = _credential_fault(error, "the credentials cannot be loaded")
        # Not "from": their exceptions may hold the credentials.
        raise fault

    def _new_file_system(self, options: Mapping[str, Any]) -> _GcsFileSystem:
        settings = {
            **options,
            "loop": self._thread.loop,
            "asynchronous": False,
            "use_listings_cache": False,
            "skip_instance_cache": True,
        }
        return _GcsFileSystem(**settings)

    def renew(self, token: Any) -> None:
        """Use another `token` of the same kind from now on.

        Raises
        ------
        Fault
            If it cannot be loaded; the one before stays.
        """
        credentials = copy.copy(self._fs.credentials)
        self._load_credentials(lambda: credentials.connect(method=token), token)
        # At once: a request may be looking at them.
        self._fs.credentials = credentials

    def _find_data_path(self, options: Mapping[str, Any], wants_direct: bool) -> DataPath:
        if not wants_direct:
            return DataPath(False, "through gcsfs: direct=False in the storage options")
        for name in ("session_kwargs", "requests_timeout"):
            if options.get(name):
                return DataPath(False, f"through gcsfs: {name} is for sessions of its own", is_wanted=False)
        if self._proxied:
            return DataPath(False, "through gcsfs: a proxy is configured", is_wanted=False)
        if getattr(self._fs, "_use_client_cert", False):
            return DataPath(False, "through gcsfs: it shows a certificate of this machine", is_wanted=False)
        return DataPath(True, f"over {self._origin.scheme.upper()}")

    @property
    def is_anonymous(self) -> bool:
        """Whether requests carry no credentials."""
        return self._fs.credentials.credentials is None

    def parameters(self, query: Mapping[str, str | None]) -> dict[str, str]:
        """Return the parameters of `query` that are not None, and the project that pays if one is named."""
        return self._fs._get_params(query)  # type: ignore[no-any-return]

    def exchange(
        self, request: HttpRequest, attempts: Attempts, accept: Accept | None = None
    ) -> HttpResponse:
        """Send `request` once, as an attempt of `attempts`, and return the answer.

        Parameters
        ----------
        request : HttpRequest
            Its target is below the endpoint, or a whole URL.
        attempts : Attempts
        accept : callable, optional
            Takes the head of an answer with status 200 or 206, and returns the sink for its body. May raise;
            the body is then not read.

        Raises
        ------
        Fault
            If there is no answer, or only a part of it.
        """
        size_bytes = sum(map(len, request.body))
        if self.data_path.is_direct and (accept is not None or size_bytes >= DIRECT_FROM_BYTES):
            return self._send_directly(request, attempts, accept)
        return self._thread.call(lambda: self._attempt(request, attempts, accept), attempts)

    def _send_directly(self, request: HttpRequest, attempts: Attempts, accept: Accept | None) -> HttpResponse:
        url, is_ours = self._target(request)
        headers = dict(request.headers)
        if is_ours:
            headers = self._signed(headers) if self._is_fresh() else self._signed_in_time(headers, attempts)
        parts = urlsplit(url)
        server = self._servers.at(parts, ssl.create_default_context, CONNECT_S)
        headers["Host"] = parts.netloc.rpartition("@")[2]
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        reply = exchange(server, replace(request, target=target, headers=headers), attempts, accept)
        self.skew_s = skew_of(reply.headers.get("Date"), self.skew_s)
        return reply

    def _target(self, request: HttpRequest) -> tuple[str, bool]:
        """Return the whole URL, and whether it leads to the service itself.

        A session may be on another host, and needs no token; other hosts are not sent one.
        """
        url = request.target if "://" in request.target else self._root + request.target
        url = with_query(url, self.parameters({}))
        return url, URL(url, encoded=True).origin() == self._origin

    async def _attempt(self, request: HttpRequest, attempts: Attempts, accept: Accept | None) -> HttpResponse:
        try:
            return await self._send(request, attempts, accept)
        except (Fault, CkptStoreError):
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            fault = _transport_fault(error)
        # Not "from": a URL in it may be as good as a token.
        raise fault

    async def _send(self, request: HttpRequest, attempts: Attempts, accept: Accept | None) -> HttpResponse:
        url, is_ours = self._target(request)
        target = URL(url, encoded=True)
        headers = dict(request.headers)
        if is_ours:
            # In a thread: it may fetch a new token, and blocks its thread until then.
            is_fresh = self._is_fresh()
            headers = self._signed(headers) if is_fresh else await asyncio.to_thread(self._signed, headers)
        body = None
        if request.body or request.method in ("POST", "PUT"):
            headers["Content-Length"] = str(sum(len(piece) for piece in request.body))
            # An iterator: only the retry layer can send it again.
            body = _sending(request.body, attempts) if request.body else b""
        if self._session is None:
            self._session = await self._fs._set_session()
            # Otherwise it sends GET, PUT and DELETE again by itself when a kept connection breaks.
            self._session._retry_connection = False
        async with self._session.request(
            request.method,
            target,
            headers=headers,
            data=body,
            allow_redirects=False,
            timeout=self._timeout,
            **self._proxied,
        ) as response:
            attempts.record_head()
            self.skew_s = skew_of(response.headers.get("Date"), self.skew_s)
            if accept is None or response.status not in (200, 206):
                return HttpResponse(response.status, response.headers, await read_body(response, attempts))
            sink = accept(response.status, response.headers)
            async for piece in response.content.iter_any():
                attempts.record_received(len(piece))
                copy_into(piece, sink)
            return HttpResponse(response.status, response.headers, b"")

    def close(self) -> None:
        """Close all connections and wait for it. No request may be under way."""
        if self._thread.pid != os.getpid() or self._thread.loop.is_closed():
            return
        if self._session is not None:
            closing = asyncio.run_coroutine_threadsafe(self._session.close(), self._thread.loop)
            with suppress(TimeoutError):
                closing.result(_CLOSE_TIMEOUT_S)
        self._thread.close()

    def disown(self) -> None:
        """Forget the connections, in a forked child.

        They belong to the parent: closing them here would take them out of its loop's list of what to watch,
        which both processes share.
        """
        if self._session is not None:
            connector = self._session.connector
            self._session.detach()
            if connector is not None:
                connector._closed = True

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the very end of a process the names of modules are gone, and nothing can be closed any more.
        if is_finalizing():
            return
        # The garbage collector may run in the thread of the requests, so do not wait for anything.
        loop, session = self._thread.loop, self._session
        if self._thread.pid != os.getpid() or loop.is_closed():
            return

        async def close() -> None:
            if session is not None:
                await session.close()
            loop.stop()

        # The interpreter may be shutting down.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: loop.create_task(close()))

    def _is_fresh(self) -> bool:
        """Whether no token has to be fetched to sign a request."""
        credentials = self._fs.credentials.credentials
        if credentials is None:
            return True
        expiry = credentials.expiry
        left_s = math.inf if expiry is None else expiry.replace(tzinfo=UTC).timestamp() - time.time()
        return bool(credentials.valid) and left_s > _FRESH_S

    def _signed_in_time(self, headers: Mapping[str, str], attempts: Attempts) -> dict[str, str]:
        return self._thread.call(lambda: asyncio.to_thread(self._signed, headers), attempts)

    def _signed(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return `headers` with the credentials; a token may be fetched for them first."""
        try:
            return self._fs._get_headers(headers)  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001 - Google's, gcsfs's, requests': many libraries meet here
            fault = _credential_fault(error, "the credentials cannot be renewed")
        raise fault


@atexit.register
def _close_all() -> None:
    for client in list(_OPEN):
        client.close()


def _disown_all() -> None:
    for client in list(_OPEN):
        client.disown()


os.register_at_fork(after_in_child=_disown_all)


async def _sending(
    pieces: Sequence[bytes | memoryview], attempts: Attempts
) -> AsyncIterator[bytes | memoryview]:
    position = 0
    for piece in slices(pieces, _SEND_BYTES):
        yield piece
        position += len(piece)
        attempts.record_sent(position)


def check_session(given: Mapping[str, Any]) -> None:
    """Raise `UsageError` if ``session_kwargs`` hold a name that is not known."""
    known = inspect.signature(aiohttp.ClientSession).parameters
    for name in given:
        if name not in known:
            raise UsageError(
                f"unknown name {name!r} in session_kwargs",
                expected=f"one of {', '.join(sorted(known))}",
                hint=did_you_mean(name, known, limit=1),
            )


def _credential_fault(error: Exception, what: str) -> Fault:
    if isinstance(error, Fault):
        return Fault(error.kind, f"{what}: {error.text}")
    # Not its text: a URL in it may carry the token.
    kind = Kind.FORBIDDEN
    if isinstance(error, google_errors.TransportError | requests.exceptions.ConnectionError):
        kind = Kind.NOT_SENT
    return Fault(kind, what, code=type(error).__name__)


def _transport_fault(error: Exception) -> Fault:
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == 407:
        return Fault(Kind.FORBIDDEN, "the proxy wants to know who asks", code="407", hint=PROXY_HINT)
    kind = Kind.CUT
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        kind = Kind.UNTRUSTED
    elif isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        kind = Kind.NOT_SENT
    elif isinstance(error, TimeoutError):
        kind = Kind.STALLED
    elif isinstance(error, aiohttp.InvalidURL):
        kind = Kind.BAD_REQUEST
    elif isinstance(error, aiohttp.ClientResponseError):
        kind = Kind.GARBLED
    return Fault(kind, redacted(str(error)) or "the connection ended", code=type(error).__name__)
