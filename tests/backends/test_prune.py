"""``prune`` on every backend: killed at any call, beside a run that saves, and with the last graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.directory.prune import PruneReport, PruneRequest, prune
from ckptstore.directory.record_update import read_record
from ckptstore.directory.repair import repair_record
from ckptstore.format.record import format_state
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import FaultyStorage, SimulatedCrash
from tests.backends.conftest import AT_EVERY_CALL, names_in

_T = TypeVar("_T")


def save(saver: ck.Saver, directory: str, step: int, **options: object) -> None:
    values = {"w": np.full(2, float(step))}
    saver.save(values, f"{directory}/model", step, **options)  # type: ignore[arg-type]


def saved(directory: str, steps: int = 5, **options: object) -> None:
    saver = ck.Saver(max_to_keep=50, run="job")
    for step in range(1, steps + 1):
        save(saver, directory, step, **options)


def request_of(directory: Location) -> PruneRequest:
    return PruneRequest(directory, directory.child("checkpoint"), [("two", ck.Latest(2))])


def pruned(url: str) -> PruneReport:
    request = request_of(locate(url))
    return prune(request, request.plan())


def checkpoints_in(url: str) -> list[str]:
    return sorted(name.removesuffix(".index") for name in names_in(url) if name.endswith(".index"))


def record_in(url: str) -> Record:
    return read_record(locate(url).child("checkpoint")).record


def listed(url: str) -> list[str]:
    state = record_in(url).state
    assert state is not None
    return list(state.all_model_checkpoint_paths)


def check_agrees(url: str) -> None:
    """Check that each listed checkpoint is whole, and each other one is gone or pending."""
    for prefix in listed(url):
        assert verify_bundle(locate(f"{url}/{prefix}")).ok, prefix
    pending = {line.prefix for line in record_in(url).pending}
    assert set(checkpoints_in(url)) <= {*listed(url), *pending}


def test_what_no_rule_keeps_goes_and_the_rest_is_whole(run_url: str) -> None:
    saved(run_url, write_meta_graph=False)
    report = pruned(run_url)
    assert report.error is None
    assert [item.prefix for item in report.deleted] == ["model-1", "model-2", "model-3"]
    assert names_in(run_url) == sorted(
        ["checkpoint", *(f"model-{n}.{kind}" for n in (4, 5) for kind in ("data-00000-of-00001", "index"))]
    )
    check_agrees(run_url)
    assert record_in(run_url).pending == ()
    assert ck.latest_checkpoint(run_url) == f"{run_url}/model-5"


@AT_EVERY_CALL
def test_killed_at_any_call_the_next_prune_or_save_does_the_rest(run_url: str) -> None:
    for crash_before in range(1, 100):
        directory = f"{run_url}-{crash_before}"
        saved(directory, write_meta_graph=False)
        storages: list[FaultyStorage] = []

        def wrap(inner: Storage, at: int = crash_before, storages: list[FaultyStorage] = storages) -> Storage:
            storages.append(FaultyStorage(inner, crash_before=at))
            return storages[-1]

        with use_wrapper(wrap):
            try:
                pruned(directory)
                is_over = True
            except SimulatedCrash:
                is_over = False
        for storage in storages:
            storage.release_holds()
        check_agrees(directory)
        place = locate(directory)
        repair_record(place, place.child("checkpoint"))
        check_agrees(directory)
        if crash_before % 2:
            assert pruned(directory).error is None
            left = ["model-4", "model-5"]
        else:
            save(ck.Saver(max_to_keep=50, run="next"), directory, 6, write_meta_graph=False)
            # If it died before the record, nothing was decided.
            left = [*listed(directory)]
        assert checkpoints_in(directory) == left
        check_agrees(directory)
        if is_over:
            break
    else:
        pytest.fail("a prune took a hundred calls")
    assert crash_before > 12


class Meanwhile(StorageWrapper):
    """Does something before call number `at`."""

    def __init__(self, inner: Storage, at: int, deed: Callable[[], None]) -> None:
        super().__init__(inner)
        self.at, self.deed, self.calls = at, deed, 0

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls += 1
        if self.calls == self.at:
            self.deed()
        return call()


@AT_EVERY_CALL
@pytest.mark.parametrize("step", [6, 2], ids=["next step", "victim"])
def test_a_run_that_saves_at_any_moment_goes_on(step: int, run_url: str) -> None:
    """A new step, or one of those that the prune is about to delete: it is saved, and whole."""
    for at in range(1, 100):
        directory = f"{run_url}-{at}"
        saver = ck.Saver(max_to_keep=50, run="job")
        for number in range(1, 6):
            save(saver, directory, number, write_meta_graph=False)
        place = locate(directory)
        ran: list[int] = []

        def deed(
            saver: ck.Saver = saver, directory: str = directory, ran: list[int] = ran, at: int = at
        ) -> None:
            save(saver, directory, step, write_meta_graph=False)
            ran.append(at)

        wrapped = Location(Meanwhile(place.storage, at, deed), place.key, place.url)
        request = request_of(wrapped)
        report = prune(request, request.plan())
        assert report.error is None
        if not ran:
            break
        check_agrees(directory)
        assert ck.latest_checkpoint(directory) == f"{directory}/model-{step}"
        assert verify_bundle(locate(f"{directory}/model-{step}")).ok
        # The run is not fenced, and carries on.
        save(saver, directory, 7, write_meta_graph=False)
        check_agrees(directory)
        assert f"model-{step}" in checkpoints_in(directory)
        assert record_in(directory).pending == ()
    else:
        pytest.fail("a prune took a hundred calls")
    assert at > 12


def test_the_last_graph_is_put_beside_a_survivor(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=50)
    save(saver, run_url, 1)
    for step in (2, 3, 4):
        save(saver, run_url, step, write_meta_graph=False)
    assert pruned(run_url).error is None
    assert [name for name in names_in(run_url) if name.endswith(".meta")] == ["model-3.meta"]


def test_a_record_of_tensorflow_is_pruned_and_stays_readable(run_url: str) -> None:
    saved(run_url, write_meta_graph=False)
    record = locate(run_url).child("checkpoint")
    snapshot = read_record(record)
    assert snapshot.record.state is not None
    assert snapshot.version is not None
    record.storage.put_if(record.key, format_state(snapshot.record.state), snapshot.version)
    assert len(pruned(run_url).deleted) == 3
    assert listed(run_url) == checkpoints_in(run_url) == ["model-4", "model-5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ck.CkptStoreWarning)
        save(ck.Saver(max_to_keep=2, run="next"), run_url, 6, write_meta_graph=False)
    assert checkpoints_in(run_url) == ["model-5", "model-6"]


def test_what_a_saver_without_a_limit_keeps_is_judged_when_asked(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=None)
    for step in (1, 2, 3, 10):
        save(saver, run_url, step, write_meta_graph=False)
    request = request_of(locate(run_url))
    assert {item.because for item in request.plan().items} == {("not listed",), ("two", "the latest")}
    request.with_unlisted = True
    assert [item.prefix for item in prune(request, request.plan()).deleted] == ["model-1", "model-2"]
    assert checkpoints_in(run_url) == ["model-10", "model-3"]


def test_pending_lines_of_a_stranger_are_not_carried_out(run_url: str) -> None:
    saved(run_url, write_meta_graph=False)
    ck.Saver(run="alone").save({"w": np.ones(2)}, f"{run_url}/milestone-7", write_meta_graph=False)
    ck.Saver(run="hand").save({"w": np.ones(2)}, f"{run_url}/other", 1, write_state=False)
    directory = locate(run_url)
    record = directory.child("checkpoint")
    lines = b""
    for prefix in ("milestone-7", "other-1", "model-5", "../run/model-4", "model-99"):
        index = directory.child("milestone-7.index" if prefix == "milestone-7" else f"{prefix}.index")
        try:
            version = index.storage.head(index.key).version
        except ck.CkptStoreError:
            version = "1"
        text = version.replace(chr(34), chr(92) + chr(34))
        lines += f'# pending "{prefix}" version="{text}" shards="00000-of-00001" suffix="meta"\n'.encode()
    got = record.storage.get(record.key)
    header, _, rest = got.data.partition(b"\n")
    record.storage.put_if(record.key, header + b"\n" + lines + rest, got.version)
    assert len(pruned(run_url).deleted) == 3
    assert checkpoints_in(run_url) == ["milestone-7", "model-4", "model-5", "other-1"]
