"""Retention by rules where many ranks save one checkpoint: rank 0 has the say."""

from __future__ import annotations

import itertools
import threading

import numpy as np

import ckptstore as ck
from ckptstore.directory import pending_deletes
from ckptstore.directory.collect import collect_pending
from ckptstore.directory.record_update import read_record
from ckptstore.storage.registry import locate
from tests.unit.directory.helpers import names_in
from tests.unit.saving.ranks import Job

_fresh = itertools.count()


def test_metrics_of_the_first_rank_choose_and_pins_hold() -> None:
    directory = f"memory://rank-retention-{next(_fresh)}/run"
    job = Job(3, retention=[ck.Latest(1), ck.Best(1, "loss")])
    losses = {1: 0.5, 2: 0.1, 3: 0.4, 4: 0.3}
    for step, loss in losses.items():

        def save(rank: int, saver: ck.Saver, step: int = step, loss: float = loss) -> object:
            # The others have another loss; a rank need not have any.
            metrics = {"loss": loss if rank == 0 else -loss} if rank < 2 else None
            return saver.save({f"own/{rank}": np.ones(2)}, f"{directory}/m", step, metrics=metrics)

        assert job.each(save) == [f"{directory}/m-{step}"] * 3
        if step == 1:
            ck.pin(f"{directory}/m-1")
    indexes = [name.removesuffix(".index") for name in names_in(directory) if name.endswith(".index")]
    assert sorted(indexes) == ["m-1", "m-2", "m-4"]
    record = read_record(locate(directory).child("checkpoint")).record
    assert record.notes == {f"m-{step}": {"loss": losses[step]} for step in (1, 2, 4)}


def test_the_others_go_on_before_old_checkpoints_are_deleted(monkeypatch) -> None:
    directory = f"memory://rank-retention-{next(_fresh)}/run"
    job = Job(2, max_to_keep=1)

    def save(rank: int, saver: ck.Saver, step: int) -> object:
        return saver.save({f"own/{rank}": np.ones(2)}, f"{directory}/m", step)

    job.each(lambda rank, saver: save(rank, saver, 1))
    saved = threading.Event()
    deleted = []

    def collect_later(*args, **options):
        # Waits for the other rank, which is told before.
        deleted.append(saved.wait(60.0))
        collect_pending(*args, **options)

    monkeypatch.setattr(pending_deletes, "collect_pending", collect_later)

    def save_and_say(rank: int, saver: ck.Saver) -> object:
        prefix = save(rank, saver, 2)
        if rank == 1:
            saved.set()
        return prefix

    assert job.each(save_and_say) == [f"{directory}/m-2"] * 2
    assert deleted == [True]
    assert not [name for name in names_in(directory) if name.startswith("m-1")]
