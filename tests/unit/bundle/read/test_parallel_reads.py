"""Reads by several threads: the same values, the same errors, within the budget."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.bundle.read import index_file
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.restore import restore_into
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.errors import ChecksumError, IncompleteBundleError, TransientError, TruncatedFileError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleHeader
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.registry import locate
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange
from tests.unit.bundle.helpers import craft, data_file, put, read_many, save, take

KIB = 1024
BUDGET = 4 * 256 * KIB
WATCHDOG_S = 30


class Parallel(StorageWrapper):
    """Takes four reads at a time, and knows how many there were."""

    parallel_reads = 4

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.lengths: list[int] = []
        self.threads: set[int] = set()

    def intercept(self, primitive: str, keys: Sequence[str], call: Any) -> Any:
        self.calls.append(primitive)
        return call()

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self.threads.add(threading.get_ident())
        self.lengths += [wanted.size_bytes for wanted in ranges]
        super().read_into(key, ranges, buffers, version=version)


def parallel(prefix: Location) -> tuple[Parallel, Location]:
    storage = Parallel(prefix.storage)
    return storage, Location(storage, prefix.key, prefix.url)


def noise(shape: tuple[int, ...] | int, dtype: Any = "f4", seed: int = 0) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 255, size, np.uint8).view(dtype).reshape(shape)


LARGE = {
    "f4": noise((300, 1001)),
    "i8": noise((50, 3, 700), "i8"),
    "c16": noise((1000, 130), "i8").view("c16"),
    "bf16": noise((1100, 513), "i2").view(ml_dtypes.bfloat16),
    "u1": noise(1_500_001, "u1"),
    "b": np.float32(3),
    "empty": np.zeros((0, 5), "f4"),
    "text": np.array([bytes([65 + n % 26]) * (n % 90) for n in range(9000)], object).reshape(90, 100),
}


def holding(arrays: dict[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """Return arrays to fill, of some layout."""
    made: dict[str, np.ndarray] = {}
    for name, source in arrays.items():
        array = np.asarray(source)
        if layout == "transposed":
            made[name] = np.empty(array.shape[::-1], array.dtype).T
        elif layout == "spread":
            made[name] = np.empty((*array.shape, 2), array.dtype)[..., 1]
        elif layout == "other order" and array.dtype.kind in "fic" and array.dtype.isbuiltin:
            made[name] = np.empty(array.shape, array.dtype.newbyteorder())
        elif layout == "both" and array.dtype.kind in "fic" and array.dtype.isbuiltin:
            made[name] = np.empty(array.shape[::-1], array.dtype.newbyteorder()).T
        else:
            made[name] = np.empty(array.shape, array.dtype)
    return made


def assert_same_bytes(found: np.ndarray, wanted: np.ndarray) -> None:
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    if wanted.dtype.hasobject:
        assert found.tolist() == wanted.tolist()
    else:
        assert np.ascontiguousarray(found.astype(wanted.dtype)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("layout", ["plain", "transposed", "spread", "other order", "both"])
@pytest.mark.parametrize("budget", [None, BUDGET, 1])
def test_arrays_of_every_layout_get_the_same_values_within_the_budget(prefix, layout, budget):
    save(prefix, LARGE)
    storage, place = parallel(prefix)
    targets = holding(LARGE, layout)
    before = dict(targets)
    with Transfer("restore", place.url, memory_budget=budget) as transfer:
        restore_into(open_bundle(place), targets, {name: name for name in LARGE}, transfer=transfer)
    for name, wanted in LARGE.items():
        assert targets[name] is before[name]
        assert_same_bytes(targets[name], wanted)
    if budget is not None:
        assert transfer.budget.high_water_bytes <= max(budget, 256 * KIB)
        assert max(storage.lengths) <= 256 * KIB
    assert transfer.done_bytes == transfer.total_bytes == len(take(data_file(prefix)))
    assert (threading.get_ident() in storage.threads) == (budget == 1)


def test_new_arrays_and_parts_get_the_same_values(prefix):
    save(prefix, {name: LARGE[name] for name in ("f4", "text")}, {"i8": LARGE["i8"], "u1": LARGE["u1"]})
    serial = open_bundle(prefix)
    _, place = parallel(prefix)
    reader = open_bundle(place, memory_budget=BUDGET)
    names = ["f4", "i8", "text", "u1"]
    for name, array in zip(names, read_many(reader, [(name, None) for name in names]), strict=True):
        assert_same_bytes(array, LARGE[name])
        assert array.flags.writeable
    for index in (np.s_[10:200], np.s_[:, 2], np.s_[::-1], np.s_[::7, 5:400:3], np.s_[:, ::-1]):
        np.testing.assert_array_equal(reader.read("f4", index).view("u4"), LARGE["f4"][index].view("u4"))
        np.testing.assert_array_equal(reader.read("i8", index), serial.read("i8", index))
        assert reader.read("text", index).tolist() == LARGE["text"][index].tolist()


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, int], list[int], int]:
    """Return the shape of a matrix, where it is cut, and along which dimension."""
    shape = (draw(st.integers(1, 700)), draw(st.integers(1, 700)))
    axis = draw(st.integers(0, 1))
    cuts = draw(st.lists(st.integers(1, shape[axis] - 1), max_size=4, unique=True)) if shape[axis] > 1 else []
    return shape, [0, *sorted(cuts), shape[axis]], axis


@settings(max_examples=30, deadline=None)
@given(
    partitions(),
    st.sampled_from(["f4", "u1", "c8", "i2"]),
    st.booleans(),
    st.sampled_from(["plain", "transposed", "spread"]),
    st.slices(20),
    st.slices(20),
)
def test_parallel_and_serial_reads_agree_on_partitioned_tensors(
    cutting, dtype, is_wide, layout, rows, columns
):
    shape, cuts, axis = cutting
    array = noise(shape, "i8" if dtype == "c8" else dtype).view(dtype).reshape(shape)
    pieces = []
    for low, high in itertools.pairwise(cuts):
        spec = [(0, -1), (0, -1)]
        spec[axis] = (low, high - low)
        where = [slice(None), slice(None)]
        where[axis] = slice(low, high)
        pieces.append({"name": "w", "array": array[tuple(where)], "shape": shape, "spec": spec})
    prefix = locate("memory://parallel-partitioned/model")
    try:
        if is_wide:
            save(prefix, *[[piece] for piece in pieces])
        else:
            save(prefix, pieces)
        _, place = parallel(prefix)
        reader = open_bundle(place, memory_budget=BUDGET)
        target = holding({"w": array}, layout)["w"]
        restore_into(reader, {"w": target}, {"w": "w"})
        assert_same_bytes(target, array)
        index = (rows, columns)
        assert_same_bytes(reader.read("w", index), array[index])
        assert verify_bundle(place, memory_budget=BUDGET).ok
    finally:
        prefix.storage.delete_many([info.key for info in prefix.storage.list(prefix.key)])


@pytest.mark.parametrize("layout", ["plain", "transposed", "spread", "other order", "both"])
@pytest.mark.parametrize(
    ("name", "unit"), [("f4", 4), ("i8", 8), ("c16", 8), ("bf16", 2), ("u1", 1)], ids=str
)
def test_large_tensors_of_a_big_endian_file_are_turned_round_part_by_part(prefix, name, unit, layout):
    array = LARGE[name]
    save(prefix, {"w": array})
    raw = array.reshape(-1).view(f"u{unit}").byteswap().tobytes()
    entry = open_bundle(prefix).entry("w")._replace(masked_crc32c=mask(crc32c(raw)))
    craft(prefix, {b"w": entry}, raw, BundleHeader(1, True))
    _, place = parallel(prefix)
    target = holding({"w": array}, layout)["w"]
    restore_into(open_bundle(place, memory_budget=BUDGET), {"w": target}, {"w": "w"})
    assert_same_bytes(target, array)
    assert_same_bytes(open_bundle(place).read("w", np.s_[3:]), array[3:])


@pytest.mark.parametrize("layout", ["plain", "spread"])
def test_a_fault_in_the_middle_of_a_large_tensor_is_found_and_named(prefix, layout):
    save(prefix, {"a": LARGE["u1"], "w": LARGE["f4"], "z": LARGE["i8"]})
    raw = bytearray(take(data_file(prefix)))
    entry = open_bundle(prefix).entry("w")
    raw[entry.offset + entry.size_bytes // 2] ^= 1
    put(data_file(prefix), bytes(raw))
    _, place = parallel(prefix)
    reader = open_bundle(place, memory_budget=BUDGET)
    targets = holding({name: LARGE[source] for name, source in [("w", "f4"), ("z", "i8")]}, layout)
    with pytest.raises(ChecksumError) as caught:
        restore_into(reader, targets, {"w": "w", "z": "z"})
    error = caught.value
    assert (error.tensor, error.offset) == ("w", entry.offset)
    assert f"bytes {entry.offset} to {entry.offset + entry.size_bytes} " in str(error)
    report = verify_bundle(place, memory_budget=BUDGET)
    assert [fault.tensor for fault in report.faults] == ["w"]
    assert report.faults[0].byte_range == ByteRange(entry.offset, entry.offset + entry.size_bytes)


def test_faults_are_reported_in_the_order_of_the_file(prefix):
    save(prefix, {f"t{n:02d}": noise(80_000, seed=n) for n in range(20)})
    raw = bytearray(take(data_file(prefix)))
    for position in range(5, len(raw), 320_000):
        raw[position] ^= 8
    put(data_file(prefix), bytes(raw))
    report = verify_bundle(parallel(prefix)[1])
    assert [fault.tensor for fault in report.faults] == [f"t{n:02d}" for n in range(20)]


def test_after_an_error_nobody_writes_into_the_arrays(prefix):
    arrays = {f"t{n}": noise(400_000, seed=n) for n in range(8)}
    save(prefix, arrays)

    class Failing(Parallel):
        def read_into(self, key, ranges, buffers, *, version=None):
            if ranges[0].start >= 3_000_000:
                raise TransientError("the line is dead")
            super().read_into(key, ranges, buffers, version=version)

    storage = Failing(prefix.storage)
    targets = {name: np.zeros(400_000, "f4") for name in arrays}
    with pytest.raises(TransientError, match="dead"):
        restore_into(open_bundle(Location(storage, prefix.key, prefix.url)), targets, {n: n for n in arrays})
    for array in targets.values():
        array[:] = 7
    assert all((array == 7).all() for array in targets.values())
    assert all(
        thread.name != "ckptstore-transfer" or not is_reading(thread) for thread in threading.enumerate()
    )


def is_reading(thread: threading.Thread) -> bool:
    """Tell whether a thread of the pool is still there when it had time to end."""
    thread.join(WATCHDOG_S)
    return thread.is_alive()


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_arrays_that_share_memory_are_filled_one_after_the_other(prefix, budget):
    """Tied weights that were saved apart: both are verified where they lie.

    Neighbours in the file as they are, they must not travel together either.
    """
    save(prefix, dict.fromkeys("ab", noise(400_000, seed=2)))
    storage, place = parallel(prefix)
    target = np.zeros(400_000, "f4")
    for _ in range(5):
        restore_into(
            open_bundle(place, memory_budget=budget), {"a": target, "b": target}, {"a": "a", "b": "b"}
        )
        assert target.tobytes() == noise(400_000, seed=2).tobytes()
    assert storage.threads == {threading.get_ident()}


def test_small_parts_of_one_block_are_filled_at_the_same_time_as_large_arrays(prefix):
    small = {f"b{n:02d}": noise(1000, seed=n) for n in range(40)}
    save(prefix, {"a": noise(400_000, seed=1)}, small)
    storage, place = parallel(prefix)
    flat = np.zeros((1000, 40), "f4")
    targets = {name: flat[:, number] for number, name in enumerate(small)}
    restore_into(
        open_bundle(place, memory_budget=BUDGET),
        {"a": np.zeros(400_000, "f4"), **targets},
        {name: name for name in ("a", *small)},
    )
    assert_same_bytes(flat.T, np.array(list(small.values())))
    assert threading.get_ident() not in storage.threads


def test_a_forked_child_reads_whatever_the_threads_of_the_parent_were_doing(prefix, monkeypatch):
    save(prefix, {"w": np.arange(5)})
    reader, reached, go_on, parent = open_bundle(prefix), threading.Event(), threading.Event(), os.getpid()
    rows = vars(index_file)["IndexCheck"]

    def slowly(*arguments):
        if os.getpid() == parent:
            reached.set()
            go_on.wait(WATCHDOG_S)
        return rows(*arguments)

    monkeypatch.setattr(index_file, "IndexCheck", slowly)
    thread = threading.Thread(target=reader.names)
    thread.start()
    assert reached.wait(WATCHDOG_S)
    with reader.shards._locks[0]:  # type: ignore[attr-defined]
        pid = os.fork()
    if not pid:
        os._exit(0 if reader.names() == ["w"] and reader.read("w")[4] == 4 else 1)
    go_on.set()
    thread.join(WATCHDOG_S)
    assert ended(pid) == 0


def ended(pid: int) -> int | None:
    """Return how a child ended, None if it hangs, which ends it."""
    end_s = time.monotonic() + WATCHDOG_S
    while time.monotonic() < end_s:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def test_interleaved_arrays_that_share_no_memory_are_filled_at_the_same_time(prefix):
    save(prefix, {"a": noise((2000, 100), seed=1), "b": noise((2000, 100), seed=2)})
    storage, place = parallel(prefix)
    both = np.zeros((2000, 200), "f4")
    targets = {"a": both[:, :100], "b": both[:, 100:]}
    restore_into(open_bundle(place, memory_budget=BUDGET), targets, {"a": "a", "b": "b"})
    assert_same_bytes(both[:, :100], noise((2000, 100), seed=1))
    assert_same_bytes(both[:, 100:], noise((2000, 100), seed=2))
    assert threading.get_ident() not in storage.threads


def test_the_data_files_are_looked_at_once_each_and_at_the_same_time(prefix):
    save(prefix, *[{f"t{n}": np.full(10, n, "f4")} for n in range(9)])
    storage, place = parallel(prefix)
    reader = open_bundle(place)
    storage.calls.clear()
    values: dict[str, Any] = {}
    restore_into(reader, values, {f"t{n}": f"t{n}" for n in range(9)})
    assert sorted(storage.calls) == ["head"] * 9 + ["read_into"] * 9
    prefix.storage.delete_many([data_file(prefix, 4, 9).key])
    with pytest.raises(IncompleteBundleError) as caught:
        restore_into(open_bundle(place), values, {f"t{n}": f"t{n}" for n in range(9)})
    assert caught.value.tensor == "t4"


@pytest.mark.parametrize("index", [..., np.s_[2:4], np.s_[::-1], 0])
def test_one_tensor_or_a_part_of_it_takes_one_request(prefix, index):
    save(prefix, {"a": noise((4, 100)), "w": LARGE["f4"], "s": ["x", "y"]})
    storage, place = parallel(prefix)
    reader = open_bundle(place)
    storage.calls.clear()
    np.testing.assert_array_equal(reader.read("w", index), LARGE["f4"][index])
    assert storage.calls == ["get"]
    np.testing.assert_array_equal(reader.read("a"), noise((4, 100)))
    assert storage.calls == ["get", "read_into"]


@pytest.mark.parametrize("index", [np.s_[::-2, :10], np.s_[190:60:-1, :9], np.s_[::-3, ::-7], np.s_[::2, 3]])
def test_the_first_look_at_a_file_may_be_at_many_rows_backwards(prefix, index):
    """Their ranges lie too far apart to be read as one, and the last of them comes first."""
    array = noise((200, 20_000))
    save(prefix, {"odd": noise(3, "u1"), "w": array})
    _, place = parallel(prefix)
    assert_same_bytes(open_bundle(place).read("w", index), array[index])


@pytest.mark.parametrize(("name", "index"), [("w", ...), ("w", np.s_[299:]), ("w", np.s_[:1]), ("s", ...)])
def test_a_file_that_is_too_short_or_missing_is_told_in_terms_of_the_tensor(prefix, name, index):
    save(prefix, {"s": ["long" * 30_000, "y"], "w": LARGE["f4"]})
    entry = open_bundle(prefix).entry(name)
    cut = take(data_file(prefix))[: entry.offset + entry.size_bytes - 1]
    put(data_file(prefix), cut)
    with pytest.raises(TruncatedFileError) as caught:
        open_bundle(parallel(prefix)[1]).read(name, index)
    error = caught.value
    assert (error.tensor, error.offset) == (name, entry.offset)
    assert error.expected == f"at least {entry.offset + entry.size_bytes} bytes"
    assert error.actual == f"{len(cut)} bytes"
    prefix.storage.delete_many([data_file(prefix).key])
    with pytest.raises(IncompleteBundleError) as missing:
        open_bundle(parallel(prefix)[1]).read(name, index)
    assert missing.value.tensor == name


@pytest.mark.parametrize("layout", ["plain", "transposed", "spread", "other order", "both"])
@pytest.mark.parametrize("is_partitioned", [False, True])
def test_arrays_of_another_shape_are_filled_in_order_whatever_their_layout(prefix, layout, is_partitioned):
    array = noise((600, 500))
    pieces = [{"name": "w", "array": array}]
    if is_partitioned:
        pieces = [
            {"name": "w", "array": array[:, at : at + 100], "shape": (600, 500), "spec": [(0, -1), (at, 100)]}
            for at in range(0, 500, 100)
        ]
    save(prefix, pieces)
    reader = open_bundle(parallel(prefix)[1], memory_budget=BUDGET)
    for shape in ((300_000,), (3, 200, 500), (1000, 300)):
        target = holding({"w": np.empty(shape, "f4")}, layout)["w"]
        restore_into(reader, {"w": target}, {"w": "w"}, reshape=True)
        assert_same_bytes(target, array.reshape(shape))
