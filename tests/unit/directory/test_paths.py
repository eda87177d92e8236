"""Paths in a record: what lies inside, what is tried, and what is never followed."""

from __future__ import annotations

import pytest

from ckptstore.directory.paths import inside, owner_of, relative_prefix, resolve
from ckptstore.storage.registry import locate


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model-1", "model-1"),
        ("./model-1", "model-1"),
        ("sub/model-1", "sub/model-1"),
        ("sub/../model-1", "model-1"),
        ("/data/run/model-1", "model-1"),
        ("file:///data/run/model-1", "model-1"),
        ("../run/model-1", "model-1"),
        ("../other/model-1", None),
        ("sub/../../x", None),
        ("/data/running/model-1", None),
        ("/data/run/../x", None),
        ("memory://data/run/model-1", None),
        ("s3://data/run/model-1", None),
        ("http://host/model-1", None),
        ("a::b://c", None),
        ("..", None),
    ],
)
def test_relative_to_the_directory(path: str, expected: str | None) -> None:
    assert relative_prefix(locate("/data/run"), path) == expected


def test_only_a_direct_child_can_be_owned() -> None:
    directory = locate("/data/run")
    assert inside(directory, "model-1") == "model-1"
    assert inside(directory, "sub/model-1") is None
    assert inside(directory, ".") is None
    assert inside(directory, "../x") is None


def test_a_moved_directory_is_tried_beside_the_record() -> None:
    directory = locate("/data/run")
    assert [place.key for place in resolve(directory, "/old/place/model-7")] == ["/data/run/model-7"]
    both = resolve(directory, "/old/place/model-7", allow_external_paths=True)
    assert [place.key for place in both] == ["/old/place/model-7", "/data/run/model-7"]
    assert next(p.key for p in resolve(directory, "../x/m", allow_external_paths=True)) == "/data/x/m"
    assert resolve(directory, "/") == resolve(directory, "..") == resolve(directory, ".") == []


def test_memory_urls_stay_in_their_bucket() -> None:
    directory = locate("memory://bucket/run")
    assert relative_prefix(directory, "memory://bucket/run/m-1") == "m-1"
    assert relative_prefix(directory, "memory://other/run/m-1") is None
    assert relative_prefix(directory, "/elsewhere/m-1") is None


def test_the_owner_is_the_basename() -> None:
    assert [owner_of(name) for name in ("model", "model-12", "model--3", "model-00000012", "a-b-7")] == [
        "model",
        "model",
        "model",
        "model",
        "a-b",
    ]
