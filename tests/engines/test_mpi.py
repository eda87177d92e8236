"""Four processes under mpiexec."""

from __future__ import annotations

import pytest

from tests.engines import scenarios

LAUNCHER = "mpi"
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


class TestFollows(scenarios.Follows):
    pass


class TestPreempted(scenarios.Preempted):
    pass


class TestContract(scenarios.Contract):
    # mpiexec ends all of them.
    survives_death = False
