"""The HTTP session of the service's client: each request goes to one host, once, and answers have limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.bodies import read_body
from ckptstore.storage.s3.refusals import redirected

__all__ = ["OneHostSession", "current_attempts"]

_REGION = "x-amz-bucket-region"

current_attempts: ContextVar[Attempts] = ContextVar("ckptstore_attempts")
"""The operation that the request belongs to."""


class OneHostSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no type information
    """Sends each request to the host of its URL and to no other.

    The client's own session follows redirects to any host, over plain HTTP too, and takes the session token
    and the keys of the customer along.
    """

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        if "_request" not in vars(session):
            # Otherwise it sends a request again by itself when a kept connection breaks.
            session._retry_connection = False
            session._request = partial(_request, session._request)
        return session


async def _request(send: Callable[..., Awaitable[Any]], *target: Any, **settings: Any) -> Any:
    response = await send(*target, **{**settings, "allow_redirects": False})
    attempts = current_attempts.get()
    attempts.record_head()
    if 300 <= response.status < 400 and response.status != 304 and _REGION not in response.headers:
        # Without a region the client would ask for one, with a request that is redirected, too, and so on.
        response.close()
        raise redirected(response.headers.get("Location", ""))
    # What the client calls for a body that it parses; objects are read otherwise.
    response.read = partial(read_body, response, attempts)
    return response
