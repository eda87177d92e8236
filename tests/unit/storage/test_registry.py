"""Which storage serves which URL."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptstore.errors import UsageError
from ckptstore.storage import registry
from ckptstore.storage.base import Storage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.testing import CountingStorage


class _WithOptions(LocalStorage):
    def __init__(self, **options: object) -> None:
        self.options = options


@pytest.fixture
def with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry._Backend(_WithOptions, frozenset({"endpoint_url", "client_kwargs"}))
    monkeypatch.setitem(registry._BACKENDS, "file", backend)
    monkeypatch.setattr(registry, "_instances", {})


def test_a_location_keeps_the_text_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    location = locate("run/model")
    assert isinstance(location.storage, LocalStorage)
    assert (location.key, location.url, location.name) == (f"{tmp_path}/run/model", "run/model", "model")
    assert location.suffixed("-12").url == "run/model-12"
    assert location.parent.url == "run"
    assert (locate("").key, locate("").url) == (str(tmp_path), "")
    assert (locate("").child("model").key, locate("").child("model").url) == (f"{tmp_path}/model", "model")
    assert locate("file:///run/model").url == "file:///run/model"


def test_files_at_the_root_are_found_again() -> None:
    for text, child in (
        ("/", "/model"),
        ("file:///", "file:///model"),
        ("memory://", "memory://model"),
        ("memory:///", "memory:///model"),
    ):
        location = locate(text).child("model")
        assert (location.key, location.url) == ("/model", child)
        assert locate(child) == location
        assert location.parent.key == ""
        assert location.parent.url == text
        assert location.parent.child("other").url == text + "other"


def test_memory_urls_lead_to_memory() -> None:
    location = locate("memory://bucket/run/model")
    assert isinstance(location.storage, MemoryStorage)
    assert location.key == "/bucket/run/model"
    assert location.storage.url_of(location.key) == "memory://bucket/run/model"


def test_there_is_one_storage_for_each_scheme() -> None:
    assert locate("/a").storage is locate("file:///b").storage
    assert locate("memory://a").storage is locate("memory://b", {}).storage
    assert locate("/a").storage is not locate("memory://a").storage


@pytest.mark.usefixtures("with_options")
def test_there_is_one_storage_for_each_set_of_options() -> None:
    first = locate("/a", {"endpoint_url": "x", "client_kwargs": {"a": [1, {"b": 2}], "c": None}}).storage
    same = locate("/b", {"client_kwargs": {"c": None, "a": [1, {"b": 2}]}, "endpoint_url": "x"}).storage
    other = locate("/a", {"endpoint_url": "x", "client_kwargs": {"a": [1, {"b": 3}], "c": None}}).storage
    assert first is same
    assert first is not other
    assert isinstance(first, _WithOptions)
    assert first.options["endpoint_url"] == "x"


@pytest.mark.usefixtures("with_options")
def test_options_that_cannot_be_compared_are_not_shared() -> None:
    assert (
        locate("/a", {"client_kwargs": {1, 2}}).storage is not locate("/a", {"client_kwargs": {1, 2}}).storage
    )


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket/run", {"key": "h1dden-key", "secret": "h1dden-secret"}),
        ("s3://bucket/run", {"key": "h1dden-key", "secret": "h1dden-secret", "token": "h1dden-token"}),
        ("s3://bucket/run", {"anon": True, "s3_additional_kwargs": {"SSECustomerKey": b"h1dden-key"}}),
        ("gs://bucket/run", {"token": "h1dden-token"}),
        ("gs://bucket/run", {"token": {"private_key": "h1dden-key"}}),
    ],
)
def test_what_tells_storages_apart_holds_no_secret(url: str, options: dict[str, object]) -> None:
    storage = locate(url, options).storage
    identities = [identity for identity, known in registry._instances.items() if known is storage]
    assert len(identities) == 1
    assert "h1dden" not in repr(identities)
    assert locate(url, options).storage is storage


@pytest.mark.parametrize("url", ["/run/model", "memory://bucket/model"])
def test_options_that_the_backend_does_not_have_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="unknown storage option 'anon'") as caught:
        locate(url, {"anon": True})
    assert caught.value.expected == "no options for this kind of storage"


@pytest.mark.usefixtures("with_options")
def test_a_misspelt_option_is_answered_with_the_right_one() -> None:
    with pytest.raises(UsageError, match="endpoint_ulr") as caught:
        locate("/run/model", {"endpoint_ulr": "http://secret"})
    assert caught.value.hint == "Did you mean 'endpoint_url'?"
    assert "secret" not in str(caught.value)


def test_a_forked_child_opens_storages_of_its_own() -> None:
    parent = locate("/a").storage
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if locate("/a").storage is not parent else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_wrapper_stands_around_every_storage_while_its_block_runs() -> None:
    inner = locate("/a").storage
    made: list[Storage] = []

    def wrap(storage: Storage) -> Storage:
        made.append(storage)
        return CountingStorage(storage)

    with use_wrapper(wrap):
        first = locate("/a").storage
        assert isinstance(first, CountingStorage)
        assert first.inner is inner
        # The same one each time, so that its counters mean something.
        assert locate("/b").storage is first
        assert locate("memory://a").storage is not first
        with use_wrapper(CountingStorage):
            outer = locate("/a").storage
            assert isinstance(outer, CountingStorage)
            assert outer.inner is first
        assert locate("/a").storage is first
    assert locate("/a").storage is inner
    assert made == [inner, locate("memory://a").storage]


def test_a_wrapper_goes_when_its_block_fails() -> None:
    with pytest.raises(ValueError, match="mine"), use_wrapper(CountingStorage):
        raise ValueError("mine")
    assert isinstance(locate("/a").storage, LocalStorage)
