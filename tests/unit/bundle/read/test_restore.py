from __future__ import annotations

from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.read.restore import restore_into
from ckptstore.errors import ChecksumError, IncompleteBundleError, TensorNotFoundError, UsageError
from tests.unit.bundle.helpers import data_file, put, saved, take

W = np.arange(6, dtype="f4").reshape(2, 3)


def same(names):
    return {name: name for name in names}


def test_arrays_are_filled_in_place_and_missing_keys_get_new_writable_ones(prefix):
    reader = saved(prefix, {"w": W, "b": np.int64(7), "s": ["x", "y"]})
    w, s = np.zeros((2, 3), "f4"), np.empty(2, object)
    values = {"w": w, "s": s}
    assert restore_into(reader, values, same(["w", "b", "s"])) == ()
    assert values["w"] is w
    assert values["s"] is s
    np.testing.assert_array_equal(w, W)
    assert s.tolist() == [b"x", b"y"]
    assert values["b"].shape == ()
    values["b"][...] = 8


def test_the_mapping_may_call_a_tensor_otherwise(prefix):
    reader = saved(prefix, {"old/w": W})
    values = {"new/w": np.zeros((2, 3), "f4")}
    restore_into(reader, values, {"new/w": "old/w", "copy": "old/w"})
    np.testing.assert_array_equal(values["new/w"], W)
    np.testing.assert_array_equal(values["copy"], W)
    assert values["copy"] is not values["new/w"]


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 6), "f4")[::2, ::2], np.zeros((3, 2), "f4").T, np.zeros((2, 3), "f4")[::-1, ::-1]],
    ids=["strided", "transposed", "reversed"],
)
def test_arrays_of_any_layout_are_filled(prefix, array):
    values = {"w": array}
    restore_into(saved(prefix, {"w": W}), values, {"w": "w"})
    assert values["w"] is array
    np.testing.assert_array_equal(array, W)


def test_only_the_view_is_filled(prefix):
    base = np.full((4, 3), -1, "f4")
    restore_into(saved(prefix, {"w": W}), {"w": base[1:3]}, {"w": "w"})
    assert base[[0, 3]].tolist() == [[-1] * 3] * 2
    np.testing.assert_array_equal(base[1:3], W)


@pytest.mark.parametrize("value", [0, 0.0, True, np.int64(3), None])
def test_numbers_are_replaced_by_arrays(prefix, value):
    values = {"step": value}
    restore_into(saved(prefix, {"step": np.int64(12)}), values, {"step": "step"})
    assert isinstance(values["step"], np.ndarray)
    assert (values["step"].dtype, values["step"].shape, int(values["step"])) == (np.int64, (), 12)


def test_lists_and_text_are_replaced_too(prefix):
    values: dict[str, Any] = {"l": [0.0, 0.0], "t": "", "n": ["", ""], "e": []}
    reader = saved(prefix, {"l": [1.0, 2.0], "t": "text", "n": ["a", "b"], "e": np.zeros(0, "f4")})
    restore_into(reader, values, same(values))
    assert values["l"].tolist() == [1.0, 2.0]
    assert values["t"][()] == b"text"
    assert values["n"].tolist() == [b"a", b"b"]
    assert values["e"].shape == (0,)


@pytest.mark.parametrize(
    ("existing", "expected", "actual"),
    [
        (np.zeros((3, 2), "f4"), "[2, 3]", "[3, 2]"),
        (np.zeros(6, "f4"), "[2, 3]", "[6]"),
        (np.zeros((2, 3), "f8"), "float32", "float64"),
        (np.zeros((2, 3), "i4"), "float32", "int32"),
        (np.zeros((2, 3), ml_dtypes.bfloat16), "float32", "bfloat16"),
        (np.empty((2, 3), object), "float32", "object"),
        (np.broadcast_to(np.float32(0), (2, 3)), "a writable array", "a read-only one"),
        (1.0, "[2, 3]", "[]"),
        ([[0, 0, 0]], "[2, 3]", "[1, 3]"),
        ([["", "", ""]] * 2, "float32", "list"),
        ([[0], [0, 0]], "[2, 3]", "ragged"),
        ({"a": 1}, "a numpy array, a number, text, a list or None", "dict"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(prefix, existing, expected, actual):
    reader = saved(prefix, {"a": W, "w": W})
    a = np.full((2, 3), 9, "f4")
    values = {"a": a, "w": existing}
    with pytest.raises(UsageError) as caught:
        restore_into(reader, values, {"a": "a", "new": "w", "w": "w"})
    assert (caught.value.tensor, caught.value.expected, caught.value.actual) == ("w", expected, actual)
    assert list(values) == ["a", "w"]
    assert values["w"] is existing
    assert (a == 9).all()


def test_a_numpy_scalar_of_another_type_is_refused(prefix):
    with pytest.raises(UsageError, match="type"):
        restore_into(saved(prefix, {"w": np.float64(1)}), {"w": np.float32(0)}, {"w": "w"})


def test_every_tensor_that_does_not_fit_is_counted(prefix):
    reader = saved(prefix, {"old": W, "w": W, "z": W})
    with pytest.raises(UsageError, match=r"'old' there.*In all, 3 tensors \(new, w, z\) do not fit"):
        restore_into(
            reader, {name: np.zeros(1) for name in ("new", "w", "z")}, {"new": "old", "w": "w", "z": "z"}
        )


def test_every_missing_name_is_counted_and_nothing_changes(prefix):
    a = np.zeros((2, 3), "f4")
    with pytest.raises(TensorNotFoundError, match=r"Key kernal .*'kernel'.*In all, 2 tensors \(kernal, zz\)"):
        restore_into(saved(prefix, {"a": W, "kernel": W}), {"a": a}, same(["a", "kernal", "zz"]))
    assert not a.any()


def test_reshape_fills_arrays_with_as_many_elements(prefix):
    reader = saved(prefix, {"w": W})
    for array in (
        np.zeros(6, "f4"),
        np.zeros((3, 2), "f4"),
        np.zeros((2, 3), "f4").T,
        np.zeros((6, 2), "f4")[:, 0],
    ):
        restore_into(reader, {"w": array}, {"w": "w"}, reshape=True)
        np.testing.assert_array_equal(array.ravel(), W.ravel())
    with pytest.raises(UsageError, match="shape"):
        restore_into(reader, {"w": np.zeros(7, "f4")}, {"w": "w"}, reshape=True)


def test_another_byte_order_is_filled_and_told(prefix):
    array = np.zeros((2, 3), ">f4")
    assert restore_into(saved(prefix, {"w": W}), {"w": array}, {"w": "w"}) == ("w",)
    np.testing.assert_array_equal(array, W)


@pytest.mark.parametrize(
    ("array", "filled"),
    [
        (np.zeros(2, "S5"), [b"abc", b"\xc3\xa9"]),
        (np.zeros(2, "U3"), ["abc", "é"]),
        (np.zeros((2, 1), "U4")[:, 0], ["abc", "é"]),
    ],
)
def test_text_of_fixed_width_is_filled_and_told(prefix, array, filled):
    reader = saved(prefix, {"s": ["abc", "é"]})
    assert restore_into(reader, {"s": array}, {"s": "s"}) == ("s",)
    assert array.tolist() == filled


@pytest.mark.parametrize(
    ("strings", "array"),
    [
        ([b"long", b""], np.zeros(2, "S3")),
        ([b"nul\x00", b""], np.zeros(2, "S9")),
        (["four", ""], np.zeros(2, "U3")),
        ([b"\xff", b""], np.zeros(2, "U9")),
    ],
)
def test_text_that_would_be_cut_is_refused_before_anything_changes(prefix, strings, array):
    w = np.zeros((2, 3), "f4")
    reader = saved(prefix, {"w": W, "s": np.array(strings, object)})
    with pytest.raises(UsageError) as caught:
        restore_into(reader, {"w": w, "s": array}, same(["w", "s"]))
    assert caught.value.tensor == "s"
    assert not w.any()


def test_quantized_tensors_fill_integers_and_tensorflows_record_form(prefix):
    reader = saved(prefix, [{"name": "q", "array": np.array([1, -2], np.int8), "dtype": "qint8"}])
    plain, record = np.zeros(2, "i1"), np.zeros(2, [("qint8", "i1")])
    assert restore_into(reader, {"p": plain, "r": record}, {"p": "q", "r": "q"}) == ("r",)
    assert plain.tolist() == [1, -2]
    assert record["qint8"].tolist() == [1, -2]


def test_a_mapping_that_cannot_change_is_fine_if_every_array_is_there(prefix):
    reader = saved(prefix, {"w": W, "b": 1.0})
    w = np.zeros((2, 3), "f4")
    restore_into(reader, MappingProxyType({"w": w}), {"w": "w"})
    np.testing.assert_array_equal(w, W)
    w[:] = 0
    with pytest.raises(UsageError, match="'b'"):
        restore_into(reader, MappingProxyType({"w": w}), same(["w", "b"]))
    assert not w.any()


def test_a_checksum_failure_adds_no_key(prefix):
    reader = saved(prefix, {"a": W, "w": W})
    raw = bytearray(take(data_file(prefix)))
    raw[30] ^= 1
    put(data_file(prefix), bytes(raw))
    values: dict[str, Any] = {}
    with pytest.raises(ChecksumError, match="'w'"):
        restore_into(reader, values, same(["a", "w"]))
    assert values == {}


def test_a_missing_data_file_is_noticed_before_anything_changes(prefix):
    reader = saved(prefix, {"a": W}, {"w": W})
    place = data_file(prefix, 1, 2)
    place.storage.delete_many([place.key])
    a = np.zeros((2, 3), "f4")
    with pytest.raises(IncompleteBundleError):
        restore_into(reader, {"a": a}, same(["a", "w"]))
    assert not a.any()


def test_partitioned_tensors_and_empty_ones_are_restored(prefix):
    reader = saved(
        prefix,
        [
            {"name": "p", "array": W[:1], "shape": (2, 3), "spec": "0,1:-"},
            {"name": "p", "array": W[1:], "shape": (2, 3), "spec": "1,1:-"},
            {"name": "e", "array": np.zeros((0, 3), "f4")},
        ],
    )
    values = {"e": np.zeros((0, 3), "f4"), "p": np.zeros((2, 6), "f4")[:, ::2]}
    restore_into(reader, values, same(values))
    np.testing.assert_array_equal(values["p"], W)
