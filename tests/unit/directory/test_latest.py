"""What latest_checkpoint names can be restored, whatever the record says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
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
    if content is None:
        assert ck.latest_checkpoint(run, recover=False) is None
    else:
        with pytest.raises(ck.CorruptError, match="the record cannot be read"):
            ck.latest_checkpoint(run, recover=False)


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
    with pytest.raises(ck.CorruptError, match="model-10") as raised:
        ck.latest_checkpoint(run)
    assert "model-2" in str(raised.value)
    assert "fresh_start=True" in str(raised.value)


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
    ck.Saver(run="b").save({"w": np.ones(3)}, f"{run}/best", 3, latest_filename="best_record")
    assert ck.latest_checkpoint(run, "best_record") == f"{run}/best-3"
    assert ck.latest_checkpoint(run) == f"{run}/model-10"
    with pytest.raises(ck.UsageError):
        ck.latest_checkpoint(run, "../best_record")


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


def put_checkpoint(directory: str, name: str, stamp: float = 0.0) -> None:
    ck.Saver().save(
        {"w": np.full(3, stamp)}, f"{directory}/{name}", write_state=False, write_meta_graph=False
    )


def latest_and_warning(directory: str) -> tuple[str, str]:
    with pytest.warns(ck.CkptStoreWarning) as said:
        path = ck.latest_checkpoint(directory)
    assert path is not None
    return path.rpartition("/")[2], str(said[0].message)


@pytest.mark.parametrize(
    "names",
    [
        ["model-9", "model-10"],
        ["model-00000009", "model-00000010"],
        ["model-9", "model-00000010", "model-11"],
        ["model--9", "model--10"],
        ["model.ckpt-9.h5", "model.ckpt-10.h5"],
        ["cp-0009.ckpt", "cp-0010.ckpt"],
        ["epoch=9-step=900", "epoch=10-step=1000"],
        ["epoch=1-step=900", "epoch=1-step=1000"],
        ["weights.09-0.32", "weights.10-0.41"],
        ["epoch=09-val_loss=0.32", "epoch=10-val_loss=1"],
        ["model_9", "model_10"],
        ["best", "model-9"],
    ],
)
def test_without_a_record_the_step_in_the_name_decides(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        put_checkpoint(str(tmp_path), name)
        # Copied in another order than they were saved.
        os.utime(tmp_path / f"{name}.index", (1.7e9 - 3600 * number,) * 2)
    found, warning = latest_and_warning(str(tmp_path))
    assert found == names[-1]
    assert "newest complete checkpoint there" in warning
    assert "may be the newer" not in warning
    (tmp_path / f"{names[-1]}.index").write_bytes(b"torn")
    assert latest_and_warning(str(tmp_path))[0] == names[-2]


@pytest.mark.parametrize(
    ("times_s", "expected", "doubt"),
    [
        ((1.7e9, 1.7e9 + 60), "second", ""),
        ((1.7e9 + 60, 1.7e9), "first", ""),
        ((1.7e9, 1.7e9), "second", "was written at the same time"),
        ((1.7e9, 4e9), "second", "lies in the future"),
        ((0.0, 1.7e9), "second", "lies before there were such checkpoints"),
    ],
)
def test_between_names_without_a_step_the_time_decides_and_doubts_are_said(
    tmp_path: Path, times_s: tuple[float, float], expected: str, doubt: str
) -> None:
    for name, time_s in zip(("first", "second"), times_s, strict=True):
        put_checkpoint(str(tmp_path), name)
        os.utime(tmp_path / f"{name}.index", (time_s, time_s))
    found, warning = latest_and_warning(str(tmp_path))
    assert found == expected
    assert doubt in warning
    assert ("may be the newer" in warning) == bool(doubt)


def test_one_step_under_two_names_is_said(tmp_path: Path) -> None:
    for name in ("model-7", "model-00000007"):
        put_checkpoint(str(tmp_path), name)
        os.utime(tmp_path / f"{name}.index", (1.7e9, 1.7e9))
    assert "may be the newer" in latest_and_warning(str(tmp_path))[1]


class TestSteppingBack:
    """What takes the place of the latest that cannot be restored is of the same model."""

    @pytest.fixture
    def two(self, tmp_path: Path) -> Path:
        """Two basenames in the record, ``third-5`` beside it and newer; ``model-3`` is torn."""
        save_steps(ck.Saver(run="a"), f"{tmp_path}/model", [1, 2])
        save_steps(ck.Saver(run="b"), f"{tmp_path}/other", [1, 9])
        save_steps(ck.Saver(run="a2"), f"{tmp_path}/model", [3])
        put_checkpoint(str(tmp_path), "third-5")
        for number, name in enumerate(["model-1", "model-2", "model-3", "other-1", "other-9", "third-5"]):
            os.utime(tmp_path / f"{name}.index", (1.7e9 + 60 * number,) * 2)
        (tmp_path / "model-3.index").write_bytes(b"torn")
        return tmp_path

    def test_the_same_basename_comes_first(self, two: Path) -> None:
        found, warning = latest_and_warning(str(two))
        assert found == "model-2"
        assert "another basename" not in warning

    def test_also_one_that_the_record_does_not_list(self, two: Path) -> None:
        point_to(two, "model-3")
        assert latest_and_warning(str(two))[0] == "model-2"

    def test_then_what_the_record_lists(self, two: Path) -> None:
        for step in (1, 2):
            ck.remove_checkpoint(two / f"model-{step}")
        found, warning = latest_and_warning(str(two))
        assert found == "other-9"
        assert "it is of another basename than 'model-3'" in warning
        assert "does not list" not in warning

    def test_a_listed_one_in_a_directory_below_comes_before_what_is_not_listed(self, two: Path) -> None:
        save_steps(ck.Saver(run="c"), f"{two}/below/model", [4])
        (two / "checkpoint").write_text(
            'model_checkpoint_path: "model-3"\nall_model_checkpoint_paths: "below/model-4"\n'
        )
        for step in (1, 2):
            ck.remove_checkpoint(two / f"model-{step}")
        assert latest_and_warning(str(two))[0] == "model-4"

    def test_and_only_then_another_basename_that_is_not_listed_which_is_said(self, two: Path) -> None:
        for name in ("model-1", "model-2", "other-1", "other-9"):
            ck.remove_checkpoint(two / name)
        found, warning = latest_and_warning(str(two))
        assert found == "third-5"
        assert "third-5" in warning
        assert "of another basename than 'model-3', and the record does not list it" in warning

    def test_with_an_epoch_in_the_name(self, tmp_path: Path) -> None:
        for name in ("weights.08-0.50", "weights.09-0.40", "zzz-100"):
            put_checkpoint(str(tmp_path), name)
        point_to(tmp_path, "weights.10-0.32")
        assert latest_and_warning(str(tmp_path))[0] == "weights.09-0.40"
