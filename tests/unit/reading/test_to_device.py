"""Reading into the memory of a device, through a ring of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import ckptstore as ck
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.reading.open_checkpoint import read_to_device
from ckptstore.storage.local import storage as local
from ckptstore.storage.registry import locate
from tests.unit.bundle.helpers import craft
from tests.unit.reading.late_device import LateDevice

MIB = 1 << 20
RANDOM = np.random.default_rng(7)
TENSORS: dict[str, npt.NDArray[Any]] = {
    "large": RANDOM.integers(0, 255, 9 * MIB + 13, np.uint8),
    "matrix": RANDOM.random((3, 700_001), np.float32),
    "rows": RANDOM.random((5, 3, 50_000)),
    "scalar": np.array(3.5),
    "nothing": np.empty((0, 3), np.int32),
    "bf16": np.arange(300_001).astype(ml_dtypes.bfloat16),
    "flags": np.array([True, False, True]),
} | {f"small/{n:03d}": RANDOM.random((n, 2)) for n in range(1, 300)}


def read(prefix: str, device: LateDevice, limit_bytes: int, names: list[str] | None = None) -> None:
    read_to_device(ck.open_checkpoint(prefix), names, device.place, device.ring(limit_bytes))


def assert_same(device: LateDevice, expected: dict[str, npt.NDArray[Any]]) -> None:
    assert device.tensors.keys() == expected.keys()
    for name, array in expected.items():
        found = device.tensors[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes(), name


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    prefix = f"{tmp_path_factory.mktemp('device')}/model"
    ck.Saver().save(TENSORS, prefix)
    return prefix


@pytest.mark.parametrize("limit_bytes", [1, MIB, 5 * MIB, 256 * MIB])
def test_late_copies_get_every_byte_within_the_memory_of_the_ring(prefix: str, limit_bytes: int) -> None:
    device = LateDevice()
    read(prefix, device, limit_bytes)
    assert_same(device, TENSORS)
    # A single block is 256 KiB at least.
    assert device.allocated_bytes <= max(limit_bytes, MIB // 4)
    assert device.done == device.begun


def test_the_next_bytes_are_fetched_and_verified_while_the_last_are_copied(prefix: str) -> None:
    device = LateDevice()
    before: list[int] = []
    device.on_wait = lambda: before.append(device.begun)
    read(prefix, device, 2 * MIB, ["large"])
    # No copy was over when these had begun, and they begin when their bytes were verified.
    assert before[0] >= 2


@pytest.mark.parametrize("limit_bytes", [MIB, 64 * MIB])
def test_partitioned_tensors_come_slice_by_slice(tmp_path: Path, limit_bytes: int) -> None:
    whole = RANDOM.random((700, 1000), np.float32)
    with ck.BundleWriter(tmp_path / "model") as writer:
        for rows, columns in ((slice(0, 500), slice(0, 600)), (slice(0, 500), slice(600, 1000))):
            spec = [(part.start, part.stop - part.start) for part in (rows, columns)]
            writer.add_slice("w", whole.shape, spec, whole[rows, columns])
        writer.add_slice("w", whole.shape, [(500, 200), (0, -1)], whole[500:])
    device = LateDevice()
    read(f"{tmp_path}/model", device, limit_bytes)
    assert_same(device, {"w": whole})
    assert device.allocated_bytes <= limit_bytes


@pytest.mark.parametrize("count", [50, 200_000])
def test_a_file_of_the_other_byte_order(tmp_path: Path, count: int) -> None:
    array = np.arange(count, dtype=">i4")
    raw = array.tobytes()
    entry = BundleEntry(3, (count,), 0, 0, len(raw), mask(crc32c(raw)))
    craft(locate(tmp_path / "model"), {b"w": entry}, raw, BundleHeader(1, big_endian=True))
    device = LateDevice()
    read(f"{tmp_path}/model", device, MIB)
    assert_same(device, {"w": array.astype("<i4")})


def test_v1(fixtures_dir: Path) -> None:
    prefix = fixtures_dir / "05_v1_format" / "v1sh.ckpt-8"
    checkpoint = ck.open_checkpoint(prefix)
    names = [name for name, spec in checkpoint.specs().items() if spec.dtype != "string"]
    device = LateDevice()
    read(str(prefix), device, MIB, names)
    assert_same(device, {name: checkpoint.read(name, ...) for name in names})


@pytest.mark.parametrize("name", ["large", "rows", "small/007"])
def test_a_damaged_tensor_is_named_and_no_copy_is_left_under_way(tmp_path: Path, name: str) -> None:
    ck.Saver().save(TENSORS, f"{tmp_path}/model")
    entry = ck.open_checkpoint(f"{tmp_path}/model").specs()[name]
    data = bytearray((tmp_path / "model.data-00000-of-00001").read_bytes())
    at = bytes(data).index(TENSORS[name].tobytes()) + entry.nbytes - 3
    data[at] ^= 1
    (tmp_path / "model.data-00000-of-00001").write_bytes(data)
    device = LateDevice()
    with pytest.raises(ck.ChecksumError) as caught:
        read(f"{tmp_path}/model", device, 2 * MIB)
    assert caught.value.tensor == name
    assert device.done == device.begun


def test_files_of_a_local_disk_are_read_and_not_mapped(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def view(*_args: object, **_options: object) -> None:
        raise AssertionError("mapped")

    monkeypatch.setattr(local.LocalStorage, "view", view)
    device = LateDevice()
    read(prefix, device, 4 * MIB)
    assert_same(device, TENSORS)


def test_a_checkpoint_that_is_replaced_meanwhile_is_read_again_as_a_whole(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    saver.save({"w": np.zeros(9)}, f"{tmp_path}/model")
    checkpoint = ck.open_checkpoint(f"{tmp_path}/model")
    for value in (1.0, 2.0):
        saver.save({"w": np.full(7, value)}, f"{tmp_path}/model")
    device = LateDevice()
    read_to_device(checkpoint, None, device.place, device.ring(MIB))
    assert_same(device, {"w": np.full(7, 2.0)})
    assert checkpoint["w"].shape == (7,)


def test_what_is_written_for_ckptstore_and_tensorflow_is_left_out(tmp_path: Path) -> None:
    prefix = ck.Checkpoint(net={"w": np.ones(3)}).write(f"{tmp_path}/model")
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" in ck.open_checkpoint(prefix)
    device = LateDevice()
    read(prefix, device, MIB)
    assert list(device.tensors) == ["net/w/.ATTRIBUTES/VARIABLE_VALUE"]


def test_a_name_that_is_not_there(prefix: str) -> None:
    device = LateDevice()
    with pytest.raises(ck.TensorNotFoundError, match="matrix"):
        read(prefix, device, MIB, ["matrx"])
    assert device.allocated_bytes == 0
