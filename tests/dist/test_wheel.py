"""The built wheel, installed with its dependencies only: it imports, saves, restores, has its commands."""

from __future__ import annotations

import zipfile
from email import message_from_bytes

import pytest

import ckptstore
from tests.dist.archives import BIN, names_in_wheel, run, tracked_files, wheel

# Modules that need an extra, or pytest, which a plain installation does not have.
NEED_MORE = {
    *("ckptstore.storage.s3", "ckptstore.storage.gcs", "ckptstore.testing"),
    # Classes made of the framework's, which the rooms' front doors load on first use.
    *("ckptstore.torch.dcp", "ckptstore.lightning.callback"),
}

SCENE = """
import numpy as np, ckptstore

assert "site-packages" in ckptstore.__file__, ckptstore.__file__
saver = ckptstore.Saver(max_to_keep=2)
for step in (1, 2, 3):
    saver.save({"w": np.full((2, 3), step, np.float32), "n": np.int64(step)}, "model", global_step=step)
latest = ckptstore.latest_checkpoint("./")
restored = {}
ckptstore.Saver().restore(restored, latest)
assert restored["n"] == 3 and (restored["w"] == 3).all() and restored["w"].shape == (2, 3)
graph = ckptstore.import_meta_graph(latest + ".meta").graph
print(latest, graph.get_tensor_by_name("w:0").shape)
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil, ckptstore

names = [module.name for module in pkgutil.walk_packages(ckptstore.__path__, "ckptstore.")]
for name in names:
    if name != "ckptstore.__main__":
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            print(name, error.name)
"""


def test_the_wheel_holds_the_package_and_nothing_else():
    metadata = f"ckptstore-{ckptstore.__version__}.dist-info/"
    files = {name for name in names_in_wheel() if not name.startswith(metadata)}
    assert files == {name for name in tracked_files() if name.startswith("ckptstore/")}
    assert "ckptstore/py.typed" in files
    assert metadata + "licenses/LICENSE" in names_in_wheel()


def test_the_metadata_say_what_a_user_needs():
    with zipfile.ZipFile(wheel()) as archive:
        metadata = message_from_bytes(archive.read(f"ckptstore-{ckptstore.__version__}.dist-info/METADATA"))
    assert metadata["Version"] == ckptstore.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {"s3", "gcs", "rich", "all"}
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_environment_holds_only_the_dependencies():
    listed = run(
        BIN / "python",
        "-c",
        "import importlib.metadata as m; print(*[d.name for d in m.distributions()])",
        cwd=BIN,
    )
    assert {name.lower().replace("_", "-") for name in listed.split()} == {
        *("ckptstore", "numpy", "protobuf", "google-crc32c", "ml-dtypes", "fsspec", "click")
    }


def test_saves_and_restores(tmp_path):
    assert run(BIN / "python", "-W", "error", "-c", SCENE, cwd=tmp_path) == "./model-3 (2, 3)\n"
    assert not list(tmp_path.glob("model-1*"))


def test_the_commands_are_there(tmp_path):
    run(BIN / "python", "-c", SCENE, cwd=tmp_path)
    assert ckptstore.__version__ in run(BIN / "ckptstore", "--version", cwd=tmp_path)
    listed = run(BIN / "ckptstore", "ls", ".", cwd=tmp_path)
    assert "model-2" in listed
    assert "model-3" in listed
    assert "float32" in run(BIN / "ckptstore", "inspect", "model-3", cwd=tmp_path)
    run(BIN / "ckptstore", "verify", "model-3", cwd=tmp_path)
    printed = run(
        BIN / "python",
        "-m",
        "ckptstore.inspect_checkpoint",
        "--file_name=model-3",
        "--all_tensors",
        cwd=tmp_path,
    )
    assert "tensor: w" in printed


def test_modules_import_without_the_extras_but_for_those_that_need_one(tmp_path):
    missing = dict(
        line.split() for line in run(BIN / "python", "-c", IMPORT_EVERYTHING, cwd=tmp_path).splitlines()
    )
    outside = {
        name for name in missing if not any(name == one or name.startswith(one + ".") for one in NEED_MORE)
    }
    assert outside == set()


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/model", "s3"), ("gs://bucket/model", "gcs")])
def test_a_missing_extra_is_named(tmp_path, url, extra):
    code = f"""
import ckptstore
try:
    ckptstore.checkpoint_exists({url!r})
except ckptstore.CkptStoreError as error:
    print(type(error).__name__, error)
"""
    assert f"ckptstore[{extra}]" in run(BIN / "python", "-c", code, cwd=tmp_path)
