"""Tensor values inside protos: every type, both forms, and declarations larger than their file."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.protos import message_class
from ckptstore.format.tensor_proto import RESOURCE, dtype_of, fill_tensor_proto, shape_of, value_of


def proto(dtype_enum, shape, **fields):
    message = message_class("TensorProto")(dtype=dtype_enum, **fields)
    message.tensor_shape.SetInParent()
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def read(message, size_limit=1000):
    return value_of(message, source="/m.meta", size_limit=size_limit, tensor="c")


def sample(dtype):
    if dtype.name == "string":
        return np.array([[b"a", b"", b"\xff\0"], [b"b", b"c", b"d"]], object)
    values = np.array([[0, 1, 1], [1, 0, 1]])
    return values.astype(dtype.as_numpy_dtype)


@pytest.mark.parametrize("dtype", [d for d in dtypes.ALL if d.name != "variant"], ids=str)
def test_what_is_written_is_read(dtype):
    array, _ = dtypes.to_storage_array(sample(dtype), dtype)
    message = message_class("TensorProto")()
    fill_tensor_proto(message, array, dtype)
    value = read(message)
    assert value.dtype == np.dtype(dtype.as_numpy_dtype)
    assert value.shape == (2, 3)
    assert np.array_equal(value, sample(dtype))
    assert not value.flags.writeable


@pytest.mark.parametrize(
    ("enum", "field", "stored", "expected"),
    [
        (1, "float_val", [1.5, -2.0], np.array([1.5, -2], np.float32)),
        (2, "double_val", [1.5, -2.0], np.array([1.5, -2], np.float64)),
        (3, "int_val", [1, -2], np.array([1, -2], np.int32)),
        (4, "int_val", [1, 255], np.array([1, 255], np.uint8)),
        (5, "int_val", [1, -2], np.array([1, -2], np.int16)),
        (6, "int_val", [1, -2], np.array([1, -2], np.int8)),
        (7, "string_val", [b"a", b"b"], np.array([b"a", b"b"], object)),
        (8, "scomplex_val", [1, 2, 3, 4], np.array([1 + 2j, 3 + 4j], np.complex64)),
        (9, "int64_val", [1, -(2**60)], np.array([1, -(2**60)], np.int64)),
        (10, "bool_val", [True, False], np.array([True, False])),
        (11, "int_val", [1, -2], np.array([1, -2], np.int8)),
        (12, "int_val", [1, 255], np.array([1, 255], np.uint8)),
        (13, "int_val", [1, -2], np.array([1, -2], np.int32)),
        (14, "half_val", [0x3F80, 0xC000], np.array([1, -2], ml_dtypes.bfloat16)),
        (17, "int_val", [1, 65535], np.array([1, 65535], np.uint16)),
        (18, "dcomplex_val", [1, 2, 3, 4], np.array([1 + 2j, 3 + 4j], np.complex128)),
        (19, "half_val", [0x3C00, 0xC000], np.array([1, -2], np.float16)),
        (22, "uint32_val", [1, 2**32 - 1], np.array([1, 2**32 - 1], np.uint32)),
        (23, "uint64_val", [1, 2**64 - 1], np.array([1, 2**64 - 1], np.uint64)),
        (24, "float8_val", b"\x3c\xc0", np.array([1, -2], ml_dtypes.float8_e5m2)),
        (29, "int_val", [1, -2], np.array([1, -2], ml_dtypes.int4)),
        (30, "int_val", [1, 15], np.array([1, 15], ml_dtypes.uint4)),
    ],
)
def test_typed_fields(enum, field, stored, expected):
    value = read(proto(enum, (2,), **{field: stored}))
    assert value.dtype == expected.dtype
    assert np.array_equal(value, expected)


def test_the_last_element_repeats_and_missing_ones_are_zero():
    assert read(proto(3, (5,), int_val=[7, 8])).tolist() == [7, 8, 8, 8, 8]
    assert read(proto(3, (2, 2), int_val=[7])).tolist() == [[7, 7], [7, 7]]
    assert read(proto(1, (2,))).tolist() == [0.0, 0.0]
    assert read(proto(7, (2,))).tolist() == [b"", b""]
    assert read(proto(24, (2,))).astype(float).tolist() == [0.0, 0.0]
    assert read(proto(3, (2,), int_val=[1, 2, 3])).tolist() == [1, 2]
    assert read(proto(3, (), int_val=[9])).shape == ()
    assert read(proto(3, (0, 4))).shape == (0, 4)


def test_strings_in_tensor_content():
    assert read(proto(7, (3,), tensor_content=b"\x02\x00\x01" + b"ab" + b"c")).tolist() == [b"ab", b"", b"c"]


def test_one_element_repeated_takes_no_memory():
    value = read(proto(1, (2**40, 4), float_val=[2.5]))
    assert value.shape == (2**40, 4)
    assert value.strides == (0, 0)
    assert value[2**39, 3] == 2.5


@pytest.mark.parametrize(
    ("message", "error", "says"),
    [
        (proto(1, (2**40,), float_val=[1, 2]), UnsupportedError, "more memory than its file"),
        (proto(7, (2**40,), string_val=[b"a", b"b"]), UnsupportedError, "more memory than its file"),
        (proto(1, (2**40, 2**40), float_val=[1]), FormatError, "too many elements"),
        (proto(2, (2**61,), double_val=[1]), UnsupportedError, "shape"),
        (proto(1, (1,) * 100, float_val=[1]), UnsupportedError, "shape"),
        (proto(1, (1,) * 300, float_val=[1]), FormatError, "dimensions"),
        (proto(1, (-1,), float_val=[1]), FormatError, "no complete shape"),
        (proto(1, (2,), tensor_content=b"1234567"), FormatError, "does not fit its shape"),
        (proto(1, (2**61,), tensor_content=b"12345678"), FormatError, "does not fit its shape"),
        (proto(7, (2**40,), tensor_content=b"\x01a"), FormatError, "too short"),
        (proto(7, (1,), tensor_content=b"\x05a"), FormatError, "lengths"),
        (proto(7, (1,), tensor_content=b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), FormatError, "lengths"),
        (proto(7, (1,), tensor_content=b"\xff"), FormatError, "varint"),
        (proto(0, (1,)), FormatError, "no element type"),
        (proto(77, (1,)), FormatError, "element type"),
    ],
    ids=range(15),
)
def test_declarations_that_cannot_be_true(message, error, says):
    with pytest.raises(error, match=says) as raised:
        read(message)
    assert raised.value.url == "/m.meta"
    assert len(str(raised.value)) < 600


def test_a_mostly_repeated_value_may_take_as_much_as_the_file():
    message = proto(1, (600_000,), float_val=[1, 2])
    with pytest.raises(UnsupportedError):
        read(message)
    value = read(message, size_limit=2_400_000)
    assert value[0] == 1
    assert (value[1:] == 2).all()


def test_resources_and_variants_are_serialized_protos():
    handle = message_class("ResourceHandleProto")(name="r")
    assert read(proto(20, (), resource_handle_val=[handle])).item() == handle.SerializeToString()
    assert read(proto(21, (1,), variant_val=[{"type_name": "t"}])).tolist() == [b"\x0a\x01t"]


def test_types_as_graphs_use_them():
    assert dtype_of(101, source="x") == "float32"
    assert dtype_of(133, source="x") == "float4_e2m1fn"
    assert dtype_of(20, source="x") is RESOURCE
    assert dtype_of(120, source="x") is RESOURCE
    assert dtype_of(0, source="x") is None
    for number in (34, 100, 234, -1):
        with pytest.raises(FormatError):
            dtype_of(number, source="x")


def test_shapes():
    shape = message_class("TensorShapeProto")
    assert shape_of(shape(unknown_rank=True)) is None
    assert shape_of(shape()) == ()
    assert shape_of(shape(dim=[{"size": -1}, {"size": 0}, {"size": 5}])) == (None, 0, 5)
