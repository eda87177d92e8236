"""A save that runs out of room, or whose directory is taken away: the previous checkpoint still restores."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import FaultyStorage
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import Outcome, quiet, typed
from tests.hostile.sandbox import Limits, Sandbox
from tests.hostile.saved_checkpoints import checkpoints_in, restored, save, try_to_save
from tests.small_disk import small_disk

_T = TypeVar("_T")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def _check_failed_save(directory: Path, before: dict[str, str], outcome: Outcome) -> None:
    """Assert that a save without room left nothing, or, if its index was out already, a whole checkpoint."""
    assert isinstance(outcome.error, ck.StorageFullError), outcome
    assert outcome.error.hint
    after = checkpoints_in(directory)
    with quiet():
        latest = ck.latest_checkpoint(directory)
    assert latest is not None
    assert restored(latest)
    if (directory / "model-3.index").exists():
        assert verify_bundle(locate(directory / "model-3")).ok
        after = {name: what for name, what in after.items() if not name.startswith("model-3.")}
    assert after == before


@pytest.mark.parametrize("limit", [0, 1, 100, 200, 300, 400, 800, 1500, 2500, 3999, 4000, 4015])
def test_limit_on_the_size_of_files_is_storage_full(limit: int, tmp_path: Path, sandbox: Sandbox) -> None:
    save(tmp_path, 1, 2)
    before = checkpoints_in(tmp_path)
    outcome = sandbox.run(try_to_save, str(tmp_path), 3, limits=Limits(file_bytes=limit)).value
    _check_failed_save(tmp_path, before, outcome)
    save(tmp_path, 4)
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-4")


def test_no_room_at_any_call_of_a_save_is_storage_full(tmp_path: Path) -> None:
    counting = FaultyStorage(locate(tmp_path).storage)
    save(tmp_path / "count", 1, 2)
    with use_wrapper(lambda storage: counting):
        save(tmp_path / "count", 3)
    assert len(counting.calls) > 10
    writes = {"put_new", "put_if", "upload", "upload.send", "upload.commit"}
    failed = 0
    for number, call in enumerate(counting.calls, 1):
        if call.primitive not in writes:
            continue
        failed += 1
        directory = tmp_path / f"at-{number}"
        save(directory, 1, 2)
        before = checkpoints_in(directory)
        full = ck.StorageFullError("no room", url=call.key, hint="Make some.")

        def wrap(storage: Storage, number: int = number, full: ck.StorageFullError = full) -> Storage:
            return FaultyStorage(storage, errors={number: full})

        with use_wrapper(wrap):
            outcome = try_to_save(str(directory), 3)
        _check_failed_save(directory, before, outcome)
        save(directory, 4)
        assert ck.latest_checkpoint(directory) == str(directory / "model-4")
    assert failed >= 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 512) as disk:
        yield disk


def test_full_disk_is_storage_full_and_the_previous_checkpoint_restores(disk: Path) -> None:
    directory = disk / "run"
    save(directory, 1, 2)
    before = checkpoints_in(directory)
    ballast = disk / "ballast"
    failed = succeeded = 0
    for pages in range(12):
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        os.truncate(ballast, max(0, (ballast.stat().st_size // 4096 - pages) * 4096))
        outcome = try_to_save(str(directory), 3, keep=9)
        if outcome.error is None:
            succeeded += 1
            break
        failed += 1
        _check_failed_save(directory, before, outcome)
        for path in directory.glob("model-3.*"):
            path.unlink()
        ballast.unlink()
    assert failed >= 3
    assert succeeded == 1
    assert ck.latest_checkpoint(directory) == str(directory / "model-3")


class _Disturbed(StorageWrapper):
    """Does something to the directory before the chosen call."""

    def __init__(self, inner: Storage, number: int, disturb: Callable[[], None]) -> None:
        super().__init__(inner)
        self.left = number
        self._disturb = disturb

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.left -= 1
        if self.left == 0:
            self._disturb()
        return call()


class _Disturbing:
    """Wraps the storage that is opened next."""

    def __init__(self, number: int, disturb: Callable[[], None]) -> None:
        self._number = number
        self._disturb = disturb
        self._storage: _Disturbed | None = None

    def __call__(self, storage: Storage) -> Storage:
        self._storage = _Disturbed(storage, self._number, self._disturb)
        return self._storage

    @property
    def came_to_it(self) -> bool:
        assert self._storage is not None
        return self._storage.left <= 0


def _take_away(directory: Path, action: str) -> None:
    shutil.rmtree(directory)
    if action == "emptied":
        directory.mkdir()
    elif action == "replaced by a file":
        directory.write_bytes(b"x")


@pytest.mark.parametrize("action", ["removed", "replaced by a file", "emptied"])
def test_directory_taken_away_before_any_call_of_a_save(action: str, tmp_path: Path) -> None:
    for number in range(1, 60):
        directory = tmp_path / f"at-{number}"
        save(directory, 1, 2)
        wrap = _Disturbing(number, functools.partial(_take_away, directory, action))
        with use_wrapper(wrap):
            outcome = try_to_save(str(directory), 3)
        if not wrap.came_to_it:
            assert outcome.error is None
            return
        if not directory.is_dir():
            continue
        assert not [name for name in tree_of(directory) if ".tmp-" in name]
        if outcome.error is None:
            with quiet():
                latest = typed(ck.latest_checkpoint, directory)
            # Taken away behind the index, or made anew by the save: what is found can be restored.
            if latest.error is not None:
                assert isinstance(latest.error, ck.CorruptError)
            elif latest.content is not None:
                assert restored(latest.content)
    pytest.fail("a save of two tensors made 60 calls")


def test_directory_taken_away_before_any_call_of_a_restore(tmp_path: Path) -> None:
    for number in range(1, 20):
        directory = tmp_path / f"at-{number}"
        save(directory, 1)
        wrap = _Disturbing(number, functools.partial(shutil.rmtree, directory))
        values: dict[str, Any] = {}
        with use_wrapper(wrap), quiet():
            outcome = typed(ck.Saver().restore, values, directory / "model-1")
        if not wrap.came_to_it:
            assert outcome.error is None
            return
        assert outcome.error is None or isinstance(outcome.error, (ck.NotFoundError, ck.CorruptError))
        assert not values or outcome.error is None
    pytest.fail("a restore of two tensors made 20 calls")
