"""Services that give the keys of a role: whether one of them is away, or says no."""

from __future__ import annotations

import botocore.exceptions as boto

__all__ = ["is_service_away"]

_NO_ANSWER = (boto.ConnectionError, boto.HTTPClientError, TimeoutError)


def is_service_away(error: BaseException) -> bool:
    """Return whether botocore has no keys because nothing answered where it asked for them.

    Its error for that has no class of its own: what happened to the request is in the errors before it.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, _NO_ANSWER) and not isinstance(cause, boto.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
