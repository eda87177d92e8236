"""The simulation is worth something only if it notices a protocol with a rule taken away."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.replay import command
from tests.simulation.scenarios import SCENARIOS, Run, simulation

# The rarest was seen after 1 of 1 500 seeds.
MOST_SEEDS = 10_000


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=lambda mutation: mutation.name)
def test_a_missing_rule_is_noticed(mutation: Mutation) -> None:
    with simulation(), mutation.apply():
        for seed in range(MOST_SEEDS):
            history = Run(SCENARIOS[mutation.scenario], seed).go()
            if history.violations:
                found = history.violations[0].name
                again = command(mutation.scenario, seed, without=mutation.name)
                assert found in mutation.expected, f"{history.violations[0]}\n{again}"
                return
    pytest.fail(f"nothing was noticed in {MOST_SEEDS} runs without the rule {mutation.name}")
