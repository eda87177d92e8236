"""The simulation is worth something only if it notices a protocol with a rule taken away."""

from __future__ import annotations

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.replay import command
from tests.simulation.runs import new_run
from tests.simulation.scenarios import simulation


# The longest search takes a minute of an idle core.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=lambda mutation: mutation.name)
def test_a_missing_rule_is_noticed(mutation: Mutation) -> None:
    with simulation(), mutation.apply():
        for seed in range(mutation.seeds):
            history = new_run(mutation.scenario, seed).go()
            if history.violations:
                found = history.violations[0].name
                again = command(mutation.scenario, seed, without=mutation.name)
                assert found in mutation.expected, f"{history.violations[0]}\n{again}"
                return
    pytest.fail(f"nothing was noticed in {mutation.seeds} runs without the rule {mutation.name}")
