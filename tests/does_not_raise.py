"""A statement of tests whose only claim is that no error is raised."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress

__all__ = ["does_not_raise"]


def does_not_raise(*, other_than: type[Exception] | None = None) -> AbstractContextManager[bool | None]:
    """Return a context whose block raises nothing, or an error of the type `other_than`."""
    return nullcontext() if other_than is None else suppress(other_than)
