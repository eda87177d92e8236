"""Reading from Google Cloud Storage without gcsfs: a token of Google's library, and connections of our own.

Loading gcsfs takes more than a second of CPU time. A GET needs an address and a token. Whatever else is set
leads to gcsfs, as does a token that cannot be had.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

from ckptstore.config import gcs_environment, proxy_for
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.fetch import Fetch
from ckptstore.storage.object_store.server_clock import skew_of
from ckptstore.storage.object_store.whole_body import WholeBody
from ckptstore.storage.wire.connections import Servers
from ckptstore.storage.wire.exchange import Accept, HttpRequest, HttpResponse, exchange

__all__ = ["CONNECT_S", "NotPlain", "PlainReads"]

CONNECT_S = 10.0
"""Longer than three lost SYN packets. Without a connection nothing was written; a stall leaves that open."""

# As gcsfs: a token that runs out sooner is renewed.
_FRESH_S = 300.0

_ACCESS = ("read_only", "read_write", "full_control")


class NotPlain(Exception):  # noqa: N818 - not an error: the request goes through gcsfs
    """A read that has to go through gcsfs; its message holds no secret."""


class PlainReads:
    """GET requests with one set of options, of one process.

    Parameters
    ----------
    options : mapping
        Parameters of ``gcsfs.core.GCSFileSystem``, as `resolve_options` returns them.
    endpoint : str
        Root URL of the server.
    wants_direct : bool
        False if the options say ``direct=False``.

    Attributes
    ----------
    refusal : str
        Why reads go through gcsfs; empty if they do not.
    skew_s : float
        How far the server's clock is ahead of ours, by its last answer.

    Threads
    -------
    Safe for concurrent use; not after a fork.
    """

    def __init__(self, options: Mapping[str, Any], endpoint: str, *, wants_direct: bool) -> None:
        self._options = options
        self._endpoint = endpoint
        self._servers = Servers()
        self._locks = ForkSafeLocks()
        self._fetch: Fetch[None] | None = None
        self._credentials: Any = None
        self._is_loaded = options.get("token") == "anon"
        self.skew_s = 0.0
        self.refusal = "" if wants_direct else "direct=False in the storage options"
        self.refusal = self.refusal or _refusal(options, endpoint)

    def __repr__(self) -> str:
        return "PlainReads()"

    @property
    def is_anonymous(self) -> bool:
        """Whether requests carry no credentials."""
        return self._options.get("token") == "anon"

    def exchange(
        self, request: HttpRequest, attempts: Attempts, accept: Accept | None = None
    ) -> HttpResponse:
        """Send one GET as an attempt of `attempts`, and return the answer; see `GcsClient.exchange`.

        Raises
        ------
        NotPlain
            If there is no token, or the server does not take it.
        Fault
        """
        parts = urlsplit(self._endpoint + request.target)
        headers = {"User-Agent": "ckptstore", **request.headers, "Host": parts.netloc}
        self._sign(headers, attempts)
        server = self._servers.at(parts, ssl.create_default_context, CONNECT_S)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        body = WholeBody()
        reply = exchange(
            server, replace(request, target=target, headers=headers), attempts, accept or (lambda *_: body)
        )
        self.skew_s = skew_of(reply.headers.get("Date"), self.skew_s)
        if reply.status == 401:
            raise NotPlain("the server did not take the token")
        return reply if accept or reply.status not in (200, 206) else reply._replace(body=body.data())

    def _sign(self, headers: dict[str, str], attempts: Attempts) -> None:
        if self.is_anonymous:
            return
        with self._locks[0]:
            fetch = None
            if not self._is_fresh():
                fetch = self._fetch = self._fetch or Fetch(self._prepare)
        if fetch is not None:
            error = fetch.wait(attempts)
            with self._locks[0]:
                if self._fetch is fetch:
                    self._fetch = None
            if error is not None:
                if isinstance(error, NotPlain):
                    raise error
                # Not its text, which may hold a secret; gcsfs shows what may be shown.
                raise NotPlain(f"there is no token ({type(error).__name__})")
        self._credentials.apply(headers)

    def _is_fresh(self) -> bool:
        credentials = self._credentials
        if not self._is_loaded or not credentials.valid:
            return False
        expiry = credentials.expiry
        return expiry is None or expiry.replace(tzinfo=UTC).timestamp() - time.time() > _FRESH_S

    def _prepare(self) -> None:
        """Load the credentials, and renew their token if it is time; may ask a server."""
        import urllib3
        from google.auth.transport.urllib3 import Request

        trusted = gcs_environment().authorities or _authorities()
        authorities: dict[str, Any] = {
            "ca_cert_dir" if os.path.isdir(trusted) else "ca_certs": trusted or None
        }
        ask = Request(urllib3.PoolManager(**authorities))  # type: ignore[no-untyped-call]
        if not self._is_loaded:
            self._credentials = _load(self._options, ask)
            self._is_loaded = True
        if not self._is_fresh():
            self._credentials.refresh(ask)


def _refusal(options: Mapping[str, Any], endpoint: str) -> str:
    """Return why these options lead to gcsfs; empty if they do not."""
    for name in ("session_kwargs", "requests_timeout", "requester_pays"):
        if options.get(name):
            return f"{name} is set"
    environment = gcs_environment()
    if environment.certificates:
        return f"{environment.certificates[0]} is set in the environment"
    if environment.universe_domain != "googleapis.com":
        return "the universe is another one"
    if proxy_for(endpoint) or proxy_for("https://oauth2.googleapis.com"):
        return "a proxy is configured"
    if options.get("access", "full_control") not in _ACCESS:
        return "access is unknown"
    token = options.get("token")
    if token in (None, "anon", "google_default") or hasattr(token, "apply"):
        return ""
    if isinstance(token, str) and os.path.exists(token):
        return ""
    return "the token is of a kind that gcsfs knows"


def _authorities() -> str:
    """Return whom requests trusts, with which gcsfs asks for tokens; empty: whom the system does."""
    try:
        import certifi
    except ImportError:
        return ""
    return certifi.where()


def _load(options: Mapping[str, Any], ask: Any) -> Any:
    token = options.get("token")
    scopes = [f"https://www.googleapis.com/auth/devstorage.{options.get('access', 'full_control')}"]
    if token in (None, "google_default"):
        import google.auth

        credentials, project = google.auth.default(scopes=scopes, request=ask)
        if options.get("project") and options["project"] != project:
            # gcsfs looks elsewhere then.
            raise NotPlain("the project is another one")
        return credentials
    if isinstance(token, str):
        from google.oauth2.service_account import Credentials

        return Credentials.from_service_account_file(  # type: ignore[no-untyped-call]
            token, scopes=scopes
        )
    return token
