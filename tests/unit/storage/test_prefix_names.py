"""Under which names a checkpoint can be saved."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UsageError
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from tests.does_not_raise import does_not_raise

GOOD_EVERYWHERE = [
    "run/model",
    "model",
    "run/m[1]*?",
    "run/model 1",
    "run/100%",
    "run/mod\u00e8le",
    "run/mode\u0300le",
    "run/.hidden",
    "run/m#1",
    "run/" + "n" * 200,
]
BAD_EVERYWHERE = [
    "run/",
    "run/.",
    "run/..",
    "run/a\nb",
    "run/a\0b",
    "run/\x7f",
    "run/" + "n" * 201,
    "run/" + "é" * 101,
]
BAD_ON_OBJECT_STORES = [
    "a//model",
    "a/./model",
    "a/../model",
    "a\nb/model",
    "a\\b/model",
    "run/a\\b",
    "run/q?versionId=3",
    "s" * 256 + "/model",
    "/".join(["d" * 100] * 10) + "/model",
]


@pytest.mark.parametrize("base", ["", "/", "./", "file:///", "memory://"])
@pytest.mark.parametrize("name", GOOD_EVERYWHERE)
def test_good_names(base: str, name: str) -> None:
    with does_not_raise():
        check_prefix_name(locate(base + name))


@pytest.mark.parametrize("base", ["", "/", "memory://"])
@pytest.mark.parametrize("name", BAD_EVERYWHERE)
def test_names_that_are_bad_everywhere(base: str, name: str) -> None:
    location = locate(base + name)
    with pytest.raises(UsageError, match="cannot be saved under this name") as caught:
        check_prefix_name(location)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "/", ".", "..", "memory://", "memory://bucket/"])
def test_a_directory_is_no_prefix(text: str) -> None:
    with pytest.raises(UsageError, match="no name of its own"):
        check_prefix_name(locate(text))


@pytest.mark.parametrize("name", BAD_ON_OBJECT_STORES)
def test_names_that_only_a_disk_takes(name: str) -> None:
    check_prefix_name(locate(name))
    with pytest.raises(UsageError):
        check_prefix_name(locate("memory://" + name))


def test_a_name_that_the_record_cannot_hold_is_refused() -> None:
    # The record is UTF-8 text; the directory above may be called anything.
    check_prefix_name(locate(b"/r\xe8/model"))
    with pytest.raises(UsageError, match="not Unicode"):
        check_prefix_name(locate(b"/run/mod\xe8le"))


@given(st.text(min_size=1))
def test_what_passes_can_be_a_file_name_with_every_suffix(name: str) -> None:
    try:
        location = locate("/run/" + name)
        check_prefix_name(location)
    except UsageError:
        return
    longest = os.fsencode(location.name + "-4294967295.data-00000-of-00001.tmp")
    assert location.name not in ("", ".", "..")
    assert b"\0" not in longest
    assert b"/" not in longest
    assert len(longest) <= 255
