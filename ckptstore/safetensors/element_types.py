"""Element types: what safetensors calls those of TensorFlow, and what one side lacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ckptstore.errors import UnsupportedError
from ckptstore.format import dtypes
from ckptstore.types import DType

__all__ = ["BITS", "name_in_file", "refuse", "type_in_checkpoint"]

_NAMES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
}
_NAME_IN_FILE = {name: code for code, name in _NAMES.items()}

BITS: Final[dict[str, int]] = {
    **{code: 8 * dtypes.item_size_bytes(dtypes.by_name(name)) for code, name in _NAMES.items()},
    # TensorFlow has no type for these; of F4 it has one that takes a whole byte.
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8},
}
"""Type in a file of safetensors 0.8 → bits of an element; those below a byte are packed."""

_MOST_LISTED = 20


def type_in_checkpoint(code: str) -> DType | None:
    """Return the type for one of a file; None if TensorFlow has none."""
    name = _NAMES.get(code)
    return None if name is None else dtypes.by_name(name)


def name_in_file(dtype: DType) -> str | None:
    """Return what safetensors calls a type; None if it has none."""
    return _NAME_IN_FILE.get(dtype.name)


def refuse(odd: Iterable[tuple[str, str]], *, where: str, url: str) -> None:
    """Raise `UnsupportedError` that lists the tensors whose type `where` does not have, if there are any.

    Parameters
    ----------
    odd : iterable of (str, str)
        Name and type.
    """
    rows = [f"{name!r} ({kind})" for name, kind in odd]
    if not rows:
        return
    more = len(rows) - _MOST_LISTED
    listed = ", ".join(rows[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
    raise UnsupportedError(
        f"{where} has no such element type; {len(rows)} tensors have one: {listed}",
        url=url,
        hint="Nothing was written. Leave them out with names=, or convert them before.",
    )
