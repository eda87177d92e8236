"""Many small tensors are restored in bulk; the outcome is that of one by one, errors included."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.read.batch import ReadBatch
from ckptstore.bundle.read.fetch import fetch
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.read.restore import restore_into
from ckptstore.errors import CkptStoreError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.storage.base import Location
from ckptstore.transfer.transfer import Transfer
from tests.unit.bundle.helpers import craft, data_file, put, saved, take

SMALL = 200


def pieces() -> list[dict[str, Any]]:
    """Return small tensors, and of everything else some among them."""
    found: list[dict[str, Any]] = []
    types = ["<f4", "<i8", "?", "<c8", ml_dtypes.bfloat16, ml_dtypes.int4]
    for i in range(SMALL):
        found.append({"name": f"w/{i:04d}", "array": np.full((i % 4, 3), i % 8).astype(types[i % 6])})
        if i % 50 == 0:
            found.append({"name": f"text/{i}", "array": ["a", "bc" * i]})
            found.append({"name": f"big/{i}", "array": np.full(DIRECT_SIZE_BYTES // 4, i, "f4")})
    found += [{"name": "Ünï/\udc80", "array": 1}, {"name": "q", "array": np.ones(2, "i1"), "dtype": "qint8"}]
    for i in range(2):
        found.append({"name": "part", "array": np.full((2, 3), i), "shape": (4, 3), "spec": f"{2 * i},2:-"})
    return found


def two_shards(prefix: Location) -> None:
    everything = pieces()
    saved(prefix, everything[:90], everything[90:])


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReaderV2, "find_bulk", lambda self, names: None)


def outcome(prefix: Location, values: Any, wanted: dict[str, str] | None = None) -> Any:
    """Restore; return what came of it, in a form that compares: values in their order, or the error."""
    transfer = Transfer("restore", prefix.url)
    reader = open_bundle(prefix)
    try:
        cast = restore_into(
            reader, values, wanted or {name: name for name in reader.names()}, transfer=transfer
        )
    except CkptStoreError as error:
        cast = (type(error).__name__, str(error))
    shown = [
        (name, array.dtype, array.shape, array.flags.writeable, array.tolist())
        for name, array in values.items()
        if isinstance(array, np.ndarray)
    ]
    return cast, shown, transfer.done_bytes, transfer.total_bytes


def compare(monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], Any]) -> Any:
    """Return what `attempt` returns; make sure it is the same without the short way."""
    in_bulk = attempt()
    with monkeypatch.context() as patch:
        one_by_one(patch)
        assert attempt() == in_bulk
    return in_bulk


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of new small arrays of each `fetch`."""
    counts: list[int] = []

    def counting(batch: ReadBatch, *args: Any, **keywords: Any) -> None:
        counts.append(sum(target is None for target in batch.targets))
        fetch(batch, *args, **keywords)

    monkeypatch.setattr("ckptstore.bundle.read.reader_v2.fetch", counting)
    return counts


def test_new_arrays_come_in_the_order_wanted_and_are_their_own(prefix, monkeypatch, rows_read):
    two_shards(prefix)
    names = list(open_bundle(prefix).names())
    wanted = {f"new/{name}": name for name in reversed(names)}
    _, shown, done, total = compare(monkeypatch, lambda: outcome(prefix, {}, wanted))
    assert [name for name, *_ in shown] == list(wanted)
    assert done == total > 4 * DIRECT_SIZE_BYTES
    # One in four has no elements; the number without type is small as well.
    assert rows_read == [SMALL * 3 // 4 + 2, 0]
    values: dict[str, Any] = {}
    restore_into(open_bundle(prefix), values, wanted)
    assert all(values[name].base is None and values[name].flags.aligned for name in wanted if "/w/" in name)


def test_some_arrays_exist_and_fit_more_or_less(prefix, monkeypatch):
    two_shards(prefix)

    def attempt() -> Any:
        values: dict[str, Any] = {}
        for i in range(0, SMALL, 6):
            values[f"w/{i:04d}"] = [
                np.zeros((i % 4, 3), "f4"),
                np.zeros((i % 4, 3), ">f4"),
                np.zeros((3, i % 4), "f4").T,
                np.zeros((i % 4, 6), "f4")[:, ::2],
                None,
            ][i // 6 % 5]
        before = {name: array for name, array in values.items() if array is not None}
        found = outcome(prefix, values)
        assert all(values[name] is array for name, array in before.items())
        return found

    cast, shown, _, _ = compare(monkeypatch, attempt)
    assert len(cast) == len(range(6, SMALL, 30))
    assert len(shown) == len(open_bundle(prefix).names())


@pytest.mark.parametrize("damage", ["checksum", "two checksums", "cut", "cut far", "missing"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "existing"])
def test_damaged_files_are_reported_as_one_by_one(prefix, monkeypatch, damage, is_new):
    two_shards(prefix)
    place = data_file(prefix, 1, 2)
    data = bytearray(take(place))
    small = open_bundle(prefix).entry("w/0190"), open_bundle(prefix).entry("w/0193")
    if damage == "missing":
        place.storage.delete_many([place.key])
    else:
        if "checksum" in damage:
            data[small[1].offset] ^= 1
        if damage == "two checksums":
            data[small[0].offset] ^= 1
        put(place, bytes(data[: {"cut": -1, "cut far": 100}.get(damage)]))

    def attempt() -> Any:
        reader = open_bundle(prefix)
        values = {} if is_new else {name: reader_zeros(reader, name) for name in reader.names()}
        return outcome(prefix, values)

    (kind, message), shown, _, _ = compare(monkeypatch, attempt)
    assert kind == {"checksum": "ChecksumError", "two checksums": "ChecksumError"}.get(
        damage, "IncompleteBundleError" if damage == "missing" else "TruncatedFileError"
    )
    if "checksum" in damage:
        assert ("w/0190" if damage == "two checksums" else "w/0193") in message
    assert bool(shown) is not is_new


def reader_zeros(reader: Any, name: str) -> np.ndarray:
    tensor = reader.stored(name)
    return np.zeros(tensor.shape, tensor.dtype.dtype)


@pytest.mark.parametrize("wrong", ["shape", "type", "read-only", "absent", "text", "frozen", "twice"])
def test_what_does_not_fit_is_reported_as_one_by_one(prefix, monkeypatch, wrong):
    two_shards(prefix)
    wanted = {name: name for name in open_bundle(prefix).names()}

    def attempt() -> Any:
        values: Any = {}
        if wrong in ("shape", "type", "read-only"):
            for name in ("w/0008", "w/0002"):
                shape = (9,) if wrong == "shape" else ((int(name[-1]) % 4), 3)
                values[name] = np.zeros(shape, "i2" if wrong == "type" else "f4" if name[-1] == "8" else "?")
                values[name].flags.writeable = wrong != "read-only"
        elif wrong == "text":
            values["w/0007"] = "text"
        asked = dict(wanted)
        if wrong == "absent":
            asked |= {"w/x": "w/x", "w/y": "w/y", "": ""}
        if wrong == "twice":
            asked["again"] = "w/0001"
        return outcome(prefix, MappingProxyType(values) if wrong == "frozen" else values, asked)

    found, shown, _, _ = compare(monkeypatch, attempt)
    if wrong == "twice":
        assert shown[-1][0] == "again"
    else:
        kind, message = found
        assert kind == ("TensorNotFoundError" if wrong == "absent" else "UsageError")
        assert message


def test_tensors_that_claim_the_same_bytes_are_refused(prefix, monkeypatch):
    entry = BundleEntry(1, (100,), 0, 0, 400)
    craft(prefix, {f"{number:03d}".encode(): entry for number in range(100)}, bytes(1000))
    (kind, message), shown, _, _ = compare(monkeypatch, lambda: outcome(prefix, {}))
    assert kind == "FormatError"
    assert "claim the same bytes" in message
    assert not shown


def test_a_large_tensor_that_claims_the_bytes_of_small_ones_is_refused(prefix, monkeypatch):
    entries = {
        f"{number:03d}".encode(): BundleEntry(1, (100,), 0, 400 * number, 400) for number in range(100)
    }
    entries[b"large"] = BundleEntry(1, (9_999,), 0, 0, 39_996)
    entries[b"text"] = BundleEntry(7, (2,), 0, 0, 30_000)
    craft(prefix, entries, bytes(40_000))
    (kind, message), _, _, _ = compare(monkeypatch, lambda: outcome(prefix, {}))
    assert kind == "FormatError"
    assert "claim the same bytes" in message


def test_the_other_byte_order_goes_the_long_way(prefix, rows_read):
    data = np.arange(100, dtype=">i4").tobytes()
    entries = {
        f"{number:03d}".encode(): BundleEntry(
            3, (), 0, 4 * number, 4, mask(crc32c(data[4 * number : 4 * number + 4]))
        )
        for number in range(100)
    }
    craft(prefix, entries, data, BundleHeader(1, big_endian=True))
    values: dict[str, Any] = {}
    restore_into(open_bundle(prefix), values, {f"{number:03d}": f"{number:03d}" for number in range(100)})
    assert [int(values[f"{number:03d}"]) for number in range(100)] == list(range(100))
    assert rows_read == [0]
