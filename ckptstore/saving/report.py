"""What a save took, rank by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["RankReport", "SaveReport"]


@dataclass(frozen=True, slots=True)
class RankReport:
    """What one rank did in a save.

    Attributes
    ----------
    rank : int
    host_name : str
        Empty if it is not known.
    bytes : int
        Of its data file; 0 if it wrote none.
    staged_s : float
        Seconds that training waited for the copy of its arrays; 0.0 without one.
    written_s : float
        Seconds from the order to write until its data file was there.
    """

    rank: int
    host_name: str
    bytes: int
    staged_s: float
    written_s: float


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What a save took.

    Attributes
    ----------
    ranks : sequence of RankReport
        In the order of the ranks.
    seconds : float
        From the beginning of the save to its commit, on the chief.
    """

    ranks: Sequence[RankReport]
    seconds: float

    @property
    def slowest(self) -> RankReport:
        """The rank that took longest to write."""
        return max(self.ranks, key=lambda one: one.written_s)

    @property
    def bytes(self) -> int:
        """Bytes in all data files."""
        return sum(one.bytes for one in self.ranks)
