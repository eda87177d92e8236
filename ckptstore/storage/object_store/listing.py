"""Page after page of a listing, for as long as the server gets on with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import Page
from ckptstore.storage.values import ObjectInfo

__all__ = ["PageGuard", "all_pages", "following_of"]

# In a row. Services may send some, where much was deleted a moment ago.
_MOST_EMPTY_PAGES = 1000


def following_of(token: str | None, *, is_truncated: bool) -> str | None:
    """Return the token of the next page; None if there is none.

    Raises
    ------
    Fault
        `Kind.GARBLED` if there is more, and no way to ask for it: what came would pass for all of it.
    """
    if not is_truncated:
        return None
    if not token:
        raise Fault(Kind.GARBLED, "the list says that there is more of it, and not how to ask for that")
    return token


class PageGuard:
    """Ends a listing that would never end."""

    def __init__(self) -> None:
        self._seen: set[object] = set()
        self._empty = 0

    def check(self, token: object, *, is_empty: bool, first: str | None = None) -> None:
        """Look at a page that is not the last one, and at the token of the next.

        Parameters
        ----------
        token : object
        is_empty : bool
        first : str, optional
            What the page begins with, if nothing stands on two pages.

        Raises
        ------
        Fault
            `Kind.GARBLED` if the listing goes in a circle, or no page of many has anything in it.
        """
        self._empty = self._empty + 1 if is_empty else 0
        marks = {("token", token), *([] if first is None else [("first", first)])}
        if marks & self._seen:
            raise Fault(Kind.GARBLED, "the listing does not end: the server sends a page again")
        if self._empty > _MOST_EMPTY_PAGES:
            raise Fault(Kind.GARBLED, f"the listing does not end: {self._empty} empty pages in a row")
        self._seen |= marks


def all_pages(ask: Callable[[str | None], Page]) -> Iterator[ObjectInfo]:
    """Yield the objects of all pages; `ask` gets the token of each, None for the first.

    Raises
    ------
    Fault
        From `ask`, and if the listing does not end.
    """
    guard = PageGuard()
    page = ask(None)
    yield from page.objects
    while page.token is not None:
        first = page.objects[0].key if page.objects else None
        guard.check(page.token, is_empty=page.is_empty, first=first)
        page = ask(page.token)
        yield from page.objects
