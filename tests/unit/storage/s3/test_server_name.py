"""One S3 server has one name, and two of them never have the same."""

from __future__ import annotations

import pytest

from ckptstore.storage.s3.server_name import server_name


@pytest.mark.parametrize(
    "endpoint",
    ["http://h:9000", "http://H:9000/", "HTTP://h:9000", "https://h", "https://h:443/", "http://h:80"],
)
def test_however_an_endpoint_is_written(endpoint: str) -> None:
    expected = {"9000": "http://h:9000", "443": "https://h", "80": "http://h"}
    port = endpoint.rstrip("/").rpartition(":")[2]
    assert server_name(endpoint, endpoint) == expected.get(port, "https://h")


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "https://s3.amazonaws.com",
        "https://s3.eu-west-1.amazonaws.com",
        "https://s3-eu-west-1.amazonaws.com/",
    ],
)
def test_buckets_of_amazon_have_one_name_in_all_regions(endpoint: str) -> None:
    assert server_name(endpoint, endpoint) == "Amazon"


def test_what_is_not_shown_tells_servers_apart_all_the_same() -> None:
    tenants = [f"https://{name}.store.example" for name in ("tenant-a", "tenant-b")]
    names = {server_name(tenant, "https://***.store.example") for tenant in tenants}
    assert len(names) == 2
    assert not any("tenant" in name for name in names)
    assert server_name("https://s3.cn-north-1.amazonaws.com.cn", "") != "Amazon"
