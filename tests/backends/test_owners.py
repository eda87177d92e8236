"""What a saver owns is what the user said, on every backend: no name is taken for another model's step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.format.naming import data_name
from ckptstore.format.record_facts import OwnerName
from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in


def save(
    saver: ck.Saver, prefix: str, step: int | None = None, stamp: float = 0.0, **options: object
) -> None:
    values = {"w": np.full(2, stamp)}
    saver.save(values, prefix, step, write_meta_graph=False, **options)  # type: ignore[arg-type]


def checkpoints_in(url: str) -> list[str]:
    return [name.removesuffix(".index") for name in names_in(url) if name.endswith(".index")]


def owners_in(url: str) -> set[OwnerName]:
    return set(read_record(locate(url).child("checkpoint")).record.owners)


@pytest.mark.parametrize(
    "names",
    [
        [f"resnet-{depth}" for depth in (18, 34, 50, 101, 152, 200)],
        [f"model-2026-11-{day}" for day in (28, 29, 30)],
    ],
    ids=["depths", "days"],
)
def test_prefixes_saved_without_a_step_are_models_of_their_own(names: list[str], run_url: str) -> None:
    savers = [ck.Saver(max_to_keep=2, run=f"process {name}") for name in names]
    for _ in range(2):
        # The second time nobody is fenced either.
        for saver, name in zip(savers, names, strict=True):
            save(saver, f"{run_url}/{name}")
    assert checkpoints_in(run_url) == sorted(names)
    assert owners_in(run_url) == {OwnerName(name, "exact") for name in names}
    basename = names[0].rpartition("-")[0]
    steps = ck.Saver(max_to_keep=1, run="steps")
    for step in (1, 2, 3):
        save(steps, f"{run_url}/{basename}", step)
    assert checkpoints_in(run_url) == sorted([*names, f"{basename}-3"])


def test_a_basename_that_ends_in_a_dash_is_another_one(run_url: str) -> None:
    dashed = ck.Saver(max_to_keep=1, run="dashed")
    save(dashed, f"{run_url}/model-", 1)
    plain = ck.Saver(max_to_keep=1, run="plain")
    for step in (1, 2, 3):
        save(plain, f"{run_url}/model", step)
    assert checkpoints_in(run_url) == ["model--1", "model-3"]
    save(dashed, f"{run_url}/model-", 2)
    assert checkpoints_in(run_url) == ["model--2", "model-3"]


def test_the_steps_of_a_basename_that_ends_in_a_dash_are_no_negative_ones(run_url: str) -> None:
    saver = ck.Saver(max_to_keep=1, run="dashed")
    for step in (9, 10, 11):
        save(saver, f"{run_url}/model-", step)
    save(saver, f"{run_url}/model-", 9)
    # Its data had the canonical name before: a late delete could hit that.
    assert data_name("model--9", 0, 1) not in names_in(run_url)


def test_a_negative_step_owns_its_prefix_alone(run_url: str) -> None:
    # Step -1 of "model" has the name of step 1 of "model-".
    save(ck.Saver(run="negative"), f"{run_url}/model", -1)
    save(ck.Saver(max_to_keep=1, run="dashed"), f"{run_url}/model-", 2)
    save(ck.Saver(max_to_keep=1, run="plain"), f"{run_url}/model", 2)
    assert checkpoints_in(run_url) == ["model--1", "model--2", "model-2"]


def test_two_runs_that_save_one_prefix_fence_each_other_and_nobody_else(run_url: str) -> None:
    one, two, other = (ck.Saver(run=run) for run in ("one", "two", "other"))
    save(one, f"{run_url}/best", stamp=1.0)
    save(other, f"{run_url}/best-2", stamp=2.0)
    save(two, f"{run_url}/best", stamp=3.0)
    with pytest.raises(ck.FencedError, match="two"):
        save(one, f"{run_url}/best", stamp=4.0)
    with pytest.raises(ck.FencedError, match="two"):
        save(one, f"{run_url}/best", stamp=4.0)
    save(one, f"{run_url}/mine", stamp=5.0)
    save(other, f"{run_url}/best-2", stamp=6.0)
    for name, stamp in (("best", 3.0), ("best-2", 6.0), ("mine", 5.0)):
        restored: dict[str, np.ndarray] = {}
        ck.Saver().restore(restored, f"{run_url}/{name}")
        assert set(restored["w"]) == {stamp}, name


def test_a_run_that_was_replaced_is_fenced_even_when_nothing_names_the_prefix_any_more(run_url: str) -> None:
    old, new = ck.Saver(run="old"), ck.Saver(run="new", max_to_keep=1)
    save(old, f"{run_url}/best")
    save(new, f"{run_url}/best", stamp=1.0)
    for name in ("other", "third", "fourth"):
        save(new, f"{run_url}/{name}")
    assert checkpoints_in(run_url) == ["fourth"]
    with pytest.raises(ck.FencedError, match="run new"):
        save(old, f"{run_url}/best", stamp=2.0)
    assert checkpoints_in(run_url) == ["fourth"]


def test_a_step_saved_over_a_prefix_that_somebody_owns_alone_tells_that_run(run_url: str) -> None:
    alone = ck.Saver(run="alone")
    save(alone, f"{run_url}/model-5")
    steps = ck.Saver(max_to_keep=2, run="steps")
    for step in (4, 5):
        save(steps, f"{run_url}/model", step, stamp=float(step))
    with pytest.raises(ck.FencedError, match="steps"):
        save(alone, f"{run_url}/model-5")
    for step in (6, 7):
        save(steps, f"{run_url}/model", step)
    # What a Saver has saved it counts.
    assert checkpoints_in(run_url) == ["model-6", "model-7"]
    assert owners_in(run_url) <= {OwnerName("model", "steps"), OwnerName("model-5", "exact")}


def test_an_owner_line_without_a_form_is_still_understood(run_url: str) -> None:
    """0.1.0rc1 wrote lines without a form."""
    old = ck.Saver(max_to_keep=3, run="old")
    for step in (1, 2, 3):
        save(old, f"{run_url}/model", step)
    save(ck.Saver(run="old single"), f"{run_url}/best")
    record = locate(run_url).child("checkpoint")
    got = record.storage.get(record.key)
    lines = got.data.replace(b' form="steps"', b"").replace(b' form="exact"', b"")
    record.storage.put_if(record.key, lines, got.version)
    assert owners_in(run_url) == {OwnerName("model", ""), OwnerName("best", "")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        save(ck.Saver(max_to_keep=3, run="new"), f"{run_url}/model", 4)
        with pytest.raises(ck.FencedError):
            # It does not find its own line; a new one of this name is there.
            save(old, f"{run_url}/model", 5)
    save(ck.Saver(max_to_keep=1, run="new single"), f"{run_url}/best", stamp=1.0)
    assert checkpoints_in(run_url) == ["best", "model-2", "model-3", "model-4"]
    owners = read_record(record).record.owners
    assert owners[OwnerName("model", "steps")].epoch == 2
    assert owners[OwnerName("best", "exact")].epoch == 2
