"""The collector after a crash in any call, of a save and of its own."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate
from tests.crash.crashing_process import run_until_crash
from tests.unit.directory.collecting import collect, leftovers, needed
from tests.unit.directory.helpers import files_of, names_in, save_steps, stamp_of, values


def test_a_crash_of_the_collector_in_any_call_leaves_garbage_that_is_found_again(tmp_path: Path) -> None:
    def prepare(directory: Path) -> None:
        save_steps(ck.Saver(), f"{directory}/model", [1])
        leftovers(directory, "model-9.data-00000-of-00001", "model-9.meta", "model-5.meta")
        leftovers(directory, "model-1.data-00000-of-00005", "alone-9.data-00000-of-00001", "alone-9.meta")

    prepare(tmp_path / "count")
    calls = run_until_crash(collect, f"{tmp_path}/count").calls
    for number, side in itertools.product(range(1, len(calls) + 1), ("crash_before", "crash_after")):
        directory = tmp_path / f"{side}-{number}"
        prepare(directory)
        run_until_crash(collect, str(directory), **{side: number})
        collect(directory)
        assert names_in(str(directory)) == ["checkpoint", *files_of("model-1")], (side, number)


def save_plain(directory: str, *stamps: float, run: str) -> None:
    saver = ck.Saver(max_to_keep=2, run=run)
    for stamp in stamps:
        saver.save(values(stamp), f"{directory}/model")


SCENARIOS: dict[str, tuple[Callable[[str], object], Callable[[str], object]]] = {
    "first save": (
        lambda d: None,
        lambda d: save_steps(ck.Saver(max_to_keep=2, run="dies"), f"{d}/model", [1]),
    ),
    "retention": (
        lambda d: save_steps(ck.Saver(max_to_keep=2, run="a"), f"{d}/model", [1, 2]),
        lambda d: save_steps(ck.Saver(max_to_keep=2, run="dies"), f"{d}/model", [3, 4]),
    ),
    "overwrite": (
        lambda d: save_steps(ck.Saver(max_to_keep=2, run="a"), f"{d}/model", [1, 2]),
        lambda d: save_steps(ck.Saver(max_to_keep=2, run="dies"), f"{d}/model", [2, 2]),
    ),
    "plain prefix": (
        lambda d: save_plain(d, 1, run="a"),
        lambda d: save_plain(d, 2, 3, run="dies"),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_crash_of_a_save_in_any_call_exactly_what_is_needed_is_left(
    name: str, make_directory: Callable[[], str]
) -> None:
    prepare, interrupted = SCENARIOS[name]
    directory = make_directory()
    prepare(directory)
    calls = run_until_crash(interrupted, directory).calls
    for call, side in itertools.product(range(1, len(calls) + 1), ("crash_before", "crash_after")):
        directory = make_directory()
        prepare(directory)
        run_until_crash(interrupted, directory, **{side: call})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            before = ck.latest_checkpoint(directory)
            stamp = None if before is None else stamp_of(before)
            collect(directory)
            left = set(names_in(directory))
            assert left <= needed(directory), (side, call)
            graphs = {name for name in needed(directory) if name.endswith(".meta")}
            pending_gone = needed(directory) - left - graphs
            # Of pending ones some may be deleted already; nothing that an index needs is missing.
            assert all(f"{name.split('.data-')[0]}.index" not in left for name in pending_gone), (side, call)
            assert (None if before is None else stamp_of(before)) == stamp, (side, call)
            place = locate(directory).child("")
            assert place.storage.abort_stale_uploads(place.key, 0.0) == 0, (side, call)
