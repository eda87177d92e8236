"""What names this machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptstore import config


def test_every_process_of_this_machine_has_one_host_id() -> None:
    script = "from ckptstore.config import host_id; print(host_id())"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == config.host_id()
    assert re.fullmatch(r"[0-9a-f]{8}", config.host_id())


def test_without_a_boot_id_the_host_name_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="one"))
    one = config.host_id.__wrapped__()
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="two"))
    assert re.fullmatch(r"[0-9a-f]{8}", one)
    assert config.host_id.__wrapped__() != one


LAUNCHED = {
    "torchrun": (
        {"RANK": "3", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2"},
        (3, 8, "job.2"),
    ),
    "open mpi": (
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-7@1"},
        (1, 4, "prterun-7@1"),
    ),
    "slurm": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "77"}, (0, 16, "77")),
    "slurm, requeued": (
        {
            "SLURM_PROCID": "0",
            "SLURM_NTASKS": "16",
            "SLURM_JOB_ID": "77",
            "SLURM_STEP_ID": "1",
            "SLURM_RESTART_COUNT": "3",
        },
        (0, 16, "77.1.3"),
    ),
    "pmi": ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4, None)),
    "kubernetes": ({"JOB_COMPLETION_INDEX": "5"}, (5, None, None)),
    "torchrun below slurm": (
        {"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "77"},
        (3, 8, None),
    ),
    "by hand": ({}, (None, None, None)),
    "nonsense": ({"RANK": "first"}, (None, None, None)),
}


@pytest.mark.parametrize("name", LAUNCHED)
def test_rank_size_and_attempt_are_what_the_launcher_has_set(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variables, expected = LAUNCHED[name]
    for other, _ in LAUNCHED.values():
        for variable in other:
            monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert tuple(config.launcher_environment()) == expected
