"""Values of tensors as JSON can hold them."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["value_object"]


def value_object(value: Any) -> Any:
    """Return a tensor's value as JSON can hold it.

    Parameters
    ----------
    value : ndarray, numpy scalar or bytes
        As `CheckpointReader.get_tensor` gives it.

    Returns
    -------
    object
        Nested lists in the tensor's shape. Numbers that JSON does not have are ``"NaN"``, ``"Infinity"`` and
        ``"-Infinity"``; a complex number is ``[re, im]``; a string is text if it is UTF-8, else
        ``{"base64": …}``, as is an element of a variant.
    """
    if isinstance(value, bytes):
        return _text_object(value)
    array = np.asarray(value)
    if array.dtype.hasobject:
        return _map_nested(array.tolist(), _text_object)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    elif array.dtype.name.startswith(("int", "uint")):
        # int4 and other types of ml_dtypes would become lists of their own scalars.
        array = array.astype(np.uint64 if array.dtype.name.startswith("u") else np.int64)
    elif array.dtype.kind != "b":
        array = array.astype(np.float64)
    nested = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _map_nested(nested, _number)
    return nested


def _map_nested(nested: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(nested, list):
        return [_map_nested(item, change) for item in nested]
    return change(nested)


def _text_object(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode("ascii")}


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
