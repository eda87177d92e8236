"""Files that are not what they claim: a typed error at once, and no memory taken on their word."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.write.index import build_index
from ckptstore.errors import (
    ChecksumError,
    CorruptError,
    FormatError,
    IncompleteBundleError,
    NotFoundError,
    TruncatedFileError,
    UnsupportedError,
)
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.slices import encode_slice_key
from ckptstore.format.table_builder import TableBuilder
from ckptstore.types import Slice
from tests.unit.bundle.helpers import craft, data_file, index_file, put, read_many, save, saved, take


def entry(dtype: int, shape: tuple[int, ...], size: int, raw: bytes = b"", **fields) -> BundleEntry:
    return BundleEntry(dtype, shape, size_bytes=size, masked_crc32c=mask(crc32c(raw)), **fields)


def fails_without_memory(action, error):
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            action()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    return caught.value


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (entry(7, (1 << 60,), 4), FormatError),
        (entry(7, (1 << 59,), (1 << 59) + 4), TruncatedFileError),
        (entry(21, (1 << 50,), 5 << 50), TruncatedFileError),
        (entry(1, (1 << 60,), 16), FormatError),
        (entry(1, (1 << 40,), 4 << 40), TruncatedFileError),
        (entry(4, (1 << 20, 1 << 20), 1 << 40), TruncatedFileError),
        (entry(4, (9,), 9), TruncatedFileError),
        (entry(4, (8,), 8, offset=1 << 62), TruncatedFileError),
        (entry(4, (2,), 8), FormatError),
        (entry(2, (0, 1 << 62), 0), UnsupportedError),
        (entry(1, (1,) * 65, 4), UnsupportedError),
        (entry(99, (2,), 8), FormatError),
        (entry(20, (2,), 8), UnsupportedError),
        (entry(0, (2,), 8), FormatError),
        (entry(101, (2,), 8), FormatError),
    ],
)
def test_an_entry_that_cannot_be_true_is_an_error_at_once(prefix, found, error):
    craft(prefix, {b"v": found}, bytes(8))
    for action in (
        lambda: open_bundle(prefix).read("v"),
        lambda: open_bundle(prefix).read("v", np.s_[:1]),
        lambda: read_many(open_bundle(prefix), [("v", None)]),
    ):
        caught = fails_without_memory(action, error)
        assert caught.tensor == "v"
        assert caught.url


def test_the_size_in_the_index_and_the_one_expected_are_both_in_the_message(prefix):
    craft(prefix, {b"v": entry(1, (2,), 12)}, bytes(12))
    with pytest.raises(FormatError, match=r"Invalid size in bundle entry .*'v'.*expected 8 bytes.*found 12"):
        open_bundle(prefix).read("v")


def test_no_elements_with_huge_other_dimensions_are_fine(prefix):
    craft(prefix, {b"v": entry(1, (0, 1 << 40), 0)})
    assert open_bundle(prefix).read("v").shape == (0, 1 << 40)
    assert open_bundle(prefix).read("v", np.s_[:, 5:7]).shape == (0, 2)


def test_slices_that_claim_the_same_bytes_over_and_over_are_refused(prefix):
    """Otherwise a data file of 1 MB and a small index would fill the memory."""
    raw = bytes(1 << 20)
    boxes = tuple(Slice(((number << 20, 1 << 20),)) for number in range(64))
    entries = {encode_slice_key("w", box): entry(4, (1 << 20,), 1 << 20, raw) for box in boxes}
    entries[b"w"] = BundleEntry(4, (64 << 20,), slices=boxes)
    craft(prefix, entries, raw)
    for action in (
        lambda: open_bundle(prefix).read("w"),
        lambda: read_many(open_bundle(prefix), [("w", None)]),
    ):
        error = fails_without_memory(action, FormatError)
        assert "claim the same bytes" in str(error)


def test_tensors_that_share_bytes_cannot_be_read_together_and_can_be_one_by_one(prefix):
    raw = bytes(1 << 20)
    craft(prefix, {b"t%d" % number: entry(4, (1 << 20,), 1 << 20, raw) for number in range(64)}, raw)
    reader = open_bundle(prefix)
    error = fails_without_memory(
        lambda: read_many(reader, [(name, None) for name in reader.names()]), FormatError
    )
    assert "claim the same bytes" in str(error)
    assert not reader.read("t7").any()


def test_a_damaged_tensor_names_file_place_and_both_checksums(prefix):
    save(prefix, {"a": np.array([1, 2, 3], np.int8), "w": np.arange(6, dtype="f4")})
    raw = bytearray(take(data_file(prefix)))
    expected = open_bundle(prefix).entry("w").masked_crc32c
    raw[10] ^= 4
    put(data_file(prefix), bytes(raw))
    reader = open_bundle(prefix)
    assert reader.read("a").tolist() == [1, 2, 3]
    for action in (lambda: reader.read("w"), lambda: read_many(reader, [("a", None), ("w", None)])):
        with pytest.raises(ChecksumError, match="checksum of bytes 3 to 27") as caught:
            action()
        error = caught.value
        assert (error.tensor, error.offset) == ("w", 3)
        assert error.url == data_file(prefix).url
        assert f"{expected:#010x}" in str(error)
        assert f"{mask(crc32c(bytes(raw[3:27]))):#010x}" in str(error)


@pytest.mark.parametrize("array", [np.arange(100_000, dtype="f8"), np.array([b"x" * 400_000], object)])
def test_large_damaged_tensors_are_found_too(prefix, array):
    save(prefix, {"w": array})
    raw = bytearray(take(data_file(prefix)))
    raw[-1] ^= 1
    put(data_file(prefix), bytes(raw))
    with pytest.raises(ChecksumError, match="'w'"):
        open_bundle(prefix).read("w")
    with pytest.raises(ChecksumError, match="'w'"):
        open_bundle(prefix).read("w", np.s_[::-1])


def test_no_array_is_filled_with_a_small_tensor_that_is_damaged(prefix):
    save(prefix, {"w": np.arange(6, dtype="f4")})
    put(data_file(prefix), bytes(24))
    out = np.full(6, 7, "f4")
    with pytest.raises(ChecksumError):
        open_bundle(prefix).read("w", out=out)
    assert out.tolist() == [7] * 6


def test_a_data_file_that_is_cut_off_is_reported_with_both_sizes(prefix):
    save(prefix, {"a": np.array([1], np.int8), "w": np.arange(6, dtype="f4")})
    put(data_file(prefix), take(data_file(prefix))[:20])
    reader = open_bundle(prefix)
    assert reader.read("a").tolist() == [1]
    with pytest.raises(TruncatedFileError, match=r"'w'.*at byte 1.*at least 25 bytes, found 20 bytes"):
        reader.read("w")


def test_a_missing_data_file_is_named_with_the_tensor(prefix):
    save(prefix, {"a": np.array([1], np.int8)}, {"b": np.array([2], np.int8)})
    lost = data_file(prefix, 1, 2)
    lost.storage.delete_many([lost.key])
    reader = open_bundle(prefix)
    assert reader.names() == ["a", "b"]
    assert reader.read("a").tolist() == [1]
    with pytest.raises(IncompleteBundleError, match="data-00001-of-00002") as caught:
        reader.read("b")
    assert caught.value.tensor == "b"


def test_files_that_went_with_the_whole_checkpoint_are_not_found_rather_than_damaged(prefix):
    reader = saved(prefix, {"a": np.array([1], np.int8)})
    storage = prefix.storage
    storage.delete_many([index_file(prefix).key, data_file(prefix).key])
    with pytest.raises(NotFoundError, match=r"removed or overwritten while it was being read.*Open it again"):
        reader.read("a")


def test_a_reader_never_mixes_two_saves(prefix):
    reader = saved(prefix, {"a": np.zeros(4, "f4")})
    reader.read("a")
    save(prefix, {"a": np.ones(4, "f4")})
    for index in (..., np.s_[:2]):
        with pytest.raises(NotFoundError, match="Open it again"):
            reader.read("a", index)
    assert not reader.is_current()


def test_an_index_that_is_replaced_while_it_is_read_in_parts_is_not_found(prefix):
    tensors = {f"layer_{number:06d}/{'x' * 100}": np.array([1], np.int8) for number in range(20_000)}
    reader = saved(prefix, tensors)
    save(prefix, {"other": 1})
    with pytest.raises(NotFoundError):
        reader.names()


def test_a_table_without_header_is_no_index(prefix):
    builder = TableBuilder()
    builder.add(b"w", b"")
    put(index_file(prefix), builder.finish())
    with pytest.raises(FormatError, match="no header entry"):
        open_bundle(prefix)


def test_a_newer_format_is_refused_with_both_versions(prefix):
    put(index_file(prefix), build_index([], 1, header=BundleHeader(1, min_consumer=2)))
    with pytest.raises(FormatError, match="min consumer version 2 above current version 1"):
        open_bundle(prefix)


@pytest.mark.parametrize("data", [b"", b"x" * 47, bytes(48), b"PK\x03\x04" * 100])
def test_an_index_of_other_bytes_is_refused(prefix, data):
    put(index_file(prefix), data)
    with pytest.raises(CorruptError, match=r"model\.index"):
        open_bundle(prefix)


BOX = Slice(((0, 1),))
REST = Slice(((1, 2),))


@pytest.mark.parametrize(
    ("slice_entry", "message"),
    [
        (None, "does not say where its bytes are"),
        (entry(1, (1,), 4), "contradicts"),
        (entry(2, (2,), 16), "contradicts"),
        (BundleEntry(2, (1,), slices=(Slice(((0, 1),)),)), "contradicts"),
        (entry(2, (1,), 16), "Invalid size"),
    ],
)
def test_a_slice_that_contradicts_its_tensor_is_refused(prefix, slice_entry, message):
    entries = {
        b"w": BundleEntry(2, (3,), slices=(BOX, REST)),
        encode_slice_key("w", REST): entry(2, (2,), 16, bytes(16)),
    }
    if slice_entry is not None:
        entries[encode_slice_key("w", BOX)] = slice_entry
    craft(prefix, entries, bytes(24))
    reader = open_bundle(prefix)
    assert reader.names() == ["w"]
    with pytest.raises(FormatError, match=message) as caught:
        reader.read("w")
    assert "w" in (caught.value.tensor or "")


def test_a_slice_listed_twice_overlaps_itself(prefix):
    entries = {
        b"w": BundleEntry(2, (1,), slices=(BOX, BOX)),
        encode_slice_key("w", BOX): entry(2, (1,), 8, bytes(8)),
    }
    craft(prefix, entries, bytes(8))
    with pytest.raises(FormatError, match="Overlapping slices: existing slice = 0,1, new slice = 0,1"):
        open_bundle(prefix).read("w")


def test_an_orphaned_slice_is_listed_under_its_key(prefix):
    """As TensorFlow, which hides only the keys that a tensor lists."""
    craft(prefix, {encode_slice_key("w", BOX): entry(2, (1,), 8, bytes(8))}, bytes(8))
    (name,) = open_bundle(prefix).names()
    assert open_bundle(prefix).read(name).tolist() == [0.0]


def test_one_malformed_entry_hides_no_other(prefix):
    builder = TableBuilder()
    items = {
        b"": b"\x08\x01",
        b"bad": b"\x12\xff\xff",
        b"ok": b"\x08\x04\x12\x00\x28\x01\x35\x00\x00\x00\x00",
    }
    for key, value in items.items():
        builder.add(key, value)
    put(index_file(prefix), builder.finish())
    reader = open_bundle(prefix)
    assert reader.names() == ["bad", "ok"]
    assert reader.spec("ok").nbytes == 1
    with pytest.raises(FormatError) as caught:
        reader.spec("bad")
    assert caught.value.tensor == "bad"
