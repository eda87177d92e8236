"""Our signature of a request is botocore's, for every request."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.s3.direct import object_target
from ckptstore.storage.s3.signature import signed_headers

_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
_ASCII = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
# What a header holds, spaces of all numbers included.
_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
_NAMES = st.sampled_from(
    [
        *("Range", "If-Match", "If-None-Match", "User-Agent", "Expect", "x-amz-checksum-mode", "x-amz-acl"),
        *(
            "x-amz-request-payer",
            "X-Amz-Expected-Bucket-Owner",
            "x-amz-meta-ckptstore_write_id",
            "Cache-Control",
        ),
        *("x-amz-checksum-crc32c", "X-Amzn-Trace-Id", "Transfer-Encoding"),
    ]
)
_QUERIES = st.dictionaries(
    st.sampled_from(["list-type", "prefix", "delimiter", "encoding-type", "continuation-token", "uploads"]),
    _TEXT,
)


class _Signer(botocore.auth.S3SigV4Auth):
    def payload(self, request: Any) -> str:
        return "UNSIGNED-PAYLOAD"


@given(
    method=st.sampled_from(["GET", "HEAD", "PUT"]),
    base=st.sampled_from(
        [
            "http://127.0.0.1:9000/bucket/",
            "https://bucket.s3.eu-north-1.amazonaws.com/",
            "http://[::1]:9000/some.bucket/",
        ]
    ),
    name=_TEXT,
    query=_QUERIES,
    headers=st.dictionaries(_NAMES, _VALUES),
    key=_ASCII,
    secret=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()),
    token=st.one_of(st.just(""), _ASCII),
    region=st.sampled_from(["us-east-1", "eu-north-1", "auto", "r"]),
    now_s=st.integers(0, 4_000_000_000),
)
@example("GET", "http://h/b/", "a//b/../%2F+ü~", {}, {"Range": "bytes=0-1"}, "k", "s", "t", "r", 0)
@example(
    "GET", "http://h/b/", "x", {"prefix": "", "delimiter": "/"}, {"Range": "  a   b "}, "k", "s", "", "r", 1
)
def test_it_is_the_one_that_botocore_makes(
    method: str,
    base: str,
    name: str,
    query: dict[str, str],
    headers: dict[str, str],
    key: str,
    secret: str,
    token: str,
    region: str,
    now_s: int,
) -> None:
    text = "&".join(f"{word}={quote(value, safe='-_.~')}" for word, value in query.items())
    url = base + object_target(name, text)
    given_headers = {**headers, "Host": urlsplit(url).netloc}
    ours = signed_headers(
        method, urlsplit(url), given_headers, SessionKeys(key, secret, token), region, now_s
    )
    request = AWSRequest(method=method, url=url, headers=given_headers)
    signer = _Signer(SimpleNamespace(access_key=key, secret_key=secret, token=token), "s3", region)
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(botocore.auth, "get_current_datetime"):
            patch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: now)
        else:
            patch.setattr(
                botocore.auth, "datetime", SimpleNamespace(datetime=_Clock(now), timedelta=datetime.timedelta)
            )
        signer.add_auth(request)
    theirs = {word.lower(): value for word, value in request.headers.items()}
    assert {word.lower(): value for word, value in ours.items()} == theirs
    assert "Signature=" in theirs["authorization"]


class _Clock:
    """``datetime.datetime`` of the releases of botocore that ask it themselves."""

    def __init__(self, now: datetime.datetime) -> None:
        self._now = now

    def utcnow(self) -> datetime.datetime:
        return self._now

    def now(self, *_: Any) -> datetime.datetime:
        return self._now

    def __getattr__(self, name: str) -> Any:
        return getattr(datetime.datetime, name)
