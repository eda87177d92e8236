"""Pins on every backend: what is pinned stays, whatever a save had decided when the pin came."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.directory.pins import add_pin
from ckptstore.directory.record_update import read_record
from ckptstore.directory.repair import repair_record
from ckptstore.format.record import format_state
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage
from tests.backends.conftest import AT_EVERY_CALL, names_in

_T = TypeVar("_T")


def save(saver: ck.Saver, directory: str, step: int | None, **options: object) -> None:
    values = {"w": np.full(2, float(step or 0))}
    saver.save(values, f"{directory}/model", step, write_meta_graph=False, **options)  # type: ignore[arg-type]


def checkpoints_in(url: str) -> list[str]:
    return sorted(name.removesuffix(".index") for name in names_in(url) if name.endswith(".index"))


def record_in(url: str) -> Record:
    return read_record(locate(url).child("checkpoint")).record


def listed(url: str) -> list[str]:
    state = record_in(url).state
    assert state is not None
    return list(state.all_model_checkpoint_paths)


@pytest.mark.parametrize(
    "options", [{"max_to_keep": 2}, {"retention": [ck.Latest(2)]}], ids=["max_to_keep", "rules"]
)
def test_a_pinned_checkpoint_is_kept_beside_the_window(options: dict[str, Any], run_url: str) -> None:
    saver = ck.Saver(**options, run="first")
    for step in (1, 2):
        save(saver, run_url, step)
    ck.pin(f"{run_url}/model-1")
    ck.pin(f"{run_url}/model-1")
    for step in (3, 4, 5):
        save(saver, run_url, step)
    assert listed(run_url) == checkpoints_in(run_url) == ["model-1", "model-4", "model-5"]
    assert [path.rpartition("/")[2] for path in saver.last_checkpoints] == ["model-4", "model-5"]
    # The next run learns of it from the record, the newest one too.
    ck.pin(f"{run_url}/model-5")
    again = ck.Saver(**options, run="second")
    for step in (6, 7, 8):
        save(again, run_url, step)
    assert listed(run_url) == checkpoints_in(run_url) == [f"model-{step}" for step in (1, 5, 7, 8)]
    ck.unpin(f"{run_url}/model-1")
    ck.unpin(f"{run_url}/model-1")
    # It counts again, as old as it is.
    save(again, run_url, 9)
    assert listed(run_url) == checkpoints_in(run_url) == [f"model-{step}" for step in (5, 8, 9)]
    assert record_in(run_url).pins == ("model-5",)


def test_what_does_not_exist_cannot_be_pinned(run_url: str) -> None:
    with pytest.raises(ck.NotFoundError):
        ck.pin(f"{run_url}/model-1")
    save(ck.Saver(), run_url, 1)
    with pytest.raises(ck.NotFoundError, match="no such checkpoint"):
        ck.pin(f"{run_url}/model-2")
    with pytest.raises(ck.NotFoundError, match="no such checkpoint"):
        ck.unpin(f"{run_url}/model-2")
    ck.unpin(f"{run_url}/model-1")
    assert record_in(run_url).pins == ()
    # One that is gone can be unpinned: the line must not stay for ever.
    ck.pin(f"{run_url}/model-1")
    ck.remove_checkpoint(f"{run_url}/model-1")
    ck.unpin(f"{run_url}/model-1")
    assert record_in(run_url).pins == ()


def test_without_a_record_there_is_nothing_to_pin_in(run_url: str) -> None:
    save(ck.Saver(), run_url, 1, write_state=False)
    with pytest.raises(ck.NotFoundError, match="no record"):
        ck.pin(f"{run_url}/model-1")
    assert "checkpoint" not in names_in(run_url)


def test_a_checkpoint_that_no_record_lists_may_be_pinned(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=None)
    for step in (1, 2, 3):
        save(saver, run_url, step)
    ck.pin(f"{run_url}/model-1")
    ck.pin(f"{run_url}/model-3")
    save(saver, run_url, 4)
    assert listed(run_url) == ["model-3", "model-4"]
    assert record_in(run_url).pins == ("model-1", "model-3")
    assert saver.last_checkpoints == []


def test_a_record_of_another_name_has_pins_of_its_own(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=1)
    save(saver, run_url, 1, latest_filename="best")
    ck.pin(f"{run_url}/model-1", latest_filename="best")
    save(saver, run_url, 2, latest_filename="best")
    assert checkpoints_in(run_url) == ["model-1", "model-2"]
    assert "checkpoint" not in names_in(run_url)


def test_a_pinned_prefix_can_be_saved_again(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=1)
    save(saver, run_url, None)
    ck.pin(f"{run_url}/model")
    save(saver, run_url, None)
    save(saver, run_url, 7)
    save(saver, run_url, 8)
    assert checkpoints_in(run_url) == ["model", "model-8"]
    assert verify_bundle(locate(f"{run_url}/model")).ok
    save(saver, run_url, None)
    assert checkpoints_in(run_url) == ["model", "model-8"]


class Meanwhile(StorageWrapper):
    """Does something before call number `at`."""

    def __init__(self, inner: Storage, at: int, deed: Callable[[Storage], None]) -> None:
        super().__init__(inner)
        self.at, self.deed, self.calls = at, deed, -1000

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls += 1
        if self.calls == self.at:
            self.deed(self.inner)
        return call()


@AT_EVERY_CALL
@pytest.mark.parametrize("first_save", [True, False], ids=["run begins", "run goes on"])
def test_a_pin_that_comes_at_any_moment_of_a_save_holds_or_is_refused(first_save: bool, run_url: str) -> None:
    """Before each storage call of a save that drops the checkpoint, once."""
    held = refused = 0
    for at in range(1, 100):
        directory = f"{run_url}-{at}"
        saver = ck.Saver(max_to_keep=2, run="earlier")
        place = locate(directory)
        said: list[bool] = []

        def deed(inner: Storage, place: Location = place, said: list[bool] = said) -> None:
            there = Location(inner, place.key, place.url)
            try:
                said.append(add_pin(there.child("model-1"), there.child("checkpoint")))
            except ck.NotFoundError:
                said.append(False)

        wrappers: list[Meanwhile] = []

        def wrap(
            inner: Storage,
            at: int = at,
            deed: Callable[[Storage], None] = deed,
            wrappers: list[Meanwhile] = wrappers,
        ) -> Storage:
            wrappers.append(Meanwhile(inner, at, deed))
            return wrappers[-1]

        with use_wrapper(wrap):
            for step in (1, 2):
                save(saver, directory, step)
            if first_save:
                saver = ck.Saver(max_to_keep=2, run="later")
            for wrapper in wrappers:
                wrapper.calls = 0
            save(saver, directory, 3)
        if not said:
            break
        held += said[0]
        refused += not said[0]
        # The next saves carry out whatever was decided.
        for step in (4, 5):
            save(ck.Saver(max_to_keep=2, run="next"), directory, step)
        assert ("model-1" in checkpoints_in(directory)) is said[0], at
        if said[0]:
            assert verify_bundle(locate(f"{directory}/model-1")).ok
            assert listed(directory) == ["model-1", "model-4", "model-5"]
    else:
        pytest.fail("a save took a hundred calls")
    assert held >= 5
    assert refused >= 1


def test_a_save_learns_of_pins_without_a_request(run_url: str) -> None:
    counted: list[CountingStorage] = []

    def wrap(inner: Storage) -> Storage:
        counted.append(CountingStorage(inner))
        return counted[-1]

    def requests(saver: ck.Saver, step: int) -> int:
        for storage in counted:
            storage.reset()
        save(saver, run_url, step)
        return sum(len(storage.calls) for storage in counted)

    with use_wrapper(wrap):
        saver = ck.Saver(max_to_keep=2)
        for step in (1, 2, 3):
            save(saver, run_url, step)
        usual = requests(saver, 4)
        ck.pin(f"{run_url}/model-3")
        # The record that it knows is not there any more: it is read, once, and one is written in vain.
        after = requests(saver, 5)
        # Nothing was to be deleted, so there is also less to do.
        assert after <= usual + 2
        assert requests(saver, 6) == usual


def test_gc_leaves_what_is_left_of_a_pinned_checkpoint(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=5)
    for step in (1, 2):
        save(saver, run_url, step)
    ck.pin(f"{run_url}/model-1")
    directory = locate(run_url)
    index = directory.child("model-1.index")
    got = index.storage.get(index.key)
    for step in (1, 2):
        index.storage.delete_many([directory.child(f"model-{step}.index").key])
    garbage = find_garbage(directory, [directory.child("checkpoint")], min_age_s=0.0)
    assert garbage.pinned == ("model-1",)
    collect_garbage(directory, garbage)
    assert "model-2.data-00000-of-00001" not in names_in(run_url)
    index.storage.put_new(index.key, got.data)
    assert verify_bundle(locate(f"{run_url}/model-1")).ok


def test_pins_outlive_a_repair_and_a_damaged_line(run_url: str) -> None:
    for step in (1, 2, 3):
        save(ck.Saver(max_to_keep=3, run="first"), run_url, step)
    ck.pin(f"{run_url}/model-1")
    ck.remove_checkpoint(f"{run_url}/model-2")
    directory = locate(run_url)
    record = directory.child("checkpoint")
    assert repair_record(directory, record).is_written
    assert record_in(run_url).pins == ("model-1",)
    got = record.storage.get(record.key)
    record.storage.put_if(record.key, got.data.replace(b"epoch=", b"epoch=x"), got.version)
    with pytest.raises(ck.CorruptError):
        ck.pin(f"{run_url}/model-3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        for step in (4, 5, 6):
            save(ck.Saver(max_to_keep=1, run=f"run {step}"), run_url, step)
    assert "model-1" in checkpoints_in(run_url)
    assert record_in(run_url).pins == ("model-1",)
    got = record.storage.get(record.key)
    record.storage.put_if(record.key, got.data.replace(b'# pin "model-1"', b"# pin model-1"), got.version)
    assert repair_record(directory, record).is_written
    save(ck.Saver(max_to_keep=1, run="last"), run_url, 7)
    assert "model-1" in checkpoints_in(run_url)


def test_a_program_that_does_not_know_pins_does_not_lose_those_of_a_run_that_goes_on(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=2)
    for step in (1, 2):
        save(saver, run_url, step)
    ck.pin(f"{run_url}/model-1")
    save(saver, run_url, 3)
    record = locate(run_url).child("checkpoint")
    snapshot = read_record(record)
    assert snapshot.record.state is not None
    assert snapshot.version is not None
    record.storage.put_if(record.key, format_state(snapshot.record.state), snapshot.version)
    with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
        save(saver, run_url, 4)
    for step in (5, 6, 7):
        save(saver, run_url, step)
    assert checkpoints_in(run_url) == ["model-1", "model-6", "model-7"]


def test_what_was_put_back_after_it_was_deleted_may_be_pinned(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=1)
    for step in (1, 2):
        save(saver, run_url, step)
    # The line stays until the next save, but names another index.
    assert [line.prefix for line in record_in(run_url).pending] == ["model-1"]
    ck.Saver().save({"w": np.ones(9)}, f"{run_url}/model", 1, write_state=False)
    ck.pin(f"{run_url}/model-1")
    save(ck.Saver(max_to_keep=1, run="next"), run_url, 3)
    assert checkpoints_in(run_url) == ["model-1", "model-3"]


def test_a_pending_line_of_a_stranger_does_nothing_to_what_is_pinned(run_url: str) -> None:
    save(ck.Saver(max_to_keep=1), run_url, 2)
    save(ck.Saver(), run_url, 1, write_state=False)
    ck.pin(f"{run_url}/model-1")
    record = locate(run_url).child("checkpoint")
    got = record.storage.get(record.key)
    index = locate(f"{run_url}/model-1.index")
    version = json.dumps(index.storage.head(index.key).version)
    line = f'# pending "model-1" version={version} shards="00000-of-00001" suffix="meta"\n'
    header, _, rest = got.data.partition(b"\n")
    record.storage.put_if(record.key, header + b"\n" + line.encode() + rest, got.version)
    save(ck.Saver(max_to_keep=1, run="next"), run_url, 3)
    assert checkpoints_in(run_url) == ["model-1", "model-3"]
    save(ck.Saver(max_to_keep=1, run="next"), run_url, 4)
    assert "model-1" not in [line.prefix for line in record_in(run_url).pending]
