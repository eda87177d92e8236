from __future__ import annotations

import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.write.index import build_index
from ckptstore.errors import NotFoundError, TensorNotFoundError, UnsupportedError, UsageError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.storage.base import Location
from ckptstore.storage.local.storage import LocalStorage
from tests.unit.bundle.helpers import craft, data_file, index_file, put, read_many, save, saved, take, tracked


def test_what_was_written_is_read(prefix):
    tensors = {
        "net/w": np.arange(12, dtype="f4").reshape(3, 4),
        "scalar": np.float16(1.5),
        "empty": np.zeros((0, 5), "i8"),
        "flags": np.array([True, False]),
        "half": np.array([1, -2], ml_dtypes.bfloat16),
        "names": np.array([b"a", b"", b"\x00\xff"], object),
        "größe/世界": 7,
    }
    reader = saved(prefix, tensors)
    assert reader.names() == sorted(tensors)
    for name, value in tensors.items():
        found = reader.read(name)
        np.testing.assert_array_equal(found, value)
        assert found.dtype == np.asarray(value).dtype
        assert found.flags.writeable


def test_a_spec_says_what_the_index_says(prefix):
    reader = saved(prefix, {"w": np.zeros((3, 4), "f4")}, {"s": ["ab", "c"]})
    w, s = reader.spec("w"), reader.spec("s")
    assert (w.shape, w.dtype.name, w.nbytes, w.shards, w.slices) == ((3, 4), "float32", 48, (0,), ())
    assert (s.shape, s.dtype.name, s.nbytes, s.shards) == ((2,), "string", 9, (1,))
    assert list(reader.specs()) == ["s", "w"]


@pytest.mark.parametrize(
    "index", [..., (), np.s_[1], np.s_[-1, ::2], np.s_[:, 1:3], np.s_[::-1, None, 0], np.s_[3:3]]
)
def test_an_index_reads_what_numpy_would_pick(prefix, index):
    array = np.arange(12, dtype="i4").reshape(3, 4)
    found = saved(prefix, {"w": array}).read("w", index)
    np.testing.assert_array_equal(found, array[index])
    assert found.shape == np.shape(array[index])


def test_only_the_bytes_of_the_rows_travel(prefix):
    save(prefix, {"a": np.zeros(1000, "f4"), "w": np.arange(100_000, dtype="f4").reshape(1000, 100)})
    tracking, place = tracked(prefix)
    reader = open_bundle(place)
    found = reader.read("w", np.s_[10:20])
    np.testing.assert_array_equal(found, np.arange(1000, 2000, dtype="f4").reshape(10, 100))
    assert tracking.of_data() == [("model.data-00000-of-00001", 4000 + 4000, 4000 + 8000)]


def test_far_rows_are_asked_for_in_one_call(prefix):
    save(prefix, {"w": np.arange(400_000, dtype="f4").reshape(4, 100_000)})
    tracking, place = tracked(prefix)
    found = open_bundle(place).read("w", np.s_[::2, :3])
    np.testing.assert_array_equal(found, [[0, 1, 2], [200_000, 200_001, 200_002]])
    assert [(start, stop) for _, start, stop in tracking.of_data()] == [(0, 12), (800_000, 800_012)]


def test_a_column_of_a_large_tensor_does_not_take_memory_for_all_of_it(prefix, monkeypatch):
    array = np.arange(600_000, dtype="i4").reshape(6000, 100)
    save(prefix, {"w": array})
    tracking, place = tracked(prefix)
    monkeypatch.setattr(
        "ckptstore.bundle.read.indexing.STAGE_SIZE_BYTES", 1
    )  # the default argument keeps its own
    found = open_bundle(place).read("w", np.s_[:, 7])
    np.testing.assert_array_equal(found, array[:, 7])
    assert tracking.size_bytes() < array.nbytes + 1000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_box_of_any_tensor_is_what_numpy_picks(prefix, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7))
    dtype = data.draw(st.sampled_from(["f4", "u1", "c16", ml_dtypes.bfloat16, ml_dtypes.int4, object]))
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7
    if dtype is object:
        array = np.empty(shape, object)
        array.ravel()[:] = [bytes([n]) * n for n in numbers.ravel()]
    else:
        array = numbers.astype(dtype)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    found = saved(prefix, {"pad": np.uint8(1), "w": array}).read("w", index)
    np.testing.assert_array_equal(found, array[index])
    assert found.dtype == array.dtype


def test_an_array_can_be_filled(prefix):
    reader = saved(prefix, {"w": np.arange(6, dtype="f4").reshape(2, 3)})
    for out in (np.zeros((2, 3), "f4"), np.zeros((3, 2), "f4").T, np.zeros((2, 6), ">f4")[:, ::2]):
        assert reader.read("w", out=out) is out
        np.testing.assert_array_equal(out, [[0, 1, 2], [3, 4, 5]])
    row = np.zeros((1, 3), "f4")
    reader.read("w", np.s_[None, 1], out=row)
    np.testing.assert_array_equal(row, [[3, 4, 5]])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((3, 2), "f4"), "shape and type"),
        (np.zeros((2, 3), "f8"), "shape and type"),
        (np.broadcast_to(np.float32(0), (2, 3)), "read-only"),
        ([[0, 0, 0], [0, 0, 0]], "numpy array"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(prefix, out, message):
    reader = saved(prefix, {"w": np.zeros((2, 3), "f4")})
    with pytest.raises(UsageError, match=message) as caught:
        reader.read("w", out=out)
    assert caught.value.tensor == "w"


def test_many_tensors_are_read_with_few_calls(prefix):
    tensors = {f"t{number:04d}": np.full(50, number, "i8") for number in range(2000)}
    tensors["large"] = np.arange(100_000, dtype="i8")
    save(prefix, tensors)
    tracking, place = tracked(prefix)
    reader = open_bundle(place)
    given_array = np.zeros(50, "i8")
    names = sorted(tensors)
    found = read_many(reader, [(name, given_array if name == "t0007" else None) for name in names])
    for name, array in zip(names, found, strict=True):
        np.testing.assert_array_equal(array, tensors[name])
    assert found[names.index("t0007")] is given_array
    assert len(tracking.of_data()) == 2


def test_one_tensor_can_be_asked_for_twice(prefix):
    reader = saved(prefix, {"w": np.arange(3)})
    first, second = read_many(reader, [("w", None), ("w", None)])
    assert first is not second
    np.testing.assert_array_equal(first, second)


def test_a_small_index_is_one_request_and_a_lookup_needs_no_second(prefix):
    save(prefix, {f"t{number}": np.array([number], np.int8) for number in range(100)})
    tracking, place = tracked(prefix)
    reader = open_bundle(place)
    reader.read("t42")
    assert [key for key, _, _ in tracking.reads if key.endswith(".index")] == [index_file(prefix).key]


def test_names_that_look_like_slice_keys_are_names(prefix):
    reader = saved(
        prefix,
        [
            {"name": "\x00ctl", "array": np.array([1, 2], np.int32)},
            {"name": "w", "array": np.zeros(2), "shape": (4,), "spec": "0,2"},
            {"name": "w", "array": np.ones(2), "shape": (4,), "spec": "2,2"},
        ],
    )
    assert reader.names() == ["\x00ctl", "w"]
    assert [key for key in reader.raw_keys() if key == b"w"] == []
    assert len(reader.raw_keys()) == 3


def test_names_that_are_not_utf8_survive(prefix):
    raw = np.array([5], np.int8).tobytes()
    craft(prefix, {b"\xff\xfe": BundleEntry(6, (1,), 0, 0, 1, mask(crc32c(raw)))}, raw)
    reader = open_bundle(prefix)
    (name,) = reader.names()
    assert reader.read(name).tolist() == [5]
    save(prefix, {name: np.array([5], np.int8)})
    assert open_bundle(prefix).names() == [name]


def test_an_unknown_name_is_not_found_and_close_ones_are_named(prefix):
    reader = saved(prefix, {"layer/kernel": 1.0, "layer/bias": 2.0})
    for name in ("layer/kernal", "layer/kernel:0"):
        assert not reader.has(name)
        with pytest.raises(
            TensorNotFoundError, match=r"Key layer/kern.* not found .*Did you mean 'layer/kernel'"
        ):
            reader.read(name)
    with pytest.raises(KeyError):
        reader.spec("")


def test_a_prefix_that_is_not_there_is_not_found(prefix):
    with pytest.raises(NotFoundError, match="no checkpoint with this prefix"):
        open_bundle(prefix)


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001", ".meta"])
def test_a_file_of_a_checkpoint_is_no_prefix_and_the_hint_says_which_is(prefix, suffix):
    save(prefix, {"w": 1.0})
    with pytest.raises(
        NotFoundError, match=r"Pass the prefix: memory://bundle-tests/[0-9]+/model$"
    ) as caught:
        open_bundle(prefix.suffixed(suffix))
    assert "names one file" in str(caught.value)


def test_a_directory_is_no_prefix(tmp_path):
    place = Location(LocalStorage(), str(tmp_path), str(tmp_path))
    with pytest.raises(NotFoundError, match="Pass a prefix, not a directory"):
        open_bundle(place)


@pytest.mark.parametrize(
    ("array", "unit"),
    [
        (np.arange(6, dtype="f4").reshape(2, 3), 4),
        (np.arange(6, dtype="c8").reshape(2, 3) * (1 + 2j), 4),
        (np.arange(6, dtype="c16").reshape(2, 3) * (1 + 2j), 8),
        (np.arange(6, dtype="i2").reshape(2, 3), 2),
        (np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3), 2),
        (np.arange(6, dtype="u1").reshape(2, 3), 1),
        (np.arange(120_000, dtype="f8").reshape(2, 60_000), 8),
    ],
)
def test_numbers_of_a_big_endian_file_are_turned_round(prefix, array, unit):
    save(prefix, {"w": array})
    entry = open_bundle(prefix).entry("w")
    raw = array.reshape(-1).view(f"u{unit}").byteswap().tobytes()
    craft(prefix, {b"w": entry._replace(masked_crc32c=mask(crc32c(raw)))}, raw, BundleHeader(1, True))
    reader = open_bundle(prefix)
    for index in (..., np.s_[1], np.s_[:, 1:3], np.s_[::-1, -1], np.s_[:, 10:]):
        np.testing.assert_array_equal(reader.read("w", index), array[index])
    for out in (np.zeros(array.shape, array.dtype), np.zeros(array.T.shape, array.dtype).T):
        np.testing.assert_array_equal(reader.read("w", out=out), array)
    np.testing.assert_array_equal(read_many(reader, [("w", None)])[0], array)


def test_a_type_without_byte_order_rule_cannot_be_read_from_a_foreign_file(prefix):
    raw = b"\x00\x01"
    craft(prefix, {b"w": BundleEntry(24, (2,), 0, 0, 2, mask(crc32c(raw)))}, raw, BundleHeader(1, True))
    with pytest.raises(UnsupportedError, match="Byte-swapping not supported for tensors with dtype 24"):
        open_bundle(prefix).read("w")
    assert open_bundle(prefix).spec("w").dtype == "float8_e5m2"


@pytest.mark.parametrize("num_shards", [2, 3, 17, 99999, 100000, 2147483647])
def test_only_the_shards_that_entries_name_need_to_exist(prefix, num_shards):
    """As TensorFlow, which opens them entry by entry."""
    save(prefix, {"w": np.array([1, 2], np.int8)})
    entry = open_bundle(prefix).entry("w")
    raw = take(data_file(prefix))
    for shard in (0, 5):
        put(index_file(prefix), build_index([(b"w", entry._replace(shard_id=shard))], num_shards))
        put(data_file(prefix, shard, num_shards), raw)
        assert open_bundle(prefix).read("w").tolist() == [1, 2]


def test_bytes_of_a_bool_other_than_0_and_1_do_no_harm(prefix):
    raw = b"\x00\x01\x02\xff"
    craft(prefix, {b"w": BundleEntry(10, (4,), 0, 0, 4, mask(crc32c(raw)))}, raw)
    assert open_bundle(prefix).read("w").dtype == bool


def test_padding_between_tensors_is_ignored(prefix):
    """The C++ class can align tensors; readers do not care."""
    raw = b"\x01" + bytes(63) + b"\x02" + bytes(63)
    entries = {
        name: BundleEntry(4, (1,), 0, offset, 1, mask(crc32c(raw[offset : offset + 1])))
        for name, offset in ((b"a", 0), (b"b", 64))
    }
    craft(prefix, entries, raw)
    assert [array.tolist() for array in read_many(open_bundle(prefix), [("a", None), ("b", None)])] == [
        [1],
        [2],
    ]


def test_an_empty_string_tensor_may_have_no_bytes_at_all(prefix):
    craft(prefix, {b"s": BundleEntry(7, (0,), 0, 0, 0, mask(0))})
    assert open_bundle(prefix).read("s").shape == (0,)


def test_several_threads_can_read(prefix):
    tensors = {f"t{number}": np.full(1000, number) for number in range(200)}
    reader = saved(prefix, tensors)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for name, value in tensors.items():
                np.testing.assert_array_equal(reader.read(name), value)
            assert len(reader.names()) == 200
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
