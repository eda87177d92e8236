"""A cache whose process dies, or whose disk is full, at each of its writes: the next reader is right."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.local import private_directory, sparse_file
from tests.own_warnings import own_warnings
from tests.small_disk import fill, small_disk

KIB = 1 << 10


@pytest.fixture
def values() -> dict[str, Any]:
    chance = np.random.default_rng(3)
    found: dict[str, Any] = {f"w{number}": chance.random(40 * KIB) for number in range(6)}
    found["words"] = np.array([b"one", b"two" * 1000], object)
    found["small"] = np.arange(5)
    return found


@pytest.fixture
def prefix(tmp_path: Path, values: dict[str, Any]) -> str:
    with ck.Saver() as saver:
        return str(saver.save(values, f"{tmp_path}/store/model"))


def check(prefix: str, cache: Path, values: dict[str, Any]) -> None:
    """Read all tensors in each way."""
    with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
        assert set(checkpoint) == set(values)
        for name, value in values.items():
            np.testing.assert_array_equal(checkpoint[name], value)
        for name, array in checkpoint.restore().restored.items():
            np.testing.assert_array_equal(array, values[name])


def in_child(work: Callable[[], object]) -> int:
    """Return how a forked child ended: its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Dies:
    """Ends the process in the n-th call that changes something; a write is half done by then."""

    def __init__(self, left: int) -> None:
        self.left = left

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self.step(lambda: os.pwrite(fd, data[: len(data) // 2], offset))
        return os.pwrite(fd, data, offset)

    def step(self, half: Callable[[], object] = lambda: None) -> None:
        self.left -= 1
        if not self.left:
            half()
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in ("open", "replace", "mkdir", "unlink", "truncate", "utime", "rmdir"):
            return call

        def counted(*arguments: Any, **options: Any) -> Any:
            self.step()
            return call(*arguments, **options)

        return counted


@pytest.mark.parametrize("budget", [None, 512 * KIB])
def test_killed_in_each_write(
    tmp_path: Path, prefix: str, values: dict[str, Any], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for number in range(1, 200):
        cache = tmp_path / "cache"
        if number % 3 == 1:
            cache = tmp_path / f"cache-{number}"  # else what the last one left goes on being used

        def work(number: int = number, cache: Path = cache) -> None:
            dies = Dies(number)
            for module in (private_directory, sparse_file):
                module.os = dies  # type: ignore[attr-defined]
            found = ck.Cache(cache, max_bytes=1 << 30)
            with ck.open_checkpoint(prefix, cache=found, memory_budget=budget) as checkpoint:
                checkpoint.restore()

        ends.append(in_child(work))
        ck.Cache(cache, max_bytes=1 << 30)
        with own_warnings("error"):
            check(prefix, cache, values)
        if ends[-1] == 0 and number % 3 == 1:
            break
    assert ends[-1] == 0
    assert ends.count(-signal.SIGKILL) > 5


@pytest.mark.parametrize("budget", [None, 512 * KIB])
def test_a_file_system_that_is_too_small(
    tmp_path: Path, prefix: str, values: dict[str, Any], budget: int | None
) -> None:
    with small_disk(tmp_path / "disk", 1200) as disk:
        cache = ck.Cache(disk / "cache", max_bytes=1 << 30)

        def work() -> None:
            with own_warnings() as warned:
                for _ in range(2):
                    with ck.open_checkpoint(prefix, cache=cache, memory_budget=budget) as checkpoint:
                        for name, value in values.items():
                            np.testing.assert_array_equal(checkpoint[name], value)
                        restored = dict(checkpoint.restore().restored)
                    for name, array in restored.items():
                        np.testing.assert_array_equal(array, values[name])
            assert [str(each.message).count("is full") for each in warned] == [1]

        # In a child: a hole that is touched through a map ends the process.
        ballast = fill(disk, but_pages=8)
        assert in_child(work) == 0
        ballast.unlink()
        assert in_child(work) == 0


def test_a_fork_goes_on_with_what_its_parent_has_open(
    tmp_path: Path, prefix: str, values: dict[str, Any]
) -> None:
    cache = ck.Cache(tmp_path / "cache", max_bytes=1 << 30)
    with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
        np.testing.assert_array_equal(checkpoint["w0"], values["w0"])

        def work() -> None:
            for name, value in values.items():
                np.testing.assert_array_equal(checkpoint[name], value)

        assert in_child(work) == 0
        work()
    check(prefix, tmp_path / "cache", values)
