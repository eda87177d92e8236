"""Show one run: ``python -m tests.simulation.replay SCENARIO SEED [--without RULE] [--server KIND]``."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from tests.simulation.history import DIRECTORY
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runs import NAMES, new_run
from tests.simulation.scenarios import Run, simulation

__all__ = ["SERVERS", "command", "report"]

# What a server may not know → how the bucket behaves.
SERVERS = {
    "full": {},
    "no-conditional-delete": {"conditional_delete": False},
    "no-conditions": {"honours_conditions": False},
}


def command(scenario: str, seed: int, *, without: str = "", server: str = "full") -> str:
    """Return what shows this run again."""
    options = f" --without {without}" if without else ""
    options += f" --server {server}" if server != "full" else ""
    return f"python -m tests.simulation.replay {scenario} {seed}{options}"


def report(run: Run) -> str:
    """Return the schedule of a run and what was wrong with it."""
    lines = [
        f"{number:4} {step.actor:10} {step.deed:14} {step.key.replace(DIRECTORY + '/', ''):45}"
        f" {step.outcome}".rstrip()
        for number, step in enumerate(run.scheduler.trace, 1)
    ]
    record = run.history.files.get("checkpoint") or b"(no record)"
    lines += ["", "the record:", record.decode(), "the files:", *sorted(run.history.files), ""]
    lines += [str(violation) for violation in run.history.violations] or ["nothing is wrong"]
    return "\n".join(lines)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=NAMES)
    parser.add_argument("seed", type=int)
    parser.add_argument("--without", choices=MUTATIONS, help="a rule that is taken away")
    parser.add_argument("--server", choices=SERVERS, default="full")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        stack.enter_context(simulation())
        if chosen.without:
            stack.enter_context(MUTATIONS[chosen.without].apply())
        run = new_run(chosen.scenario, chosen.seed, **SERVERS[chosen.server])
        run.go()
        print(report(run))


if __name__ == "__main__":
    _main()
