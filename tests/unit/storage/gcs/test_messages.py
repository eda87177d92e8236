"""Bodies and headers of Google Cloud Storage's JSON API."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.storage.gcs import messages
from ckptstore.storage.wire.exchange import HttpResponse
from tests.does_not_raise import does_not_raise


def test_names_are_quoted_to_the_last_character() -> None:
    assert messages.object_path("b", "run/m[1]%20 +#?é") == "/b/b/o/run%2Fm%5B1%5D%2520%20%2B%23%3F%C3%A9"


def test_a_query_leaves_out_what_is_not_given() -> None:
    assert messages.with_query("/x", {}) == "/x"
    assert messages.with_query("/x", {"a": None}) == "/x"
    assert messages.with_query("/x", {"a": "1 &", "b": None, "c": "é/+"}) == "/x?a=1%20%26&c=%C3%A9%2F%2B"
    assert messages.with_query("http://h/x?y=1", {"a": "2"}) == "http://h/x?y=1&a=2"


@given(st.binary(max_size=200))
def test_a_related_body_has_two_parts_with_crlf(data: bytes) -> None:
    fields = messages.resource("run/é", "w1", crc32c=1, cache_control="no-store")
    content_type, pieces = messages.related_body(fields, (memoryview(data),))
    body = b"".join(pieces)
    boundary = re.fullmatch(r'multipart/related; boundary="(\w+)"', content_type)
    assert boundary is not None
    mark = b"--" + boundary[1].encode()
    first, second, end = body.split(mark)[1:]
    assert first.startswith(b"\r\nContent-Type: application/json")
    assert json.loads(first.partition(b"\r\n\r\n")[2]) == fields
    assert second == b"\r\nContent-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    assert end == b"--\r\n"


def test_a_resource_says_no_more_than_it_was_told() -> None:
    assert messages.resource("n", "w") == {
        "name": "n",
        "contentType": "application/octet-stream",
        "metadata": {"ckptstore_write_id": "w"},
    }


def test_a_batch_names_each_request_and_its_answers_are_put_in_order() -> None:
    content_type, body = messages.batch_body("DELETE", ["/a?x=1", "/b"])
    assert body.count(b"\n") == body.count(b"\r\n")
    assert b"DELETE /a?x=1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n" in body
    ids = re.findall(rb"Content-ID: <(\S+)>", body)
    assert len(ids) == 2
    assert content_type.startswith("multipart/mixed; boundary=")
    answer = b"".join(
        b"--z\r\nContent-Type: application/http\r\nContent-ID: <response-%b>\r\n\r\n"
        b"HTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n%b\r\n" % (identity, status, text)
        for identity, status, text in ((ids[1], b"404", b"gone"), (ids[0], b"204", b""))
    )
    parts = messages.split_batch("multipart/mixed; boundary=z", answer + b"--z--\r\n", 2)
    assert parts == [HttpResponse(204, {}, b""), HttpResponse(404, {}, b"gone")]


def test_answers_without_ids_are_taken_in_order() -> None:
    part = b"--z\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 %d X\r\n\r\n"
    body = part % 204 + part % 403 + b"--z--"
    parts = messages.split_batch('multipart/mixed; boundary="z"', body, 2)
    assert [one.status for one in parts] == [204, 403]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html>"),
        ("multipart/mixed; boundary=z", b""),
        ("multipart/mixed; boundary=z", b"--z\r\n\r\nHTTP/1.1 204 X\r\n\r\n--z--"),
        (
            "multipart/mixed; boundary=z",
            b"--z\r\nContent-ID: <response-9>\r\n\r\nHTTP/1.1 204 X\r\n\r\n--z--" * 2,
        ),
    ],
)
def test_an_answer_with_other_parts_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(ValueError):
        messages.split_batch(content_type, body, 2)


@given(st.binary(max_size=300))
def test_no_batch_answer_does_worse_than_be_refused(body: bytes) -> None:
    with does_not_raise(other_than=ValueError):
        messages.split_batch("multipart/mixed; boundary=a", body, 1)


@pytest.mark.parametrize(
    ("received", "kept"),
    [(None, 0), ("", 0), ("bytes=0-0", 1), ("bytes=0-262143", 262144), ("bytes 0-9", 10)],
)
def test_a_session_says_how_much_it_has(received: str | None, kept: int) -> None:
    assert messages.next_byte(received) == kept


@pytest.mark.parametrize("received", ["bytes=5-9", "0-9", "bytes=0-", "bytes=0-9,20-29"])
def test_a_session_that_says_something_else_is_not_understood(received: str) -> None:
    with pytest.raises(ValueError):
        messages.next_byte(received)


def test_a_resource_becomes_what_a_head_says() -> None:
    info = messages.info_of(
        "b",
        {
            "name": "run/k",
            "size": "10",
            "generation": "1795422149029422",
            "updated": "2026-11-23T08:22:29.02943Z",
            "crc32c": "KAwGng==",
            "metadata": {"ckptstore_write_id": "w1", "other": "x"},
        },
    )
    assert (info.key, info.size_bytes, info.version, info.write_id, info.crc32c) == (
        *("b/run/k", 10, "1795422149029422", "w1"),
        0x280C069E,
    )
    assert info.mtime_s == pytest.approx(1795422149.02943)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "k"},
        {"name": "k", "size": "x", "generation": "1", "updated": "2026-11-23T08:22:29Z"},
        {"name": "k", "size": "1", "generation": "x", "updated": "2026-11-23T08:22:29Z"},
        {"name": "k", "size": "1", "generation": "1", "updated": "yesterday"},
        {"name": "k", "size": None, "generation": "1", "updated": "2026-11-23T08:22:29Z"},
    ],
)
def test_what_is_no_resource_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        messages.info_of("b", fields)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 20))
def test_slices_hold_all_bytes_in_order(pieces: list[bytes], size_bytes: int) -> None:
    found = list(messages.slices(pieces, size_bytes))
    assert b"".join(found) == b"".join(pieces)
    assert all(0 < len(piece) <= size_bytes for piece in found)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[" * 100_000, b"\xff"])
def test_what_is_not_json_is_an_empty_object(body: bytes) -> None:
    assert messages.json_of(body) == {}
