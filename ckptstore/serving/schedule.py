"""When a host looks, and when it takes a new step: spread over all hosts, always the same on one.

Nothing here sleeps or reads a clock: times come in as arguments, in seconds of a clock that never jumps.
"""

from __future__ import annotations

import hashlib
import math
import random

__all__ = ["Schedule"]

# A period plus or minus this share of it: hosts that fell into step leave it again.
_JITTER = 0.2

# After failures a look comes after so many periods at most.
_LONGEST_PERIODS = 8


class Schedule:
    """The times of one host's looks at one directory.

    Parameters
    ----------
    every_s : float
        Seconds between two looks, above 0.
    spread_s : float
        How long after it was seen the last host takes a step.
    host, url : str
        Together they decide the place of this host among all others.
    now_s : float
        The start; the first look is due then.

    Attributes
    ----------
    next_s : float
        When the next look is due.
    delay_s : float
        How long after it was seen this host takes a step: between 0 and `spread_s`, the same each time.

    Threads
    -------
    One at a time.
    """

    def __init__(self, every_s: float, spread_s: float, host: str, url: str, now_s: float) -> None:
        self.every_s = every_s
        self.delay_s = spread_s * _share(f"spread {host} {url}")
        self.next_s = now_s
        # Looks are due at this time and whole periods after it.
        self._phase_s = now_s + every_s * _share(f"phase {host} {url}")
        self._failures = 0
        # Of its own: the program's random numbers stay as they are.
        self._chance = random.Random()

    def looked(self, now_s: float) -> None:
        """Record that a look has succeeded just now."""
        self._failures = 0
        self._plan(now_s, 1)

    def failed(self, now_s: float) -> None:
        """Record that a look has failed just now."""
        self._failures += 1
        self._plan(now_s, min(2 ** min(self._failures - 1, 30), _LONGEST_PERIODS))

    def _plan(self, now_s: float, periods: int) -> None:
        # The last one that is not before now, and so many on from there.
        passed = math.floor((now_s - self._phase_s) / self.every_s + _JITTER)
        at_s = self._phase_s + (passed + periods) * self.every_s
        self.next_s = max(at_s + self._chance.uniform(-_JITTER, _JITTER) * self.every_s, now_s)


def _share(text: str) -> float:
    """Return a number in [0, 1) that depends on `text` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2.0**56
