from __future__ import annotations

import gc
import logging
import pickle
import weakref
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.errors import (
    ChecksumError,
    IncompleteBundleError,
    NotFoundError,
    TensorNotFoundError,
    TruncatedFileError,
    UsageError,
)
from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint, restore_values
from ckptstore.reading.options import ReadOptions
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint_reader import load_checkpoint
from ckptstore.transfer.transfer import Transfer
from tests.unit.bundle.helpers import data_file, put, save, take, tracked

W = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture
def place(tmp_path):
    location = locate(tmp_path / "model-1")
    save(location, {"w": W, "b": np.float64(2.5), "names": ["x", "y"]}, {"far/v": np.arange(3)})
    return location


@pytest.fixture
def ckpt(place):
    with open_checkpoint(place.url) as opened:
        yield opened


def test_it_is_a_mapping_from_name_to_array(ckpt):
    assert list(ckpt) == ["b", "far/v", "names", "w"]
    assert len(ckpt) == 4
    assert "w" in ckpt
    assert "nope" not in ckpt
    assert 3 not in ckpt
    assert set(ckpt.keys()) == set(dict(ckpt))
    assert ckpt.get("nope") is None
    np.testing.assert_array_equal(ckpt["w"], W)
    assert ckpt["b"].shape == ()
    assert ckpt["names"].tolist() == [b"x", b"y"]


def test_its_arrays_are_read_only(ckpt):
    for array in ckpt.values():
        assert isinstance(array, np.ndarray)
        with pytest.raises(ValueError, match="read-only"):
            array[...] = array


def test_two_handles_are_equal_only_if_they_are_the_same(ckpt, place):
    with open_checkpoint(place.url) as other:
        assert ckpt == ckpt
        assert ckpt != other
        assert ckpt != {"w": W}
        assert len({ckpt, other}) == 2


def test_an_unknown_name_is_a_key_error_with_close_names(ckpt):
    with pytest.raises(KeyError):
        ckpt["far/w"]
    with pytest.raises(TensorNotFoundError, match="'far/v'"):
        ckpt["far/w"]


def test_specs_need_only_the_index(place):
    tracking, through = tracked(place)
    specs = OpenCheckpoint(open_bundle(through)).specs()
    assert list(specs) == ["b", "far/v", "names", "w"]
    assert (specs["w"].shape, specs["w"].nbytes, specs["far/v"].shards) == ((2, 3), 24, (1,))
    assert tracking.of_data() == []


@pytest.mark.parametrize("index", [..., 1, (), np.s_[0, ::-1], (1, 2), (..., 0), (0, None, ...), (1, 2, ...)])
def test_reading_a_part_gives_what_numpy_gives_down_to_the_type(ckpt, index):
    found, wanted = ckpt.read("w", index), W[index]
    assert type(found) is type(wanted)
    np.testing.assert_array_equal(found, wanted)


def test_a_string_element_is_bytes(ckpt):
    assert ckpt.read("names", 1) == b"y"


def test_parts_are_new_arrays_of_the_caller(ckpt):
    rows = ckpt.read("w", np.s_[:1])
    rows[:] = 9
    np.testing.assert_array_equal(ckpt.read("w"), W)


def test_indexes_that_are_not_basic_and_out_of_range(ckpt):
    with pytest.raises(IndexError):
        ckpt.read("w", 2)
    with pytest.raises(UsageError):
        ckpt.read("w", [0, 1])


def test_after_closing_nothing_is_read_and_arrays_stay(place):
    with open_checkpoint(place.url) as ckpt:
        w = ckpt["w"]
    np.testing.assert_array_equal(w, W)
    for action in (lambda: ckpt["w"], lambda: len(ckpt), ckpt.specs, ckpt.restore, lambda: ckpt.read("w")):
        with pytest.raises(UsageError, match="closed"):
            action()
    assert "closed" in repr(ckpt)


def test_it_says_what_it_is(ckpt, place):
    assert ckpt.prefix == place.url
    assert place.url in repr(ckpt)


def test_restore_without_target_returns_new_writable_arrays(ckpt):
    report = ckpt.restore()
    assert sorted(report.restored) == ["b", "far/v", "names", "w"]
    assert (report.missing, report.unexpected, report.cast) == ((), (), ())
    report.restored["w"][...] = 0
    np.testing.assert_array_equal(ckpt["w"], W)


def test_restore_fills_arrays_in_place_and_reports(ckpt):
    w, v = np.zeros((2, 3), "f4"), np.zeros(3, ">i8")
    report = ckpt.restore(into={"w": w, "far/v": v})
    np.testing.assert_array_equal(w, W)
    assert report.restored["w"] is w
    assert report.unexpected == ("b", "names")
    assert report.cast == ("far/v",)


def test_rename_goes_from_the_name_in_the_checkpoint_to_the_one_in_the_target(ckpt):
    w = np.zeros((2, 3), "f4")
    report = ckpt.restore(into={"new/w": w}, rename={"w": "new/w"})
    np.testing.assert_array_equal(w, W)
    assert list(report.restored) == ["new/w"]
    assert "w" not in report.unexpected


def test_a_renamed_tensor_has_lost_its_old_name(ckpt):
    with pytest.raises(TensorNotFoundError, match="Key w not found"):
        ckpt.restore(into={"w": np.zeros((2, 3), "f4")}, rename={"w": "x"})


def test_two_tensors_can_change_places(place):
    save(place, {"a": np.float32(1), "b": np.float32(2)})
    with open_checkpoint(place.url) as ckpt:
        assert {
            name: float(array) for name, array in ckpt.restore(rename={"a": "b", "b": "a"}).restored.items()
        } == {
            "a": 2,
            "b": 1,
        }


def test_a_renamed_tensor_takes_the_place_of_one_that_has_the_name(place):
    save(place, {"a": np.float32(1), "b": np.float32(2)})
    with open_checkpoint(place.url) as ckpt:
        report = ckpt.restore(rename={"a": "b"})
    assert float(report.restored["b"]) == 1
    assert report.unexpected == ("b",)


def test_two_tensors_under_one_name_are_refused(ckpt):
    for options in ({"rename": {"w": "x", "b": "x"}}, {"names": ["w", "b"], "rename": {"w": "b"}}):
        with pytest.raises(UsageError, match="name"):
            ckpt.restore(**options)


def test_names_choose_and_are_put_into_the_target(ckpt):
    into: dict[str, Any] = {"w": np.zeros((2, 3), "f4"), "other": None}
    report = ckpt.restore(into, names=["w", "b"], rename={"b": "bias"})
    assert sorted(report.restored) == ["bias", "w"]
    assert float(into["bias"]) == 2.5
    assert into["other"] is None
    assert report.unexpected == ()
    assert sorted(ckpt.restore(names=["b"]).restored) == ["b"]


def test_one_name_in_the_place_of_a_list_is_refused(ckpt):
    with pytest.raises(UsageError, match="list of names"):
        ckpt.restore(names="w")


def test_missing_names_raise_or_are_reported(ckpt):
    w = np.zeros((2, 3), "f4")
    with pytest.raises(TensorNotFoundError, match=r"Key ww not found.*In all, 2 names are missing"):
        ckpt.restore(into={"w": w, "ww": W, "xx": W})
    assert not w.any()
    report = ckpt.restore(into={"w": w, "ww": W}, missing="ignore")
    assert report.missing == ("ww",)
    np.testing.assert_array_equal(w, W)
    report = ckpt.restore({"new": None}, rename={"old": "new"}, missing="ignore")
    assert report.missing == ("new",)
    with pytest.raises(TensorNotFoundError, match="Key old not found"):
        ckpt.restore({"new": None}, rename={"old": "new"})


def test_unexpected_tensors_can_be_an_error(ckpt):
    w = np.zeros((2, 3), "f4")
    with pytest.raises(UsageError, match="3 unexpected tensors"):
        ckpt.restore(into={"w": w}, unexpected="raise")
    assert not w.any()
    ckpt.restore(unexpected="raise")


@pytest.mark.parametrize("options", [{"missing": "warn"}, {"unexpected": True}, {"into": [W]}])
def test_options_that_do_not_exist_are_refused(ckpt, options):
    with pytest.raises(UsageError):
        ckpt.restore(**options)


def test_a_shape_or_type_that_differs_changes_no_array(ckpt):
    v = np.zeros(3, "i8")
    for bad in (np.zeros((3, 2), "f4"), np.zeros((2, 3), "f2")):
        with pytest.raises(UsageError) as caught:
            ckpt.restore(into={"far/v": v, "w": bad})
        assert caught.value.tensor == "w"
    assert not v.any()


def test_a_frozen_mapping_of_arrays_can_be_a_target(ckpt):
    w = np.zeros((2, 3), "f4")
    ckpt.restore(MappingProxyType({"w": w}))
    np.testing.assert_array_equal(w, W)


def test_the_report_prints_names_and_not_arrays(ckpt):
    text = repr(ckpt.restore(names=["w"]))
    assert text == "RestoreReport(restored=['w'], missing=(), unexpected=(), cast=())"


def test_a_damaged_tensor_raises_when_it_is_read(place):
    raw = bytearray(take(data_file(place, 0, 2)))
    raw[0] ^= 1
    put(data_file(place, 0, 2), bytes(raw))
    with open_checkpoint(place.url) as ckpt:
        assert float(ckpt["b"]) == 2.5
        with pytest.raises(ChecksumError, match="data-00000-of-00002") as caught:
            ckpt["w"]
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.tensor, again.offset, again.expected) == ("w", 0, caught.value.expected)
        with pytest.raises(ChecksumError):
            ckpt.restore()


def test_a_cut_or_missing_data_file_is_noticed_before_arrays_change(place):
    v, w = np.zeros(3, "i8"), np.zeros((2, 3), "f4")
    good = take(data_file(place, 1, 2))
    put(data_file(place, 1, 2), good[:-1])
    with open_checkpoint(place.url) as ckpt, pytest.raises(TruncatedFileError):
        ckpt.restore(into={"w": w, "far/v": v})
    place.storage.delete_many([data_file(place, 1, 2).key])
    with open_checkpoint(place.url) as ckpt, pytest.raises(IncompleteBundleError):
        ckpt.restore(into={"w": w, "far/v": v})
    assert not w.any()


def test_a_handle_that_was_used_never_changes_to_another_save(place):
    with open_checkpoint(place.url) as ckpt:
        ckpt.specs()
        save(place, {"w": W + 1})
        place.storage.delete_many([data_file(place, number, 2).key for number in range(2)])
        for action in (lambda: ckpt["w"], ckpt.restore):
            with pytest.raises(NotFoundError, match="removed or overwritten"):
                action()


def test_a_fresh_handle_restores_what_is_there_now(place):
    with open_checkpoint(place.url) as ckpt:
        save(place, {"w": W + 1})
        place.storage.delete_many([data_file(place, number, 2).key for number in range(2)])
        report = ckpt.restore()
        np.testing.assert_array_equal(report.restored["w"], W + 1)
        assert list(ckpt) == ["w"]


def test_a_prefix_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFoundError):
        open_checkpoint(tmp_path / "nope")


def test_restore_values_takes_everything_and_wants_every_key_found(place):
    values = {"w": np.zeros((2, 3), "f4")}
    restore_values(place, values)
    assert sorted(values) == ["b", "far/v", "names", "w"]
    with pytest.raises(TensorNotFoundError, match="Key extra"):
        restore_values(place, {"extra": 1.0})


def test_restore_values_maps_names_of_the_checkpoint_to_those_of_the_values(place):
    values: dict[str, Any] = {}
    restore_values(place, values, {"w": "weights"})
    assert list(values) == ["weights"]
    flat = {"w": np.zeros(6, "f4")}
    restore_values(place, flat, {"w": "w"}, reshape=True)
    np.testing.assert_array_equal(flat["w"], W.ravel())


def test_on_a_local_disk_its_arrays_are_the_file(ckpt, place):
    w, b = ckpt["w"], ckpt["b"]
    assert not w.flags.owndata
    assert np.shares_memory(w, ckpt["w"])
    assert ckpt["far/v"].tolist() == [0, 1, 2]
    copied = ckpt.read("w")
    assert copied.flags.writeable
    assert not np.shares_memory(w, copied)
    ckpt.close()
    place.storage.delete_many([data_file(place, number, 2).key for number in range(2)])
    np.testing.assert_array_equal(w, W)
    assert b == 2.5


def test_after_a_restore_found_the_checkpoint_replaced_its_arrays_are_the_new_ones(place):
    ckpt = open_checkpoint(place.url)
    place.storage.delete_many([data_file(place, number, 2).key for number in range(2)])
    save(place, {"w": W + 1})
    assert ckpt.restore(names=["w"]).restored["w"][0, 0] == 1
    np.testing.assert_array_equal(ckpt["w"], W + 1)


def test_damage_is_an_error_at_each_access_also_of_all(place):
    raw = bytearray(take(data_file(place, 0, 2)))
    raw[12] ^= 1
    put(data_file(place, 0, 2), bytes(raw))
    ckpt = open_checkpoint(place.url)
    for action in (lambda: ckpt["w"], lambda: ckpt["w"], lambda: dict(ckpt), lambda: list(ckpt.values())):
        with pytest.raises(ChecksumError) as caught:
            action()
        assert caught.value.tensor in ("b", "w")


@pytest.mark.parametrize("opened", [open_checkpoint, load_checkpoint])
@pytest.mark.parametrize("budget", [0, -1, 1.5, "16MB", True])
def test_a_budget_that_is_none_is_refused(place, opened, budget):
    with pytest.raises(UsageError, match="memory_budget"):
        opened(place.url, memory_budget=budget)
    with pytest.raises(UsageError, match="progress"):
        opened(place.url, progress="often")


def test_progress_is_told_up_to_the_last_byte(place):
    events: list[Any] = []
    budget: Any = np.int64(1 << 20)
    with open_checkpoint(place.url, memory_budget=budget, progress=events.append) as ckpt:
        ckpt.restore()
    size = sum(spec.nbytes for spec in ckpt._reader.specs().values())
    assert {(event.kind, event.step) for event in events} == {("restore", 1)}
    assert (events[-1].done_bytes, events[-1].total_bytes, events[-1].is_over) == (size, size, True)
    assert [event.done_bytes for event in events] == sorted(event.done_bytes for event in events)
    events.clear()
    np.testing.assert_array_equal(load_checkpoint(place.url, progress=events.append).get_tensor("w"), W)
    assert (events[-1].done_bytes, events[-1].total_bytes, events[-1].is_over) == (24, 24, True)


def test_one_line_of_the_log_tells_of_a_restore_and_none_of_a_look(place, caplog):
    caplog.set_level(logging.INFO, "ckptstore")
    with open_checkpoint(place.url) as ckpt:
        ckpt.specs()
        assert len(ckpt["w"]) == 2
        ckpt.read("w", 1)
        assert not caplog.records
        ckpt.restore(names=["w"])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"restore of step 1 ({place.url})"
    ]
    assert "24 bytes" in caplog.text


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model", None),
        ("model-12", 12),
        ("model--1", -1),
        ("model-8-00000-of-00003", 8),
        ("model-8-?????-of-00003", 8),
        ("model-00000-of-00003", None),
    ],
)
def test_the_step_of_a_restore_is_the_one_in_the_name(name, step):
    assert ReadOptions().transfer(f"s3://bucket/run-3/{name}").step == step


def test_a_restore_of_a_v1_checkpoint_tells_its_bytes(fixtures_dir, caplog):
    caplog.set_level(logging.INFO, "ckptstore")
    events: list[Any] = []
    with open_checkpoint(fixtures_dir / "05_v1_format" / "v1.ckpt-7", progress=events.append) as ckpt:
        report = ckpt.restore()
        size = sum(spec.nbytes for spec in ckpt.specs().values())
    assert report.restored
    assert size > 0
    assert (events[-1].done_bytes, events[-1].total_bytes, events[-1].step) == (size, size, 7)
    assert f": {size} bytes in " in caplog.text


def test_the_transfer_of_the_caller_is_used_for_restoring_values(place):
    values = {"w": np.zeros((2, 3), "f4")}
    with Transfer("restore", place.url, memory_budget=1 << 20) as transfer:
        restore_values(place, values, {"w": "w"}, transfer=transfer)
    np.testing.assert_array_equal(values["w"], W)
    assert (transfer.done_bytes, transfer.total_bytes) == (24, 24)


def test_a_saver_restores_with_its_own_budget_and_progress(place):
    events: list[Any] = []
    values = {"w": np.zeros((2, 3), "f4")}
    ckptstore.Saver(["w"], memory_budget=1 << 20, progress=events.append).restore(values, place.url)
    np.testing.assert_array_equal(values["w"], W)
    assert (events[-1].kind, events[-1].done_bytes, events[-1].is_over) == ("restore", 24, True)


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_failed_restore_keeps_no_array_alive_until_the_garbage_collector_comes(
    tmp_path, monkeypatch, parallel
):
    ckptstore.Saver().save({"w": np.zeros(4 << 20), "x": np.zeros(9)}, f"{tmp_path}/model")
    with open(f"{tmp_path}/model.data-00000-of-00001", "r+b") as file:
        file.write(b"\xff")
    monkeypatch.setattr(type(locate(tmp_path).storage), "parallel_reads", parallel)
    alive = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            array = np.zeros(4 << 20)
            alive.append(weakref.ref(array))
            with pytest.raises(ChecksumError):
                open_checkpoint(f"{tmp_path}/model").restore({"w": array})
            del array
        assert [reference() is not None for reference in alive] == [False] * 3
    finally:
        gc.enable()
