"""Answers of S3 in XML: what they say, and what nobody can make them do."""

from __future__ import annotations

import tracemalloc

import pytest

from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.s3.answers import page_of, parsed_refusal
from ckptstore.storage.wire.exchange import HttpResponse


@pytest.mark.parametrize("more", [b"", b"<NextContinuationToken/>"])
def test_a_list_with_more_to_come_says_how_to_ask_for_it(more: bytes) -> None:
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated>%b</ListBucketResult>"
    with pytest.raises(Fault) as caught:
        page_of("bucket", page % more)
    assert caught.value.kind is Kind.GARBLED
    assert page_of("bucket", page % b"<NextContinuationToken>t</NextContinuationToken>").token == "t"
    assert page_of("bucket", page.replace(b"true", b"false") % more).token is None


@pytest.mark.parametrize("piece", [(b"<a>", b"</a>"), (b"<a/>", b"")], ids=["deep", "wide"])
def test_many_elements_take_no_memory(piece: tuple[bytes, bytes]) -> None:
    body = b"<ListBucketResult>" + piece[0] * 500_000 + piece[1] * 500_000 + b"</ListBucketResult>"
    tracemalloc.start()
    try:
        with pytest.raises(Fault) as caught:
            page_of("bucket", body)
        assert caught.value.kind is Kind.GARBLED
        refusal = parsed_refusal(HttpResponse(403, {}, body))
        assert refusal["Error"]["Code"] == "403"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
