"""A file that is not the one it should be is named, and so is what stands in its place."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Committed

_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1048576\n"
_PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"


def _save(prefix: str) -> Location:
    ck.Saver().save({"w": np.arange(100.0)}, prefix, write_meta_graph=False)
    return locate(prefix)


def _put(place: Location, data: bytes) -> None:
    place.storage.delete_many([place.key])
    assert isinstance(place.storage.put_new(place.key, data), Committed)


def _move(place: Location, target: Location) -> None:
    data = place.storage.get(place.key).data
    place.storage.delete_many([place.key])
    _put(target, data)


def _fails(prefix: str, error: type[ck.CkptStoreError], *words: str) -> None:
    with pytest.raises(error) as caught, ck.open_checkpoint(prefix) as checkpoint:
        checkpoint.read("w")
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_index_of_another_kind_is_named(run_url):
    prefix = f"{run_url}/model"
    _put(_save(prefix).suffixed(".index"), _LFS_POINTER)
    _fails(prefix, ck.FormatError, "Git LFS pointer", "git lfs pull")


def test_a_data_file_of_another_kind_is_named_once_for_all_tensors(run_url, capsys):
    prefix = f"{run_url}/model"
    _put(_save(prefix).suffixed(".data-00000-of-00001"), _PAGE)
    _fails(prefix, ck.TruncatedFileError, "HTML page", "sign in")
    assert main(["verify", prefix]) == 4
    assert "an HTML page" in "".join(capsys.readouterr())


@pytest.mark.parametrize("ending", [" (1)", ".part", ".txt"])
def test_a_data_file_with_a_similar_name_is_mentioned(run_url, ending):
    prefix = f"{run_url}/model-1"
    data = _save(prefix).suffixed(".data-00000-of-00001")
    _save(f"{run_url}/model-2")
    _move(data, data.suffixed(ending))
    _fails(prefix, ck.IncompleteBundleError, f"Beside it is 'model-1.data-00000-of-00001{ending}'")


def test_a_data_file_of_another_checkpoint_is_not_mentioned(run_url):
    prefix = f"{run_url}/model-1"
    data = _save(prefix).suffixed(".data-00000-of-00001")
    _save(f"{run_url}/model-2")
    data.storage.delete_many([data.key])
    with pytest.raises(ck.IncompleteBundleError) as caught, ck.open_checkpoint(prefix) as checkpoint:
        checkpoint.read("w")
    assert "model-2" not in str(caught.value)


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_directory_of_a_saved_model_leads_to_its_variables(run_url, slash, capsys):
    _save(f"{run_url}/variables/variables")
    _put(locate(f"{run_url}/saved_model.pb"), b"\x08\x01\x12\x02\x0a\x00")
    hint = f"pass {run_url}/variables/variables"
    if not slash:
        _fails(run_url, ck.NotFoundError, "SavedModel", hint)
    assert main(["inspect", run_url + slash]) == 3
    assert hint in "".join(capsys.readouterr())
