"""How many requests reading costs, counted at the seam and, on MinIO, on the wire."""

from __future__ import annotations

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


@pytest.mark.parametrize("backend", ["local"], indirect=True)
def test_a_file_of_a_local_disk_is_looked_at_and_mapped_once(prefix, calls):
    with ck.open_checkpoint(prefix) as ckpt:
        for _ in range(2):
            np.testing.assert_array_equal(ckpt["w"], W)
            assert ckpt["wide"][-1] == 5 * MIB - 1
    assert calls() == ["get inde", "head data", "view data"]
