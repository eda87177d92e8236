"""Every scenario by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.simulation.rank_scenario import RankRun
from tests.simulation.scenarios import SCENARIOS, Run

__all__ = ["NAMES", "new_run"]

_RANKS = "ranks"

NAMES = (*SCENARIOS, _RANKS)


def new_run(name: str, seed: int, **server: bool) -> Run:
    """Return one run of the scenario `name`, with a server that does not know what is False; see `Run`."""
    make: Callable[..., Run] = RankRun
    return make(seed, **server) if name == _RANKS else Run(SCENARIOS[name], seed, **server)
