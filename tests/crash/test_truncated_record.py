"""A record cut off anywhere is repaired, and retention is handed nothing that was not its own."""

from __future__ import annotations

import warnings
from pathlib import Path

import ckptstore as ck
from tests.unit.directory.helpers import checkpoints_in, fresh_memory, save_steps
from tests.unit.directory.repairing import latest_in, listed_in, make_run, put, record_of, repair, tree

OWNED = {"model-4", "model-5", "model-6", "best-2"}
COMPLETE = OWNED | {"model-1", "milestone"}


def test_whatever_the_length(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save_steps(ck.Saver(max_to_keep=3, run="after"), f"{run}/model", [6])
    save_steps(ck.Saver(run="x"), f"{run}/best", [2])
    files = {name: data for name, data in tree(run).items() if name != ".ckptstore.lock"}
    record = files["checkpoint"]
    for length in range(len(record)):
        directory = fresh_memory()
        for name, data in files.items():
            put(directory, name, record[:length] if name == "checkpoint" else data)
        repair(directory)
        listed = set(listed_in(directory))
        kept = set(record_of(directory).kept)
        assert listed <= COMPLETE, length
        assert listed - kept <= OWNED, length
        assert {"model-6", "best-2"} & listed, length
        assert latest_in(directory) in ("model-6", "best-2"), length
        assert not repair(directory).is_changed, length
        epochs = {owner.basename: owner.epoch for owner in record_of(directory).owners.values()}
        assert epochs.items() <= {"model": 2, "best": 1}.items(), length
        if length % 40 == 0:
            check_next_runs(directory, COMPLETE - OWNED, length)


def check_next_runs(directory: str, untouchable: set[str], length: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        for basename in ("model", "best", "milestone"):
            save_steps(ck.Saver(max_to_keep=1, run="r"), f"{directory}/{basename}", [7, 8])
    assert untouchable <= set(checkpoints_in(directory)), length
    assert latest_in(directory) == "milestone-8"
