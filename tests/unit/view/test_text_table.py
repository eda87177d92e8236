from __future__ import annotations

from ckptstore.view.text import display_width
from ckptstore.view.text_table import Column, Row, TextTable, table_lines

COLUMNS = (Column("NAME", flexible=True), Column("SIZE", right=True), Column("NOTE"))


def lines(rows, width=None):
    return [line for line, _ in table_lines(TextTable(COLUMNS, rows), width)]


def test_columns_are_aligned_by_display_width():
    rows = [Row(("w", "8 B", "")), Row(("世界", "1.5 MiB", "x"))]
    assert lines(rows) == [
        "NAME     SIZE  NOTE",
        "w         8 B",
        "世界  1.5 MiB  x",
    ]


def test_without_a_width_a_row_is_one_line():
    assert len(lines([Row(("n" * 500, "8 B", "x"))])) == 2


def test_the_flexible_column_is_folded_to_the_terminal():
    rows = [Row(("encoder/layer_1/attention/kernel", "8 B", "x"))]
    folded = lines(rows, 30)
    assert folded == [
        "NAME                SIZE  NOTE",
        "encoder/layer_1/     8 B  x",
        "  attention/kernel",
    ]
    assert all(display_width(line) <= 30 for line in folded)


def test_a_terminal_too_narrow_still_shows_everything():
    rows = [Row(("abcdefghijklmnopqrstuvwxyz", "8 B", "x"))]
    folded = lines(rows, 5)
    assert "".join(line[:12].strip() for line in folded[1:]) == "abcdefghijklmnopqrstuvwxyz"


def test_lines_carry_the_tone_of_their_row():
    table = TextTable(COLUMNS, [Row(("a", "", ""), "bad"), Row(("b", "", ""))])
    assert [tone for _, tone in table_lines(table)] == ["title", "bad", "plain"]


def test_an_empty_table_has_its_titles():
    assert lines([]) == ["NAME  SIZE  NOTE"]
