"""What a run knows of one owner that it is; which of all owners it is, is `ownership`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptstore.directory.published_index import PublishedIndex

__all__ = ["Owned"]


@dataclass(slots=True)
class Owned:
    """What this run knows of one owner that it is.

    Attributes
    ----------
    in_record : bool
        Whether the record is known to carry our owner line.
    had_record : bool
        Whether there was a record when the run started.
    seen : set of str
        Prefixes that had files when the run started, or that it saved and that are still listed; their
        canonical data names may be taken.
    published : dict of str to PublishedIndex or None
        Those of `seen` that had an index when the run started, None here, or that it published.
    highest_gone : int or None
        The highest step of those that left `seen`.
    has_saved : bool
        Whether the record holds a save of this run.
    is_listed : bool
        Whether the directory could be listed.
    knows_all : bool
        Whether there was neither record nor file when the run started: every prefix ever listed is in
        `seen`, or its step is at most `highest_gone`.
    """

    epoch: int
    in_record: bool
    had_record: bool = True
    highest_step: int | None = None
    seen: set[str] = field(default_factory=set)
    published: dict[str, PublishedIndex | None] = field(default_factory=dict)
    highest_gone: int | None = None
    has_saved: bool = False
    is_listed: bool = False
    knows_all: bool = False

    def add(self, prefix: str, index: PublishedIndex) -> None:
        """Note that this run has published `prefix`."""
        self.seen.add(prefix)
        self.published[prefix] = index

    def forget(self, prefix: str, step: int | None) -> None:
        """Note that `prefix` is not listed any more."""
        self.published.pop(prefix, None)
        if prefix in self.seen:
            self.seen.discard(prefix)
            self.highest_gone = max(-1 if self.highest_gone is None else self.highest_gone, step or 0)

    def never_listed(self, prefix: str, step: int | None) -> bool:
        """Return whether `prefix` certainly never was in the list."""
        is_above = self.highest_gone is None or (step is not None and step > self.highest_gone)
        return self.knows_all and prefix not in self.seen and is_above
