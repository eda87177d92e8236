"""What the next run takes over, on every backend: only what is proved to be of a save that died."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.format.naming import data_name, index_name
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.testing import ManualClock
from tests.backends.conftest import names_in
from tests.unit.directory.helpers import die_before_the_record, listed


def save(saver: ck.Saver, prefix: str, *steps: int, **options: object) -> None:
    for step in steps:
        values = {"w": np.full(2, float(step))}
        saver.save(values, prefix, step, write_meta_graph=False, **options)  # type: ignore[arg-type]


def checkpoints_in(url: str) -> list[str]:
    return [name.removesuffix(".index") for name in names_in(url) if name.endswith(".index")]


def record_at(url: str) -> tuple[Location, bytes, Record]:
    location = locate(url).child("checkpoint")
    return location, location.storage.get(location.key).data, read_record(location).record


def listed_in_record(url: str) -> list[str]:
    state = record_at(url)[2].state
    assert state is not None
    return list(state.all_model_checkpoint_paths)


def put_record(url: str, data: bytes) -> None:
    location = locate(url).child("checkpoint")
    location.storage.put_if(location.key, data, location.storage.head(location.key).version)


def as_tensorflow(url: str, *names: str) -> None:
    """Write the record as TensorFlow's Saver does: no comments, no times."""
    lines = [f'model_checkpoint_path: "{names[-1]}"\n']
    put_record(url, "".join(lines + [f'all_model_checkpoint_paths: "{name}"\n' for name in names]).encode())


@pytest.mark.parametrize("keep", [1, 3])
def test_a_save_that_died_between_index_and_record_is_taken_over(keep: int, run_url: str) -> None:
    save(ck.Saver(run="a"), f"{run_url}/model", 1, 2)
    die_before_the_record(f"{run_url}/model", 3)
    saver = ck.Saver(max_to_keep=keep, run="b")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        save(saver, f"{run_url}/model", 4)
    assert listed(saver) == checkpoints_in(run_url) == ["model-2", "model-3", "model-4"][-keep:]


def test_what_is_found_without_proof_is_kept(run_url: str) -> None:
    save(ck.Saver(run="a"), f"{run_url}/model", 1)
    # Saved by the user's own hand, by this run and by another one.
    save(ck.Saver(run="bare"), f"{run_url}/model", 100, write_state=False)
    # Copied in.
    directory = locate(run_url)
    for name in (index_name("model-{}"), data_name("model-{}", 0, 1)):
        data = directory.storage.get(directory.child(name.format(1)).key).data
        directory.storage.put_new(directory.child(name.format(200)).key, data)
    # Listed by another record.
    save(ck.Saver(run="best"), f"{run_url}/model", 300, latest_filename="best")
    saver = ck.Saver(max_to_keep=1, run="b")
    save(saver, f"{run_url}/model", 2, 3)
    save(saver, f"{run_url}/model", 400, write_state=False)
    save(saver, f"{run_url}/model", 4)
    assert listed(saver) == ["model-4"]
    assert checkpoints_in(run_url) == ["model-100", "model-200", "model-300", "model-4", "model-400"]


def test_a_first_save_without_state_is_not_counted_by_the_second(run_url: str) -> None:
    save(ck.Saver(run="a"), f"{run_url}/model", 1)
    saver = ck.Saver(max_to_keep=1, run="b")
    save(saver, f"{run_url}/model", 2, write_state=False)
    save(saver, f"{run_url}/model", 3, 4)
    assert listed(saver) == ["model-4"]
    assert checkpoints_in(run_url) == ["model-2", "model-4"]


def test_a_survivor_of_every_hour_stays_when_our_lines_are_gone(run_url: str) -> None:
    clock = ManualClock()
    saver = ck.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=1, clock=clock, run="a")
    for step in (1, 2, 3):
        clock.advance(5400.0)
        save(saver, f"{run_url}/model", step)
    assert checkpoints_in(run_url) == ["model-1", "model-2", "model-3"]
    as_tensorflow(run_url, "model-3")
    saver = ck.Saver(max_to_keep=1, clock=clock, run="b")
    save(saver, f"{run_url}/model", 4, 5)
    assert listed(saver) == ["model-5"]
    assert checkpoints_in(run_url) == ["model-1", "model-2", "model-5"]


def test_two_records_of_one_directory_do_not_take_over_each_other(run_url: str) -> None:
    usual, best = ck.Saver(max_to_keep=1, run="usual"), ck.Saver(max_to_keep=1, run="best")
    for step in (1, 3, 5):
        save(usual, f"{run_url}/model", step)
        save(best, f"{run_url}/model", step + 1, latest_filename="best")
    save(ck.Saver(max_to_keep=1, run="usual again"), f"{run_url}/model", 7)
    assert checkpoints_in(run_url) == ["model-6", "model-7"]


@pytest.mark.parametrize("how", ["another record", "no record"])
def test_what_was_saved_again_elsewhere_is_not_deleted(how: str, run_url: str) -> None:
    usual = ck.Saver(max_to_keep=1, run="usual")
    save(usual, f"{run_url}/model", 1)
    options: dict[str, object] = (
        {"latest_filename": "best"} if how == "another record" else {"write_state": False}
    )
    save(ck.Saver(run="best"), f"{run_url}/model", 1, **options)
    with pytest.warns(ck.CkptStoreWarning, match="'model-1' was saved again under another record"):
        save(usual, f"{run_url}/model", 2)
    save(usual, f"{run_url}/model", 3)
    assert listed(usual) == ["model-3"]
    assert checkpoints_in(run_url) == ["model-1", "model-3"]
    if how == "another record":
        assert ck.latest_checkpoint(run_url, "best") == f"{run_url}/model-1"


def test_what_another_saver_of_the_run_saved_again_is_deleted(run_url: str) -> None:
    one, two = (ck.Saver(max_to_keep=1, run="job") for _ in range(2))
    save(one, f"{run_url}/model", 1)
    save(two, f"{run_url}/model", 1)
    save(one, f"{run_url}/model", 2)
    save(one, f"{run_url}/model", 3)
    assert checkpoints_in(run_url) == ["model-3"]


BY_HAND = {
    "by hand": "model-1",
    "by hand, with a dot": "./model-1",
    "by hand, the whole path": "{}/model-1",
    "by hand, a file": "model-1.index",
}


def set_latest_by_hand(url: str, path: str, *, before: str) -> None:
    _, data, _ = record_at(url)
    line = 'model_checkpoint_path: "{}"\n'
    put_record(url, data.replace(line.format(before).encode(), line.format(path.format(url)).encode(), 1))


@pytest.mark.parametrize("how", [*BY_HAND, "by a function", "by TensorFlow", "by TensorFlow, short"])
def test_what_was_gone_back_to_stays_and_what_lies_above_is_not_taken_over(how: str, run_url: str) -> None:
    save(ck.Saver(max_to_keep=3, run="a"), f"{run_url}/model", 1, 2, 3)
    die_before_the_record(f"{run_url}/model", 4, max_to_keep=3)
    names = [f"model-{step}" for step in (1, 2, 3)]
    if how in BY_HAND:
        set_latest_by_hand(run_url, BY_HAND[how], before="model-3")
    elif how == "by a function":
        ck.update_checkpoint_state(run_url, f"{run_url}/model-1", [f"{run_url}/{name}" for name in names])
    else:
        as_tensorflow(run_url, *([] if "short" in how else names[1:]), "model-1")
    saver = ck.Saver(max_to_keep=3, run="b")
    save(saver, f"{run_url}/model", 10)
    assert {"model-1", "model-4", "model-10"} <= set(checkpoints_in(run_url))
    save(saver, f"{run_url}/model", 11)
    assert listed(saver) == ["model-1", "model-10", "model-11"]
    # Nobody owns it, so nobody deletes it.
    save(saver, f"{run_url}/model", 12, 13)
    assert "model-4" in checkpoints_in(run_url)


@pytest.mark.parametrize("how", BY_HAND)
def test_what_was_gone_back_to_stays_in_a_run_that_goes_on(how: str, run_url: str) -> None:
    saver = ck.Saver(max_to_keep=3, run="a")
    save(saver, f"{run_url}/model", 1, 2, 3)
    set_latest_by_hand(run_url, BY_HAND[how], before="model-3")
    save(saver, f"{run_url}/model", 10)
    assert listed(saver) == ["model-3", "model-1", "model-10"]
    assert checkpoints_in(run_url) == ["model-1", "model-10", "model-3"]
    assert listed_in_record(run_url) == ["model-3", "model-1", "model-10"]


def test_a_shortened_list_takes_over_nothing_above_it(run_url: str) -> None:
    save(ck.Saver(run="a"), f"{run_url}/model", 1, 2, 3)
    die_before_the_record(f"{run_url}/model", 4)
    _, data, _ = record_at(run_url)
    lines = [line for line in data.decode().splitlines(keepends=True) if "timestamps" not in line]
    kept = "".join(line for line in lines if not line.startswith("all_") or '"model-1"' in line)
    put_record(run_url, kept.replace('path: "model-3"', 'path: "model-1"').encode())
    saver = ck.Saver(max_to_keep=2, run="b")
    save(saver, f"{run_url}/model", 10)
    assert listed(saver) == ["model-1", "model-10"]
    assert checkpoints_in(run_url) == ["model-1", "model-10", "model-2", "model-3", "model-4"]


def test_a_save_that_deletes_more_than_it_adds_says_so_before(run_url: str) -> None:
    save(ck.Saver(max_to_keep=5, run="a"), f"{run_url}/model", 1, 2, 3, 4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ck.CkptStoreWarning)
        save(ck.Saver(max_to_keep=5, run="b"), f"{run_url}/model", 6)
        with pytest.raises(ck.CkptStoreWarning, match="'model-2', 'model-3', 'model-4', 'model-5'"):
            save(ck.Saver(max_to_keep=2, run="c"), f"{run_url}/model", 7)
    # Before anything was published.
    assert checkpoints_in(run_url) == [f"model-{step}" for step in range(2, 7)]
    with pytest.warns(ck.CkptStoreWarning, match="deletes 4 checkpoints"):
        save(ck.Saver(max_to_keep=2, run="d"), f"{run_url}/model", 7)
    assert checkpoints_in(run_url) == ["model-6", "model-7"]


def test_a_second_saver_deletes_what_it_saved_itself_and_nothing_else(run_url: str) -> None:
    many, one = ck.Saver(max_to_keep=4), ck.Saver(max_to_keep=1)
    save(many, f"{run_url}/model", 1, 2, 3, 4)
    save(one, f"{run_url}/model", 5, 6)
    assert checkpoints_in(run_url) == ["model-1", "model-2", "model-3", "model-4", "model-6"]
    assert listed(one) == ["model-6"]
    save(many, f"{run_url}/model", 7)
    assert listed(many) == ["model-2", "model-3", "model-4", "model-7"]
    assert checkpoints_in(run_url) == ["model-2", "model-3", "model-4", "model-6", "model-7"]
    # Each anew, as in a program that makes a Saver for each save.
    save(ck.Saver(max_to_keep=1), f"{run_url}/model", 8)
    save(ck.Saver(max_to_keep=4), f"{run_url}/model", 9)
    assert checkpoints_in(run_url) == ["model-3", "model-4", "model-7", "model-8", "model-9"]
    # The next run counts all of them.
    with pytest.warns(ck.CkptStoreWarning, match="deletes"):
        save(ck.Saver(max_to_keep=2, run="next"), f"{run_url}/model", 10)
    assert checkpoints_in(run_url) == ["model-10", "model-9"]
    assert record_at(run_url)[2].counted == {}


@pytest.mark.parametrize("how", ["no data", "short data", "no index"])
@pytest.mark.parametrize("first", [1, 3])
def test_torn_checkpoints_take_no_place_in_the_window(how: str, first: int, run_url: str) -> None:
    save(ck.Saver(max_to_keep=3, run="a"), f"{run_url}/model", 1, 2, 3)
    directory = locate(run_url)
    good = 4 - first
    for step in {1, 2, 3} - {good}:
        key = directory.child(data_name(f"model-{step}", 0, 1)).key
        index = directory.child(index_name(f"model-{step}")).key
        data = directory.storage.get(key).data
        if how == "no index":
            directory.storage.delete_many([index])
            continue
        directory.storage.delete_many([key])
        if how == "short data":
            directory.storage.put_new(key, data[:-1])
    saver = ck.Saver(max_to_keep=3, run="b")
    save(saver, f"{run_url}/model", 4)
    assert f"model-{good}" in checkpoints_in(run_url)
    save(saver, f"{run_url}/model", 5)
    assert listed(saver) == [f"model-{good}", "model-4", "model-5"]
    # They are not retention's to delete, and stay listed as long as something is there of them.
    torn = {f"model-{step}" for step in {1, 2, 3} - {good}} if how != "no index" else set()
    assert set(checkpoints_in(run_url)) == {f"model-{good}", "model-4", "model-5"} | torn
    state = record_at(run_url)[2].state
    assert state is not None
    assert set(state.all_model_checkpoint_paths) == {f"model-{good}", "model-4", "model-5"} | torn


class TestAfterAForeignRewrite:
    """The record lost our lines, and with them the epochs."""

    def test_a_zombie_is_fenced_and_the_run_that_saved_since_goes_on(self, run_url: str) -> None:
        zombie, living = ck.Saver(run="zombie"), ck.Saver(run="living")
        save(zombie, f"{run_url}/model", 1)
        save(living, f"{run_url}/model", 2)
        as_tensorflow(run_url, "model-1", "model-2")
        with pytest.raises(ck.FencedError, match="model-2"):
            save(zombie, f"{run_url}/model", 3)
        with pytest.raises(ck.FencedError):
            save(zombie, f"{run_url}/model", 4)
        with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
            save(living, f"{run_url}/model", 3)
        save(living, f"{run_url}/model", 4)
        assert listed(living) == checkpoints_in(run_url) == [f"model-{step}" for step in (1, 2, 3, 4)]

    @pytest.mark.parametrize("is_gone", [False, True])
    def test_it_does_not_overwrite_a_step_that_it_never_saw(self, is_gone: bool, run_url: str) -> None:
        zombie, living = ck.Saver(run="zombie"), ck.Saver(run="living")
        save(zombie, f"{run_url}/model", 1)
        save(living, f"{run_url}/model", 2)
        if is_gone:
            location = locate(run_url).child("checkpoint")
            location.storage.delete_many([location.key])
        else:
            as_tensorflow(run_url, "model-1")
        with pytest.raises(ck.FencedError, match="model-2"):
            zombie.save({"w": np.zeros(2)}, f"{run_url}/model", 2, write_meta_graph=False)
        values: dict[str, np.ndarray] = {}
        ck.Saver().restore(values, f"{run_url}/model-2")
        assert set(values["w"]) == {2.0}

    def test_nor_one_prefix_that_another_run_saved_again(self, run_url: str) -> None:
        zombie, living = ck.Saver(run="zombie"), ck.Saver(run="living")
        zombie.save({"w": np.zeros(2)}, f"{run_url}/model", write_meta_graph=False)
        living.save({"w": np.ones(2)}, f"{run_url}/model", write_meta_graph=False)
        as_tensorflow(run_url, "model")
        with pytest.raises(ck.FencedError, match="not by this run"):
            zombie.save({"w": np.zeros(2)}, f"{run_url}/model", write_meta_graph=False)
        with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
            living.save({"w": np.ones(2)}, f"{run_url}/model", write_meta_graph=False)

    def test_a_run_that_is_alone_goes_on(self, run_url: str) -> None:
        saver = ck.Saver(run="alone", max_to_keep=2)
        save(saver, f"{run_url}/model", 1, 2, 3)
        as_tensorflow(run_url, "model-2", "model-3")
        with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
            save(saver, f"{run_url}/model", 4)
        with warnings.catch_warnings():
            # Three are there, because that one deleted nothing.
            warnings.filterwarnings("ignore", "this save of", ck.CkptStoreWarning)
            save(saver, f"{run_url}/model", 5)
        assert checkpoints_in(run_url) == ["model-4", "model-5"]


def test_runs_that_begin_at_the_same_time_are_told_so(run_url: str) -> None:
    one = ck.Saver(run="one")
    save(one, f"{run_url}/model", 1)
    _, data, _ = record_at(run_url)
    put_record(run_url, data.replace(b'run="one"', b'run="two"'))
    with pytest.raises(ck.FencedError, match="at the same time") as caught:
        save(one, f"{run_url}/model", 2)
    assert (caught.value.expected, caught.value.actual) == ("epoch 1", "epoch 1")


def test_a_record_that_was_put_back_is_told_from_a_run_that_took_over(run_url: str) -> None:
    save(ck.Saver(run="one"), f"{run_url}/model", 1)
    _, backup, _ = record_at(run_url)
    two = ck.Saver(run="two")
    save(two, f"{run_url}/model", 2)
    put_record(run_url, backup)
    with pytest.raises(ck.FencedError, match="set back to one of an earlier run") as caught:
        save(two, f"{run_url}/model", 3)
    assert str(caught.value.hint).startswith("Restart this run")
