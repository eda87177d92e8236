"""Keys of a role: found and renewed by botocore's session, without a client of S3 or an event loop."""

from __future__ import annotations

import os
from typing import Any

import botocore.session
from botocore.credentials import RefreshableCredentials

from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.fetch import Fetch
from ckptstore.storage.s3.key_services import is_service_away
from ckptstore.storage.s3.renewed_keys import NoKeysError

__all__ = ["RoleKeys"]


class RoleKeys:
    """What botocore's own chain finds: a web identity, a container, a machine, single sign-on, a process.

    Parameters
    ----------
    profile : str or None
        The one that the options name.

    Threads
    -------
    Safe for concurrent use, and after a fork: a child asks anew.
    """

    def __init__(self, profile: str | None) -> None:
        self._profile = profile
        self._locks = ForkSafeLocks()
        self._pid = 0
        self._found: Any = None
        self._frozen: SessionKeys | None = None
        self._fetch: Fetch[tuple[Any, SessionKeys]] | None = None

    def __repr__(self) -> str:
        return "RoleKeys()"

    def current(self, attempts: Attempts) -> SessionKeys:
        """Return the keys, renewed if it is time.

        Raises
        ------
        NoKeysError
            If there are none, or the service that gives them does not.
        Fault
            If that took too long, or was given up, or the service is away.
        """
        with self._locks[0]:
            if self._pid != os.getpid():
                # A lock inside the parent's may be held for ever.
                self._pid, self._found, self._frozen, self._fetch = os.getpid(), None, None, None
            if self._frozen is not None and not self._is_due():
                return self._frozen
            if self._fetch is None:
                self._fetch = Fetch(self._ask)
            fetch = self._fetch
        answer = fetch.wait(attempts)
        with self._locks[0]:
            if self._fetch is fetch:
                # The next question is a new one, after a failure, too.
                self._fetch = None
            if not isinstance(answer, tuple):
                if is_service_away(answer):
                    raise Fault(
                        Kind.NOT_SENT,
                        f"who gives the keys of the role did not answer ({type(answer).__name__})",
                        hint="The container, the machine or the token service that AWS_* variables name.",
                    )
                # Not its text, which may hold a secret; the client shows what may be shown.
                reason = str(answer) if isinstance(answer, NoKeysError) else type(answer).__name__
                raise NoKeysError(f"botocore could not load the credentials: {reason}")
            self._found, self._frozen = answer
            return self._frozen

    @property
    def known(self) -> SessionKeys | None:
        """The keys that were found last; no server is asked."""
        return self._frozen

    def _is_due(self) -> bool:
        return isinstance(self._found, RefreshableCredentials) and self._found.refresh_needed()

    def _ask(self) -> tuple[Any, SessionKeys]:
        """Return what botocore found, and its keys; may ask a server.

        Raises
        ------
        NoKeysError
        """
        found = self._found
        if found is None:
            found = botocore.session.Session(profile=self._profile).get_credentials()
        if found is None:
            raise NoKeysError("it finds no credentials")
        frozen = found.get_frozen_credentials()
        return found, SessionKeys(frozen.access_key, frozen.secret_key, frozen.token or "")
