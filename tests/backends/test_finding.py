"""Which checkpoint is found where the record does not help, on every backend."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.directory.repair import repair_record
from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in


def put(url: str, name: str) -> None:
    ck.Saver().save({"w": np.zeros(3)}, f"{url}/{name}", write_state=False, write_meta_graph=False)


def put_bytes(url: str, name: str, data: bytes) -> None:
    place = locate(url).child(name)
    place.storage.delete_many([place.key])
    place.storage.put_new(place.key, data)


def found_in(url: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        path = ck.latest_checkpoint(url)
    return None if path is None else path.rpartition("/")[2]


def test_without_a_record_the_step_decides_and_not_the_order_of_writing(run_url: str) -> None:
    for name in ("weights.10-0.41", "weights.09-0.32", "best"):
        put(run_url, name)
    assert found_in(run_url) == "weights.10-0.41"


def test_stepping_back_stays_with_the_basename(run_url: str) -> None:
    for name in ("model-2", "model-1", "other-9"):
        put(run_url, name)
    put_bytes(run_url, "model-3.index", b"torn")
    put_bytes(run_url, "checkpoint", b'model_checkpoint_path: "model-3"\n')
    assert found_in(run_url) == "model-2"
    for name in ("model-1", "model-2"):
        ck.remove_checkpoint(f"{run_url}/{name}")
    with pytest.warns(ck.CkptStoreWarning, match="other-9.*does not list"):
        assert ck.latest_checkpoint(run_url) == f"{run_url}/other-9"


NOT_AN_INDEX = {
    "an HTML page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}
DATA = "model-{}.data-00000-of-00001"


def copy_run(url: str, damage: str) -> dict[str, bytes]:
    """Copy a run of two steps to `url` as another program would, each with the damage; return the files."""
    source = locate(f"memory://finding/{damage.replace(' ', '-')}/run")
    if not [*source.storage.list(f"{source.key}/")]:
        saver = ck.Saver()
        for step in (9, 10):
            saver.save({"w": np.full(3, float(step))}, f"{source.url}/model", step, write_meta_graph=False)
    files = {
        info.key.rpartition("/")[2]: source.storage.get(info.key).data
        for info in source.storage.list(f"{source.key}/")
    }
    for step in (9, 10):
        if damage in NOT_AN_INDEX:
            files[f"model-{step}.index"] = NOT_AN_INDEX[damage]
        elif damage == "no data":
            del files[DATA.format(step)]
        elif damage == "data cut short":
            files[DATA.format(step)] = files[DATA.format(step)][:-1]
        elif damage == "data first":
            del files[f"model-{step}.index"]
        elif damage == "record first":
            del files[f"model-{step}.index"], files[DATA.format(step)]
    if damage != "record first":
        del files["checkpoint"]
    for name, data in files.items():
        put_bytes(url, name, data)
    return files


def files_in(url: str) -> dict[str, bytes]:
    directory = locate(url)
    return {name: directory.storage.get(directory.child(name).key).data for name in names_in(url)}


def manager_of(url: str, *, fresh_start: bool = False) -> ck.CheckpointManager:
    checkpoint = ck.Checkpoint(w=np.zeros(3))
    return ck.CheckpointManager(
        checkpoint, url, 2, checkpoint_name="model", init_fn=checkpoint.__repr__, fresh_start=fresh_start
    )


@pytest.mark.parametrize("damage", [*NOT_AN_INDEX, "no data", "data cut short", "data first", "record first"])
def test_incomplete_is_not_nothing(run_url: str, damage: str) -> None:
    files = copy_run(run_url, damage)
    with pytest.raises(ck.CorruptError, match="model-10") as raised:
        ck.latest_checkpoint(run_url)
    assert damage not in NOT_AN_INDEX or damage in str(raised.value)
    if damage != "record first":
        with pytest.raises(ck.CorruptError, match="model-9"):
            ck.get_checkpoint_state(run_url)
    manager = manager_of(run_url)
    with pytest.raises(ck.CorruptError, match="model-10"):
        manager.restore_or_initialize()
    with pytest.raises(ck.CorruptError, match="model-10"):
        _ = manager.latest_checkpoint
    saves = [
        lambda: ck.Saver().save({"w": np.zeros(3)}, f"{run_url}/model", 1),
        manager.save,
        lambda: ck.Checkpoint(w=np.zeros(3)).save(f"{run_url}/model"),
    ]
    for save in saves:
        with pytest.raises(ck.CorruptError, match="fresh_start"):
            save()
    assert files_in(run_url) == files


@pytest.mark.parametrize("damage", ["a Git LFS pointer", "data first", "record first"])
def test_a_fresh_start_leaves_the_old_files_alone(run_url: str, damage: str) -> None:
    old = copy_run(run_url, damage)
    with pytest.warns(ck.CkptStoreWarning, match="fresh_start"):
        manager = manager_of(run_url, fresh_start=True)
    assert manager.restore_or_initialize() is None
    saver = ck.Saver(max_to_keep=1, fresh_start=True)
    for step in (1, 2, 3):
        saver.save({"w": np.full(3, float(step))}, f"{run_url}/model", step, write_meta_graph=False)
        assert ck.latest_checkpoint(run_url) == f"{run_url}/model-{step}"
    new = files_in(run_url)
    assert {name: new.get(name) for name in old if name != "checkpoint"} == {
        name: data for name, data in old.items() if name != "checkpoint"
    }
    assert {name.partition(".")[0] for name in new.keys() - old.keys()} == {
        "checkpoint",
        "model-3",
    } - old.keys()


def test_one_of_several_that_is_incomplete_is_stepped_over(run_url: str) -> None:
    copy_run(run_url, "none")
    put_bytes(run_url, "model-10.index", NOT_AN_INDEX["an HTML page"])
    with pytest.warns(ck.CkptStoreWarning, match="model-9"):
        assert ck.latest_checkpoint(run_url) == f"{run_url}/model-9"
    with pytest.warns(ck.CkptStoreWarning, match="model-9"):
        assert manager_of(run_url).restore_or_initialize() == f"{run_url}/model-9"
    assert ck.Saver().save({"w": np.zeros(3)}, f"{run_url}/model", 11) == f"{run_url}/model-11"


def test_a_name_without_a_step_begins_beside_those_of_its_basename(run_url: str) -> None:
    values = {"w": np.zeros(3)}
    files = copy_run(run_url, "no data")
    with pytest.raises(ck.CorruptError, match="model-10"):
        ck.Saver().save(values, f"{run_url}/model-11", write_meta_graph=False)
    assert files_in(run_url) == files
    put(run_url, "model-8")
    saver = ck.Saver()
    saver.save(values, f"{run_url}/model-11", write_meta_graph=False)
    # This run has saved, so it does not begin: what is left of a save that was killed stops nothing.
    put_bytes(run_url, DATA.format(12), b"half")
    saver.save(values, f"{run_url}/model-12", write_meta_graph=False)
    # Nor does another one, because there is something to begin from.
    put_bytes(run_url, DATA.format(13), b"half")
    ck.Saver(run="next").save(values, f"{run_url}/model-13", write_meta_graph=False)
    assert found_in(run_url) == "model-13"


def test_the_checkpoint_with_an_empty_basename(run_url: str) -> None:
    # What saver.save(sess, "dir/") of TensorFlow writes.
    put(run_url, "model")
    for ending in ("index", "data-00000-of-00001"):
        place = locate(run_url).child(f"model.{ending}")
        put_bytes(run_url, f".{ending}", place.storage.get(place.key).data)
    ck.remove_checkpoint(f"{run_url}/model")
    prefix = f"{run_url}/"
    assert ck.checkpoint_exists(prefix)
    assert ck.list_variables(prefix) == [("w", [3])]
    assert ck.load_checkpoint(run_url).get_tensor("w").tolist() == [0.0] * 3
    restored: dict[str, np.ndarray] = {}
    ck.Saver().restore(restored, prefix)
    assert restored["w"].tolist() == [0.0] * 3
    with pytest.warns(ck.CkptStoreWarning, match="no record"):
        assert ck.latest_checkpoint(run_url) == prefix
    named = locate(run_url).key if "://" not in run_url else run_url
    for path in ("./", f"{named}/", "/elsewhere/before/the/move/", "s3://elsewhere/run/"):
        put_bytes(run_url, "checkpoint", f'model_checkpoint_path: "{path}"\n'.encode())
        with warnings.catch_warnings():
            warnings.simplefilter("error", ck.CkptStoreWarning)
            assert ck.latest_checkpoint(run_url) == prefix, path
    assert len(ck.get_checkpoint_mtimes([prefix])) == 1
    ck.remove_checkpoint(prefix)
    assert names_in(run_url) == ["checkpoint"]


WINDOWS = {
    "drive": r"C:\runs\old\model-9",
    "drive with slashes": "C:/runs/old/model-9",
    "share": r"\\server\runs\model-9",
    "relative": r"runs\model-9",
    "index": "model-9.index",
    "graph, moved": "/old/run/model-9.meta",
    "index on a drive": r"C:\runs\model-9.index",
}


@pytest.mark.parametrize("name", WINDOWS)
def test_paths_of_other_systems_and_names_of_files_in_a_record(run_url: str, name: str) -> None:
    for step in (9, 10):
        put(run_url, f"model-{step}")
    path = WINDOWS[name].replace("\\", "\\\\")
    put_bytes(run_url, "checkpoint", f'model_checkpoint_path: "{path}"\n'.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ck.CkptStoreWarning)
        assert ck.latest_checkpoint(run_url) == f"{run_url}/model-9"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_record_that_an_editor_of_windows_saved(run_url: str, encoding: str) -> None:
    for step in (9, 10):
        put(run_url, f"model-{step}")
    put_bytes(run_url, "checkpoint", 'model_checkpoint_path: "model-9"\r\n'.encode(encoding))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ck.CkptStoreWarning)
        assert ck.latest_checkpoint(run_url) == f"{run_url}/model-9"


def test_what_is_no_directory_is_said(run_url: str) -> None:
    ck.Saver().save({"w": np.zeros(3)}, f"{run_url}/my model", 1)
    cases = {
        f"{run_url}/my model-1": "prefix of a checkpoint",
        f"{run_url}/my model-1.index": "file of checkpoint 'my model-1'",
        f"{run_url}/my model-1.meta": "file of checkpoint 'my model-1'",
        f"{run_url}/checkpoint": "the record of a directory",
    }
    for function in (ck.latest_checkpoint, ck.get_checkpoint_state):
        for url, what in cases.items():
            with pytest.raises(ck.UsageError, match=what) as raised:
                function(url)
            assert run_url in str(raised.value.hint)
    assert ck.latest_checkpoint(f"{run_url}/nothing") is None
    if "://" in run_url:
        with pytest.raises(ck.NotFoundError, match="percent signs") as missing:
            ck.load_checkpoint(f"{run_url}/my%20model-1")
        assert f"{run_url}/my model-1" in str(missing.value)
        ck.Saver().save({"w": np.zeros(3)}, f"{run_url}/a b/model", 1)
        with pytest.raises(ck.UsageError, match="percent signs") as raised:
            ck.latest_checkpoint(f"{run_url}/a%20b")
        assert f"{run_url}/a b" in str(raised.value.hint)


@pytest.mark.parametrize("home", ["/old/run/", "s3://old/run/", "C:\\\\old\\\\run\\\\"])
def test_a_moved_run_of_tensorflow_is_gone_on_with(run_url: str, home: str) -> None:
    for step in range(1, 6):
        put(run_url, f"model-{step}")
    ck.remove_checkpoint(f"{run_url}/model-2")
    lines = [f'model_checkpoint_path: "{home}model-5"']
    lines += [f'all_model_checkpoint_paths: "{home}model-{step}"' for step in range(1, 6)]
    lines += ['all_model_checkpoint_paths: "/elsewhere/model-7"']
    put_bytes(run_url, "checkpoint", "\n".join(lines).encode())
    ck.Saver(max_to_keep=3).save({"w": np.zeros(3)}, f"{run_url}/model", 6, write_meta_graph=False)
    directory = locate(run_url)
    record = directory.child("checkpoint")
    state = read_record(record).record.state
    assert state is not None
    assert state.all_model_checkpoint_paths == ("/elsewhere/model-7", "model-4", "model-5", "model-6")
    assert {name.partition(".")[0] for name in names_in(run_url)} == {
        "checkpoint",
        "model-4",
        "model-5",
        "model-6",
    }
    assert not repair_record(directory, record, dry_run=True).is_changed
