"""Nothing quadratic, and no file opened that need not be: counted calls, no stop-watch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.testing import CountingStorage
from tests.unit.directory.collecting import collect
from tests.unit.directory.helpers import fresh_memory, save_steps, values
from tests.unit.directory.repairing import put_record, repair

COUNT = 10_000


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten thousand checkpoints, all but the first made of hard links; the record lists a thousand."""
    directory = tmp_path_factory.mktemp("crowded")
    save_steps(ck.Saver(run="a", max_to_keep=None), f"{directory}/model", [0])
    index, data = directory / "model-0.index", directory / "model-0.data-00000-of-00001"
    for step in range(1, COUNT):
        (directory / f"model-{step}.index").hardlink_to(index)
        (directory / f"model-{step}.data-00000-of-00001").hardlink_to(data)
    ck.update_checkpoint_state(
        directory,
        f"model-{COUNT - 1}",
        [f"{directory}/model-{step}" for step in range(COUNT - 1000, COUNT)],
        all_model_checkpoint_timestamps=[float(step) for step in range(COUNT - 1000, COUNT)],
    )
    return directory


def test_a_save_into_it_lists_once_and_opens_no_index(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storages: list[CountingStorage] = []

    def wrap(inner):
        storages.append(CountingStorage(inner))
        return storages[0]

    looked_at: list[str] = []
    monkeypatch.setattr(LocalStorage, "is_abandoned", lambda self, key: looked_at.append(key))
    saver = ck.Saver(run="b", max_to_keep=1000)
    with use_wrapper(wrap):
        save_steps(saver, f"{crowded}/model", [COUNT])
        counts = storages[0].counts
        assert counts["list"] == 1
        # The record twice; the victim, whose version has to be known. Before a run deletes for the first
        # time, it looks at the newest sixteen that were listed when it began: torn ones do not count.
        assert counts["get"] == 3 + 16
        assert looked_at == []
        storages[0].reset()
        assert ck.latest_checkpoint(crowded) == f"{crowded}/model-{COUNT}"
        assert sum(counts.values()) <= 3
        save_steps(saver, f"{crowded}/model", [COUNT + 1], write_meta_graph=False)
        assert sum(storages[0].counts.values()) <= 16
    assert len(saver.last_checkpoints) == 1000


def test_without_a_record_only_the_newest_is_opened(crowded: Path) -> None:
    record = crowded / "checkpoint"
    content = record.read_bytes()
    record.unlink()
    storages: list[CountingStorage] = []

    def wrap(inner):
        storages.append(CountingStorage(inner))
        return storages[0]

    try:
        with use_wrapper(wrap), pytest.warns(ck.CkptStoreWarning):
            assert ck.latest_checkpoint(crowded) is not None
        assert storages[0].counts["list"] == 1
        assert sum(storages[0].counts.values()) <= 5
    finally:
        record.write_bytes(content)


def test_a_thousand_go_at_once(tmp_path: Path) -> None:
    saver = ck.Saver(run="a", max_to_keep=None)
    save_steps(saver, f"{tmp_path}/model", [0])
    for step in range(1, 1000):
        for name in ("index", "data-00000-of-00001"):
            (tmp_path / f"model-{step}.{name}").hardlink_to(tmp_path / f"model-0.{name}")
    ck.update_checkpoint_state(tmp_path, "model-999", [f"{tmp_path}/model-{step}" for step in range(1000)])
    lower = ck.Saver(run="b", max_to_keep=2)
    lower.save(values(1000), f"{tmp_path}/model", 1000)
    assert lower.last_checkpoints == [f"{tmp_path}/model-999", f"{tmp_path}/model-1000"]
    assert len(list(tmp_path.glob("*.index"))) == 2
    lower.save(values(1001), f"{tmp_path}/model", 1001)
    assert "pending" not in "".join((tmp_path / "checkpoint").read_text().split("model-999", 1)[1:])


def test_garbage_of_many_saves_takes_two_listings_and_few_reads() -> None:
    directory = fresh_memory()
    save_steps(ck.Saver(max_to_keep=None), f"{directory}/model", range(300))
    place = locate(directory)
    for step in range(1000, 3000):
        place.storage.put_new(place.child(f"model-{step}.data-00000-of-00001").key, b"x")
    storages: list[CountingStorage] = []

    def wrap(inner):
        storages.append(CountingStorage(inner))
        return storages[-1]

    with use_wrapper(wrap):
        report = collect(directory)
    assert len(report.removed) == 2000
    counts = storages[0].counts
    # The third listing says what is gone.
    assert (counts["list"], counts["delete_many"], counts["delete_if"]) == (3, 1, 0)
    # The record, and each prefix without an index; none of the healthy ones.
    assert counts["get"] == 2001


def test_a_record_of_many_checkpoints_is_rebuilt_in_linear_time() -> None:
    directory = fresh_memory()
    save_steps(ck.Saver(), f"{directory}/model", [0])
    place = locate(directory)
    index = place.storage.get(place.child("model-0.index").key).data
    data = place.storage.get(place.child("model-0.data-00000-of-00001").key).data
    for step in range(1, 2000):
        place.storage.put_new(place.child(f"model-{step}.index").key, index)
        place.storage.put_new(place.child(f"model-{step}.data-00000-of-00001").key, data)
    put_record(directory, b"")
    assert len(repair(directory).items) == 2000
    assert not repair(directory).is_changed


def _calls_of_a_save(tmp_path: Path, listed: int) -> int:
    """Return how many functions the second save of a run calls, where so many checkpoints are listed."""
    save_steps(ck.Saver(run="a", max_to_keep=None), f"{tmp_path}/model", [0])
    for step in range(1, listed):
        for suffix in ("index", "data-00000-of-00001"):
            (tmp_path / f"model-{step}.{suffix}").hardlink_to(tmp_path / f"model-0.{suffix}")
    ck.update_checkpoint_state(
        tmp_path,
        f"model-{listed - 1}",
        [f"{tmp_path}/model-{step}" for step in range(listed)],
        all_model_checkpoint_timestamps=[float(step) for step in range(listed)],
    )
    saver = ck.Saver(run="b", max_to_keep=listed)
    save_steps(saver, f"{tmp_path}/model", [listed])
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        save_steps(saver, f"{tmp_path}/model", [listed + 1])
    finally:
        sys.setprofile(None)
    assert len(saver.last_checkpoints) == listed
    return calls


def test_what_is_listed_is_not_looked_at_again_by_each_save(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    many.mkdir()
    assert _calls_of_a_save(many, 2000) < _calls_of_a_save(few, 100) + 2000
