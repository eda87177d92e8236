"""The data files of one save: cut short they leave nothing, staged they are the same, and clean-up ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from ckptstore.bundle.write.plan import SavePlan, plan_save, write_item
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import AmbiguousOutcomeError, CkptStoreError, DeadlineError, TransientError
from ckptstore.storage.base import Location
from ckptstore.storage.object_store.faults import Kind
from ckptstore.storage.registry import locate
from ckptstore.storage.scope import current_scope
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import ManualClock
from ckptstore.transfer.blocks import BLOCK_SIZE_BYTES, release_blocks
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.transfer import Transfer
from tests.unit.directory.helpers import write_checkpoint
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, after, before, storage_of

_T = TypeVar("_T")

MIB = 1 << 20


class Watched(StorageWrapper):
    """Does something before the n-th part, and notes what time each call had."""

    def __init__(self, location: Location, at: int = -1, deed: Callable[[], None] = lambda: None) -> None:
        super().__init__(location.storage)
        self._at = at
        self._deed = deed
        self._lock = threading.Lock()
        self.sent = 0
        self.calls: list[tuple[str, float | None]] = []

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        scope = current_scope()
        self.calls.append((primitive, None if scope is None else scope.deadline_s))
        if primitive == "upload.send":
            with self._lock:
                self.sent += 1
                is_now = self.sent == self._at
            if is_now:
                self._deed()
        return super().intercept(primitive, keys, call)


def _watched(directory: Location, at: int = -1, deed: Callable[[], None] = lambda: None) -> Location:
    return Location(Watched(directory, at, deed), directory.key, directory.url)


def _plan(shards: int = 2, size_bytes: int = 20 * MIB) -> SavePlan:
    values: dict[str, Any] = {f"{n}/large": np.full(size_bytes, n, np.uint8) for n in range(shards)}
    values |= {f"{n}/small{k}": np.array([n, k], np.float32) for n in range(shards) for k in range(100)}
    values |= {f"{n}/odd": np.arange(200_000, dtype=">i4").reshape(400, 500).T for n in range(shards)}
    values |= {f"{n}/words": np.array([b"one", b"", b"three" * 100], object) for n in range(shards)}
    items = [write_item(name, array) for name, array in sorted(values.items())]
    return plan_save(items, lambda name: name[0])


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name[0] != "."}


def _save_staged(directory: Location, plan: SavePlan, limit: int | None) -> MemoryBudget:
    budget = MemoryBudget(limit)
    stage = Stage(plan, budget)
    copying = threading.Thread(target=stage.copy)
    copying.start()
    try:
        with Transfer("save", directory.url, memory_budget=budget) as transfer:
            write_checkpoint(directory, "model", plan, transfer=transfer, stage=stage)
    finally:
        stage.close()
        copying.join(30)
        release_blocks()
    return budget


@pytest.mark.parametrize("limit", [None, BLOCK_SIZE_BYTES, 3 * BLOCK_SIZE_BYTES])
def test_a_staged_save_leaves_the_same_files(tmp_path: Path, limit: int | None) -> None:
    for name in ("direct", "staged"):
        (tmp_path / name).mkdir()
    write_checkpoint(locate(tmp_path / "direct"), "model", _plan())
    budget = _save_staged(locate(tmp_path / "staged"), _plan(), limit)
    assert _files(tmp_path / "staged") == _files(tmp_path / "direct")
    assert len(_files(tmp_path / "direct")) == 3
    assert budget.used_bytes == 0
    assert budget.high_water_bytes <= (limit or 6 * BLOCK_SIZE_BYTES)


@pytest.mark.parametrize("limit", [None, 3 * BLOCK_SIZE_BYTES])
def test_a_staged_save_goes_round_a_leftover(tmp_path: Path, limit: int | None) -> None:
    write_checkpoint(locate(tmp_path), "model", _plan())
    (tmp_path / "model.index").unlink()
    before = _files(tmp_path)
    _save_staged(locate(tmp_path), _plan(), limit)
    after = _files(tmp_path)
    assert before.items() <= after.items()
    new = sorted(after.keys() - before.keys())
    assert new[-1] == "model.index"
    assert [after[name] for name in new[:-1]] == list(before.values())


def test_cancelled_in_the_middle_nothing_stays(tmp_path: Path) -> None:
    transfer = Transfer("save", "model")
    directory = _watched(locate(tmp_path), 5, transfer.cancel)
    with pytest.raises(TransientError, match="given up"), transfer:
        write_checkpoint(directory, "model", _plan(), transfer=transfer)
    assert _files(tmp_path) == {}
    # The first data file was complete, and its delete had time of its own.
    assert ("delete_many", 10.0) in directory.storage.calls  # type: ignore[attr-defined]


def test_after_the_deadline_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(100.0)
    monkeypatch.setattr(time, "monotonic", clock)
    transfer = Transfer("save", "model", deadline_s=60.0)
    directory = _watched(locate(tmp_path), 5, lambda: clock.advance(61.0))
    with pytest.raises(DeadlineError, match="no time left"), transfer:
        write_checkpoint(directory, "model", _plan(), transfer=transfer)
    assert _files(tmp_path) == {}
    assert ("delete_many", 10.0) in directory.storage.calls  # type: ignore[attr-defined]


def test_an_interrupt_leaves_nothing_either(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(_watched(locate(tmp_path), 5, interrupt), "model", _plan())
    assert _files(tmp_path) == {}


def test_what_moved_is_told_whatever_had_to_be_sent_twice(tmp_path: Path) -> None:
    plan = _plan()
    events: list[Any] = []
    write_checkpoint(locate(tmp_path), "model", plan)
    (tmp_path / "model.index").unlink()
    with Transfer("save", "model", report=events.append) as transfer:
        write_checkpoint(locate(tmp_path), "model", plan, transfer=transfer)
    assert (events[-1].done_bytes, events[-1].total_bytes) == (plan.size_bytes, plan.size_bytes)
    assert max(event.done_bytes for event in events) == plan.size_bytes


def test_a_transfer_that_was_given_up_before_writes_nothing(tmp_path: Path) -> None:
    transfer = Transfer("save", "model")
    transfer.cancel()
    directory = _watched(locate(tmp_path))
    with pytest.raises(CkptStoreError, match="given up"), transfer:
        write_checkpoint(directory, "model", _plan(), transfer=transfer)
    assert directory.storage.sent == 0  # type: ignore[attr-defined]
    assert _files(tmp_path) == {}


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_file_whose_answer_was_lost_is_deleted_if_it_is_ours(is_ours: bool) -> None:
    transport = ScriptedTransport()
    directory = Location(storage_of(transport), "b/run", "scripted://b/run")
    name = "run/model.data-00000-of-00001"
    if is_ours:
        transport.script("put", after(Kind.CUT))
    else:
        transport.script("put", before(Kind.CUT, lambda: transport.add_object(name, b"theirs")))
    # Nothing can be read back until the save has failed.
    transport.script("head", before(Kind.FORBIDDEN))
    with (
        pytest.raises(AmbiguousOutcomeError),
        ShardSet(directory, "model", canonical_count=1) as files,
    ):
        files.write(_plan(shards=1, size_bytes=MIB), 1)
    assert list(transport.objects) == ([] if is_ours else [name])
    assert len(transport.asked("head")) == 2
