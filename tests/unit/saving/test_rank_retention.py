"""Retention by rules where many ranks save one checkpoint: rank 0 has the say."""

from __future__ import annotations

import itertools

import numpy as np

import ckptstore as ck
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
