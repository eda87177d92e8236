"""How many requests reading costs, counted at the seam and, on MinIO, on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.scope import Scope
from ckptstore.testing import CountingStorage

MIB = 1 << 20
W = np.random.default_rng(0).standard_normal((1024, 1024)).astype("f4")


@pytest.fixture
def prefix(run_url: str) -> str:
    values = {"a": np.float32(1), "w": W, "wide": np.arange(5 * MIB, dtype="f4"), "text": ["x", "y"]}
    prefix = ck.Saver().save(values, f"{run_url}/m", 1)
    assert prefix is not None
    return prefix


@pytest.fixture
def calls(prefix: str):
    """What was asked of the storage, primitive and kind of file, since `prefix` was saved."""
    storages: list[CountingStorage] = []

    def wrap(inner):
        storages.append(CountingStorage(inner))
        return storages[-1]

    def asked() -> list[str]:
        found = [f"{call.primitive} {call.key.rpartition('.')[2][:4]}" for s in storages for call in s.calls]
        for storage in storages:
            storage.reset()
        return found

    with use_wrapper(wrap):
        yield asked


@pytest.mark.parametrize("backend", ["minio", "gcs", "memory"], indirect=True)
def test_one_tensor_costs_the_index_and_one_range(prefix, calls):
    np.testing.assert_array_equal(ck.load_variable(prefix, "w"), W)
    assert calls() == ["get inde", "get data"]
    with ck.open_checkpoint(prefix) as ckpt:
        np.testing.assert_array_equal(ckpt["w"], W)
        assert calls() == ["get inde", "get data"]
        assert ckpt["a"] == 1
        assert ckpt["text"].tolist() == [b"x", b"y"]
        assert calls() == ["read_into data"] * 2
    with ck.open_checkpoint(prefix) as ckpt:
        np.testing.assert_array_equal(ckpt.read("wide", np.s_[1000:2000]), np.arange(1000, 2000, dtype="f4"))
    assert calls() == ["get inde", "get data"]


@pytest.mark.parametrize("backend", ["minio", "gcs", "memory"], indirect=True)
def test_a_restore_costs_the_index_a_look_and_one_request_for_8_mib(prefix, calls):
    ck.open_checkpoint(prefix).restore()
    asked = calls()
    assert asked[:2] == ["get inde", "head data"]
    # A little more than 24 MiB, cut where the file reaches multiples of 8, whatever tensors lie there.
    assert asked[2:] == ["read_into data"] * 4


@pytest.mark.parametrize("backend", ["minio"], indirect=True)
def test_on_the_wire_they_are_as_many(prefix):
    with Scope() as scope:
        np.testing.assert_array_equal(ck.load_variable(prefix, "w"), W)
    assert (scope.requests, scope.retries) == (2, 0)
    with Scope() as scope:
        ck.open_checkpoint(prefix).restore()
    assert (scope.requests, scope.retries) == (2 + 4, 0)


RANKS = 4
TENSORS = {f"layer{n}/w": np.full((512, 512 + 8 * n), n, "f4") + W[:512, :1] for n in range(12)}


@pytest.fixture
def by_rows(run_url: str) -> str:
    """A checkpoint of four data files, each with a quarter of the rows of every tensor."""
    parts = []
    for rank in range(RANKS):
        parts.append(f"{run_url}/part{rank}")
        with ck.BundleWriter(parts[-1]) as writer:
            for name, array in TENSORS.items():
                rows = slice(rank * 128, rank * 128 + 128)
                spec = f"{rows.start},128:0,{array.shape[1]}"
                writer.add_slice(name, array.shape, spec, array[rows])
    ck.merge_bundles(parts, f"{run_url}/m")
    return f"{run_url}/m"


def piece(array: np.ndarray, where: tuple[slice, ...]) -> ck.Piece:
    return ck.Piece(np.zeros_like(array[where]), array.shape, [each.start for each in where])


LAYOUTS: dict[str, tuple[Callable[[np.ndarray], Any], int]] = {
    "the same rows": (lambda a: [piece(a, np.s_[128:256, 0 : a.shape[1]])], 1),
    "rows of another cut": (lambda a: [piece(a, np.s_[100:271, 0 : a.shape[1]])], 3),
    "columns": (lambda a: [piece(a, np.s_[0:512, 64:192])], 4),
    "a few columns": (lambda a: [piece(a, np.s_[0:512, 7:9])], 4),
    "two devices": (lambda a: [piece(a, np.s_[0:512, 0:128]), piece(a, np.s_[0:512, 384:512])], 4),
    "a grid": (lambda a: [piece(a, np.s_[0:256, 0:256])], 2),
    "all of it": (np.zeros_like, 4),
}


@pytest.mark.parametrize("backend", ["minio", "gcs"], indirect=True)
def test_a_restore_into_any_layout_costs_two_requests_a_file_and_one_for_8_mib(by_rows):
    for layout, (target_of, files) in LAYOUTS.items():
        into = {name: target_of(array) for name, array in TENSORS.items()}
        with Scope() as scope:
            report = ck.open_checkpoint(by_rows).restore(into=into)
        read_bytes = files * sum(array.nbytes for array in TENSORS.values()) // RANKS
        assert scope.requests <= 2 + 2 * files + read_bytes // (8 * MIB), layout
        for name, array in TENSORS.items():
            pieces = (
                into[name] if isinstance(into[name], list) else [ck.Piece(into[name], array.shape, (0, 0))]
            )
            for found in pieces:
                where = tuple(slice(start, start + size) for start, size in found.box.extents)
                np.testing.assert_array_equal(found.array, array[where], layout)
        # Pieces of 256 KiB are read whole rather than with a request of their own for each part.
        assert (report.verified, report.unverified) == (files * len(TENSORS), 0), layout


@pytest.mark.parametrize("backend", ["minio", "gcs"], indirect=True)
def test_sizes_of_many_data_files_come_from_a_listing(run_url):
    parts = []
    for rank in range(20):
        parts.append(f"{run_url}/part{rank}")
        with ck.BundleWriter(parts[-1]) as writer:
            writer.add_slice("w", (20, 300_000), f"{rank},1:-", np.full((1, 300_000), rank, "f4"))
    ck.merge_bundles(parts, f"{run_url}/m")
    columns = ck.Piece(np.zeros((20, 2), "f4"), (20, 300_000), (0, 299_998))
    with Scope() as scope:
        ck.open_checkpoint(f"{run_url}/m").restore(into={"w": columns})
    assert columns.array[:, 1].tolist() == list(range(20))
    # The index, the list, a range of each.
    assert scope.requests == 1 + 1 + 20


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_a_file_of_a_local_disk_is_looked_at_and_mapped_once(prefix, calls):
    with ck.open_checkpoint(prefix) as ckpt:
        for _ in range(2):
            np.testing.assert_array_equal(ckpt["w"], W)
            assert ckpt["wide"][-1] == 5 * MIB - 1
    assert calls() == ["get inde", "head data", "view data"]


def cuts(size: int, parts: int) -> list[slice]:
    """As torch cuts an axis among ranks: 5 rows over 4 are 2, 2, 1 and none."""
    each = -(-size // parts)
    return [slice(min(n * each, size), min(n * each + each, size)) for n in range(parts)]


def layout(shape: tuple[int, int], grid: tuple[int, int]) -> list[tuple[slice, slice]]:
    boxes = [(rows, columns) for rows in cuts(shape[0], grid[0]) for columns in cuts(shape[1], grid[1])]
    return [box for box in boxes if all(one.start < one.stop for one in box)]


def save_by(grid: tuple[int, int], arrays: dict[str, np.ndarray], url: str) -> str:
    parts = []
    shape = next(iter(arrays.values())).shape
    for number, box in enumerate(layout(shape, grid)):
        parts.append(f"{url}/part{number}")
        with ck.BundleWriter(parts[-1]) as writer:
            for name, array in arrays.items():
                spec = ":".join(f"{one.start},{one.stop - one.start}" for one in box)
                writer.add_slice(name, array.shape, spec, array[box])
    ck.merge_bundles(parts, f"{url}/m")
    return f"{url}/m"


def restored_by(grid: tuple[int, int], arrays: dict[str, np.ndarray], prefix: str) -> list[int]:
    """Restore as the ranks of `grid` would, exactly; return how many requests each made."""
    requests = []
    for box in layout(next(iter(arrays.values())).shape, grid):
        into = {name: piece(array, box) for name, array in arrays.items()}
        with Scope() as scope:
            ck.open_checkpoint(prefix).restore(into=into)
        requests.append(scope.requests)
        for name, array in arrays.items():
            np.testing.assert_array_equal(into[name].array, array[box])
    return requests


# How many ranks cut rows and columns. Of HSDP each box is written once, by one of those that hold it.
SAVED = {"rows": (4, 1), "a grid": (2, 2), "5 rows over 4, columns over 2": (4, 2), "HSDP": (2, 1)}


@pytest.mark.parametrize("backend", ["minio"], indirect=True)
@pytest.mark.parametrize("saved", SAVED)
def test_any_number_of_ranks_restores_along_either_axis_in_few_requests(run_url, saved):
    arrays = {f"w{n}": np.arange(5 * 6000, dtype="f4").reshape(5, 6000) + n for n in range(8)}
    prefix = save_by(SAVED[saved], arrays, run_url)
    files = len(layout((5, 6000), SAVED[saved]))
    for ranks in (1, 2, 3, 4):
        for grid in ((ranks, 1), (1, ranks)):
            assert max(restored_by(grid, arrays, prefix)) <= 2 + 2 * files, grid


@pytest.mark.parametrize("backend", ["minio"], indirect=True)
def test_a_run_of_a_mebibyte_costs_a_request_of_its_own(run_url):
    # Each rank's half of a row is 1 MiB, and as much lies between two of them.
    arrays = {"w": np.arange(8 * MIB // 2, dtype="f4").reshape(8, -1)}
    prefix = save_by((4, 1), arrays, run_url)
    requests = restored_by((1, 2), arrays, prefix)
    # The index, the sizes of the files, and a range for each row rather than twice the bytes.
    assert requests == [1 + 4 + 8] * 2
