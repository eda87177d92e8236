"""The options of reading a checkpoint, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.format.naming import step_in
from ckptstore.transfer.budget import check_memory_budget
from ckptstore.transfer.progress import Progress, reporter
from ckptstore.transfer.ring import Ring
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
        check_memory_budget(self.memory_budget)
        reporter(self.progress)

    def transfer(self, url: str, ring: Ring | None = None) -> Transfer:
        """Return the transfer of a restore of `url` with these options; its step is the one in the name."""
        step = step_in(url.rpartition("/")[2])
        return Transfer(
            "restore",
            url,
            step=step,
            memory_budget=self.memory_budget,
            report=reporter(self.progress),
            ring=ring,
        )
