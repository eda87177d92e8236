"""Schedules that the simulation found, one by one: what another run does just before a certain call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.directory.helpers import fresh_memory, names_in, save_steps, stamp_of, values

_T = TypeVar("_T")


class Before(StorageWrapper):
    """Do something once, before the n-th call of a primitive on a file of this name."""

    def __init__(
        self, inner: Storage, primitive: str, name: str, deed: Callable[[], object], nth: int = 1
    ) -> None:
        super().__init__(inner)
        self._left = nth
        self._wanted = (primitive, name)
        self._deed = deed

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        if keys and (primitive, keys[0].rpartition("/")[2]) == self._wanted:
            self._left -= 1
            if self._left == 0:
                self._deed()
        return call()


class NobodyKnowsWriters(StorageWrapper):
    """As on an object store: whether a writer lives cannot be told."""

    hides = (KnowsWriters,)


@pytest.fixture
def directory() -> str:
    return fresh_memory()


def save(directory: str, run: str, stamp: float, step: int | None = None, keep: int = 1) -> None:
    ck.Saver(run=run, max_to_keep=keep).save(values(stamp), f"{directory}/model", step)


def test_the_latest_is_looked_for_again_when_retention_took_what_the_record_named(directory: str) -> None:
    # Before: the record named what was gone by then, and so did the listing: None, and training began anew.
    saver = ck.Saver(max_to_keep=1)
    save_steps(saver, f"{directory}/model", [1])

    def go_on(step: int) -> Callable[[], None]:
        return lambda: save_steps(saver, f"{directory}/model", [step])

    with (
        use_wrapper(lambda inner: Before(inner, "get", "model-1.index", go_on(2))),
        use_wrapper(lambda inner: Before(inner, "get", "model-2.index", go_on(3))),
    ):
        assert ck.latest_checkpoint(directory) == f"{directory}/model-3"


def test_a_first_save_that_publishes_while_a_reader_looks_is_not_incomplete(tmp_path: Path) -> None:
    # There is no record yet, the listing shows the data alone, and by now that is no upload any more.
    ck.Saver().save(values(1.0), tmp_path / "model", 1, write_state=False)
    index = tmp_path / "model-1.index"
    aside = index.rename(tmp_path / "aside")

    def publish() -> None:
        aside.rename(index)

    data = "model-1.data-00000-of-00001"
    with use_wrapper(lambda inner: Before(inner, "is_upload", data, publish)):
        assert ck.latest_checkpoint(tmp_path) is None
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-1")


def test_a_latest_that_is_always_replaced_is_not_no_checkpoint(directory: str) -> None:
    saver = ck.Saver(max_to_keep=1)
    save_steps(saver, f"{directory}/model", [1])
    steps = iter(range(2, 100))

    class Overtaken(StorageWrapper):
        def get(self, key, byte_range=None, *, version=None):
            if key.endswith(".index") and not saving:
                saving.append(True)
                save_steps(saver, f"{directory}/model", [next(steps)])
                saving.clear()
            return super().get(key, byte_range, version=version)

    saving: list[bool] = []
    with use_wrapper(Overtaken), pytest.raises(ck.TransientError):
        ck.latest_checkpoint(directory)


class Lazy:
    """A tensor of another checkpoint, read by the same Saver when it is asked for its values."""

    def __init__(self, saver: ck.Saver, prefix: str) -> None:
        self.saver, self.prefix = saver, prefix

    def __array__(self, dtype=None, copy=None):
        into: dict[str, np.ndarray] = {}
        self.saver.restore(into, self.prefix)
        return into["w"]


def test_a_tensor_may_be_read_from_a_checkpoint_while_it_is_saved(directory: str, tmp_path: Path) -> None:
    saver = ck.Saver()
    for where in (directory, str(tmp_path)):
        saver.save(values(1), f"{where}/model", 1)
        saver.save({"w": Lazy(saver, f"{where}/model-1"), "b": np.array(-1.0)}, f"{where}/model", 2)
        assert stamp_of(f"{where}/model-2") == 1


def test_a_report_of_progress_may_look_at_checkpoints(directory: str) -> None:
    found: list[str | None] = []
    saver = ck.Saver(progress=lambda event: found.append(ck.latest_checkpoint(directory)))
    saver.save(values(1), f"{directory}/model", 1)
    saver.save(values(2), f"{directory}/model", 2)
    assert f"{directory}/model-1" in found


def test_a_fenced_run_leaves_names_that_the_other_may_have_taken_up(directory: str) -> None:
    # A delete that is sent twice would take the file of the run that took over, if that has the same name.
    old, new = ck.Saver(run="old"), ck.Saver(run="new")
    with use_wrapper(NobodyKnowsWriters):
        save_steps(old, f"{directory}/model", [1])
        save_steps(new, f"{directory}/model", [2])
        with pytest.raises(ck.FencedError):
            save_steps(old, f"{directory}/model", [3])
        save_steps(new, f"{directory}/model", [3])
    data = [name for name in names_in(directory) if name.startswith("model-3.data")]
    assert len(data) == 2
    assert stamp_of(f"{directory}/model-3") == 3


def test_a_run_that_loses_at_the_index_asks_for_the_owner_after_it_looked(directory: str) -> None:
    save(directory, "first", 1)

    def take_over() -> None:
        save(directory, "second", 3)

    # "old" finds another index in its way, and a run takes over and saves while it looks at that.
    def get_in_the_way() -> None:
        ck.Saver(run="old").save(values(20), f"{directory}/model", write_state=False)

    with (
        use_wrapper(lambda inner: Before(inner, "put_if", "model.index", get_in_the_way)),
        use_wrapper(lambda inner: Before(inner, "get", "model.index", take_over, nth=4)),
        pytest.raises(ck.FencedError),
    ):
        save(directory, "old", 2)
    assert stamp_of(f"{directory}/model") == 3


def test_without_a_record_only_one_run_replaces_what_stands_there(directory: str) -> None:
    # Both look at what a dead run left while there is no record. Before: the run that was fenced in the end
    # had put its index over that of the other, whose save was acknowledged.
    ck.Saver().save(values(1), f"{directory}/model", write_state=False)
    arrived, released = threading.Event(), threading.Event()
    fenced: dict[str, bool] = {}

    def run(name: str, stamp: float) -> None:
        try:
            save(directory, name, stamp)
            fenced[name] = False
        except ck.FencedError:
            fenced[name] = True

    other = threading.Thread(target=run, args=("other", 3))

    class Arranged(StorageWrapper):
        def put_new(self, key, data):
            if key.endswith("/checkpoint") and threading.current_thread() is other:
                arrived.set()
                released.wait(30)
            return super().put_new(key, data)

        def put_if(self, key, data, version):
            if key.endswith(".index") and threading.current_thread() is not other:
                released.set()
                other.join(30)
            return super().put_if(key, data, version)

    with use_wrapper(Arranged):
        other.start()
        arrived.wait(30)
        run("this", 2)
    assert sorted(fenced.values()) == [False, True]
    assert stamp_of(f"{directory}/model") == (3 if fenced["this"] else 2)
