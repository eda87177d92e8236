"""What s3fs, botocore and aiohttp raise, translated into faults: by class, code and status, never by text."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from ckptstore.storage.object_store.faults import PROXY_HINT, Fault, Kind, scarcity_hint
from ckptstore.storage.s3.key_services import is_service_away
from ckptstore.storage.s3.refusals import fault_of_response, one_line

__all__ = ["fault_of"]

_NO_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or the storage options key and secret."
)

# The order matters: the first class that fits.
_CLASSES: tuple[tuple[type[BaseException], Kind], ...] = (
    (boto.NoCredentialsError, Kind.FORBIDDEN),
    (boto.PartialCredentialsError, Kind.FORBIDDEN),
    (boto.CredentialRetrievalError, Kind.FORBIDDEN),
    (boto.TokenRetrievalError, Kind.FORBIDDEN),
    (boto.SSOError, Kind.FORBIDDEN),
    (boto.ProfileNotFound, Kind.FORBIDDEN),
    (boto.ConnectTimeoutError, Kind.NOT_SENT),
    (boto.ProxyConnectionError, Kind.NOT_SENT),
    (boto.ReadTimeoutError, Kind.STALLED),
    (boto.ConnectionClosedError, Kind.CUT),
    (boto.HTTPClientError, Kind.CUT),
    (boto.IncompleteReadError, Kind.CUT),
    (boto.ResponseStreamingError, Kind.CUT),
    (ResponseParserError, Kind.GARBLED),
    (boto.ParamValidationError, Kind.BAD_REQUEST),
    (boto.BotoCoreError, Kind.BAD_REQUEST),
    (asyncio.TimeoutError, Kind.STALLED),
    (aiohttp.ClientError, Kind.CUT),
    (asyncio.IncompleteReadError, Kind.CUT),
    (OSError, Kind.CUT),
    (ValueError, Kind.BAD_REQUEST),  # an endpoint that is not a URL, a bucket whose name is not valid
)


def fault_of(error: BaseException, redact: Callable[[str], str]) -> Fault | None:
    """Return the fault that `error` means, None if a request cannot fail with it.

    Parameters
    ----------
    error : BaseException
        From s3fs, which wraps the error of the service, or from below it.
    redact : callable
        Takes the secrets out of a text.
    """
    reason = getattr(error, "kwargs", {}).get("error")
    if isinstance(reason, Fault):
        return reason  # from our session, wrapped by the client
    for candidate in (error.__cause__, error):
        response = getattr(candidate, "response", None)
        if isinstance(response, Mapping):
            return fault_of_response(response, redact)
    kind = _kind_of(error)
    if kind is None:
        return None
    if isinstance(error, boto.CredentialRetrievalError) and is_service_away(error):
        kind = Kind.NOT_SENT
    if isinstance(error, boto.ProxyConnectionError) and getattr(reason, "status", None) == 407:
        return Fault(Kind.FORBIDDEN, "the proxy wants to know who asks", code="407", hint=PROXY_HINT)
    # botocore's message about a connection is always the same; the reason is in the error below.
    reason = reason or error
    hint = _NO_CREDENTIALS if kind is Kind.FORBIDDEN else scarcity_hint(reason)
    return Fault(kind, one_line(str(reason), redact) or type(reason).__name__, hint=hint)


def _kind_of(error: BaseException) -> Kind | None:
    inner = getattr(error, "kwargs", {}).get("error")
    if isinstance(error, boto.SSLError):
        # A certificate does not get better by asking again; a handshake that broke off may.
        return Kind.UNTRUSTED if isinstance(inner, aiohttp.ClientConnectorCertificateError) else Kind.NOT_SENT
    if isinstance(error, boto.EndpointConnectionError):
        is_unsent = isinstance(inner, aiohttp.ClientConnectorError | socket.gaierror)
        return Kind.NOT_SENT if is_unsent else Kind.CUT
    return next((kind for known, kind in _CLASSES if isinstance(error, known)), None)
