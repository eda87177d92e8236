"""A checkpoint as torch tensors; where there is no accelerator the ring copies from plain memory."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

import ckptstore as ck
import ckptstore.torch
from ckptstore.reading.open_checkpoint import read_to_device
from ckptstore.torch.state_dict import _Copies
from ckptstore.transfer.ring import Ring
from tests.engines.page import block

MIB = 1 << 20
RANDOM = np.random.default_rng(11)
SAME = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
SMALL = ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz")


def tensors() -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {
        name: RANDOM.integers(0, 100, (3, 5)).astype(getattr(np, name, None) or getattr(ml_dtypes, name))
        for name in (*SAME, *SMALL)
    }
    found |= {"bool": np.array([True, False]), "complex64": np.ones((2, 2), np.complex64) * 1j}
    found |= {"complex128": np.array(2 + 1j), "nothing": np.empty((0, 4), np.float32)}
    return found | {
        "large": RANDOM.random((1500, 1000), np.float32),
        "large/bfloat16": RANDOM.random((1 << 20) + 3).astype(ml_dtypes.bfloat16),
    }


TENSORS = tensors()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = f"{tmp_path_factory.mktemp('state')}/model-1"
    ck.Saver().save(TENSORS, prefix)
    return prefix


def assert_same(found: dict[str, Any]) -> None:
    assert list(found) == sorted(TENSORS)
    for name, tensor in found.items():
        array = TENSORS[name]
        assert tensor.dtype == getattr(torch, array.dtype.name), name
        assert tuple(tensor.shape) == array.shape
        assert not tensor.is_inference()
        assert tensor.reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes(), name


def test_every_type_that_torch_has(prefix: str) -> None:
    assert_same(ckptstore.torch.read_state_dict(prefix))


@pytest.mark.parametrize("limit_bytes", [1, 2 * MIB, 256 * MIB])
def test_through_the_ring(prefix: str, limit_bytes: int) -> None:
    copies = _Copies(torch, torch.device("cpu"), direct=False)
    sizes: list[int] = []

    def allocate(size_bytes: int) -> memoryview:
        sizes.append(size_bytes)
        return copies.allocate(size_bytes)

    ring = Ring(limit_bytes, allocate, copies.mark)
    read_to_device(ck.open_checkpoint(prefix), None, copies.place, ring)
    assert_same(copies.tensors)
    assert 0 < sum(sizes) <= max(limit_bytes, MIB // 4)


def test_slices_of_a_partitioned_tensor_through_the_ring(tmp_path: Path) -> None:
    whole = RANDOM.random((700, 900)).astype(ml_dtypes.bfloat16)
    with ck.BundleWriter(tmp_path / "model") as writer:
        writer.add_slice("w", whole.shape, [(0, -1), (0, 500)], whole[:, :500])
        writer.add_slice("w", whole.shape, [(0, -1), (500, 400)], whole[:, 500:])
    copies = _Copies(torch, torch.device("cpu"), direct=False)
    ring = Ring(MIB, copies.allocate, copies.mark)
    read_to_device(ck.open_checkpoint(tmp_path / "model"), None, copies.place, ring)
    np.testing.assert_array_equal(copies.tensors["w"].view(torch.int16).numpy(), whole.view(np.int16))


def test_names_in_their_order_from_an_open_checkpoint_and_inside_inference_mode(prefix: str) -> None:
    with torch.inference_mode(), ck.open_checkpoint(prefix) as checkpoint:
        found = ckptstore.torch.read_state_dict(checkpoint, ["large", "bool"], device="cpu")
        assert list(found) == ["large", "bool"]
        assert checkpoint["bool"].tolist() == [True, False]
    assert not found["large"].is_inference()
    found["large"].add_(1)


def test_the_default_device_is_torchs(prefix: str) -> None:
    with torch.device("meta"), pytest.raises(ck.UsageError, match="no values"):
        ckptstore.torch.read_state_dict(prefix)


@pytest.mark.parametrize("device", ["nope", "xpu:7", 3.5])
def test_a_device_that_torch_cannot_use(prefix: str, device: Any) -> None:
    with pytest.raises(ck.UsageError, match="cannot use this device"):
        ckptstore.torch.read_state_dict(prefix, device=device)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_staging_bytes_are_a_number(prefix: str, value: Any) -> None:
    with pytest.raises(ck.UsageError, match="staging_bytes"):
        ckptstore.torch.read_state_dict(prefix, staging_bytes=value)


@pytest.mark.parametrize("dtype", ["string", "int4", "float4_e2m1fn", "float8_e4m3b11fnuz"])
def test_a_type_that_torch_lacks_is_named_with_its_tensor(tmp_path: Path, dtype: str) -> None:
    array = np.array(["text"]) if dtype == "string" else np.ones(3).astype(getattr(ml_dtypes, dtype))
    ck.Saver().save({"odd": array, "w": np.ones(2)}, f"{tmp_path}/model")
    with pytest.raises(ck.UnsupportedError, match=r"names=") as caught:
        ckptstore.torch.read_state_dict(f"{tmp_path}/model")
    assert (caught.value.tensor, caught.value.actual) == ("odd", dtype)
    assert list(ckptstore.torch.read_state_dict(f"{tmp_path}/model", ["w"])) == ["w"]


def test_a_name_that_is_not_there(prefix: str) -> None:
    with pytest.raises(ck.TensorNotFoundError, match="large"):
        ckptstore.torch.read_state_dict(prefix, ["large/bfloat"])


def test_without_torch(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return whole(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ck.UnsupportedError, match="pip install torch"):
        ckptstore.torch.read_state_dict(prefix)


def test_a_model_is_loaded_as_the_page_says(tmp_path: Path) -> None:
    saved = torch.nn.Linear(4, 2)
    ck.Saver().save({name: one.numpy() for name, one in saved.state_dict().items()}, f"{tmp_path}/model", 1)
    scene: dict[str, Any] = {"make_model": lambda: torch.nn.Linear(4, 2), "device": "cpu", "ckptstore": ck}
    exec(block("torch", "serving"), scene)
    with ck.Live(scene["load"], tmp_path) as live:
        assert live.wait_ready(60)
        with live.use() as model:
            assert torch.equal(model(torch.ones(4)), saved(torch.ones(4)))
