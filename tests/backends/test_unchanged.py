"""Frozen tensors on every backend: they travel twice at most, and the newer checkpoint needs no older one."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.values import Committed
from ckptstore.testing import CountingStorage
from tests.backends.conftest import names_in
from tests.own_warnings import own_warnings


def values(step: int) -> dict[str, np.ndarray]:
    return {"frozen": np.arange(200_000.0), "w": np.full(10, float(step))}


@pytest.mark.parametrize("save", ["save", "save_async"])
def test_frozen_tensors_are_copied_by_the_storage(save: str, run_url: str) -> None:
    made: list[CountingStorage] = []

    def wrap(inner: object) -> CountingStorage:
        made.append(CountingStorage(inner))  # type: ignore[arg-type]
        return made[-1]

    with use_wrapper(wrap), ck.Saver(reuse_unchanged=True, max_to_keep=1) as saver:
        for step in (1, 2):
            getattr(saver, save)(values(step), f"{run_url}/m", step)
        saver.close()
        made[0].reset()
        for step in (3, 4):
            getattr(saver, save)(values(step), f"{run_url}/m", step)
        saver.close()
        assert made[0].counts["copy_from"] == 2
        # One for what changed, in each save.
        assert made[0].counts["upload"] == 2
    assert {name.split(".")[0] for name in names_in(run_url)} == {"checkpoint", "m-4"}
    with ck.open_checkpoint(f"{run_url}/m-4") as checkpoint:
        for name, array in values(4).items():
            assert np.array_equal(checkpoint[name], array), name


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_new_process_takes_only_what_it_has_proved(is_damaged: bool, backend: str, run_url: str) -> None:
    made: list[CountingStorage] = []

    def wrap(inner: object) -> CountingStorage:
        made.append(CountingStorage(inner))  # type: ignore[arg-type]
        return made[-1]

    def more(step: int) -> dict[str, np.ndarray]:
        # The checksum of strings in an index is not that of their bytes.
        return {**values(step), "words": np.array([b"one", b"three"], object)}

    first = ck.Saver(reuse_unchanged=True, run="first")
    for step in (1, 2):
        first.save(more(step), f"{run_url}/m", step)
    location = locate(f"{run_url}/m-2.data-00001-of-00002")
    if is_damaged:
        got = location.storage.get(location.key)
        data = got.data[:5000] + bytes([got.data[5000] ^ 1]) + got.data[5001:]
        assert isinstance(location.storage.put_if(location.key, data, got.version), Committed)
    with use_wrapper(wrap), own_warnings() as caught:
        second = ck.Saver(reuse_unchanged=True, run="second")
        for step in (3, 4):
            second.save(more(step), f"{run_url}/m", step)
    damaged = [one for one in caught if "damaged" in str(one.message)]
    assert len(damaged) == is_damaged
    # The file of step 4 is one that this process has written, or copied from a proved one.
    if backend != "versitygw":  # which tells no checksum of an object that was sent in parts
        assert made[0].counts["copy_from"] == (1 if is_damaged else 2)
    for step in (3, 4):
        with ck.open_checkpoint(f"{run_url}/m-{step}") as checkpoint:
            for name, array in more(step).items():
                assert np.array_equal(checkpoint[name], array), (step, name)
