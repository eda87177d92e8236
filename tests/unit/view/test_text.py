from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.view.text import (
    count,
    display_width,
    escaped,
    fold,
    human_age,
    human_size,
    plural,
    wrapped,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer_1/kernel", "layer_1/kernel"),
        ("привет/nu 世界 😀", "привет/nu 世界 😀"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("w\u202egnp.exe", "w\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        (b"w\xff\xfe".decode("utf-8", "surrogateescape"), "w\\xff\\xfe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_only_what_can_be_seen_gets_to_the_terminal(text, shown):
    assert escaped(text) == shown


@given(st.text())
def test_escaped_text_is_printable_and_encodable(text):
    shown = escaped(text)
    assert shown.isprintable()
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (808, "808 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (3 * 1024**6, "3.0 EiB"),
        (5000 * 1024**6, "5000.0 EiB"),
    ],
)
def test_sizes(size, shown):
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (-0.5, "0 s"),
        (-30, "in future"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (86399, "23 h"),
        (86400, "1 d"),
        (400 * 86400, "400 d"),
    ],
)
def test_ages(age, shown):
    assert human_age(age) == shown


def test_counts():
    assert count(1234567) == "1,234,567"
    assert plural(1, "tensor") == "1 tensor"
    assert plural(0, "tensor") == "0 tensors"
    assert plural(12000, "tensor") == "12,000 tensors"


def test_width_counts_columns_and_not_characters():
    assert display_width("abc") == 3
    assert display_width("世界") == 4
    assert display_width("cafe\u0301") == 4


def test_fold_cuts_behind_a_slash():
    assert fold("encoder/layer_1/kernel", 12) == ["encoder/", "layer_1/", "kernel"]
    assert fold("short", 12) == ["short"]
    assert fold("abcdefgh", 3) == ["abc", "def", "gh"]


@given(st.text(), st.integers(min_value=2, max_value=30))
def test_fold_loses_nothing_and_fits(text, width):
    pieces = fold(text, width)
    assert "".join(pieces) == text
    assert all(display_width(piece) <= width for piece in pieces)


def test_sentences_break_between_words_and_keep_paths_whole():
    assert wrapped("  torn: it is gone [run/a-long-name/model-3000]", 24) == [
        "  torn: it is gone",
        "      [run/a-long-name/model-3000]",
    ]
    assert wrapped("short", 24) == ["short"]
