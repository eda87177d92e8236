"""Arrays that change while they are saved: a checkpoint that was acknowledged can be restored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.backends.conftest import names_in

pytestmark = pytest.mark.timeout(120)

_T = TypeVar("_T")


def arrays() -> dict[str, np.ndarray]:
    """Return tensors for every way in which bytes reach a data file."""
    wide = np.zeros((600, 2000), np.float32)
    return {
        "large": np.zeros(3 << 20, np.float32),
        "medium": np.zeros(100_000, np.float32),
        "strided": wide[:, ::2],
        # Each row is in one piece, the whole is not.
        "rows": np.zeros((8, 300_000), np.float32)[:, :250_000],
        "swapped": np.zeros(200_000, ">f4"),
        **{f"small{number:02}": np.zeros(50, np.float32) for number in range(40)},
    }


def assert_restorable(prefix: str) -> None:
    ck.Saver().restore({}, prefix)
    assert verify_bundle(locate(prefix)).faults == ()


def test_a_change_just_before_a_part_is_sent(run_url: str) -> None:
    values = arrays()

    class Changes(StorageWrapper):
        def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
            if primitive == "upload.send":
                for array in values.values():
                    np.add(array, 1, out=array)
            return call()

    prefix = None
    # On a store the end of the file may be sent after another part.
    with use_wrapper(Changes), suppress(ck.UsageError, ck.ChecksumError):
        prefix = ck.Saver().save(values, f"{run_url}/m", 1)
    if prefix is not None:
        assert_restorable(prefix)
    assert ck.latest_checkpoint(run_url) == prefix


def test_arrays_that_change_all_the_time(run_url: str) -> None:
    values = arrays()
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            for array in values.values():
                np.add(array, 1, out=array)

    saver = ck.Saver()
    saved = []
    changing = threading.Thread(target=change)
    changing.start()
    try:
        for step in range(3):
            try:
                saved.append(saver.save(values, f"{run_url}/m", step))
            except (ck.UsageError, ck.ChecksumError) as error:
                assert "change" in str(error)  # noqa: PT017 - whether it fails depends on the moment
    finally:
        is_over.set()
        changing.join()
    for prefix in saved:
        assert prefix is not None
        assert_restorable(prefix)
    steps = {name.split(".")[0] for name in names_in(run_url)} - {"checkpoint"} if saved else set()
    assert steps == {str(prefix).rpartition("/")[2] for prefix in saved}
