"""What was published once is no leftover, wherever its index is at the moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

import ckptstore as ck
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.values import Committed
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.directory.helpers import fresh_memory, names_in, save_steps, stamp_of, values

_T = TypeVar("_T")


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else fresh_memory()


def take(directory: str, name: str) -> bytes:
    """Remove a file, and return its bytes."""
    place = locate(f"{directory}/{name}")
    got = place.storage.get(place.key)
    assert place.storage.delete_if(place.key, got.version)
    return got.data


def put(directory: str, name: str, data: bytes) -> None:
    place = locate(f"{directory}/{name}")
    assert isinstance(place.storage.put_new(place.key, data), Committed)


@pytest.mark.parametrize("saves", [1, 2])
def test_an_index_that_is_away_while_a_job_starts(saves: int, directory: str) -> None:
    save_steps(ck.Saver(run="first"), f"{directory}/model", [1, *[2] * saves])
    away = take(directory, "model-2.index")
    save_steps(ck.Saver(run="second"), f"{directory}/model", [3])
    put(directory, "model-2.index", away)
    assert stamp_of(f"{directory}/model-2") == 2


def test_a_directory_that_is_moved_file_by_file_while_a_job_starts(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    save_steps(ck.Saver(run="first"), f"{old}/model", [1, 2])
    new.mkdir()
    names = sorted(name for name in os.listdir(old) if not name.startswith("."))
    # Data before indexes, as many programs do.
    names.sort(key=lambda name: name.endswith((".index", "checkpoint")))
    for name in names:
        if name == "model-2.index":
            save_steps(ck.Saver(run="second"), f"{new}/model", [3])
            os.rename(new / "checkpoint", tmp_path / "theirs")
        os.rename(old / name, new / name)
    for step in (1, 2, 3):
        assert stamp_of(f"{new}/model-{step}") == step


def test_the_mark_of_a_save_that_died_after_its_index_goes_with_the_next_run(directory: str) -> None:
    save_steps(ck.Saver(run="first"), f"{directory}/model", [1, 2])
    # As it was left: published, and still marked as an upload.
    data = locate(f"{directory}/model-2.data-00000-of-00001")
    assert isinstance(data.storage, KnowsWriters)
    data.storage.mark_unneeded([data.key])
    save_steps(ck.Saver(run="second"), f"{directory}/model", [3])
    away = take(directory, "model-2.index")
    save_steps(ck.Saver(run="third"), f"{directory}/model", [4])
    put(directory, "model-2.index", away)
    assert stamp_of(f"{directory}/model-2") == 2


def test_what_an_overwrite_replaced_is_a_leftover_if_it_dies_before_the_record(directory: str) -> None:
    save_steps(ck.Saver(run="first"), f"{directory}/model", [1])

    class Dies(StorageWrapper):
        is_published = False

        def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
            if primitive == "put_if" and keys[0].endswith("/checkpoint") and Dies.is_published:
                raise ck.TransientError("the process is gone")
            Dies.is_published |= primitive == "put_if" and keys[0].endswith(".index")
            return call()

    with use_wrapper(Dies), pytest.raises(ck.TransientError):
        ck.Saver(run="first").save(values(2), f"{directory}/model", 1)
    assert len([name for name in names_in(directory) if ".data-" in name]) == 2
    save_steps(ck.Saver(run="second"), f"{directory}/model", [3])
    assert stamp_of(f"{directory}/model-1") == 2
    assert len([name for name in names_in(directory) if name.startswith("model-1.data-")]) == 1
