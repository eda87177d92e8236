"""Element types, and the way from a caller's value to the bytes of a file."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format import dtypes
from ckptstore.format.dtypes import (
    as_bytes_view,
    by_enum,
    by_name,
    check_array_shape,
    from_numpy,
    item_size_bytes,
    storage_dtype,
    swap_unit_bytes,
    to_storage_array,
)

# enum, name, bytes an element (0: each its own), numpy type of what is returned
TENSORFLOW_TABLE = [
    (1, "float32", 4, np.float32),
    (2, "float64", 8, np.float64),
    (3, "int32", 4, np.int32),
    (4, "uint8", 1, np.uint8),
    (5, "int16", 2, np.int16),
    (6, "int8", 1, np.int8),
    (7, "string", 0, object),
    (8, "complex64", 8, np.complex64),
    (9, "int64", 8, np.int64),
    (10, "bool", 1, np.bool_),
    (11, "qint8", 1, np.int8),
    (12, "quint8", 1, np.uint8),
    (13, "qint32", 4, np.int32),
    (14, "bfloat16", 2, ml_dtypes.bfloat16),
    (15, "qint16", 2, np.int16),
    (16, "quint16", 2, np.uint16),
    (17, "uint16", 2, np.uint16),
    (18, "complex128", 16, np.complex128),
    (19, "float16", 2, np.float16),
    (21, "variant", 0, object),
    (22, "uint32", 4, np.uint32),
    (23, "uint64", 8, np.uint64),
    (24, "float8_e5m2", 1, ml_dtypes.float8_e5m2),
    (25, "float8_e4m3fn", 1, ml_dtypes.float8_e4m3fn),
    (26, "float8_e4m3fnuz", 1, ml_dtypes.float8_e4m3fnuz),
    (27, "float8_e4m3b11fnuz", 1, ml_dtypes.float8_e4m3b11fnuz),
    (28, "float8_e5m2fnuz", 1, ml_dtypes.float8_e5m2fnuz),
    (29, "int4", 1, ml_dtypes.int4),
    (30, "uint4", 1, ml_dtypes.uint4),
    (31, "int2", 1, ml_dtypes.int2),
    (32, "uint2", 1, ml_dtypes.uint2),
    (33, "float4_e2m1fn", 1, ml_dtypes.float4_e2m1fn),
]
PLAIN = [dtype for dtype in dtypes.ALL if item_size_bytes(dtype)]
BY_ITSELF = [dtype for dtype in PLAIN if not dtype.name.startswith(("qint", "quint"))]


def named(dtype) -> str:
    return str(dtype)


class TestTable:
    def test_it_is_tensorflows(self):
        assert [
            (dtype.as_datatype_enum, dtype.name, item_size_bytes(dtype), dtype.as_numpy_dtype)
            for dtype in dtypes.ALL
        ] == TENSORFLOW_TABLE

    @pytest.mark.parametrize("dtype", dtypes.ALL, ids=named)
    def test_enum_and_name_lead_to_the_type(self, dtype):
        assert by_enum(dtype.as_datatype_enum, source="s") is dtype
        assert by_name(dtype.name) is dtype

    @pytest.mark.parametrize("dtype", BY_ITSELF, ids=named)
    def test_numpy_types_lead_to_the_plain_type(self, dtype):
        assert from_numpy(dtype.as_numpy_dtype) is dtype

    @pytest.mark.parametrize("dtype", PLAIN, ids=named)
    def test_the_storage_type_has_the_size_in_the_file(self, dtype):
        assert storage_dtype(dtype).itemsize == item_size_bytes(dtype)
        assert storage_dtype(dtype) == np.dtype(dtype.as_numpy_dtype)

    def test_half_is_float16(self):
        assert by_name("half").name == "float16"

    @pytest.mark.parametrize("kind", ["O", "S3", "U3", "S", np.dtypes.StringDType()])
    def test_text_and_bytes_are_string(self, kind):
        assert from_numpy(kind).name == "string"

    def test_both_byte_orders_are_the_same_type(self):
        assert from_numpy(">f4") is from_numpy("<f4")

    def test_tensorflows_own_form_of_a_quantized_type(self):
        assert from_numpy([("qint8", "i1")]).name == "qint8"
        assert from_numpy([("quint16", "<u2")]).name == "quint16"

    @pytest.mark.parametrize(
        ("name", "unit"),
        [
            ("float32", 4),
            ("complex64", 4),
            ("complex128", 8),
            ("bfloat16", 2),
            ("float16", 2),
            ("qint32", 4),
            ("bool", 1),
            ("int8", 1),
            ("quint8", 1),
            ("string", 1),
            ("float8_e5m2", None),
            ("int4", None),
            ("variant", None),
        ],
    )
    def test_units_that_a_big_endian_file_reverses(self, name, unit):
        assert swap_unit_bytes(by_name(name)) == unit


class TestRefusals:
    def test_a_resource_has_no_value(self):
        with pytest.raises(UnsupportedError) as caught:
            by_enum(20, source="x.index", tensor="w")
        assert (caught.value.url, caught.value.tensor) == ("x.index", "w")

    @pytest.mark.parametrize("number", [-1, 0, 34, 100, 101, 133, 2**31])
    def test_numbers_that_no_file_has(self, number):
        with pytest.raises(FormatError) as caught:
            by_enum(number, source="x.index", tensor="w")
        assert caught.value.actual == str(number)

    def test_an_unknown_name_brings_close_ones(self):
        with pytest.raises(UsageError) as caught:
            by_name("foat32")
        assert "float32" in (caught.value.hint or "")
        with pytest.raises(UsageError):
            by_name(7)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "kind", ["M8[s]", "m8[s]", np.longdouble, np.clongdouble, "i4,i4", "V3", ml_dtypes.float8_e3m4]
    )
    def test_numpy_types_without_a_tensorflow_type(self, kind):
        with pytest.raises(UsageError, match="no element type") as caught:
            from_numpy(kind, tensor="w")
        assert caught.value.tensor == "w"
        with pytest.raises(UsageError, match="no element type"):
            to_storage_array(np.zeros(2, kind), tensor="w")

    def test_shapes_that_numpy_cannot_hold(self):
        check_array_shape((0, 2**60), by_name("float32"), source="s")
        check_array_shape((1,) * 64, by_name("float32"), source="s")
        for shape in ((0, 2**61), (1,) * 65):
            with pytest.raises(UnsupportedError, match="numpy has no array"):
                check_array_shape(shape, by_name("float32"), source="s")
            with pytest.raises(ValueError):
                np.empty(shape, np.float32)


class TestNumericValues:
    @pytest.mark.parametrize("dtype", PLAIN, ids=named)
    def test_a_contiguous_array_is_not_copied(self, dtype):
        array = np.zeros((2, 3), dtype.as_numpy_dtype)
        stored, found = to_storage_array(array, dtype)
        assert found is dtype
        assert np.shares_memory(stored, array)
        assert np.shares_memory(as_bytes_view(stored), array)
        assert as_bytes_view(stored).nbytes == 6 * item_size_bytes(dtype)

    @pytest.mark.parametrize("dtype", BY_ITSELF, ids=named)
    def test_scalars_and_empty_arrays(self, dtype):
        scalar = np.zeros((), dtype.as_numpy_dtype)
        stored, found = to_storage_array(scalar)
        assert (stored.shape, found) == ((), dtype)
        assert as_bytes_view(stored).tobytes() == scalar.tobytes()
        assert as_bytes_view(to_storage_array(np.zeros((0, 3), dtype.as_numpy_dtype))[0]).nbytes == 0
        assert to_storage_array(scalar[()])[1] is dtype

    def test_strides_and_byte_order_are_normalised(self):
        array = np.arange(24, dtype=">i4").reshape(2, 3, 4).transpose(2, 0, 1)[::-1, :, ::2]
        stored, _ = to_storage_array(array)
        assert as_bytes_view(stored).tobytes() == np.ascontiguousarray(array).astype("<i4").tobytes()
        assert (stored == array).all()
        assert to_storage_array(np.array([1 + 2j], ">c8"))[0].dtype == np.dtype("<c8")

    def test_the_undefined_bits_of_small_types_are_kept(self):
        raw = np.array([0x0F, 0xFF, 0x71], np.uint8)
        stored, _ = to_storage_array(raw.view(ml_dtypes.int4))
        assert as_bytes_view(stored).tobytes() == raw.tobytes()

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (1, "int64"),
            (1.5, "float64"),
            (True, "bool"),
            (1j, "complex128"),
            ([[1, 2]], "int64"),
            (2**63, "uint64"),
            (np.int8(3), "int8"),
        ],
    )
    def test_python_values_get_the_type_that_numpy_gives_them(self, value, name):
        stored, found = to_storage_array(value)
        assert found.name == name
        assert stored.tolist() == np.asarray(value).tolist()

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            ([1, 2], "qint8"),
            (3, "bfloat16"),
            ([1.5], "float32"),
            ([-8, 7], "int4"),
            ([], "uint16"),
            (1, "complex64"),
            (True, "bool"),
            (0.1, "float16"),
            ([1, 2.5], "float8_e5m2"),
            (float("inf"), "float32"),
            (3, "uint64"),
        ],
    )
    def test_python_values_take_a_type_that_keeps_them(self, value, name):
        stored, found = to_storage_array(value, name)
        assert found.name == name
        assert stored.dtype == storage_dtype(found)
        assert np.allclose(stored.astype(complex), np.asarray(value), rtol=1e-3)

    @pytest.mark.parametrize(
        ("value", "name"),
        [
            (300, "int8"),
            (-1, "uint8"),
            (1.5, "int32"),
            (1.0, "int32"),
            ([1e300], "float32"),
            (1j, "float32"),
            (8, "int4"),
            (2, "bool"),
            (True, "int32"),
            ("a", "int8"),
            (1, "string"),
            (1, "variant"),
            (2**70, "int64"),
            (1000000000.0, "float16"),
        ],
    )
    def test_python_values_that_do_not_fit_are_refused(self, value, name):
        with pytest.raises(UsageError) as caught:
            to_storage_array(value, name, tensor="w")
        assert caught.value.tensor == "w"

    @pytest.mark.parametrize(
        ("array", "name"),
        [
            (np.zeros(1), "float32"),
            (np.zeros(1, "u2"), "bfloat16"),
            (np.zeros(1, "i1"), "quint8"),
            (np.zeros(1, "i4"), "string"),
            (np.zeros(1, "i4"), "variant"),
            (np.float64(1), "float32"),
            (np.array(["a"]), "int8"),
        ],
    )
    def test_arrays_of_another_type_are_refused(self, array, name):
        with pytest.raises(UsageError, match=f"cannot be stored as {name}") as caught:
            to_storage_array(array, name, tensor="w")
        assert caught.value.tensor == "w"

    def test_quantized_types_take_the_plain_integers(self):
        stored, found = to_storage_array(np.array([-3, 4], "i1"), by_name("qint8"))
        assert found.name == "qint8"
        assert stored.tolist() == [-3, 4]
        records = np.array([(5,), (6,)], [("quint8", "u1")])
        stored, found = to_storage_array(records)
        assert (found.name, stored.dtype, stored.tolist()) == ("quint8", np.uint8, [5, 6])

    @pytest.mark.parametrize("value", [[[1], [2, 3]], [1, [2]]])
    def test_ragged_lists_are_refused(self, value):
        with pytest.raises(UsageError, match="cannot make an array"):
            to_storage_array(value, tensor="w")

    def test_only_plain_contiguous_memory_has_a_view_as_bytes(self):
        for array in (np.zeros((2, 3)).T, np.array([b"a"], object)):
            with pytest.raises(UsageError, match="C-contiguous"):
                as_bytes_view(array)


class TestStrings:
    @pytest.mark.parametrize(
        ("value", "shape", "elements"),
        [
            ("é", (), [b"\xc3\xa9"]),
            (b"\xff\x00", (), [b"\xff\x00"]),
            (np.str_("a"), (), [b"a"]),
            (np.bytes_(b"a"), (), [b"a"]),
            (["a\0", "b"], (2,), [b"a\0", b"b"]),
            ([b"a\0", b"\0"], (2,), [b"a\0", b"\0"]),
            (["a", b"\xff"], (2,), [b"a", b"\xff"]),
            ([["a"], ["b"]], (2, 1), [b"a", b"b"]),
            (np.array(["x", "世"]), (2,), [b"x", "世".encode()]),
            (np.array([b"x\0", b"y"]), (2,), [b"x", b"y"]),
            (np.array([["x", b"y"]], object), (1, 2), [b"x", b"y"]),
            (np.array(["ab", ""], np.dtypes.StringDType()), (2,), [b"ab", b""]),
            (np.array([], "U1"), (0,), []),
            (np.array(["a", "b", "c", "d"]).reshape(2, 2).T, (2, 2), [b"a", b"c", b"b", b"d"]),
            (np.array(b"q", object), (), [b"q"]),
        ],
    )
    def test_text_becomes_utf8_and_bytes_stay(self, value, shape, elements):
        stored, found = to_storage_array(value)
        assert found.name == "string"
        assert (stored.dtype, stored.shape) == (np.dtype(object), shape)
        assert stored.ravel().tolist() == elements
        assert all(type(element) is bytes for element in stored.ravel())
        assert to_storage_array(value, "string")[0].tolist() == stored.tolist()

    def test_the_callers_array_is_not_changed(self):
        array = np.array(["a", b"b"], object)
        to_storage_array(array)
        assert array.tolist() == ["a", b"b"]

    @pytest.mark.parametrize(
        ("value", "place", "kind"),
        [
            ([["a", "b"], ["c", 1]], "[1, 1]", "int"),
            (["a", 1], "[1]", "int"),
            ([None], "[0]", "NoneType"),
            (None, "[]", "NoneType"),
            (np.array([b"a", 2.5], object), "[1]", "float"),
            ({"a": 1}, "[]", "dict"),
            (2**70, "[]", "int"),
        ],
    )
    def test_other_objects_are_refused_with_their_place(self, value, place, kind):
        with pytest.raises(UsageError, match="neither text nor bytes") as caught:
            to_storage_array(value, tensor="w")
        assert (caught.value.tensor, caught.value.actual) == ("w", kind)
        assert f"element {place} " in str(caught.value)

    def test_half_a_surrogate_pair_is_refused(self):
        with pytest.raises(UsageError, match="surrogate"):
            to_storage_array(["ok", "\ud800"], tensor="w")


class TestVariants:
    def test_serialized_protos_have_to_be_asked_for(self):
        stored, found = to_storage_array(np.array([b"p", b""], object), "variant")
        assert (found.name, stored.tolist()) == ("variant", [b"p", b""])
        assert to_storage_array([b"p"], "variant")[1].name == "variant"
        assert to_storage_array(b"p", "variant")[0][()] == b"p"

    def test_text_is_no_proto(self):
        with pytest.raises(UsageError, match="serialized proto"):
            to_storage_array(["a"], "variant", tensor="w")
