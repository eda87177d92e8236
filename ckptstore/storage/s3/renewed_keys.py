"""The keys of one set of options, which a job may renew, and what takes all of them out of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.storage.credentials import SessionKeys, session_keys
from ckptstore.storage.redact import Redactor

__all__ = ["NoKeysError", "RenewedKeys"]


class NoKeysError(Exception):
    """There are no keys where they were looked for; its message holds none."""


class RenewedKeys:
    """See `Transport.renew`.

    Attributes
    ----------
    newest : SessionKeys or None
        What came in place of the keys in the options; None as long as nothing did.
    redact : Redactor
        Of the secrets in the options, and of the newest ones.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self.newest: SessionKeys | None = None
        self.redact = Redactor(options)

    def __repr__(self) -> str:
        return "RenewedKeys()"

    def renew(self, options: Mapping[str, Any]) -> None:
        """Use the keys and the session token in `options` from now on, also for what is repeated.

        Parameters
        ----------
        options : mapping
            Those it was made with, apart from the credentials.
        """
        keys = session_keys(options)
        if keys == self.newest or keys is None:
            return
        # A server may still repeat those before.
        before = () if self.newest is None else self.newest._asdict()
        self.redact = Redactor({"first": self._options, "before": dict(before), "now": keys._asdict()})
        self.newest = keys
