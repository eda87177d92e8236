"""What an answer of Google Cloud Storage means, by status and reason."""

from __future__ import annotations

import json

import pytest

from ckptstore.storage.gcs.errors import fault_of, redacted
from ckptstore.storage.object_store.faults import Kind


def _body(message: str, reason: str = "x") -> bytes:
    return json.dumps({"error": {"message": message, "errors": [{"reason": reason}]}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, _body("Invalid argument", "invalid"), Kind.BAD_REQUEST),
        # What gcsfs makes a ValueError of, for the word in it.
        (503, b"invalid backend", Kind.THROTTLED),
        (400, _body("Provided CRC32C doesn't match calculated CRC32C"), Kind.BAD_CHECKSUM),
        (400, _body("Provided MD5 hash doesn't match calculated MD5 hash"), Kind.BAD_CHECKSUM),
        (401, b"", Kind.FORBIDDEN),
        (403, _body("denied", "forbidden"), Kind.FORBIDDEN),
        (403, _body("slow down", "rateLimitExceeded"), Kind.THROTTLED),
        (403, _body("slow down", "userRateLimitExceeded"), Kind.THROTTLED),
        (404, b"Not Found", Kind.ABSENT),
        (409, b"", Kind.CONFLICT),
        (412, _body("no", "conditionNotMet"), Kind.PRECONDITION),
        (416, b"", Kind.BAD_RANGE),
        (418, b"", Kind.BAD_REQUEST),
        (429, b"", Kind.THROTTLED),
        (500, b"", Kind.SERVER),
        (500, _body("write /data: No space left on device"), Kind.FULL),
        (507, b"", Kind.FULL),
        (599, b"", Kind.SERVER),
        (302, b"", Kind.BAD_REQUEST),
        (304, b"", Kind.UNCHANGED),
        (204, b"", Kind.GARBLED),
    ],
)
def test_the_kind_follows_from_status_and_reason(status: int, body: bytes, kind: Kind) -> None:
    assert fault_of(status, {}, body).kind is kind


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b'{"error": null}',
        b'{"error": []}',
        b'{"error": {"errors": 1}}',
        b'{"error": {"errors": [1]}}',
        b'{"error": {"message": 5, "errors": [{"reason": 7}]}}',
        b"\xff\xfe<Error>",
    ],
)
def test_any_body_is_taken(body: bytes) -> None:
    assert fault_of(403, {}, body).kind is Kind.FORBIDDEN


def test_the_servers_own_words_are_kept() -> None:
    assert (
        str(fault_of(403, {}, _body("alice has no access", "forbidden")))
        == "403 forbidden: alice has no access"
    )
    assert "out of range" in str(fault_of(416, {}, b"<Error><Message>out of range</Message></Error>"))
    assert fault_of(503, {}, b"").text == "the server answered 503"
    assert len(fault_of(500, {}, b"x" * 100_000).text) == 300


def test_a_throttled_object_is_left_alone_for_a_second_or_as_long_as_was_asked() -> None:
    assert fault_of(429, {}, b"").retry_after_s == 1.0
    assert fault_of(429, {"Retry-After": "3"}, b"").retry_after_s == 3.0
    assert fault_of(429, {"Retry-After": "86400"}, b"").retry_after_s == 30.0
    assert fault_of(503, {"Retry-After": "2"}, b"").retry_after_s == 2.0
    assert fault_of(503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"").retry_after_s == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cret",
        "token ya29.s3cret-x is bad",
        "http://h/tokeninfo?access_token=s3cret failed",
        "PUT http://h/upload/b/o?uploadType=resumable&upload_id=s3cret",
        "upload_id=s3cret",
        "http://me:s3cret@host/",
    ],
)
def test_no_token_is_repeated(text: str) -> None:
    assert "s3cret" not in redacted(text)
