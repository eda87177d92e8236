"""Files of safetensors: the library writes what we read, and reads what we write, on disk and on S3."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptstore as ck
from ckptstore.safetensors import from_safetensors, to_safetensors
from ckptstore.storage.registry import locate
from tests.engines.page import block

MIB = 1 << 20
RANDOM = np.random.default_rng(13)
NAMES = (
    *("bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz"),
    *("int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32", "complex64"),
    *("int64", "uint64", "float64"),
)


def tensors() -> dict[str, torch.Tensor]:
    found = {name: torch.arange(12).reshape(3, 4).to(getattr(torch, name)) for name in NAMES}
    found["bool"] = found["bool"] > 0
    return found | {"empty": torch.empty(0, 4), "scalar": torch.tensor(7.0), "a/b.c": torch.ones(3)}


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@pytest.fixture(params=["local", "minio"])
def directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    server = request.getfixturevalue("minio")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.make_bucket()}/run"


def put(path: Path, url: str) -> None:
    """Copy a local file to where it is read."""
    place = locate(url)
    with place.storage.upload(place.key) as upload:
        upload.write(path.read_bytes())
        upload.commit()


def fetch(url: str, path: Path) -> Path:
    place = locate(url)
    path.write_bytes(place.storage.get(place.key).data)
    return path


def test_every_type_that_both_have_there_and_back(directory: str, tmp_path: Path) -> None:
    saved = tensors()
    save_file(saved, tmp_path / "theirs.safetensors", {"format": "pt"})
    source = f"{directory}/in.safetensors"
    put(tmp_path / "theirs.safetensors", source)
    assert from_safetensors(source, f"{directory}/model") == f"{directory}/model"
    with ck.open_checkpoint(f"{directory}/model") as checkpoint:
        assert set(checkpoint) == set(saved)
        for name, tensor in saved.items():
            assert checkpoint[name].shape == tuple(tensor.shape)
            assert checkpoint[name].tobytes() == raw(tensor), name
        specs = checkpoint.specs()
        assert {name: specs[name].dtype.name for name in NAMES} == dict(zip(NAMES, NAMES, strict=True))
    target = f"{directory}/out.safetensors"
    assert to_safetensors(f"{directory}/model", target, metadata={"format": "pt"}) == [target]
    found = load_file(fetch(target, tmp_path / "ours.safetensors"))
    assert {name: (one.dtype, one.shape, raw(one)) for name, one in found.items()} == {
        name: (one.dtype, one.shape, raw(one)) for name, one in saved.items()
    }
    with safe_open(tmp_path / "ours.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    with pytest.raises(ck.ConflictError, match="there already"):
        to_safetensors(f"{directory}/model", target)


def test_files_and_index_as_hugging_face_has_them(directory: str, tmp_path: Path) -> None:
    arrays = {f"layer.{number}": np.full((64, 64), number, np.float32) for number in range(5)}
    ck.Saver().save(arrays, f"{directory}/model", 1)
    files = to_safetensors(
        f"{directory}/model-1",
        f"{directory}/model.safetensors",
        max_shard_size="34KB",
        rename={"layer.0": "first"},
    )
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert files == [f"{directory}/{name}" for name in [*names, "model.safetensors.index.json"]]
    index = json.loads(fetch(files[-1], tmp_path / "index.json").read_text())
    assert index["metadata"] == {"total_size": 5 * 64 * 64 * 4}
    assert set(index["weight_map"]) == {"first", "layer.1", "layer.2", "layer.3", "layer.4"}
    for url, name in zip(files, names, strict=False):
        found = load_file(fetch(url, tmp_path / name))
        assert set(found) == {one for one, file in index["weight_map"].items() if file == name}
    from_safetensors(files[-1], f"{directory}/back", rename={"first": "layer.0"})
    with ck.open_checkpoint(f"{directory}/back") as checkpoint:
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint[name], array)
    from_safetensors(files[:2], f"{directory}/some", names=["layer.1", "first"])
    assert list(ck.open_checkpoint(f"{directory}/some")) == ["first", "layer.1"]


def test_types_that_one_side_lacks_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    odd: dict[str, Any] = {
        "text": np.array(["a"]),
        "wide": np.ones(2, np.complex128),
        **{name: np.ones(2).astype(getattr(ml_dtypes, name)) for name in ("int4", "uint4", "float4_e2m1fn")},
        "w": np.ones(3),
    }
    with ck.BundleWriter(tmp_path / "odd") as writer:
        for name, array in odd.items():
            writer.add(name, array)
        writer.add("quantized", np.ones(2, np.int8), dtype="qint8")
    with pytest.raises(ck.UnsupportedError) as caught:
        to_safetensors(tmp_path / "odd", tmp_path / "odd.safetensors")
    for name in ("'text' (string)", "'wide' (complex128)", "'int4' (int4)", "'quantized' (qint8)"):
        assert name in str(caught.value)
    assert "'w'" not in str(caught.value)
    assert not (tmp_path / "odd.safetensors").exists()
    to_safetensors(tmp_path / "odd", tmp_path / "odd.safetensors", names=["w"])
    assert set(load_file(tmp_path / "odd.safetensors")) == {"w"}

    scales = torch.ones(4).to(torch.float8_e8m0fnu)
    packed = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"scales": scales, "packed": packed, "w": torch.ones(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(ck.UnsupportedError, match=r"2 tensors.*'packed' \(F4\)") as caught:
        from_safetensors(tmp_path / "theirs.safetensors", tmp_path / "none")
    assert "'scales' (F8_E8M0)" in str(caught.value)
    assert not list(tmp_path.glob("none*"))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_stays_within_the_budget_both_ways(tmp_path: Path, traced: None) -> None:
    # Below it a part of an upload, 8 MiB, would count.
    budget = 16 * MIB
    arrays: dict[str, npt.NDArray[Any]] = {
        "large": RANDOM.random((3000, 3000), np.float32),
        "deep": RANDOM.random((2, 3, 700_001), np.float32),
        "small": RANDOM.random(5, np.float32),
    }
    with ck.BundleWriter(tmp_path / "model") as writer:
        writer.add_slice("cut", (2000, 1000), [(0, 1000), (0, -1)], arrays["large"][:1000, :1000])
        writer.add_slice("cut", (2000, 1000), [(1000, 1000), (0, -1)], arrays["large"][1000:2000, :1000])
        for name, array in arrays.items():
            writer.add(name, array)
    whole = arrays | {"cut": arrays["large"][:2000, :1000]}

    def peak_of(call: Any) -> int:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before

    out = tmp_path / "model.safetensors"
    # Headers, threads and the interpreter have some.
    most = budget + 4 * MIB
    assert peak_of(lambda: to_safetensors(tmp_path / "model", out, memory_budget=budget)) < most
    found = load_file(out)
    for name, array in whole.items():
        assert np.array_equal(found[name].numpy(), array), name
    again = tmp_path / "again"
    assert peak_of(lambda: from_safetensors(out, again, memory_budget=budget)) < most
    with ck.open_checkpoint(again) as checkpoint:
        for name, array in whole.items():
            assert np.array_equal(checkpoint[name], array), name


@pytest.mark.parametrize("name", ["small", "large"])
def test_damage_is_found_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    ck.Saver().save({"large": RANDOM.random(MIB, np.float32), "small": np.ones(9)}, f"{tmp_path}/model")
    data = tmp_path / "model.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[-4 if name == "small" else 2 * MIB] ^= 1
    data.write_bytes(content)
    with pytest.raises(ck.ChecksumError) as caught:
        to_safetensors(f"{tmp_path}/model", tmp_path / "model.safetensors", memory_budget=MIB)
    assert caught.value.tensor == name
    assert [file for file in os.listdir(tmp_path) if "safetensors" in file] == []


def test_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(3), "old": torch.zeros(2)}, tmp_path / "model.safetensors")
    scene: dict[str, Any] = {}
    exec(block("import", "frameworks/safetensors"), scene)
    exec(block("export", "frameworks/safetensors"), scene)
    assert sorted(load_file(tmp_path / "out" / "model.safetensors")) == ["new", "w"]
