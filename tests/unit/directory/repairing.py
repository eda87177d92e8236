"""A directory whose record is damaged and repaired, and what its record then holds."""

from __future__ import annotations

import time
from pathlib import Path

import ckptstore as ck
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.record_entries import listed_paths
from ckptstore.directory.record_update import read_record
from ckptstore.directory.repair import RepairReport, repair_record
from ckptstore.directory.retention import KeepNewest
from ckptstore.format.record_facts import Record
from ckptstore.storage.registry import locate
from ckptstore.testing import ManualClock
from tests.own_warnings import own_warnings
from tests.unit.directory.helpers import checkpoints_in, save_steps, values

HOUR = 3600.0


def repair(directory: object, **options: object) -> RepairReport:
    place = locate(str(directory))
    return repair_record(place, place.child("checkpoint"), **options)  # type: ignore[arg-type]


def record_of(directory: object) -> Record:
    snapshot = read_record(locate(str(directory)).child("checkpoint"))
    assert snapshot.fault is None
    return snapshot.record


def listed_in(directory: object) -> list[str]:
    return [path for path, _ in listed_paths(record_of(directory).state)]


def owned_in(directory: object, basename: str = "model") -> list[str]:
    """Return what a Saver counts that saves `basename` with steps."""
    writer = CheckpointWriter(locate(str(directory)), None, KeepNewest(), time.time)
    writer.peek(basename)
    return [entry.prefix for entry in writer.window]


def actions(report: RepairReport) -> dict[str, str]:
    return {item.prefix: item.action for item in report.items}


def latest_in(directory: object) -> str | None:
    """Return the latest without any fallback: what the record names, or nothing."""
    with own_warnings("error"):
        found = ck.latest_checkpoint(str(directory))
    return None if found is None else found.rpartition("/")[2]


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def put(directory: object, name: str, data: bytes) -> None:
    place = locate(str(directory)).child(name)
    place.storage.delete_many([place.key])
    place.storage.put_new(place.key, data)


def put_record(directory: object, data: bytes) -> None:
    put(directory, "checkpoint", data)


def mtime_of(directory: Path, prefix: str) -> float:
    return (directory / f"{prefix}.index").stat().st_mtime_ns / 1e9


def tear(directory: Path, prefix: str) -> None:
    (directory / f"{prefix}.data-00000-of-00001").write_bytes(b"")


def make_run(directory: Path) -> Path:
    """Save steps 1 to 5 (3 to 5 stay listed, 1 is preserved, 2 is deleted) and a milestone without owner."""
    clock = ManualClock()
    saver = ck.Saver(max_to_keep=3, keep_checkpoint_every_n_hours=1, clock=clock, run="before")
    clock.advance(1.5 * HOUR)
    save_steps(saver, f"{directory}/model", [1])
    clock.advance(0.1 * HOUR)
    save_steps(saver, f"{directory}/model", [2, 3, 4, 5])
    ck.Saver().save(values(50), f"{directory}/milestone", write_state=False)
    assert checkpoints_in(str(directory)) == ["milestone", "model-1", "model-3", "model-4", "model-5"]
    assert owned_in(directory) == ["model-3", "model-4", "model-5"]
    return directory
