"""What latest_checkpoint names can be restored, whatever the record says."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.own_warnings import own_warnings
from tests.unit.directory.helpers import save_steps, stamp_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints and their record."""
    save_steps(ck.Saver(run="a"), f"{tmp_path}/run/model", [1, 2, 10])
    return tmp_path / "run"


def recovered(directory: Path, **options: object) -> str | None:
    with pytest.warns(ck.CkptStoreWarning):
        path = ck.latest_checkpoint(directory, **options)  # type: ignore[arg-type]
    return None if path is None else os.path.basename(path)


def point_to(directory: Path, path: str) -> None:
    (directory / "checkpoint").write_text(f'model_checkpoint_path: "{path}"\n')


def test_nothing_at_all(tmp_path: Path) -> None:
    with own_warnings("error"):
        assert ck.latest_checkpoint(tmp_path) is None
        assert ck.latest_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"   \n", b"\xff\xfe", b"garbage", b"model_checkpoint_path: 5", b"unknown: 1", b"#\n", None],
)
def test_a_bad_record_leads_to_the_highest_step(run: Path, content: bytes | None) -> None:
    if content is None:
        (run / "checkpoint").unlink()
    else:
        (run / "checkpoint").write_bytes(content)
    assert recovered(run) == "model-10"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ck.latest_checkpoint(run, recover=False) is None


@pytest.mark.parametrize(
    "path",
    [
        "gone-7",
        "/elsewhere/gone-7",
        "hdfs://cluster/run/gone-7",
        "a::b://c",
        "mod\\000el",
        "x" * 300,
        "model-1.index/x",
        "model-1.index",
        "..",
        "/",
        ".",
        "../../../../etc/passwd",
        "s3:/b/x",
    ],
)
def test_a_record_that_leads_nowhere(run: Path, path: str) -> None:
    point_to(run, path)
    assert recovered(run) == "model-10"
    save_steps(ck.Saver(run="b"), f"{run}/model", [11])
    assert ck.latest_checkpoint(run) == f"{run}/model-11"


@pytest.mark.parametrize("damage", ["index", "data", "cut", "both"])
def test_the_latest_is_torn(run: Path, damage: str) -> None:
    data = run / "model-10.data-00000-of-00001"
    if damage in ("index", "both"):
        (run / "model-10.index").write_bytes(b"\x00" * 60)
    if damage in ("data", "both"):
        data.unlink()
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    assert recovered(run) == "model-2"


def test_all_are_torn(run: Path) -> None:
    for path in run.glob("*.data-*"):
        path.unlink()
    assert recovered(run) is None


def test_protocol_lines_are_no_concern_of_readers(run: Path) -> None:
    record = run / "checkpoint"
    text = record.read_text()
    for lines in ("# ckptstore 99\n", "# ckptstore 1\n# owner gibberish\n", "# ckptstore 1\n# pending 1\n"):
        record.write_text(lines + text.split("\n", 2)[2])
        with own_warnings("error"):
            assert ck.latest_checkpoint(run) == f"{run}/model-10"
            assert ck.get_checkpoint_state(run) is not None
    record.write_text("# ckptstore 99\n" + text)
    with pytest.raises(ck.UnsupportedError, match="newer"):
        save_steps(ck.Saver(run="b"), f"{run}/model", [11])


def test_the_record_decides_and_not_the_step(run: Path) -> None:
    point_to(run, "model-2")
    assert ck.latest_checkpoint(run) == f"{run}/model-2"


@pytest.mark.parametrize("way", ["inside", "moved", "linked"])
def test_absolute_paths(run: Path, tmp_path: Path, way: str) -> None:
    point_to(run, f"{run}/model-2")
    place = run
    if way == "moved":
        place = tmp_path / "moved"
        run.rename(place)
    elif way == "linked":
        place = tmp_path / "link"
        place.symlink_to(run)
    assert ck.latest_checkpoint(place) == f"{place}/model-2"


def test_outside_only_when_allowed(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in run.glob("model-1.*"):
        shutil.copy(path, other / path.name.replace("model-1", "best"))
    point_to(run, f"{other}/best")
    assert recovered(run) == "model-10"
    assert ck.latest_checkpoint(run, allow_external_paths=True) == f"{other}/best"


def test_another_record(run: Path) -> None:
    ck.Saver(run="b").save({"w": stamp_array()}, f"{run}/best", 3, latest_filename="best_record")
    assert ck.latest_checkpoint(run, "best_record") == f"{run}/best-3"
    assert ck.latest_checkpoint(run) == f"{run}/model-10"
    with pytest.raises(ck.UsageError):
        ck.latest_checkpoint(run, "../best_record")


def stamp_array():
    import numpy as np

    return np.ones(3)


def test_a_v1_checkpoint(fixtures_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(fixtures_dir / "05_v1_format", tmp_path / "v1")
    path = ck.latest_checkpoint(tmp_path / "v1")
    assert path is not None
    assert os.path.basename(path).startswith("v1")
    assert ck.checkpoint_exists(path)


def test_odd_neighbours_are_passed_over(run: Path) -> None:
    (run / "checkpoint").unlink()
    (run / "model-99.index").mkdir()
    (run / "model-98.index").write_bytes(b"junk")
    (run / "v1-00000-of-00002").write_bytes(b"junk")
    (run / ".index").write_bytes(b"junk")
    (run / "dangling-5.index").symlink_to("nowhere")
    assert recovered(run) == "model-10"
    with pytest.warns(ck.CkptStoreWarning):
        path = ck.latest_checkpoint(run)
    assert stamp_of(path or "") == 10


@pytest.mark.parametrize("error", [ck.AccessError, ck.TransientError])
@pytest.mark.parametrize("primitive", ["get", "head", "list"])
def test_an_error_is_never_no_checkpoint(run: Path, primitive: str, error: type[ck.CkptStoreError]) -> None:
    point_to(run, "gone" if primitive == "list" else "model-10")

    class Refusing(StorageWrapper):
        def intercept(self, name, keys, call):
            if name == primitive:
                raise error("no")
            return call()

    with use_wrapper(Refusing), pytest.raises(error):
        ck.latest_checkpoint(run)
