"""Time that stands still until a test moves it."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """A clock for ``clock=``: call it for the time, `advance` it to let time pass.

    Parameters
    ----------
    now_s : float
        Seconds since the epoch at the start.
    """

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; a negative number is a clock that was set back."""
        self.now_s += seconds
