"""The blocks of docs/serving.md, run."""

from __future__ import annotations

import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from tests.meta.source import ROOT


def block(name: str) -> str:
    page = (ROOT / "docs" / "serving.md").read_text()
    (found,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```\n", page, re.DOTALL)
    return str(found)


@pytest.fixture
def scene(tmp_path: Path) -> dict[str, Any]:
    """Return what the blocks find there: two steps, in a directory."""
    saver = ckptstore.Saver(run="job")
    for step in (1, 2):
        saver.save({"w": np.full(9, float(step))}, f"{tmp_path}/model", step)
    return {
        "ckptstore": ckptstore,
        "directory": str(tmp_path),
        "weights": {"w": np.zeros(9)},
        "storage_options": None,
    }


def test_follow(scene: dict[str, Any]) -> None:
    class Served(list[int]):
        """Ends the job after its first step: the block itself never ends."""

        def append(self, step: int) -> None:
            super().append(step)
            raise StopIteration

    scene["served"] = Served()
    with pytest.raises(StopIteration):
        exec(block("follow"), scene)
    assert scene["served"] == [2]
    assert scene["weights"]["w"].tolist() == [2.0] * 9


def test_cache(scene: dict[str, Any], tmp_path: Path) -> None:
    scene["cache_directory"] = tmp_path / "cache"
    exec(block("cache"), scene)
    assert scene["weights"]["w"].tolist() == [2.0] * 9
    with ckptstore.Live(lambda found, _: dict(found), scene["directory"], cache=tmp_path / "cache") as live:
        assert live.wait_ready(60)
    assert [found.prefix for found in scene["cache"].contents()] == [f"{tmp_path}/model-2"]


def test_live(scene: dict[str, Any]) -> None:
    exec(block("live"), scene)
    assert scene["answer"] == 18.0


def test_ranks_open_the_version_that_rank_0_saw(scene: dict[str, Any]) -> None:
    sent: list[bytes] = []
    barrier = threading.Barrier(4)
    weights = [{"w": np.zeros(9)} for _ in range(4)]
    failures: list[BaseException] = []

    def serve(rank: int) -> None:
        def broadcast(step: ckptstore.Step | None) -> ckptstore.Step:
            if step is not None:
                sent.append(pickle.dumps(step))
            barrier.wait(60)
            (data,) = sent
            found: ckptstore.Step = pickle.loads(data)
            return found

        own = {**scene, "rank": rank, "broadcast": broadcast, "weights": weights[rank]}
        own["watcher"] = ckptstore.watch(scene["directory"])
        try:
            exec(block("ranks"), own)
        except Exception as error:  # noqa: BLE001 - of a thread, raised below
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert all((each["w"] == 2).all() for each in weights)
