"""What an engine's mailbox does for a coordinator: small values under names, nothing that waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Announcement", "Mailbox"]


class Announcement(NamedTuple):
    """What a member says before it knows the run: that it is there."""

    rank: int
    nonce: str


class Mailbox(Protocol):
    """Values under a directory and a name, seen by all ranks.

    A directory consists of words of letters, digits, ``.``, ``_`` and ``-``, with ``/`` between them; a name
    is one such word. Every value is put once. Ranks other than 0 put values for rank 0 to look at, rank 0
    puts values for all others; a mailbox need not deliver more than that.

    Attributes
    ----------
    max_value_bytes : int
        The largest value that `put` takes.
    shortest_wait_s, longest_wait_s : float
        How long to wait between two looks, at the beginning and after a while.
    asks_each : bool
        Whether `look` makes a request for each of a few names.
    may_block : bool
        Whether a call may hang while another process is frozen. Then calls are made in threads of their own,
        and given up when their time is over.

    Raises
    ------
    CoordinatorLostError
        Every method, if the mailbox is gone.

    Threads
    -------
    Safe for concurrent use.
    """

    @property
    def max_value_bytes(self) -> int: ...

    @property
    def shortest_wait_s(self) -> float: ...

    @property
    def longest_wait_s(self) -> float: ...

    @property
    def asks_each(self) -> bool: ...

    @property
    def may_block(self) -> bool: ...

    def put(self, directory: str, name: str, value: bytes) -> None:
        """Store `value`. If there is one already, it is replaced, or `ConflictError` raised."""
        ...

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        """Return those of `names` that are there, without waiting for the others."""
        ...

    def delete(self, directory: str, names: Sequence[str]) -> None:
        """Delete `names`, of which some may not be there; the whole directory may go."""
        ...

    def announce(self, announcement: Announcement) -> None:
        """Tell rank 0 that this process is there; an earlier one of the same rank may stay beside it."""
        ...

    def announcements(self) -> Iterable[Announcement]:
        """Return what the ranks have announced, that of processes which are gone perhaps included."""
        ...

    def close(self) -> None:
        """End the use."""
        ...
