"""``--printoptions k=v``: how numpy prints values."""

from __future__ import annotations

from typing import Any

__all__ = ["parse_printoption"]

_TRUE = ("true", "t", "1")
_FALSE = ("false", "f", "0")


def parse_printoption(text: str) -> tuple[str, Any]:
    """Return name and value of one of numpy's print options.

    Raises
    ------
    ValueError
        If numpy has no such option, or its value cannot be given as text. Worded as in TensorFlow's tool.
    """
    import numpy as np

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not in the form k=v.")
    present: dict[str, Any] = {**np.get_printoptions()}
    if name not in present:
        raise ValueError(f"{name!r} is not a valid printoption.")
    kind = type(present[name])
    if kind is type(None):
        raise ValueError(f"Setting {name!r} from the command line is not supported.")
    try:
        if kind is not bool:
            return name, kind(value)
        return name, (*_FALSE, *_TRUE).index(value.lower()) >= len(_FALSE)
    except ValueError as error:
        raise ValueError(f"{value!r} is no value for {name!r}.") from error
