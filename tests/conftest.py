"""What every lane shares: where the fixtures are, and how hypothesis behaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import ckptstore as ck

pytest_plugins = ["tests.servers.fixtures"]

# Started in the background a shell lets us, and so every child, ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, so that a red lane is red for everybody. HYPOTHESIS_PROFILE=explore looks
# further, =quick is for the inner loop.
settings.register_profile(
    "steady",
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("steady"), max_examples=10)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture
def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever saves use ``durability="cache"``, unless it says something else."""
    for saves in (ck.Saver.__init__, ck.CheckpointManager.__init__, ck.Checkpoint.save, ck.Checkpoint.write):
        defaults = saves.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "durability", "cache")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """The directory of checkpoints that TensorFlow 2.21 wrote; read only."""
    return Path(__file__).parent / "fixtures" / "tensorflow-2.21"
