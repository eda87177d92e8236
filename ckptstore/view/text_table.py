"""Tables of text: as data, and as lines for a terminal or a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ckptstore.view.text import display_width, fold

__all__ = ["Column", "Row", "TextTable", "Tone", "table_lines"]

Tone = Literal["title", "plain", "good", "bad", "muted"]
"""The meaning of a line; the output chooses a style for it."""

_GAP = "  "
_HANGING = "  "  # indents the continuation of a folded cell
_MIN_FLEXIBLE = 12


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes
    ----------
    right : bool
        Aligned to the right: numbers.
    flexible : bool
        May be folded if the terminal is too narrow; at most one column.
    prose : bool
        Folded between words; names are folded after a slash.
    dropped : int
        On a terminal that is too narrow although the flexible column is folded, columns with a number are
        left out, 1 first. 0: it always stays.
    """

    title: str
    right: bool = False
    flexible: bool = False
    prose: bool = False
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one row, one per column, already escaped."""

    cells: tuple[str, ...]
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: Sequence[Row]


def table_lines(table: TextTable, width: int | None = None) -> Iterator[tuple[str, Tone]]:
    """Yield the lines of a table, the titles first, each with the tone of its row.

    Parameters
    ----------
    table : TextTable
    width : int, optional
        Columns of the terminal. The flexible column is folded to fit, but stays readable; then columns are
        left out. None: one line per row, of any length, for grep and awk.
    """
    widths = _widths(table)
    if width is not None:
        _shrink(table.columns, widths, width)
        while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
            narrower = _without_one(table)
            if narrower is None:
                break
            table, widths = narrower, _widths(narrower)
            _shrink(table.columns, widths, width)
    yield _line(table.columns, widths, [column.title for column in table.columns]), "title"
    for row in table.rows:
        parts = [
            _folded(cell, size, prose=column.prose) if column.flexible else [cell]
            for column, cell, size in zip(table.columns, row.cells, widths, strict=True)
        ]
        for line in range(max(len(part) for part in parts)):
            cells = [part[line] if line < len(part) else "" for part in parts]
            yield _line(table.columns, widths, cells), row.tone


def _widths(table: TextTable) -> list[int]:
    return [
        max(display_width(text) for text in (column.title, *(row.cells[number] for row in table.rows)))
        for number, column in enumerate(table.columns)
    ]


def _without_one(table: TextTable) -> TextTable | None:
    """Return the table without the column that is dropped first; None if all have to stay."""
    droppable = [(column.dropped, number) for number, column in enumerate(table.columns) if column.dropped]
    if not droppable:
        return None
    _, gone = min(droppable)
    rows = [Row((*row.cells[:gone], *row.cells[gone + 1 :]), row.tone) for row in table.rows]
    return TextTable((*table.columns[:gone], *table.columns[gone + 1 :]), rows)


def _folded(cell: str, width: int, *, prose: bool) -> list[str]:
    if prose:
        return textwrap.wrap(cell, width, subsequent_indent=_HANGING, break_on_hyphens=False) or [""]
    first, *rest = fold(cell, width, len(_HANGING)) or [""]
    return [first, *(_HANGING + piece for piece in rest)]


def _shrink(columns: tuple[Column, ...], widths: list[int], width: int) -> None:
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for number, column in enumerate(columns):
        if column.flexible and excess > 0:
            widths[number] = max(widths[number] - excess, min(widths[number], _MIN_FLEXIBLE))


def _line(columns: tuple[Column, ...], widths: list[int], cells: Sequence[str]) -> str:
    padded = []
    for column, size, cell in zip(columns, widths, cells, strict=True):
        space = " " * max(size - display_width(cell), 0)
        padded.append(space + cell if column.right else cell + space)
    return _GAP.join(padded).rstrip()
