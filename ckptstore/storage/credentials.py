"""Credentials that a job renews: which options hold them, and what of the options stays the same.

A session token runs out within hours. The next one comes with a key and a secret of its own, so nothing in
them tells that the two belong together. Bucket, endpoint and every other option do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptstore.config import aws_session

__all__ = ["SessionKeys", "lasting_options", "session_keys"]

# Of s3fs and of botocore's `create_client`: key, secret, session token.
_OPTIONS = (("key", "username"), ("secret", "password"), ("token",))
_CLIENT_KWARGS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")

# What gcsfs takes for the name of a way to find credentials.
_WAYS = {"google_default", "cache", "cloud", "browser", "anon"}


class SessionKeys(NamedTuple):
    """Credentials of S3 that hold for some hours."""

    key: str
    secret: str
    token: str

    def __repr__(self) -> str:
        return "SessionKeys()"


def session_keys(options: Mapping[str, Any]) -> SessionKeys | None:
    """Return the keys with a session token in options of S3, or else in the environment; None without."""
    inner = _client_kwargs(options)
    given = [
        next((options[name] for name in names if options.get(name)), inner.get(client_name))
        for names, client_name in zip(_OPTIONS, _CLIENT_KWARGS, strict=True)
    ]
    if options.get("anon"):
        return None
    if not any(given) and not options.get("profile") and not options.get("session"):
        given = list(aws_session() or given)
    texts = [text for text in given if isinstance(text, str) and text]
    return SessionKeys(*texts) if len(texts) == len(given) else None


def lasting_options(scheme: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what stays of `options` when the credentials in them are renewed.

    Returns
    -------
    dict or None
        None if nothing in them, or in the environment, is of the kind that is renewed.
    """
    if scheme == "s3" and session_keys(options) is not None:
        hidden = {name for names in _OPTIONS for name in names}
        lasting = {name: value for name, value in options.items() if name not in hidden}
        if inner := _client_kwargs(options):
            lasting["client_kwargs"] = {name: inner[name] for name in inner.keys() - {*_CLIENT_KWARGS}}
        return lasting
    if scheme != "gs" or not _is_renewed(options.get("token")):
        return None
    # Of an object of Google's library also whose it is.
    whose = [getattr(options["token"], name, None) for name in ("service_account_email", "account")]
    return {**options, "token": whose}


def _is_renewed(token: Any) -> bool:
    """Return whether a job that goes on for days passes another `token` of gcsfs in its place some time."""
    if token is None or isinstance(token, Mapping):
        return False
    if isinstance(token, str):
        # As gcsfs: what is no way and no file is a token itself.
        return token not in _WAYS and not os.path.exists(token)
    if hasattr(token, "signer"):
        # It renews itself, and is cheap to make: many programs make another one for each call.
        return True
    return not getattr(token, "refresh_token", token) and not getattr(token, "refresh_handler", None)


def _client_kwargs(options: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = options.get("client_kwargs")
    return inner if isinstance(inner, Mapping) else {}
