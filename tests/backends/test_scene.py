"""The scene the project grew from, on every backend: the same names, the same retention, the same latest."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.testing import ManualClock
from tests.backends.conftest import names_in


def play(url: str) -> list[object]:
    """Play the scene in `url` and return everything that a user can see of it, the URL left out."""
    seen: list[object] = []

    def look(*more: object) -> None:
        latest = ck.latest_checkpoint(url)
        seen.append(
            (
                [name for name in names_in(url) if ".data-" not in name],
                None if latest is None else latest.removeprefix(url),
                *more,
            )
        )

    clock = ManualClock(0.0)
    values: dict[str, Any] = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scope/b": np.float64(0),
        "t": np.array([b"x"], object),
    }
    saver = ck.Saver(max_to_keep=3, keep_checkpoint_every_n_hours=2, clock=clock, run="first")
    for step in range(1000, 9000, 1000):
        clock.advance(1800)
        values["w"] += 1
        prefix = saver.save(values, f"{url}/model", global_step=step, write_meta_graph=step == 1000)
        look(str(prefix).removeprefix(url), [p.removeprefix(url) for p in saver.last_checkpoints])
    restarted = ck.Saver(max_to_keep=2, keep_checkpoint_every_n_hours=2, clock=clock, run="second")
    for step in (9000, 9000, 10000):
        clock.advance(1800)
        values["w"] += 1
        restarted.save(values, f"{url}/model", global_step=step, write_meta_graph=False)
        look([p.removeprefix(url) for p in restarted.last_checkpoints])
    with pytest.raises(ck.FencedError, match="second"):
        saver.save(values, f"{url}/model", global_step=11000)
    look()

    graph = ck.import_meta_graph(f"{url}/{next(n for n in names_in(url) if n.endswith('.meta'))}")
    restored: dict[str, np.ndarray] = {}
    graph.restore(restored, ck.latest_checkpoint(url))
    np.testing.assert_array_equal(restored["w"], values["w"])
    assert graph.graph is not None
    seen.append(graph.graph.get_tensor_by_name("w:0").shape)
    latest = ck.latest_checkpoint(url)
    assert latest is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ck.inspect_checkpoint.print_tensors_in_checkpoint_file(latest, "", True)
    seen.append(printed.getvalue())
    with ck.open_checkpoint(latest) as ckpt:
        seen.append(ckpt.read("w", np.s_[1, ::2]).tolist())
    tree = ck.Checkpoint(net={"w": np.arange(3.0)}, step=np.array(0))
    manager = ck.CheckpointManager(tree, f"{url}/managed", max_to_keep=2)
    for _ in range(3):
        manager.save()
    seen.append([prefix.removeprefix(url) for prefix in manager.checkpoints])
    return seen


def test_the_scene_is_the_same_everywhere(run_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    expected = play(str(tmp_path_factory.mktemp("expected") / "run"))
    assert play(run_url) == expected


def test_nothing_there_and_no_bucket(run_url: str, backend: str) -> None:
    assert ck.latest_checkpoint(run_url) is None
    assert not ck.checkpoint_exists(f"{run_url}/model-1")
    with pytest.raises(ck.NotFoundError):
        ck.load_checkpoint(f"{run_url}/model-1")
    if backend in ("minio", "versitygw", "gcs"):
        scheme = run_url.partition("://")[0]
        with pytest.raises(ck.CkptStoreError) as caught:
            ck.latest_checkpoint(f"{scheme}://no-such-bucket-anywhere/run")
        assert "no-such-bucket-anywhere" in str(caught.value)
