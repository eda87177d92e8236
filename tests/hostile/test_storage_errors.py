"""The storage fails in any call of a reader: that is raised, and never becomes "there is no checkpoint"."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.testing import FaultyStorage
from tests.hostile.entry_points import quiet, typed

VALUES = {"w": np.arange(100_000, dtype=np.float32), "text": np.array(["a", "b"])}


def _saved(directory: Path) -> str:
    saver = ck.Saver(max_to_keep=3, clock=lambda: 1000.0)
    for step in (1, 2):
        saver.save(VALUES, directory / "model", step)
    return str(directory / "model-2")


def good(directory: Path, fixtures: Path) -> str:
    return _saved(directory)


def without_a_record(directory: Path, fixtures: Path) -> str:
    prefix = _saved(directory)
    (directory / "checkpoint").unlink()
    return prefix


def with_a_damaged_record(directory: Path, fixtures: Path) -> str:
    prefix = _saved(directory)
    (directory / "checkpoint").write_bytes(b"\xff")
    return prefix


def with_a_stale_record(directory: Path, fixtures: Path) -> str:
    prefix = _saved(directory)
    (directory / "checkpoint").write_bytes(b'model_checkpoint_path: "/gone/model-7"\n')
    return prefix


def with_a_torn_newer_one(directory: Path, fixtures: Path) -> str:
    prefix = _saved(directory)
    (directory / "checkpoint").unlink()
    (directory / "model-9.index").write_bytes(Path(f"{prefix}.index").read_bytes())
    return prefix


def of_version_1(directory: Path, fixtures: Path) -> str:
    source = fixtures / "05_v1_format"
    directory.mkdir()
    for path in source.glob("v1sh*"):
        (directory / path.name).write_bytes(path.read_bytes())
    (directory / "checkpoint").write_bytes(b'model_checkpoint_path: "v1sh.ckpt-8-?????-of-00003"\n')
    return str(directory / "v1sh.ckpt-8-?????-of-00003")


DIRECTORIES: dict[str, Callable[[Path, Path], str]] = {
    make.__name__.replace("_", " "): make
    for make in (
        good,
        without_a_record,
        with_a_damaged_record,
        with_a_stale_record,
        with_a_torn_newer_one,
        of_version_1,
    )
}

FAILURES = {
    "input/output error": ck.TransientError("input/output error", url="x", hint="Try again."),
    "no access": ck.AccessError("permission denied", url="x", hint="Ask."),
    "deadline": ck.DeadlineError("too slow", url="x", hint="Try again."),
}


class _FailingAt:
    """Wraps the storage that is opened next: its call `number` fails."""

    def __init__(self, number: int, failure: ck.CkptStoreError) -> None:
        self._number = number
        self._failure = failure
        self._storage: FaultyStorage | None = None

    def __call__(self, storage: Storage) -> Storage:
        self._storage = FaultyStorage(storage, errors={self._number: self._failure})
        return self._storage

    @property
    def came_to_it(self) -> bool:
        assert self._storage is not None
        return len(self._storage.calls) >= self._number


def fail_at_every_call(
    failure: ck.CkptStoreError, action: Callable[[], Any], check: Callable[[Any, bool], None]
) -> int:
    """Run `action` once for each storage call it makes, which then fails; return how many there were.

    `check` gets what it returned all the same, and whether a call failed.
    """
    for number in itertools.count(1):
        wrap = _FailingAt(number, failure)
        with use_wrapper(wrap), quiet():
            outcome = typed(action)
        if outcome.error is None:
            check(outcome.content, wrap.came_to_it)
        else:
            assert wrap.came_to_it
            assert type(outcome.error) is type(failure), outcome.error
        if not wrap.came_to_it:
            return number - 1
    raise AssertionError


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_latest_checkpoint_is_never_none_for_a_failure(
    directory: str, name: str, tmp_path: Path, fixtures_dir: Path
) -> None:
    prefix = DIRECTORIES[directory](tmp_path / "run", fixtures_dir)
    right = {prefix}

    def check(found: Any, failed: bool) -> None:
        # A failure may be passed over where the answer is the right one all the same.
        assert found in right, (found, failed)

    calls = fail_at_every_call(FAILURES[name], lambda: ck.latest_checkpoint(tmp_path / "run"), check)
    assert calls >= 2


@pytest.mark.parametrize("name", FAILURES)
def test_no_checkpoint_at_all_is_said_only_when_it_was_seen(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    passed_over = []

    def check(found: Any, failed: bool) -> None:
        assert found is None
        passed_over.append(failed)

    calls = fail_at_every_call(FAILURES[name], lambda: ck.latest_checkpoint(tmp_path), check)
    # Not the record nor the listing; only whether the directory is a prefix may stay open.
    assert calls - sum(passed_over) >= 2


READERS: dict[str, Callable[[str], Any]] = {
    "load_checkpoint": lambda prefix: ck.load_checkpoint(prefix).get_tensor("w").tobytes(),
    "list_variables": ck.list_variables,
    "open_checkpoint": lambda prefix: ck.open_checkpoint(prefix).restore().restored["w"].tobytes(),
    "read a part": lambda prefix: ck.open_checkpoint(prefix).read("w", slice(5, 9)).tobytes(),
    "checkpoint_exists": ck.checkpoint_exists,
    "get_checkpoint_mtimes": lambda prefix: ck.get_checkpoint_mtimes([prefix]),
    "verify": lambda prefix: verify_bundle(locate(prefix)).ok,
    "import_meta_graph": lambda prefix: ck.import_meta_graph(f"{prefix}.meta").as_saver_def(),
    "get_checkpoint_state": lambda prefix: ck.get_checkpoint_state(Path(prefix).parent),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("reader", READERS)
def test_failure_in_any_call_of_a_reader_is_raised(reader: str, name: str, tmp_path: Path) -> None:
    prefix = _saved(tmp_path)
    right = READERS[reader](prefix)

    def check(found: Any, failed: bool) -> None:
        assert not failed
        assert found == right

    assert fail_at_every_call(FAILURES[name], lambda: READERS[reader](prefix), check) >= 1


def test_restore_that_fails_changes_no_array_and_adds_no_key(tmp_path: Path) -> None:
    prefix = _saved(tmp_path)
    for failure in FAILURES.values():
        values: dict[str, Any] = {}

        def action(values: dict[str, Any] = values) -> bool:
            values.clear()
            try:
                ck.Saver().restore(values, prefix)
            finally:
                assert not values or set(values) == set(VALUES)
            return True

        assert fail_at_every_call(failure, action, lambda found, failed: None) >= 2
