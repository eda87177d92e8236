"""Buckets under other names than ``s3://bucket``: ARNs, web addresses, endpoints."""

from __future__ import annotations

import pytest

import ckptstore as ck
from ckptstore.errors import UsageError
from ckptstore.storage.bucket_names import check_endpoint_names_no_bucket
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.registry import locate
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.url import parse_url

_S3 = "arn:aws:s3:eu-west-1:123456789012:"
_ARNS = [
    (f"{_S3}accesspoint/my-ap", f"{_S3}accesspoint:my-ap"),
    (f"{_S3}accesspoint:my-ap", f"{_S3}accesspoint:my-ap"),
    (
        "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint/a",
        "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:a",
    ),
    ("arn:aws:s3::123456789012:accesspoint/m.mrap", "arn:aws:s3::123456789012:accesspoint:m.mrap"),
    (
        "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01/accesspoint/reports",
        "arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-01:accesspoint:reports",
    ),
    (
        "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/banner",
        "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint:banner",
    ),
]


@pytest.mark.parametrize(("arn", "bucket"), _ARNS)
@pytest.mark.parametrize("path", ["", "/", "/run", "/run/model-1"])
def test_the_arn_of_an_access_point_is_one_bucket(arn: str, bucket: str, path: str) -> None:
    parsed = parse_url(f"s3://{arn}{path}")
    assert parsed == ("s3", bucket + path.rstrip("/"), f"s3://{arn}{path}")
    service = ObjectService(S3Transport(S3Client({})))
    assert service.split(parsed.key) == (bucket, path.strip("/"))
    # What messages show leads to the same place.
    assert parse_url(service.url_of(parsed.key)).key == parsed.key


@pytest.mark.parametrize(("arn", "bucket"), _ARNS)
def test_the_directory_of_a_prefix_in_an_access_point_keeps_it_whole(arn: str, bucket: str) -> None:
    prefix = locate(f"s3://{arn}/run/model-1", {"anon": True})
    assert (prefix.parent.key, prefix.name) == (f"{bucket}/run", "model-1")
    assert prefix.parent.url == f"s3://{arn}/run"
    assert prefix.parent.parent.key == bucket


def test_requests_for_an_access_point_go_to_its_host() -> None:
    client = S3Client({"key": "k", "secret": "s", "client_kwargs": {"region_name": "eu-west-1"}})
    key = parse_url(f"s3://{_S3}accesspoint/my-ap/run").key
    attempts = Attempts(RetryPolicy(), RetryBudget())
    url = client.blueprint("get_object", key.partition("/")[0], attempts).url
    assert url.startswith("https://my-ap-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/")
    assert "arn" not in url


@pytest.mark.parametrize(
    ("rest", "hint"),
    [
        ("arn:aws:s3:::bucket/run/model", "Pass s3://bucket/run/model"),
        ("arn:aws:s3:::bucket", "Pass s3://bucket"),
        (f"{_S3}accesspoint/", "whole ARN"),
        ("arn:aws:s3:eu-west-1:12:accesspoint/my-ap/run", "whole ARN"),
        ("arn:aws:iam::123456789012:role/r", "whole ARN"),
    ],
)
def test_another_arn_is_refused_with_what_to_pass(rest: str, hint: str) -> None:
    with pytest.raises(UsageError, match="not the ARN of an access point") as caught:
        parse_url(f"s3://{rest}")
    assert hint in (caught.value.hint or "")


def test_a_chained_url_behind_an_arn_is_refused_as_everywhere() -> None:
    with pytest.raises(UsageError, match="chained"):
        parse_url(f"s3://{_S3}accesspoint/my-ap/a::b")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://bucket.s3.eu-west-1.amazonaws.com/run/model-1", "Pass s3://bucket/run/model-1"),
        ("https://bucket.s3.amazonaws.com/run", "Pass s3://bucket/run"),
        ("https://s3-eu-west-1.amazonaws.com/bucket/run", "Pass s3://bucket/run"),
        ("https://my.dotted.bucket.s3.amazonaws.com/run", "Pass s3://my.dotted.bucket/run"),
        ("https://storage.googleapis.com/bucket/run", "Pass gs://bucket/run"),
        ("https://bucket.storage.googleapis.com/run", "Pass gs://bucket/run"),
        ("https://storage.cloud.google.com/bucket/run", "Pass gs://bucket/run"),
        ("http://10.0.0.1:9000/bucket/run", "endpoint_url"),
        ("https://example.com/model-1.index", "downloaded first"),
    ],
)
def test_a_web_address_is_refused_with_what_to_pass(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown URL scheme") as caught:
        parse_url(text)
    assert hint in (caught.value.hint or "")
    assert "s3://" in str(caught.value)


def test_a_signed_web_address_is_refused_without_its_signature() -> None:
    with pytest.raises(UsageError) as caught:
        parse_url("https://bucket.s3.amazonaws.com/run?X-Amz-Signature=hidden")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://bucket.s3.eu-west-1.amazonaws.com", "https://s3.eu-west-1.amazonaws.com"),
        ("https://bucket.storage.googleapis.com", "https://storage.googleapis.com"),
        ("http://bucket.localhost:9000", "http://localhost:9000"),
        ("http://127.0.0.1:9000/bucket", "http://127.0.0.1:9000"),
        ("http://127.0.0.1:9000/bucket/", "http://127.0.0.1:9000"),
    ],
)
def test_an_endpoint_that_holds_the_bucket_is_refused(endpoint: str, expected: str) -> None:
    with pytest.raises(UsageError, match="the endpoint holds the bucket 'bucket'") as caught:
        check_endpoint_names_no_bucket(endpoint, "bucket", endpoint)
    assert caught.value.expected == expected


@pytest.mark.parametrize(
    ("endpoint", "bucket"),
    [
        ("http://127.0.0.1:9000", "bucket"),
        ("https://s3.eu-west-1.amazonaws.com", "s3"),
        ("http://minio.storage.svc:9000", "minio"),
        ("https://gateway.example/objects", "bucket"),
    ],
)
def test_an_endpoint_without_the_bucket_is_taken(endpoint: str, bucket: str) -> None:
    check_endpoint_names_no_bucket(endpoint, bucket, endpoint)


@pytest.mark.parametrize(("scheme", "options"), [("s3", {"anon": True}), ("gs", {"token": "anon"})])
def test_a_bucket_alone_is_no_prefix_and_the_error_names_it(scheme: str, options: dict[str, object]) -> None:
    url = f"{scheme}://bucket"
    for unnamed in (url, f"{url}/"):
        with pytest.raises(UsageError) as caught:
            ck.Saver().save({"w": 1.0}, unnamed, storage_options=options)
        assert caught.value.url == unnamed
    # With a slash it is the empty name in the bucket, which a server has to be asked for.
    with pytest.raises(ck.NotFoundError, match="names a bucket and nothing in it") as missing:
        ck.open_checkpoint(url, storage_options=options)
    assert missing.value.url == url
    assert not ck.checkpoint_exists(url, storage_options=options)
