"""Which checkpoint is found where the record does not help, on every backend."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate


def put(url: str, name: str) -> None:
    ck.Saver().save({"w": np.zeros(3)}, f"{url}/{name}", write_state=False, write_meta_graph=False)


def put_bytes(url: str, name: str, data: bytes) -> None:
    place = locate(url).child(name)
    place.storage.delete_many([place.key])
    place.storage.put_new(place.key, data)


def found_in(url: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        path = ck.latest_checkpoint(url)
    return None if path is None else path.rpartition("/")[2]


def test_without_a_record_the_step_decides_and_not_the_order_of_writing(run_url: str) -> None:
    for name in ("weights.10-0.41", "weights.09-0.32", "best"):
        put(run_url, name)
    assert found_in(run_url) == "weights.10-0.41"


def test_stepping_back_stays_with_the_basename(run_url: str) -> None:
    for name in ("model-2", "model-1", "other-9"):
        put(run_url, name)
    put_bytes(run_url, "model-3.index", b"torn")
    put_bytes(run_url, "checkpoint", b'model_checkpoint_path: "model-3"\n')
    assert found_in(run_url) == "model-2"
    for name in ("model-1", "model-2"):
        ck.remove_checkpoint(f"{run_url}/{name}")
    with pytest.warns(ck.CkptStoreWarning, match="other-9.*does not list"):
        assert ck.latest_checkpoint(run_url) == f"{run_url}/other-9"
