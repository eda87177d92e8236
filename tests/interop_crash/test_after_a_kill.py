"""The writer dies before and after each storage call; TensorFlow reads a copy of what is left then.

It takes what its own `latest_checkpoint` names, and finds all of the old checkpoint or all of the new one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in
from tests.crash.crashing_process import every_state, run_until_crash
from tests.crash.test_every_call import SCENARIOS, Scenario

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache" / "venv-tf" / "bin" / "python"


class TensorFlow:
    """A running `tensorflow_reader`."""

    def __init__(self) -> None:
        command = [PYTHON, Path(__file__).with_name("tensorflow_reader.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready\n"

    def ask(self, directory: Path, prefix: str | None = None) -> float | None:
        """Return which save TensorFlow restores; None if it finds none."""
        question = {"directory": str(directory)}
        if prefix is not None:
            question["prefix"] = f"{directory}/{prefix}"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        assert "error" not in answer, answer["error"]
        if answer["numbers"] is None:
            return None
        assert answer["numbers"].keys() >= {"big", "small", "text"}
        stamps = {abs(number) for numbers in answer["numbers"].values() for number in numbers}
        assert len(stamps) == 1, f"{answer['prefix']} mixes the saves {sorted(stamps)}"
        return float(stamps.pop())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[TensorFlow]:
    if not PYTHON.exists():
        pytest.skip("TensorFlow's environment is not there: `make setup-tf` makes it")
    running = TensorFlow()
    yield running
    running.stop()


def download(url: str, directory: Path) -> None:
    """Copy every file of a directory, as somebody would with the tools of the service."""
    directory.mkdir()
    place = locate(url)
    for name in names_in(url) if "://" in url or Path(url).exists() else ():
        (directory / name).write_bytes(place.storage.get(place.child(name).key).data)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["local", "memory", "minio", "gcs"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_tensorflow_restores_the_old_or_the_new(
    scenario: Scenario, run_url: str, tmp_path: Path, tensorflow: TensorFlow
) -> None:
    url = f"{run_url}-0"
    scenario.before(url)
    calls = len(run_until_crash(scenario.interrupted, url).calls)
    assert calls >= 8
    found = set()
    for number, crash in enumerate(every_state(calls), 1):
        url = f"{run_url}-{number}"
        scenario.before(url)
        run_until_crash(scenario.interrupted, url, **crash)
        copy = tmp_path / f"{number}"
        download(url, copy)
        latest = tensorflow.ask(copy)
        assert latest in scenario.latest, f"{crash}"
        found.add(latest)
        if scenario.overwrites:
            assert tensorflow.ask(copy, scenario.overwrites) in scenario.latest, f"{crash}"
        shutil.rmtree(copy)
    # Otherwise the kills were not where the commit is.
    assert found == set(scenario.latest)
