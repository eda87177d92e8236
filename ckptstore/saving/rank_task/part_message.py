"""What a rank reports of its data file, for the index: the entries, or their checksums alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ckptstore.bundle.write.index_memory import IndexPart
from ckptstore.errors import CorruptError

__all__ = ["decode_part", "encode_part", "report_name"]

_CHECKSUM_BYTES: Final = 4


def report_name(save: str, order: int) -> str:
    """Return the name of the reports on an order of a save: both sides remember what was said there."""
    return f"{save}.{order}"


def encode_part(part: IndexPart, like: str) -> tuple[dict[str, Any], bytes]:
    """Return what goes into the head of a report, and the bytes beside it.

    Parameters
    ----------
    part : bytes or ndarray
    like : str
        The reports that checksums refer to.
    """
    if isinstance(part, bytes):
        return {}, part
    return {"like": like}, part.astype("<u4").tobytes()


def decode_part(head: Mapping[str, Any], data: bytes, like: str, shown: str) -> IndexPart:
    """Return the part in a report.

    Parameters
    ----------
    like : str
        The reports that are remembered here.
    shown : str
        Whose report it is, for the message.

    Raises
    ------
    CorruptError
        If there are checksums that refer to others.
    """
    if "like" not in head:
        return data
    if head["like"] != like or len(data) % _CHECKSUM_BYTES:
        raise CorruptError(
            f"{shown} reports the checksums of something else than it was asked for",
            expected=repr(like),
            actual=repr(head["like"]),
        )
    return np.frombuffer(data, "<u4").astype(np.uint32)
