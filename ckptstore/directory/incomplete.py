"""Checkpoints that are there and cannot be restored: torn, still being copied, or replaced by other files.

That is not "no checkpoint". A program that takes it for that starts from nothing, and its retention then
deletes the files that somebody could have completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ckptstore.directory.catalog import PrefixFiles, fault_of, newest_first
from ckptstore.errors import AccessError, CorruptError, NotFoundError, UsageError
from ckptstore.format.naming import index_name
from ckptstore.storage.abilities import MarksUploads
from ckptstore.storage.base import Location

__all__ = ["Incomplete", "nothing_restorable"]

_MOST_SHOWN = 5


class Incomplete:
    """Why each checkpoint of a directory cannot be restored; empty until one was looked at."""

    def __init__(self) -> None:
        self._faults: dict[str, tuple[str, str]] = {}

    def __bool__(self) -> bool:
        return bool(self._faults)

    def add(self, name: str, what: str, text: str) -> None:
        """Note why `name` cannot be restored, in a clause and in sentences; the first reason counts."""
        self._faults.setdefault(name, (what, text))

    def is_restorable(self, place: Location, name: str) -> bool:
        """Return whether the checkpoint at `place` can be restored; if not, note why.

        What is gone since it was listed is not noted.
        """
        fault = fault_of(place)
        if fault is not None and not isinstance(fault, NotFoundError):
            self.add(name, fault.what, str(fault))
        return fault is None

    def error(self, directory: Location) -> CorruptError:
        """Return the error that says that nothing here can be restored, and why."""
        more = len(self._faults) - _MOST_SHOWN
        shown = list(self._faults.items())[:_MOST_SHOWN]
        reasons = [f"{name} ({what})" for name, (what, _) in shown]
        url = directory.url or "."
        error = CorruptError(
            "there are checkpoints, and none of them can be restored now",
            url=url,
            actual="; ".join([*reasons, *([f"{more} more"] if more > 0 else [])]),
            hint="If they are being copied, wait until all files are there; otherwise copy them again."
            f" `ckptstore verify {url}` shows what is wrong. To leave them alone and begin anew, save with"
            " fresh_start=True.",
        )
        for name, (_, text) in shown:
            error.add_note(f"{name}: {text}")
        return error

    def add_unpublished(self, directory: Location, found: Iterable[PrefixFiles]) -> None:
        """Note those of `found` that have data files and no index, except what a save left or is writing.

        A save publishes its index last, so one that was killed leaves data files alone. So does a program
        that copies a checkpoint in the order of the names, while it is not done.
        """
        for item in found:
            if item.index is not None or not item.data or _is_of_save(directory, item):
                continue
            if not _is_published(directory, item.prefix):
                what = f"there are data files, and no file {index_name(item.prefix)}"
                self.add(item.prefix, what, what)


def nothing_restorable(
    directory: Location, listed: Sequence[str], find: Callable[[], Mapping[str, PrefixFiles]]
) -> CorruptError | None:
    """Return the error to raise if there are checkpoints of one owner and none of them can be restored.

    Usually the newest one that the record lists is looked at, and nothing else.

    Parameters
    ----------
    listed : sequence of str
        What the record lists of this owner, the newest last.
    find : callable
        Returns the files of this owner.
    """
    incomplete = Incomplete()
    try:
        for prefix in reversed(listed):
            if incomplete.is_restorable(directory.child(prefix), prefix):
                return None
            incomplete.add(prefix, gone := "the record lists it, and its files are gone", gone)
        found = dict(find())
        for item in newest_first(found):
            if item.prefix not in listed and incomplete.is_restorable(
                directory.child(item.prefix), item.prefix
            ):
                return None
        incomplete.add_unpublished(directory, found.values())
    except AccessError:
        # Saving works without the permission to read.
        return None
    return incomplete.error(directory) if incomplete else None


def _is_published(directory: Location, prefix: str) -> bool:
    """Return whether there is an index by now: a save that published since the listing took the mark away."""
    index = directory.child(index_name(prefix))
    try:
        index.storage.head(index.key)
    except (NotFoundError, UsageError):
        return False
    return True


def _is_of_save(directory: Location, item: PrefixFiles) -> bool:
    storage = directory.storage
    for info in item.data.values():
        try:
            if not isinstance(storage, MarksUploads) or not storage.is_upload(info.key):
                return False
        except NotFoundError:
            continue
    return True
