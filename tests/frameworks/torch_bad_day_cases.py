"""Which rank stops where, for the test and for its ranks."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CASES", "SIZE", "Case"]

SIZE: Final = 3


class Case(NamedTuple):
    """A bad day of one rank."""

    how: str
    rank: int
    point: str

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.how}-{self.rank}-{self.point}"


CASES: Final = (
    Case("kill", 1, "write"),
    Case("freeze", 2, "write"),
    Case("freeze", 1, "compare"),
    Case("kill", 0, "index"),
)
