"""Values that a restore replaces, because they cannot be filled."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import UsageError
from ckptstore.format.dtypes import by_name
from ckptstore.trackable.replacement import check_replaceable, check_restorable, convert_like, replace_value
from ckptstore.trackable.walk import walk

WHERE = {"path": "x", "url": "memory://docs/model"}


def node_of(value):
    return walk({"x": value}).nodes[1]


@pytest.mark.parametrize(
    ("value", "dtype", "stored", "expected"),
    [
        (5, "int64", np.array(7), 7),
        (5, "int32", np.array(7, np.int32), 7),
        (5, "uint8", np.array(7, np.uint8), 7),
        (5, "int4", np.array(7, ml_dtypes.int4), 7),
        (True, "bool", np.array(False), False),
        (1.5, "float32", np.array(0.5, np.float32), 0.5),
        (1.5, "bfloat16", np.array(0.5, ml_dtypes.bfloat16), 0.5),
        (1j, "complex64", np.array(2j, np.complex64), 2j),
        ("a", "string", np.array("é".encode(), object), "é"),
        (b"a", "string", np.array(b"\xff\x00", object), b"\xff\x00"),
        (np.float32(1), "float32", np.array(0.5, np.float32), np.float32(0.5)),
        (np.str_("a"), "string", np.array(b"b", object), np.str_("b")),
        (np.bytes_(b"a"), "string", np.array(b"b", object), np.bytes_(b"b")),
    ],
)
def test_a_value_is_replaced_by_one_of_its_type(value, dtype, stored, expected):
    node = node_of(value)
    check_replaceable(node, by_name(dtype), (), **WHERE)
    new = convert_like(node, stored, **WHERE)
    assert (type(new), new) == (type(expected), expected)
    replace_value(node, new)
    assert node.refs[0].holder["x"] is new


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (5, "float32", ()),
        (5, "bool", ()),
        (5, "string", ()),
        (5, "int64", (1,)),
        (True, "int64", ()),
        (1.5, "int64", ()),
        (1.5, "complex64", ()),
        ("a", "int64", ()),
        (b"a", "variant", ()),
        ("a", "string", (1,)),
        (np.float32(1), "float64", ()),
        (np.int64(1), "int32", ()),
    ],
)
def test_another_type_or_shape_is_refused(value, dtype, shape):
    with pytest.raises(UsageError, match="does not have the shape and type") as info:
        check_replaceable(node_of(value), by_name(dtype), shape, **WHERE)
    assert info.value.tensor == "x"
    assert info.value.expected == f"{dtype} {list(shape)}"


def test_what_stands_in_a_tuple_cannot_be_replaced():
    node = walk({"t": (5,)}).nodes[2]
    with pytest.raises(UsageError, match=r"element of a tuple.*0-d array"):
        check_restorable(node, lambda: "t/0")


def test_bytes_that_are_no_text_do_not_replace_text():
    with pytest.raises(UsageError, match="not UTF-8"):
        convert_like(node_of("a"), np.array(b"\xff", object), **WHERE)
