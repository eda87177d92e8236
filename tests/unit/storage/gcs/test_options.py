"""Where requests to Google Cloud Storage go, and with which credentials."""

from __future__ import annotations

import pytest

from ckptstore.errors import UsageError
from ckptstore.storage.gcs.options import GCS_OPTIONS, resolve_options
from ckptstore.storage.registry import locate


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_UNIVERSE_DOMAIN"):
        monkeypatch.delenv(name, raising=False)


def test_without_options_it_is_google_and_gcsfs_finds_the_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve_options({}) == ({}, "https://storage.googleapis.com")
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.org")
    assert resolve_options({}) == ({}, "https://storage.example.org")


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("localhost:4443", "http://localhost:4443"),
        ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
        ("https://emulator.example", "https://emulator.example"),
        ("gcs:4443", "http://gcs:4443"),
    ],
)
def test_an_emulator_is_asked_without_credentials(
    monkeypatch: pytest.MonkeyPatch, host: str, endpoint: str
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
    assert resolve_options({"project": "p"}) == (
        {"project": "p", "endpoint_url": endpoint, "token": "anon"},
        endpoint,
    )


def test_credentials_that_were_given_are_used_with_an_emulator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    assert resolve_options({"token": "key.json"})[0]["token"] == "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "key.json")
    assert "token" not in resolve_options({})[0]


def test_an_endpoint_in_the_options_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    kept, endpoint = resolve_options({"endpoint_url": "https://storage.example/base/"})
    assert endpoint == kept["endpoint_url"] == "https://storage.example/base"
    # It is encrypted, so gcsfs may look for credentials.
    assert "token" not in kept
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "default")
    assert resolve_options({})[1] == "https://storage.googleapis.com"


def test_credentials_do_not_travel_in_the_clear() -> None:
    for host in ("127.0.0.1:9000", "localhost", "[::1]:9000"):
        assert resolve_options({"endpoint_url": f"http://{host}", "token": "key.json"})
    options = {"endpoint_url": "http://storage.example", "token": "key.json"}
    with pytest.raises(UsageError, match="plain http"):
        resolve_options(options)
    assert resolve_options(options | {"allow_http": True})[1] == "http://storage.example"
    assert resolve_options(options | {"token": "anon"})[1] == "http://storage.example"


@pytest.mark.parametrize(
    "endpoint", ["ftp://host", "http://", "http://me:tops3cret@host", "http://host:port", "http://:80", "//"]
)
def test_what_is_no_server_is_refused_and_not_shown(endpoint: str) -> None:
    with pytest.raises(UsageError, match="endpoint") as caught:
        resolve_options({"endpoint_url": endpoint})
    assert "tops3cret" not in str(caught.value)


def test_a_dictionary_made_for_gcsfs_is_taken_and_what_means_nothing_here_stays_behind() -> None:
    kept, _ = resolve_options({"token": "anon", "use_listings_cache": True, "consistency": "crc32c"})
    assert kept == {"token": "anon"}


def test_options_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown storage option 'endpoint'") as caught:
        locate("gs://bucket/run", {"endpoint": "http://127.0.0.1:1"})
    assert caught.value.hint == "Did you mean 'endpoint_url'?"
    # They would put the requests on somebody else's loop.
    assert not GCS_OPTIONS & {"asynchronous", "loop"}


def test_both_spellings_lead_to_one_storage() -> None:
    options = {"endpoint_url": "http://127.0.0.1:1"}
    location = locate("gcs://bucket/run/model", options)
    assert location.storage is locate("gs://other", options).storage
    assert (location.key, location.url) == ("bucket/run/model", "gcs://bucket/run/model")
    assert location.storage.url_of(location.key) == "gs://bucket/run/model"


def test_another_emulator_is_another_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
    first = locate("gs://bucket").storage
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:2")
    assert locate("gs://bucket").storage is not first
