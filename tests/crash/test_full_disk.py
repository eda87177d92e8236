"""The disk is full at each write of a save in turn: a real disk, one page larger every time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.crash.test_every_call import four_devices, stamp_of
from tests.small_disk import fill, small_disk


def values_of(stamp: float) -> dict[str, np.ndarray]:
    return {
        "big": np.full(3000, stamp, np.float32),
        "small": np.array([stamp, -stamp]),
        "text": np.array([f"{stamp}"], object),
        # Enough of them that the index does not fit into the page that the announcement has freed.
        **{f"more_{number:03}": np.full(2, stamp) for number in range(300)},
    }


def save(directory: Path, name: str, stamp: float, *, shards: bool = False) -> None:
    saver = ck.Saver(
        max_to_keep=2, run=f"{stamp}", clock=lambda: 1000.0, sharded=shards, graph=four_devices()
    )
    step = int(name) if name.isdigit() else None
    saver.save(values_of(stamp), directory / "model", step)


SCENARIOS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a step": (lambda d: save(d, "1", 1.0), lambda d: save(d, "2", 2.0)),
    "a step, with retention": (
        lambda d: [save(d, "0", 0.0), save(d, "1", 1.0)],
        lambda d: save(d, "2", 2.0),
    ),
    "an overwrite": (lambda d: save(d, "", 1.0), lambda d: save(d, "", 2.0)),
    "four shards": (
        lambda d: save(d, "1", 1.0, shards=True),
        lambda d: save(d, "2", 2.0, shards=True),
    ),
}


def attempt(interrupted: Callable[[Path], object], directory: Path) -> ck.StorageFullError | None:
    try:
        interrupted(directory)
    except ck.StorageFullError as error:
        return error
    return None


def latest(directory: Path) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        path = ck.latest_checkpoint(directory)
    assert path is not None
    return stamp_of(path)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_there_is_no_room_for_the_old_one_restores(scenario: str, tmp_path: Path) -> None:
    before, interrupted = SCENARIOS[scenario]
    refused = set()
    with small_disk(tmp_path / "disk", 1024) as disk, warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        for pages in range(40):
            directory = disk / f"run-{pages}"
            before(directory)
            ballast = fill(disk, but_pages=pages)
            error = attempt(interrupted, directory)
            if error is None:
                break
            assert error.hint
            assert error.url is not None
            refused.add(Path(error.url).name.rpartition(".")[2].partition("-")[0])
            assert latest(directory) in (1.0, 2.0)
            temporary = [path.name for path in directory.iterdir() if ".tmp" in path.name]
            assert temporary == []
            ballast.unlink()
            # With room again the next save goes through, and clears away what is left.
            interrupted(directory)
            assert latest(directory) == 2.0
            names = {path.name.rpartition(".")[0] for path in directory.glob("*.index")}
            assert {path.name.partition(".")[0] for path in directory.glob("model*")} == names
            for path in sorted(directory.rglob("*")):
                path.unlink()
        else:
            pytest.fail("there was never enough room")
    # Each of these was the one for which there was no room. The graph takes that of the record before, which
    # the announcement replaced.
    assert refused == {"checkpoint", "data", "index"}
