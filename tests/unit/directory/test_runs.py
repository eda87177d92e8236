"""Two runs, two threads, several processes: who wins, who is told, and that no acknowledged save is lost."""

from __future__ import annotations

import datetime
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.config import host_name
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import ManualClock
from tests.unit.directory.helpers import (
    checkpoints_in,
    files_of,
    fresh_memory,
    listed,
    names_in,
    save_steps,
    stamp_of,
    values,
)


@pytest.fixture(params=["local", "local-without-sync", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local-without-sync":
        request.getfixturevalue("without_sync")
    return fresh_memory() if request.param == "memory" else str(tmp_path)


class TestFencing:
    def test_the_newer_run_wins_and_the_older_is_told(self, directory: str) -> None:
        clock = ManualClock()
        old = ck.Saver(run="old-run", clock=clock)
        save_steps(old, f"{directory}/model", [1])
        clock.advance(60)
        save_steps(ck.Saver(run="new-run", clock=clock), f"{directory}/model", [2])
        clock.advance(60)
        with pytest.raises(ck.FencedError) as caught:
            save_steps(old, f"{directory}/model", [3])
        when = datetime.datetime.fromtimestamp(clock.now_s - 60, datetime.UTC).isoformat(timespec="seconds")
        for part in ("new-run", host_name(), when, "'model'"):
            assert part in str(caught.value)
        assert caught.value.url == f"{directory}/checkpoint"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        assert checkpoints_in(directory) == ["model-1", "model-2"]
        assert [name for name in names_in(directory) if name.startswith("model-3")] == []

    def test_it_is_final_and_for_both(self, directory: str) -> None:
        one, two = ck.Saver(run="one"), ck.Saver(run="two")
        save_steps(one, f"{directory}/model", [1])
        save_steps(two, f"{directory}/model", [2])
        for step in (3, 4):
            with pytest.raises(ck.FencedError):
                save_steps(one, f"{directory}/model", [step])
        three = ck.Saver(run="one again")
        save_steps(three, f"{directory}/model", [5])
        with pytest.raises(ck.FencedError):
            save_steps(two, f"{directory}/model", [6])
        assert listed(three) == checkpoints_in(directory) == ["model-1", "model-2", "model-5"]

    def test_another_basename_is_not_fenced(self, directory: str) -> None:
        a, b = ck.Saver(run="a", max_to_keep=1), ck.Saver(run="b", max_to_keep=1)
        for step in (1, 2, 3):
            save_steps(a, f"{directory}/gen", [step])
            save_steps(b, f"{directory}/disc", [step])
        assert checkpoints_in(directory) == ["disc-3", "gen-3"]

    def test_hosts_of_one_job_share_a_run(self, directory: str) -> None:
        hosts = [ck.Saver(run="job", max_to_keep=2) for _ in range(3)]
        for step in range(1, 10):
            save_steps(hosts[step % 3], f"{directory}/model", [step])
        assert checkpoints_in(directory) == ["model-8", "model-9"]

    def test_in_a_new_directory_the_first_to_finish_owns_it(self, directory: str) -> None:
        first, second = ck.Saver(run="first"), ck.Saver(run="second")

        class Meanwhile(StorageWrapper):
            armed = True

            def intercept(self, primitive, keys, call):
                if Meanwhile.armed and primitive == "upload":
                    Meanwhile.armed = False
                    save_steps(first, f"{directory}/model", [1])
                return call()

        with use_wrapper(Meanwhile), pytest.raises(ck.FencedError):
            save_steps(second, f"{directory}/model", [1])
        assert stamp_of(f"{directory}/model-1") == 1
        save_steps(first, f"{directory}/model", [2])
        assert checkpoints_in(directory) == ["model-1", "model-2"]

    def test_a_frozen_run_that_wakes_up_at_the_index_destroys_nothing(self, directory: str) -> None:
        old = None

        class Freeze(StorageWrapper):
            armed = False

            def intercept(self, primitive, keys, call):
                if Freeze.armed and primitive == "put_new" and keys[0].endswith("model-2.index"):
                    Freeze.armed = False
                    newer = ck.Saver(run="new")
                    newer.save(values(20), f"{directory}/model", 2)
                return call()

        with use_wrapper(Freeze):
            old = ck.Saver(run="old")
            save_steps(old, f"{directory}/model", [1])
            Freeze.armed = True
            with pytest.raises(ck.FencedError):
                save_steps(old, f"{directory}/model", [2])
        assert stamp_of(f"{directory}/model-2") == 20
        assert names_in(directory) == sorted(
            ["checkpoint", *files_of("model-1"), *_files(directory, "model-2")]
        )


def _files(directory: str, prefix: str) -> list[str]:
    found = [name for name in names_in(directory) if name.startswith(f"{prefix}.")]
    assert len(found) == 3, found
    return found


class TestThreads:
    def test_two_basenames_in_two_threads_keep_both_lists(self, directory: str) -> None:
        def work(basename: str) -> None:
            saver = ck.Saver(max_to_keep=5)
            save_steps(saver, f"{directory}/{basename}", range(100), write_meta_graph=False)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, ("gen", "disc")))
        expected = [f"{name}-{step}" for name in ("disc", "gen") for step in range(95, 100)]
        assert checkpoints_in(directory) == expected
        state = ck.get_checkpoint_state(directory)
        assert state is not None
        assert sorted(path.rpartition("/")[2] for path in state.all_model_checkpoint_paths) == expected

    def test_a_reader_never_meets_half_a_checkpoint(self, directory: str) -> None:
        seen: list[float] = []
        over = threading.Event()
        saver = ck.Saver(max_to_keep=1)
        save_steps(saver, f"{directory}/model", [0])
        saver.save(values(0), f"{directory}/same/model")

        def read() -> None:
            while not over.is_set():
                for place in (directory, f"{directory}/same"):
                    path = ck.latest_checkpoint(place, recover=False)
                    try:
                        seen.append(stamp_of(path or ""))
                    except ck.NotFoundError:
                        # Retention removed it between the two calls: ask again.
                        assert place == directory

        with ThreadPoolExecutor(1) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            reader = pool.submit(read)
            try:
                for step in range(1, 3000):
                    save_steps(saver, f"{directory}/model", [step], write_meta_graph=False)
                    saver.save(values(step), f"{directory}/same/model", write_meta_graph=False)
                    # However rarely the other thread gets its turn.
                    if reader.done() or (step >= 60 and len(set(seen)) > 3):
                        break
            finally:
                over.set()
            reader.result()
        assert len(set(seen)) > 3

    def test_a_new_saver_takes_no_save_under_way_for_a_leftover(self, tmp_path: Path) -> None:
        # It lists while the data is there and the index is not, and looks at the file when all is done.
        base = f"{tmp_path}/model"
        save_steps(ck.Saver(run="job"), base, [1])
        is_listed, is_saved = threading.Event(), threading.Event()

        class SlowLister(StorageWrapper):
            def list(self, prefix):
                found = list(self.inner.list(prefix))
                if threading.current_thread() is other:
                    is_listed.set()
                    assert is_saved.wait(30)
                return iter(found)

            def put_new(self, key, data):
                if key.endswith("model-2.index"):
                    other.start()
                    assert is_listed.wait(30)
                return super().put_new(key, data)

        other = threading.Thread(target=lambda: save_steps(ck.Saver(run="job"), base, [3]))
        with use_wrapper(SlowLister):
            save_steps(ck.Saver(run="job"), base, [2])
            is_saved.set()
            other.join()
        assert [stamp_of(f"{base}-{step}") for step in (1, 2, 3)] == [1, 2, 3]
