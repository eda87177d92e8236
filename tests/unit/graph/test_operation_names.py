"""Names that TensorFlow's importer takes; each case was put to TensorFlow 2.21."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UsageError
from ckptstore.graph.operation_names import check_name, check_scope, is_legal_name, legal_names, unused_scope


@pytest.mark.parametrize(
    "name",
    [
        "a",
        ".a",
        "a>b",
        "a/>b",
        "a/",
        "a//b",
        "a-",
        "a.",
        "..",
        "a>.b",
        "a>0",
        "0",
        "a/_b",
        "W",
        "x" * 100_000,
    ],
)
def test_legal(name):
    assert is_legal_name(name)
    check_name(name)
    assert legal_names([name]) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a>",
        "a>/b",
        ">a",
        "a\\b",
        "/a",
        "a b",
        "_a",
        "-a",
        "a\n",
        "é",
        "a:0",
        "a@",
        "a>>b",
        "a>_b",
        "a>-b",
        "a~",
    ],
)
def test_illegal(name):
    assert not is_legal_name(name)
    with pytest.raises(UsageError):
        check_name(name)
    (legal,) = legal_names([name])
    assert is_legal_name(legal)


def test_illegal_keys_get_legal_names_that_nobody_has():
    keys = ["a b", "a_b", "a_b_1", "a:b", "_a", "v_a", "é", "ü", "w"]
    assert legal_names(keys) == ["a_b_2", "a_b", "a_b_1", "a_b_3", "v_a_1", "v_a", "v_", "v__1", "w"]


@given(st.lists(st.text(max_size=6), unique=True))
def test_names_are_legal_and_all_different(keys):
    names = legal_names(keys)
    assert len(set(names)) == len(keys)
    assert all(map(is_legal_name, names))
    assert all(name == key for key, name in zip(keys, names, strict=True) if is_legal_name(key))


def test_many_illegal_keys_take_linear_time():
    keys = [chr(0x4E00 + number // 50) + chr(0x4E00 + number % 50) for number in range(20_000)]
    assert len(set(legal_names(keys))) == len(keys)


def test_unused_scope():
    assert unused_scope("save", ["a", "saver", "x/save"]) == "save"
    assert unused_scope("save", ["save/Const"]) == "save_1"
    assert unused_scope("save", ["save", "save_1/x", "save_3"]) == "save_2"


def test_scopes():
    assert check_scope("a") == check_scope("a/") == check_scope("a//") == "a"
    assert check_scope("a>b/c") == "a>b/c"
    for scope in ("_s", "a b", "/s", "s>", "é", "", "/", 3):
        with pytest.raises(UsageError):
            check_scope(scope)  # type: ignore[arg-type]
