"""Names, sizes and times for people, safe to send to a terminal."""

from __future__ import annotations

import textwrap
import unicodedata

__all__ = ["count", "display_width", "escaped", "fold", "human_age", "human_size", "plural", "wrapped"]

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AGES = ((60.0, "s"), (60.0, "min"), (24.0, "h"))


def escaped(text: str) -> str:
    r"""Return `text` with every character that is not printable written as an escape.

    Names come from untrusted files: a control character could clear the screen, set the window's title or
    hide a line, and a mark that changes the writing direction could show another name. A byte that is not
    UTF-8 (a lone surrogate here) becomes ``\xff``. A backslash stays one backslash: the result is for
    reading, ``--json`` has the exact name.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def human_size(size_bytes: int) -> str:
    """Return a size in a suitable unit: ``"808 B"``, ``"1.5 MiB"``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= 1024
        # 1023.95 would round to "1024.0".
        if value < 1023.95 or unit == _UNITS[-1]:
            return f"{value:.1f} {unit}"
    raise AssertionError("the last unit takes everything")


def human_age(age_s: float) -> str:
    """Return an age in its largest whole unit: ``"3 min"``, ``"5 h"``, ``"12 d"``."""
    if age_s < -1:
        # One of the two clocks is wrong; a number would hide that.
        return "in future"
    value = max(age_s, 0.0)
    for size, unit in _AGES:
        if value < size:
            return f"{int(value)} {unit}"
        value /= size
    return f"{int(value)} d"


def count(number: int) -> str:
    """Return a whole number with thousands separators: ``"1,234,567"``."""
    return f"{number:,}"


def plural(number: int, thing: str) -> str:
    """Return ``"1 tensor"`` or ``"2 tensors"``."""
    return f"{count(number)} {thing}{'' if number == 1 else 's'}"


def display_width(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fold(text: str, width: int, indent: int = 0) -> list[str]:
    """Return `text` in pieces, cut after a slash if possible.

    Parameters
    ----------
    width : int
        Columns for the first piece.
    indent : int
        How many fewer the other pieces have.
    """
    if display_width(text) <= width:
        return [text]
    pieces = []
    while text:
        end, used = 0, 0
        while end < len(text) and (end == 0 or used + _char_width(text[end]) <= width):
            used += _char_width(text[end])
            end += 1
        if end < len(text):
            slash = text.rfind("/", end // 2, end)
            end = slash + 1 if slash >= 0 else end
        pieces.append(text[:end])
        text = text[end:]
        width -= indent
        indent = 0
    return pieces


def wrapped(text: str, width: int) -> list[str]:
    """Return a sentence in lines of at most `width` columns; words are not broken."""
    if display_width(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    return textwrap.wrap(
        text, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
