"""From the user's text to scheme and key."""

from __future__ import annotations

import os
import pathlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UsageError
from ckptstore.storage.url import is_within, parse_url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("/run/model", "/run/model"),
        ("/run/model/", "/run/model"),
        ("/run//a/./model", "/run/a/model"),
        ("/run/../model", "/model"),
        ("//run/model", "/run/model"),
        ("/", ""),
        ("file:///run/model", "/run/model"),
        ("FILE:///run/model", "/run/model"),
        ("file:///", ""),
        ("/run/a::b/model", "/run/a::b/model"),
        ("/run/s3:/model", "/run/s3:/model"),
        ("/run/m[1]*?", "/run/m[1]*?"),
        ("/run/100%20", "/run/100%20"),
        ("file:///run/100%20", "/run/100%20"),
    ],
)
def test_absolute_local_paths(text: str, key: str) -> None:
    assert parse_url(text) == ("file", key, text)


@pytest.mark.parametrize(
    ("text", "below"),
    [
        ("model", "/model"),
        ("run/model", "/run/model"),
        ("./model", "/model"),
        ("", ""),
        (".", ""),
        ("./s3:/x", "/s3:/x"),
    ],
)
def test_relative_paths_start_at_the_current_directory(here: str, text: str, below: str) -> None:
    assert parse_url(text) == ("file", here + below, text)


def test_symbolic_links_are_not_resolved(here: str) -> None:
    os.mkdir("real")
    os.symlink("real", "link")
    assert parse_url("link/model").key == f"{here}/link/model"


def test_path_objects_and_bytes_are_taken(here: str) -> None:
    assert parse_url(PurePosixPath("run/model")) == ("file", f"{here}/run/model", "run/model")
    assert parse_url(Path("/run")) == ("file", "/run", "/run")
    assert parse_url(b"/run/model") == ("file", "/run/model", "/run/model")
    assert os.fsencode(parse_url(b"/run/mod\xe8le").key) == b"/run/mod\xe8le"


@pytest.mark.parametrize(
    ("text", "scheme", "key"),
    [
        ("memory://bucket/run/model", "memory", "/bucket/run/model"),
        ("memory:///bucket/run/model", "memory", "/bucket/run/model"),
        ("Memory://bucket", "memory", "/bucket"),
        ("memory://bucket/", "memory", "/bucket"),
        ("memory://", "memory", ""),
        ("memory://bucket/a//b", "memory", "/bucket/a//b"),
        ("s3://bucket/run/model", "s3", "bucket/run/model"),
        ("s3://bucket/run/", "s3", "bucket/run"),
        ("gs://bucket/model", "gs", "bucket/model"),
        ("gcs://bucket/model", "gs", "bucket/model"),
    ],
)
def test_urls(text: str, scheme: str, key: str) -> None:
    assert parse_url(text) == (scheme, key, text)


@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs", "memory", "file"])
def test_a_url_that_went_through_pathlib_is_refused_with_the_reason(scheme: str) -> None:
    for path in (pathlib.Path(f"{scheme}://bucket/model"), str(pathlib.Path(f"{scheme}://bucket/model"))):
        with pytest.raises(UsageError, match=r"pathlib\.Path") as caught:
            parse_url(path)
        assert caught.value.url == f"{scheme}:/bucket/model"
        assert caught.value.expected == f"{scheme}://…"


@pytest.mark.parametrize(
    "text",
    [
        "simplecache::s3://bucket/model",
        "simplecache::file:///run/model",
        "zip://model::s3://bucket/a.zip",
        "memory://a::b",
        "simplecache::model",
        "file:///a::memory://b",
    ],
)
def test_chained_urls_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="chained"):
        parse_url(text)


@pytest.mark.parametrize(
    "text", ["zip://host/model", "http://host/model", "local://model", "s3a://b/m", "c++://x"]
)
def test_other_schemes_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="unknown URL scheme") as caught:
        parse_url(text)
    assert "memory://" in (caught.value.expected or "")


@pytest.mark.parametrize("scheme", ["sftp", "abfs", "hdfs", "SFTP"])
def test_other_file_systems_that_fsspec_knows_are_let_through(scheme: str) -> None:
    url = f"{scheme}://host/run/model/"
    assert parse_url(url) == (scheme.lower(), "host/run/model", url)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match="password") as caught:
        parse_url("sftp://me:tops3cret@host/run")
    assert "tops3cret" not in str(caught.value)
    assert caught.value.url == "sftp://***@host/run"
    assert parse_url("abfs://container@account.example/run").key == "container@account.example/run"


@pytest.mark.parametrize("text", ["file://model", "file://host/run/model", "file://"])
def test_a_file_url_needs_an_absolute_path(text: str) -> None:
    with pytest.raises(UsageError, match="absolute path"):
        parse_url(text)


@pytest.mark.parametrize("value", [None, 12, ["a"], object()])
def test_what_is_not_text_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="must be text") as caught:
        parse_url(value)  # type: ignore[arg-type]
    assert caught.value.actual == type(value).__name__


def test_a_current_directory_that_was_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="current directory"):
        parse_url("model")
    assert parse_url("/model").key == "/model"


@given(st.text())
def test_any_text_has_a_key_or_a_usage_error(text: str) -> None:
    try:
        scheme, key, url = parse_url(text)
    except UsageError:
        return
    assert scheme in ("file", "memory", "s3", "gs")
    assert url == text
    assert not key.endswith("/")
    if scheme in ("file", "memory"):
        assert key == "" or key.startswith("/")


@pytest.mark.parametrize(
    ("url", "endpoint", "answer"),
    [
        ("https://s3.us-east-1.amazonaws.com/b", "https://s3.us-east-1.amazonaws.com", True),
        ("https://b.s3.eu-west-1.amazonaws.com/", "https://s3.us-east-1.amazonaws.com", True),
        ("https://b.s3.cn-north-1.amazonaws.com.cn/", "https://s3.us-east-1.amazonaws.com", False),
        ("http://s3.us-east-1.amazonaws.com/b", "https://s3.us-east-1.amazonaws.com", False),
        ("https://amazonaws.com.evil.example/b", "https://s3.us-east-1.amazonaws.com", False),
        ("https://evilamazonaws.com/b", "https://s3.us-east-1.amazonaws.com", False),
        ("https://www.googleapis.com/upload", "https://storage.googleapis.com", True),
        ("https://s3.amazonaws.com/b", "http://127.0.0.1:9000", False),
        ("http://127.0.0.1:9001/b", "http://127.0.0.1:9000", True),
        ("http://b.minio.example/", "http://minio.example", True),
        ("https://minio.example/", "http://minio.example", True),
        ("http://notminio.example/", "http://minio.example", False),
        ("ftp://minio.example/", "http://minio.example", False),
        ("http://[/", "http://minio.example", False),
        ("/b/o", "http://minio.example", False),
    ],
)
def test_only_the_endpoint_and_its_service_get_what_is_meant_for_it(
    url: str, endpoint: str, answer: bool
) -> None:
    assert is_within(url, endpoint) is answer
