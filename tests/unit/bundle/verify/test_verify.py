from __future__ import annotations

import shutil
import tracemalloc

import numpy as np
import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.errors import NotFoundError, UsageError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.registry import locate
from ckptstore.transfer.progress import Event
from ckptstore.types import ByteRange, Slice
from tests.unit.bundle.helpers import craft, data_file, index_file, put, save, take, tracked

TENSORS = {
    "big": np.arange(200_000, dtype="f8"),
    "empty": np.zeros((0, 2)),
    "none": np.empty(0, object),
    "s": np.array([b"text", b""], object),
    "w": np.arange(6, dtype="f4"),
}


def flip(location, at, bit=1):
    raw = bytearray(take(location))
    raw[at] ^= bit
    put(location, bytes(raw))


def test_a_sound_bundle_has_no_faults_and_every_byte_was_checked(prefix):
    save(prefix, TENSORS, {"other": 1})
    report = verify_bundle(prefix)
    assert report.ok
    assert report.faults == report.notes == ()
    assert report.url == prefix.url
    assert report.tensors_checked == 6
    sizes = [
        len(take(place)) for place in (index_file(prefix), data_file(prefix, 0, 2), data_file(prefix, 1, 2))
    ]
    assert report.bytes_checked == sum(sizes)


def test_a_quick_check_reads_the_index_only(prefix):
    save(prefix, TENSORS)
    tracking, place = tracked(prefix)
    report = verify_bundle(place, quick=True)
    assert report.ok
    assert report.bytes_checked == len(take(index_file(prefix)))
    assert tracking.of_data() == []


def test_every_damaged_tensor_is_reported_with_its_place(prefix):
    save(prefix, TENSORS)
    entries = {name: open_bundle(prefix).entry(name) for name in TENSORS}
    for name in ("big", "s", "w"):
        flip(data_file(prefix), entries[name].offset + entries[name].size_bytes - 1)
    assert verify_bundle(prefix, quick=True).ok
    report = verify_bundle(prefix)
    assert not report.ok
    assert {fault.tensor: fault.byte_range for fault in report.faults} == {
        name: ByteRange(entries[name].offset, entries[name].offset + entries[name].size_bytes)
        for name in ("big", "s", "w")
    }
    for fault in report.faults:
        assert fault.code == "checksum"
        assert fault.file == data_file(prefix).url
        assert fault.expected != fault.actual
        assert repr(fault.tensor) in fault.message


def test_each_missing_data_file_is_one_fault(prefix):
    save(prefix, {"a": 1, "b": 2}, {"c": 3}, {"d": 4})
    for number in (0, 2):
        place = data_file(prefix, number, 3)
        place.storage.delete_many([place.key])
    for quick in (True, False):
        report = verify_bundle(prefix, quick=quick)
        assert [(fault.code, fault.tensor) for fault in report.faults] == [
            ("incomplete", "a"),
            ("incomplete", "d"),
        ]
        assert report.faults[0].file == data_file(prefix, 0, 3).url
        assert "2 tensors or slices are in it" in report.faults[0].message


def test_every_tensor_beyond_the_end_of_its_file_is_reported(prefix):
    save(prefix, {"a": np.zeros(4, "u1"), "b": np.zeros(4, "u1"), "c": np.zeros(4, "u1")})
    put(data_file(prefix), bytes(6))
    for quick in (True, False):
        faults = verify_bundle(prefix, quick=quick).faults
        assert [(fault.code, fault.tensor) for fault in faults] == [("truncated", "b"), ("truncated", "c")]
        assert faults[0].expected == "at least 8 bytes"


def test_a_damaged_index_is_reported_and_what_comes_before_is_checked(prefix):
    tensors = {f"layer_{number:06d}/{'x' * 100}": np.array([1], np.int8) for number in range(10_000)}
    save(prefix, tensors)
    flip(index_file(prefix), 300_000)
    flip(data_file(prefix), 5)
    report = verify_bundle(prefix)
    assert [fault.code for fault in report.faults] == ["checksum", "checksum"]
    assert report.faults[0].file == index_file(prefix).url
    assert str(report.faults[1].tensor).startswith("layer_000005/")
    assert 0 < report.tensors_checked < 10_000


@pytest.mark.parametrize("data", [b"", bytes(48)])
def test_an_index_that_cannot_be_opened_is_a_fault(prefix, data):
    put(index_file(prefix), data)
    for quick in (True, False):
        (fault,) = verify_bundle(prefix, quick=quick).faults
        assert fault.file == index_file(prefix).url


def test_every_byte_of_a_small_bundle_is_covered(prefix):
    """Whatever byte is changed, something is reported, unless that byte means nothing to any reader."""
    save(prefix, {"s": ["ab"], "w": np.arange(3, dtype="i2")})
    for place in (index_file(prefix), data_file(prefix)):
        good = take(place)
        # The footer is padded with zeros up to the magic number.
        padding = range(0)
        if place == index_file(prefix):
            end = len(good) - 8
            start = end - 40 + len(good[end - 40 : end].rstrip(b"\x00"))
            padding = range(start, end)
        for at in range(len(good)):
            flip(place, at, 1 << at % 8)
            faults = verify_bundle(prefix).faults
            assert faults or at in padding, f"byte {at} of {place.url}"
            put(place, good)


def test_the_slices_of_a_tensor_are_checked_together(prefix):
    box = {"name": "w", "shape": (4,)}
    save(
        prefix,
        [
            {**box, "array": np.zeros(2), "spec": "0,2"},
            {**box, "array": np.zeros(1), "spec": "3,1"},
            {"name": "o", "shape": (4,), "array": np.zeros(3), "spec": "0,3"},
            {"name": "o", "shape": (4,), "array": np.zeros(2), "spec": "2,2"},
        ],
    )
    faults = verify_bundle(prefix, quick=True).faults
    assert [(fault.tensor, fault.code) for fault in faults] == [("o", "format"), ("w", "format")]
    assert "Overlapping slices" in faults[0].message
    assert "sufficient slices" in faults[1].message


def test_a_damaged_slice_is_named_with_its_box(prefix):
    save(prefix, [{"name": "w", "shape": (4,), "array": np.zeros(2), "spec": f"{at},2"} for at in (0, 2)])
    flip(data_file(prefix), 20)
    (fault,) = verify_bundle(prefix).faults
    assert fault.tensor == "w (slice 2,2)"


def test_an_entry_that_contradicts_itself_hides_no_other(prefix):
    raw = bytes(8)
    good = BundleEntry(1, (2,), size_bytes=8, masked_crc32c=mask(crc32c(raw)))
    craft(
        prefix,
        {b"a": good._replace(size_bytes=12), b"b": good._replace(dtype_enum=99), b"c": good},
        raw,
    )
    report = verify_bundle(prefix)
    assert [(fault.tensor, fault.code) for fault in report.faults] == [("a", "format"), ("b", "format")]
    assert report.tensors_checked == 3


def test_tensors_that_share_bytes_are_noted_and_too_many_of_them_are_a_fault(prefix):
    raw = bytes(16)
    shared = BundleEntry(1, (2,), offset=0, size_bytes=8, masked_crc32c=mask(crc32c(raw[:8])))
    craft(prefix, {b"a": shared, b"b": shared}, raw)
    report = verify_bundle(prefix)
    assert report.ok
    assert "'b' shares bytes" in report.notes[0]
    craft(prefix, {b"a": shared, b"b": shared, b"c": shared}, raw)
    (fault,) = verify_bundle(prefix).faults
    assert "claim the same bytes" in fault.message


def test_what_numpy_cannot_hold_is_a_note(prefix):
    raw = bytes(4)
    craft(prefix, {b"deep": BundleEntry(1, (1,) * 70, size_bytes=4, masked_crc32c=mask(crc32c(raw)))}, raw)
    report = verify_bundle(prefix)
    assert report.ok
    assert "'deep'" in report.notes[0]


def test_an_orphaned_slice_is_checked_like_a_tensor(prefix):
    raw = bytes(8)
    key = encode_slice_key("w", Slice(((0, 1),)))
    craft(prefix, {key: BundleEntry(2, (1,), size_bytes=8, masked_crc32c=7)}, raw)
    (fault,) = verify_bundle(prefix).faults
    assert fault.code == "checksum"


def test_a_prefix_that_is_not_there_is_not_found(prefix):
    with pytest.raises(NotFoundError):
        verify_bundle(prefix)


def test_progress_counts_up_to_all_bytes(prefix):
    save(prefix, TENSORS)
    events: list[Event] = []
    verify_bundle(prefix, progress=events.append)
    size = len(take(data_file(prefix)))
    assert {(event.kind, event.url) for event in events} == {("verify", prefix.url)}
    assert {event.total_bytes for event in events[1:]} == {size}
    assert (events[-1].done_bytes, events[-1].is_over) == (size, True)
    assert [event.done_bytes for event in events] == sorted(event.done_bytes for event in events)


def test_progress_is_shown_in_the_ways_there_are_for_a_save(prefix):
    with pytest.raises(UsageError, match="unknown value"):
        verify_bundle(prefix, progress="loud")  # type: ignore[arg-type]
    save(prefix, TENSORS)
    assert verify_bundle(prefix, progress="log").ok


def test_a_large_tensor_is_checked_in_memory_of_bounded_size(prefix, tmp_path):
    place = locate(tmp_path / "model")
    save(place, {"w": np.zeros(64 << 20, np.uint8)})
    tracemalloc.start()
    try:
        assert verify_bundle(place, memory_budget=8 << 20).ok
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_a_v1_checkpoint_is_verified(fixtures_dir, tmp_path):
    for name in ("v1.ckpt-7", "v1sh.ckpt-8-?????-of-00003", "v1slices"):
        report = verify_bundle(locate(fixtures_dir / "05_v1_format" / name))
        assert report.ok, report
        assert report.tensors_checked in (6, 10)
        assert report.bytes_checked > 500
    shutil.copy(fixtures_dir / "05_v1_format" / "v1slices", tmp_path)
    good = (tmp_path / "v1slices").read_bytes()
    place = locate(tmp_path / "v1slices")
    for at in range(0, len(good) - 48, 7):
        (tmp_path / "v1slices").write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        assert not verify_bundle(place).ok, f"byte {at}"
