"""V1 checkpoints."""

from __future__ import annotations

import base64
import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import CorruptError, FormatError, UnsupportedError
from ckptstore.format.coding import encode_bytes_field, encode_tag, encode_varint, encode_varint_field
from ckptstore.format.dtypes import by_name
from ckptstore.format.legacy_v1 import V1Tensor, parse_v1_table, read_v1_slice
from ckptstore.format.shape_proto import encode_shape, encode_slice
from ckptstore.format.slices import encode_slice_key, full_slice
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder
from ckptstore.types import Slice


def tensor_meta(name: bytes, shape: bytes, dtype_enum: int, *slices: bytes) -> bytes:
    return encode_bytes_field(
        1,
        encode_bytes_field(1, name)
        + encode_bytes_field(2, shape)
        + encode_varint_field(3, dtype_enum)
        + b"".join(encode_bytes_field(4, one) for one in slices),
    )


def v1_table(meta: bytes, values: dict[bytes, bytes]) -> Table:
    builder = TableBuilder()
    builder.add(b"", meta)
    for key, value in sorted(values.items()):
        builder.add(key, value)
    return Table.from_bytes(builder.finish(), source="x")


def one_tensor(dtype: str, shape: tuple[int, ...], proto: bytes, *, saved_name: bytes = b"w") -> Table:
    box = full_slice(len(shape))
    meta = encode_bytes_field(
        1, tensor_meta(b"w", encode_shape(shape), by_name(dtype).as_datatype_enum, encode_slice(box))
    )
    saved = encode_bytes_field(
        2,
        encode_bytes_field(1, saved_name)
        + encode_bytes_field(2, encode_slice(box))
        + encode_bytes_field(3, proto),
    )
    return v1_table(meta, {encode_slice_key("w", box): saved})


def read_one(table: Table) -> np.ndarray:
    tensor = parse_v1_table(table, source="x")["w"]
    assert tensor.slices == (full_slice(len(tensor.shape)),)
    return read_v1_slice(table, tensor, tensor.slices[0], source="x")


def packed(number: int, values) -> bytes:
    return encode_bytes_field(number, b"".join(encode_varint(n % 2**64) for n in values))


class TestFixtures:
    def test_every_value_is_the_expected_one(self, fixtures_dir):
        root = fixtures_dir / "05_v1_format"
        dtypes = set()
        for checkpoint in json.loads((root / "expected.json").read_text())["checkpoints"]:
            found: dict[str, np.ndarray] = {}
            paths = sorted(root.glob(checkpoint["prefix"]))
            assert paths
            for path in paths:
                table = Table.from_bytes(path.read_bytes(), source=path.name)
                for name, tensor in parse_v1_table(table, source=path.name).items():
                    for box in tensor.slices:
                        part = read_v1_slice(table, tensor, box, source=path.name)
                        whole = found.setdefault(name, np.zeros(tensor.shape, part.dtype))
                        whole[tuple(slice(a, a + n) for a, n in box.resolve(tensor.shape))] = part
            assert set(found) == set(checkpoint["tensors"])
            for name, expected in checkpoint["tensors"].items():
                assert found[name].shape == tuple(expected["shape"])
                dtypes.add(expected["dtype"])
                if expected["dtype"] == "string":
                    texts = [base64.b64encode(element).decode() for element in found[name].ravel()]
                    assert texts == expected["strings_b64"]
                else:
                    assert hashlib.sha256(found[name].tobytes()).hexdigest() == expected["sha256"], name
        assert len(dtypes) == 13

    def test_the_index_of_a_v2_checkpoint_is_not_taken_for_an_empty_one(self, fixtures_dir):
        for path in fixtures_dir.rglob("*.index"):
            with pytest.raises(FormatError, match="not a V1 checkpoint") as caught:
                parse_v1_table(Table.from_bytes(path.read_bytes(), source="s"), source=path.name)
            assert "prefix" in (caught.value.hint or "")


class TestValues:
    @pytest.mark.parametrize(
        ("dtype", "proto", "expected"),
        [
            ("float32", encode_bytes_field(5, struct.pack("<2f", 1, -2)), [1, -2]),
            (
                "float64",
                encode_tag(6, 1) + struct.pack("<d", 0.5) + encode_bytes_field(6, struct.pack("<d", 2)),
                [0.5, 2],
            ),
            ("complex64", encode_bytes_field(9, struct.pack("<4f", 1, 2, 3, 4)), [1 + 2j, 3 + 4j]),
            ("complex128", encode_bytes_field(12, struct.pack("<4d", 1, 2, 3, 4)), [1 + 2j, 3 + 4j]),
            ("int32", packed(7, [-5, 2**31 - 1]), [-5, 2**31 - 1]),
            ("int32", encode_varint_field(7, -5) + packed(7, [6]), [-5, 6]),
            ("int16", packed(7, [-(2**15), 2**15 - 1]), [-(2**15), 2**15 - 1]),
            ("int8", packed(7, [-128, 127]), [-128, 127]),
            ("uint8", packed(7, [0, 255]), [0, 255]),
            ("uint16", packed(7, [0, 65535]), [0, 65535]),
            ("qint8", packed(7, [-1, 1]), [-1, 1]),
            ("quint8", packed(7, [200, 1]), [200, 1]),
            ("qint32", packed(7, [-200, 1]), [-200, 1]),
            ("int64", packed(10, [-(2**63), 2**63 - 1]), [-(2**63), 2**63 - 1]),
            ("bool", packed(11, [1, 0]), [True, False]),
            ("float16", packed(13, [0x3C00, 0xC000]), [1, -2]),
            ("string", encode_bytes_field(8, b"a") + encode_bytes_field(8, b"\xff"), [b"a", b"\xff"]),
        ],
    )
    def test_every_type_is_in_its_field(self, dtype, proto, expected):
        found = read_one(one_tensor(dtype, (2,), proto))
        assert found.dtype == np.dtype(by_name(dtype).as_numpy_dtype)
        assert found.tolist() == expected

    @pytest.mark.parametrize("shape", [(0,), (0, 2**40), (3, 0)])
    def test_no_elements_are_an_empty_proto(self, shape):
        assert read_one(one_tensor("int32", shape, b"")).shape == shape

    def test_many_values(self):
        values = np.arange(-50_000, 50_000, dtype=np.int64) ** 3
        found = read_one(one_tensor("int64", (100, 1000), packed(10, values.tolist())))
        assert (found == values.reshape(100, 1000)).all()

    @pytest.mark.parametrize(
        ("dtype", "proto"),
        [
            ("int32", packed(7, [1])),
            ("int32", packed(7, [1, 2, 3])),
            ("int32", packed(10, [1, 2])),
            ("int8", packed(7, [1, 128])),
            ("uint8", packed(7, [-1, 1])),
            ("bool", packed(11, [2, 1])),
            ("float16", packed(13, [1, 65536])),
            ("float32", encode_bytes_field(5, bytes(4))),
            ("float32", encode_bytes_field(5, bytes(7))),
            ("complex64", encode_bytes_field(9, bytes(12))),
            ("string", encode_bytes_field(8, b"abc")),
            ("int32", encode_bytes_field(7, b"\x80" * 12)),
            ("int32", b"\x3a\x50"),
            ("float32", b""),
        ],
    )
    def test_values_that_do_not_match_shape_and_type_are_refused(self, dtype, proto):
        with pytest.raises(FormatError) as caught:
            read_one(one_tensor(dtype, (2,), proto))
        assert (caught.value.url, caught.value.tensor) == ("x", "w")

    @pytest.mark.parametrize(
        "dtype", ["uint32", "uint64", "bfloat16", "float8_e5m2", "int4", "qint16", "quint16", "variant"]
    )
    def test_types_that_the_format_never_had_are_unsupported(self, dtype):
        with pytest.raises(UnsupportedError, match=dtype):
            read_one(one_tensor(dtype, (1,), packed(7, [1])))

    @pytest.mark.parametrize("dtype", ["float32", "string", "int64", "bool"])
    def test_a_huge_shape_allocates_nothing(self, dtype):
        with pytest.raises((FormatError, UnsupportedError)):
            read_one(one_tensor(dtype, (2**60,), b"\x08\x01"))

    def test_more_dimensions_than_numpy_has_are_unsupported(self):
        with pytest.raises(UnsupportedError):
            read_one(one_tensor("float32", (1,) * 70, encode_bytes_field(5, bytes(4))))

    def test_the_slice_of_another_tensor_is_refused(self):
        with pytest.raises(FormatError, match="another tensor"):
            read_one(one_tensor("int32", (1,), packed(7, [1]), saved_name=b"other"))

    def test_a_slice_that_the_file_lacks(self):
        table = one_tensor("int32", (4,), packed(7, [1]))
        with pytest.raises(FormatError, match="lacks a slice") as caught:
            read_v1_slice(table, V1Tensor("w", (4,), 3, ()), Slice(((0, 2),)), source="x")
        assert caught.value.expected == "0,2"


class TestMeta:
    @pytest.mark.parametrize(
        "meta",
        [
            b"",
            b"\x12\x00",
            b"\x0a\x05",
            encode_bytes_field(1, b"\x08\x01"),
            encode_bytes_field(1, encode_bytes_field(1, b"\x08\x01")),
            encode_bytes_field(1, encode_bytes_field(1, b"\x1a\x01a")),
            encode_bytes_field(1, tensor_meta(b"w", b"\x18\x01", 1)),
            encode_bytes_field(1, tensor_meta(b"w", encode_shape((2,)), 1, encode_slice(Slice(((1, 2),))))),
            encode_bytes_field(1, tensor_meta(b"w", encode_shape((2,)), 1, encode_slice(full_slice(2)))),
            encode_bytes_field(1, tensor_meta(b"w", b"", 1) * 2),
        ],
    )
    def test_malformed_meta_data(self, meta):
        with pytest.raises(FormatError):
            parse_v1_table(v1_table(meta, {}), source="x")

    def test_a_table_without_meta_data(self):
        builder = TableBuilder()
        builder.add(b"a", b"b")
        with pytest.raises(FormatError, match="no meta data"):
            parse_v1_table(Table.from_bytes(builder.finish(), source="x"), source="x")

    def test_order_and_slices_are_kept(self):
        boxes = [Slice(((2, 2), (0, -1))), Slice(((0, 2), (0, -1)))]
        meta = encode_bytes_field(
            1,
            tensor_meta(b"z", encode_shape((4, 3)), 1, *map(encode_slice, boxes))
            + tensor_meta(b"a", b"", 3, b""),
        )
        tensors = parse_v1_table(v1_table(meta, {}), source="x")
        assert list(tensors) == ["z", "a"]
        assert tensors["z"] == V1Tensor("z", (4, 3), 1, tuple(boxes))
        assert tensors["a"].slices == (full_slice(0),)

    @given(st.binary(max_size=60), st.binary(max_size=60), st.booleans())
    def test_any_bytes_end_in_tensors_or_a_typed_error(self, meta, saved, framed):
        if framed:
            meta = encode_bytes_field(1, encode_bytes_field(1, meta))
        table = v1_table(meta, {encode_slice_key("w", full_slice(0)): saved})
        error = None
        try:
            for tensor in parse_v1_table(table, source="x").values():
                for box in tensor.slices:
                    read_v1_slice(table, tensor, box, source="x")
        except (CorruptError, UnsupportedError) as caught:
            error = caught
        assert error is None or error.url == "x"

    @given(
        st.sampled_from(["float32", "int32", "int64", "string", "complex64", "float16"]),
        st.binary(max_size=40),
    )
    def test_any_bytes_as_values_end_in_an_array_or_a_typed_error(self, dtype, proto):
        error = None
        try:
            read_one(one_tensor(dtype, (2,), proto))
        except CorruptError as caught:
            error = caught
        assert error is None or (error.url, error.tensor) == ("x", "w")
