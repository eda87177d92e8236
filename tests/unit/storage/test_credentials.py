"""Which credentials are renewed, and what of the storage options stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptstore.config import client_environment
from ckptstore.storage.credentials import SessionKeys, lasting_options, session_keys

SESSION = {"key": "k", "secret": "s", "token": "t"}
IN_CLIENT_KWARGS = {
    "client_kwargs": {
        "region_name": "r",
        "aws_access_key_id": "k",
        "aws_secret_access_key": "s",
        "aws_session_token": "t",
    }
}


@pytest.fixture(autouse=True)
def without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "SECURITY_TOKEN"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.delenv("AWS_CREDENTIAL_EXPIRATION", raising=False)


@pytest.fixture
def session_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("SESSION_TOKEN", "t")):
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.mark.parametrize(
    ("options", "lasting"),
    [
        (SESSION | {"endpoint_url": "e"}, {"endpoint_url": "e"}),
        ({"username": "k", "password": "s", "token": "t"}, {}),
        (IN_CLIENT_KWARGS, {"client_kwargs": {"region_name": "r"}}),
        # As s3fs, whose own options come first.
        (SESSION | {"client_kwargs": {"aws_access_key_id": "other"}}, {"client_kwargs": {}}),
    ],
)
def test_the_keys_of_a_session_of_s3(options: dict[str, Any], lasting: dict[str, Any]) -> None:
    assert session_keys(options) == SessionKeys("k", "s", "t")
    assert lasting_options("s3", options) == lasting


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key": "k", "secret": "s"},
        {"token": "t"},
        {"key": "k", "secret": None, "token": "t"},
        SESSION | {"anon": True},
        {"profile": "p"},
        {"client_kwargs": "none"},
    ],
)
def test_what_is_no_session_is_not_renewed(options: dict[str, Any]) -> None:
    assert session_keys(options) is None
    assert lasting_options("s3", options) is None


@pytest.mark.usefixtures("session_in_environment")
def test_the_environment_counts_where_nothing_else_says_who_asks() -> None:
    assert session_keys({"endpoint_url": "e"}) == SessionKeys("k", "s", "t")
    for options in ({"profile": "p"}, {"session": object()}, {"key": "k", "secret": "s"}, {"anon": True}):
        assert session_keys(options) is None, options


@pytest.mark.usefixtures("session_in_environment")
def test_what_the_client_reads_again_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = client_environment()
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2026-12-01T00:00:00Z")
    assert session_keys({}) is None
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t2")
    # The storage stays the same nevertheless.
    assert client_environment() == before
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert client_environment() != before
    before = client_environment()
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    # Keys that hold for ever tell storages apart.
    assert client_environment() != before


def test_a_file_system_that_is_no_object_store_has_options_of_its_own() -> None:
    assert lasting_options("sftp", SESSION) is None


class _Bare:
    """As `google.oauth2.credentials.Credentials` that were given nothing but an access token."""

    refresh_token: str | None = None
    refresh_handler: object = None
    account = ""


class _Account:
    """As `google.oauth2.service_account.Credentials`."""

    signer = object()
    service_account_email = "a@example.com"


class _OtherAccount(_Account):
    service_account_email = "b@example.com"


class _OfMachine:
    """As `google.auth.compute_engine.Credentials`, whose address is known only once it asked."""

    service_account_email = "default"


class _User(_Bare):
    refresh_token = "r"


class _Handled(_Bare):
    refresh_handler = print


def test_tokens_of_google_that_somebody_has_to_renew(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text("{}")

    def lasting(token: Any) -> dict[str, Any] | None:
        return lasting_options("gs", {"token": token, "project": "p"})

    assert lasting("ya29.first") == lasting("ya29.second") != None  # noqa: E711
    assert lasting(_Bare()) == lasting(_Bare()) != None  # noqa: E711
    assert lasting(_Account()) == lasting(_Account()) != lasting(_OtherAccount())
    for lasts in (None, "anon", "cloud", "google_default", str(file), {"type": "service_account"}):
        assert lasting(lasts) is None, lasts
    for renews_itself in (_OfMachine(), _User(), _Handled()):
        assert lasting(renews_itself) is None, renews_itself


def test_the_real_classes_are_of_these_kinds() -> None:
    google = pytest.importorskip("google.oauth2.credentials")
    bare, user = google.Credentials("t"), google.Credentials("t", refresh_token="r")
    assert lasting_options("gs", {"token": bare}) is not None
    assert lasting_options("gs", {"token": user}) is None


def test_secrets_are_not_shown() -> None:
    assert repr(SessionKeys("k", "s", "t")) == str(SessionKeys("k", "s", "t")) == "SessionKeys()"
