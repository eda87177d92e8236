"""No secret in any text."""

from __future__ import annotations

import pytest

from ckptstore.storage.redact import Redactor

OPTIONS = {
    "key": "AKIAEXAMPLE",
    "secret": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY",
    "token": "FwoGZXIvYXdzEB",
    "client_kwargs": {"aws_secret_access_key": "nested-secret", "region_name": "eu-central-1"},
    "s3_additional_kwargs": {"SSECustomerKey": b"0123456789abcdef"},
    "endpoint_url": "https://storage.example.com",
    "anon": False,
}


@pytest.mark.parametrize(
    "secret",
    ["AKIAEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCY", "FwoGZXIvYXdzEB", "nested-secret", "0123456789abcdef"],
)
def test_the_values_of_options_that_sound_secret_are_taken_out(secret: str) -> None:
    assert Redactor(OPTIONS)(f"refused {secret} and ({secret})") == "refused *** and (***)"


def test_everything_else_stays() -> None:
    text = "AccessDenied: bucket b in eu-central-1 at https://storage.example.com/b/key?"
    assert Redactor(OPTIONS)(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://h/b/k?X-Amz-Signature=abc&X-Amz-Credential=x failed", "GET https://h/b/k?*** failed"),
        ("cannot reach http://user:password@host:9000/b", "cannot reach http://***@host:9000/b"),
        ("X-Amz-Security-Token: FwoG/YXd+zEB==; Range: 1", "X-Amz-Security-Token: ***; Range: 1"),
        ('{"refresh_token": "1//0e-x", "a": 1}', '{"refresh_token": "***", "a": 1}'),
        ("assertion=eyJhbGci.Oi.J9&grant_type=x", "assertion=***&grant_type=x"),
        ("sent Authorization: Bearer ya29.abc-def, refused", "sent Authorization: Bearer ***, refused"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_without_being_known(text: str, shown: str) -> None:
    assert Redactor({})(text) == shown


def test_a_redactor_does_not_show_what_it_hides() -> None:
    assert repr(Redactor(OPTIONS)) == "<Redactor>"
    assert "AKIA" not in str(vars(Redactor({"key": "x"})))


def test_a_value_too_short_to_be_a_secret_leaves_texts_alone() -> None:
    assert Redactor({"key": "a"})("a bucket") == "a bucket"
