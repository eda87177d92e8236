"""How checkpoints are read: the options beside what is read, checked once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.transfer.progress import Progress, reporter
from ckptstore.transfer.transfer import Transfer

__all__ = ["ReadOptions"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options of a handle; see `open_checkpoint` for what they mean.

    Raises
    ------
    UsageError
        If one of them is wrong.
    """

    memory_budget: int | None = None
    progress: Progress = None

    def __post_init__(self) -> None:
        budget = self.memory_budget
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget <= 0
        ):
            raise UsageError(
                "memory_budget must be a number of bytes above 0, or None for no limit",
                expected="a number of bytes",
                actual=repr(budget),
            )
        reporter(self.progress)

    def transfer(self, url: str) -> Transfer:
        """Return a restore of `url` that keeps to these options."""
        return Transfer("restore", url, memory_budget=self.memory_budget, report=reporter(self.progress))
