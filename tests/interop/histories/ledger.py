"""What docs/design/018-who-owns-what.md says that a record of ckptstore remembers beside TensorFlow's fields.

TensorFlow's records lack it, so the rules keep it beside them. It is worked out from the history and from
what TensorFlow did, never read from our files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = ["Ledger", "Line", "Owner", "Writer", "owner_of", "owner_of_listed"]

_NUMBERED = re.compile(r"(.+)-\d{1,20}", re.DOTALL)


class Owner(NamedTuple):
    """Who saved a checkpoint: a basename with steps, or one prefix alone."""

    basename: str
    form: Literal["steps", "exact"]


def owner_of(prefix: str, step: int | None) -> Owner:
    """Return the owner of what is saved as `prefix`."""
    if step is not None and step >= 0:
        return owner_of_listed(prefix)
    return Owner(prefix, "exact")


def owner_of_listed(prefix: str) -> Owner:
    """Return the owner of a listed checkpoint of which nothing else is known."""
    match = _NUMBERED.fullmatch(prefix)
    return Owner(prefix, "exact") if match is None else Owner(match[1], "steps")


@dataclass
class Line:
    """One owner of a record; `clocks` are those of keep_checkpoint_every_n_hours."""

    run: int
    keep: int
    clocks: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Ledger:
    """What one record says of its owners.

    Attributes
    ----------
    counted : dict
        Prefix → `max_to_keep` of the Saver that saved it, where that is not the one of the owner's line.
    saved_in : dict
        Prefix → run in which it was saved last.
    user_wrote : int
        How often the user wrote the record.
    deleted, replaced : set of str
        Prefixes whose files the next save deletes, or finds deleted, and those with data that was replaced.
    outside : set of str
        Prefixes that were saved last under another record, or without one.
    """

    owners: dict[Owner, Line] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    saved_in: dict[str, int] = field(default_factory=dict)
    user_wrote: int = 0
    deleted: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)

    def forget_lines(self) -> None:
        """TensorFlow rewrote the record."""
        self.owners.clear()
        self.counted.clear()
        self.deleted.clear()
        self.replaced.clear()

    def drop_idle(self, listed: Iterable[str]) -> None:
        """The owner of a single prefix leaves when that is not listed any more."""
        names = set(listed)
        self.owners = {
            owner: line
            for owner, line in self.owners.items()
            if owner.form == "steps"
            or owner.basename in names
            or owner.basename in self.deleted | self.replaced
        }
        self.counted = {prefix: keep for prefix, keep in self.counted.items() if prefix in names}


@dataclass
class Writer:
    """One Saver, as far as one record is concerned.

    Attributes
    ----------
    gone, torn, unknown : set of str
        Of what was listed when it became the owner: without an index, without data, not looked at yet.
    mtimes : dict
        Prefix → time of the index by then.
    saved : set of str
        What it saved itself and still lists.
    """

    run: int
    keep: int
    owned: set[Owner] = field(default_factory=set)
    has_saved: set[Owner] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    torn: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    mtimes: dict[str, float] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    user_wrote: int = 0

    def owns(self, ledger: Ledger, prefix: str) -> bool:
        """Return whether a listed checkpoint is this Saver's."""
        exact = Owner(prefix, "exact")
        match = _NUMBERED.fullmatch(prefix)
        return exact in self.owned or (
            exact not in ledger.owners and match is not None and Owner(match[1], "steps") in self.owned
        )

    def counts(self, ledger: Ledger, prefix: str) -> bool:
        """Return whether `max_to_keep` counts a listed checkpoint."""
        if not self.owns(ledger, prefix) or prefix in self.torn:
            return False
        match = _NUMBERED.fullmatch(prefix)
        line = None if match is None else ledger.owners.get(Owner(match[1], "steps"))
        if line is None or Owner(prefix, "exact") in self.owned:
            return True
        return ledger.counted.get(prefix, line.keep) == self.keep

    def clock_s(self, ledger: Ledger, name: str, resume: Callable[[float], float]) -> float | None:
        """Return the newest clock of what this Saver owns; None if there is none."""
        clocks = []
        for owner in self.owned & ledger.owners.keys():
            clock_s = ledger.owners[owner].clocks.get(name)
            if clock_s is not None:
                clocks.append(clock_s if owner in self.has_saved else resume(clock_s))
        return max(clocks, default=None)

    def acquire(self, ledger: Ledger, owner: Owner) -> None:
        """Become `owner`; what Savers of an earlier run told apart, this one counts together."""
        if owner in self.owned:
            return
        self.owned.add(owner)
        line = ledger.owners.get(owner)
        if line is not None and line.run != self.run:
            line.run, line.keep = self.run, self.keep
            for prefix in list(ledger.counted):
                match = _NUMBERED.fullmatch(prefix)
                if match is not None and Owner(match[1], "steps") == owner:
                    del ledger.counted[prefix]
