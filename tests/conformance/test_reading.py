"""Every checkpoint of TensorFlow reads as TensorFlow reads it."""

from __future__ import annotations

import base64
import hashlib
import json
import struct

import numpy as np
import pytest

from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.format.coding import decode_varint
from ckptstore.format.slices import encode_slice_key
from ckptstore.reading.open_checkpoint import open_checkpoint
from ckptstore.train.checkpoint_reader import list_variables, load_checkpoint
from ckptstore.types import Slice
from tests.conformance.fixtures import CASES, ROOT, assert_value, named

V2 = [case for case in CASES if case.is_v2]


def test_the_fixtures_are_all_there_and_unchanged():
    directories = [item["dir"] for item in json.loads((ROOT / "README.json").read_text())["fixtures"]]
    assert sorted({case.directory.name for case in CASES}) == sorted(directories)
    for path in ROOT.glob("*/expected.json"):
        for name, facts in json.loads(path.read_text())["files"].items():
            data = (path.parent / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (facts["size"], facts["sha256"]), name


@pytest.mark.parametrize(**named(CASES))
def test_names_types_and_shapes(case):
    specs = case.open().specs()
    assert sorted(specs) == sorted(case.tensors)
    for name, tensor in case.tensors.items():
        spec = specs[name]
        assert (spec.dtype.name, spec.dtype.as_datatype_enum) == (tensor["dtype"], tensor["dtype_enum"])
        assert list(spec.shape) == tensor["shape"]
        if "nbytes" in tensor:
            assert spec.nbytes == tensor["nbytes"]
    assert list_variables(case.prefix) == sorted(
        (name, tensor["shape"]) for name, tensor in case.tensors.items()
    )


@pytest.mark.parametrize(**named(CASES))
def test_values_one_by_one_all_at_once_and_in_place(case):
    reader = case.open()
    with open_checkpoint(case.prefix) as ckpt:
        restored = ckpt.restore().restored
    arrays = {name: np.empty(array.shape, array.dtype) for name, array in restored.items()}
    with open_checkpoint(case.prefix) as ckpt:
        ckpt.restore(into=arrays)
    assert sorted(restored) == sorted(case.tensors)
    for name, tensor in case.tensors.items():
        for array in (reader.read(name), restored[name], arrays[name]):
            assert_value(array, tensor)
            assert array.dtype.isnative


@pytest.mark.parametrize(**named([case for case in CASES if "debug_string_b64" in case.expected]))
def test_the_debug_string(case):
    found = load_checkpoint(case.prefix).debug_string()
    wanted = base64.b64decode(case.expected["debug_string_b64"])
    if case.is_v2:
        assert found == wanted
    else:
        assert sorted(found.splitlines()) == sorted(wanted.splitlines())


@pytest.mark.parametrize(**named(V2))
def test_where_the_bytes_are(case):
    reader = case.open()
    assert reader.header.num_shards == case.expected["num_shards"]
    assert reader.header.big_endian == (case.expected["endianness"] == "BIG")
    seen = set()
    for piece in case.expected["layout"]:
        name = piece["name"]
        if "slice" in piece:
            box = Slice(tuple(map(tuple, piece["slice"])))
            assert box in reader.entry(name).slices
            name = encode_slice_key(name, box).decode("utf-8", "surrogateescape")
        entry = reader.entry(name)
        assert (entry.shard_id, entry.offset, entry.size_bytes) == (
            piece["shard"],
            piece["offset"],
            piece["size"],
        )
        seen.add(name)
    assert len(seen) == len(reader.raw_keys())


@pytest.mark.parametrize(**named(V2))
def test_slices_in_their_order(case):
    reader = case.open()
    found = {
        name: [[list(extent) for extent in box.extents] for box in spec.slices]
        for name, spec in reader.specs().items()
        if spec.slices
    }
    assert found == case.expected["slices_order"]


@pytest.mark.parametrize(**named(CASES))
def test_nothing_is_wrong_with_them(case):
    for quick in (True, False):
        report = verify_bundle(case.location, quick=quick)
        assert report.faults == report.notes == ()
        assert report.tensors_checked == len(case.tensors)


def test_variants_are_the_stored_protos():
    (case,) = (case for case in CASES if case.expected["prefix"] == "variant")
    raw = case.data(0)
    reader = case.open()
    for piece in case.expected["layout"]:
        if case.tensors[piece["name"]]["dtype"] != "variant":
            continue
        stored = raw[piece["offset"] : piece["offset"] + piece["size"]]
        protos, pos = [], 0
        while pos < len(stored):
            length, pos = decode_varint(stored, pos, source="")
            protos.append(stored[pos : pos + length])
            pos += length + struct.calcsize("<I")
        found = reader.read(piece["name"])
        assert found.dtype == object
        assert found.ravel().tolist() == protos
        assert all(b"tensorflow::TensorList" in proto for proto in protos)
