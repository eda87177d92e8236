"""The record: the small text file ``checkpoint`` that names the latest checkpoint of a directory.

Format
------
The message ``CheckpointState`` in protobuf's text format, one field a line, as TensorFlow 2.21 writes it
(`tensorflow/python/checkpoint/checkpoint_management.py`, update_checkpoint_state_internal). ``#`` starts a
comment, which every reader skips; this module neither writes nor keeps comments.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass

from ckptstore.errors import FormatError, UsageError

__all__ = ["CheckpointState", "as_utf8", "format_state", "parse_state"]

_HINT = "Look at the file: it may be torn or not a record. The checkpoints beside it are not affected."

# Everything else below 0x20, and DEL, is written as three octal digits; non-ASCII text stays as it is.
_ESCAPES = {code: f"\\{code:03o}" for code in (*range(0x20), 0x7F)} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    ord('"'): '\\"',
    ord("'"): "\\'",
    ord("\\"): "\\\\",
}

# Possessive: a text that is not plain is left after one pass.
_PLAIN_CHARS = r"""[^"'\\\x00-\x1f\x7f]*+"""
_PLAIN_TEXT = re.compile(_PLAIN_CHARS)
_PLAIN_NUMBER = r"[0-9]++\.[0-9]++(?:e[+-]?[0-9]++)?+"
_PLAIN_RECORD = re.compile(
    rf"""(?:\#[^\n]*+\n)*+model_checkpoint_path:\ "(?!")({_PLAIN_CHARS})"\n"""
    rf"""((?:all_model_checkpoint_paths:\ "{_PLAIN_CHARS}"\n)*+)"""
    rf"""((?:all_model_checkpoint_timestamps:\ {_PLAIN_NUMBER}\n)*+)"""
    rf"""(?:last_preserved_timestamp:\ ({_PLAIN_NUMBER})\n)?+"""
)


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """The fields of a record, as in TensorFlow's ``CheckpointState``.

    Attributes
    ----------
    model_checkpoint_path : str
        The latest checkpoint's prefix, as it stands in the file (relative to the record's directory, or
        absolute).
    all_model_checkpoint_paths : tuple of str
        The checkpoints that are kept, oldest first.
    all_model_checkpoint_timestamps : tuple of float
        Seconds since the epoch, one per path; empty where the writer keeps none (TensorFlow's Saver).
    last_preserved_timestamp : float
        When the last checkpoint was set aside for good, seconds since the epoch; 0.0 if never.
    """

    model_checkpoint_path: str
    all_model_checkpoint_paths: tuple[str, ...] = ()
    all_model_checkpoint_timestamps: tuple[float, ...] = ()
    last_preserved_timestamp: float = 0.0


def as_utf8(data: bytes) -> bytes:
    """Return a record as it would be had no editor of Windows saved it: UTF-8, no mark, plain ends of lines.

    Other bytes come back as they are.
    """
    encoding = None
    even, odd = data[0:16:2], data[1:16:2]
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(odd) == 8 and any(even) != any(odd):
        encoding = "utf-16-le" if any(even) else "utf-16-be"
    if encoding is not None:
        try:
            data = data.decode(encoding).encode()
        except UnicodeError:
            return data
    return data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")


def parse_state(data: bytes, *, source: str) -> CheckpointState:
    """Return the fields of the record `data`.

    Parameters
    ----------
    data : bytes
        The whole file, comments included.
    source : str
        URL for error messages.

    Raises
    ------
    FormatError
        If the file is empty, is not UTF-8, is not the text form of a ``CheckpointState`` (an unknown field
        included), or names no latest checkpoint: one message each.
    """
    if not data.strip():
        raise FormatError("the record is empty", url=source, hint=_HINT)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "the record is not UTF-8 text", url=source, offset=error.start, hint=_HINT
        ) from error
    plain = _parse_plain(text)
    if plain is not None:
        return plain
    # On use: it takes a tenth of a second to load.
    from google.protobuf import text_format

    from ckptstore.format.protos import descriptor_pool, message_class, parse_reason

    state = message_class("CheckpointState")()
    try:
        # Merge, as TensorFlow: of a field that stands twice the last one counts.
        text_format.Merge(text, state, descriptor_pool=descriptor_pool())
    except (text_format.ParseError, ValueError, RecursionError) as error:
        # ValueError: numbers and escapes that protobuf's parser hands to Python without a look (UTF-8 in
        # octal, …).
        reason = parse_reason(error)
        raise FormatError(f"the record cannot be parsed: {reason}", url=source, hint=_HINT) from error
    if not state.model_checkpoint_path:
        raise FormatError("the record names no model_checkpoint_path", url=source, hint=_HINT)
    return CheckpointState(
        state.model_checkpoint_path,
        tuple(state.all_model_checkpoint_paths),
        tuple(state.all_model_checkpoint_timestamps),
        state.last_preserved_timestamp,
    )


def _parse_plain(text: str) -> CheckpointState | None:
    """Return the fields of a record as `format_state` writes it without escapes, None of any other.

    protobuf's parser takes 30 microseconds for a line, and a record may have twenty thousand.
    """
    match = _PLAIN_RECORD.fullmatch(text)
    if match is None:
        return None
    # No name has a quote in it, and no number a space.
    return CheckpointState(
        match[1],
        tuple(match[2].split('"')[1::2]),
        tuple(map(float, match[3].split()[1::2])),
        float(match[4] or 0.0),
    )


def format_state(state: CheckpointState) -> bytes:
    """Return the bytes of a record with `state`, exactly as TensorFlow writes them.

    Raises
    ------
    UsageError
        If a path is not UTF-8 text (a file name with stray bytes, decoded by the operating system's rules).

    Format
    ------
    ``name: value`` lines in the order of the field numbers; empty text and a last_preserved_timestamp of 0.0
    are left out; a repeated field has one line a value; numbers as Python's ``repr``.
    """
    lines = []
    if state.model_checkpoint_path:
        lines.append(f"model_checkpoint_path: {_quote(state.model_checkpoint_path)}\n")
    paths = state.all_model_checkpoint_paths
    if _PLAIN_TEXT.fullmatch("".join(paths)):
        lines += [f'all_model_checkpoint_paths: "{path}"\n' for path in paths]
    else:
        lines += [f"all_model_checkpoint_paths: {_quote(path)}\n" for path in paths]
    lines += [
        f"all_model_checkpoint_timestamps: {float(time)!r}\n"
        for time in state.all_model_checkpoint_timestamps
    ]
    preserved = float(state.last_preserved_timestamp)
    # -0.0 is not a default to protobuf, which compares bits.
    if preserved != 0 or math.copysign(1, preserved) < 0:
        lines.append(f"last_preserved_timestamp: {preserved!r}\n")
    try:
        return "".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            "a checkpoint path cannot stand in the record, which is UTF-8 text",
            actual=ascii(error.object[max(0, error.start - 20) : error.end + 20]),
            hint="Rename the directory or file.",
        ) from error


def _quote(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'
