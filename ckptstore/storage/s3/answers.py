"""The answers of S3 to requests over connections of our own: refusals, heads of objects, pages of a list."""

from __future__ import annotations

import datetime
import email.utils
import http.client
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.listing import following_of
from ckptstore.storage.object_store.transport import WRITE_ID, ObjectName, Page
from ckptstore.storage.s3.headers import answer_of, etag_of, whole_crc32c
from ckptstore.storage.values import ObjectInfo
from ckptstore.storage.wire.exchange import HttpResponse

if TYPE_CHECKING:
    from xml.etree import ElementTree

__all__ = ["info_of", "page_of", "parsed_refusal", "parsed_xml", "tag_of", "texts_of"]

# An element takes a hundred times the memory of the shortest tag. A page of 1000 objects, each with all that
# S3 says of one, has 30 000 tags.
_MOST_TAGS = 200_000


def parsed_refusal(reply: HttpResponse) -> dict[str, Any]:
    """Return what a refusal says, in the form in which botocore gives it to `errors.fault_of_response`."""
    # On use, as below: a read that succeeds has no XML in it.
    from xml.etree import ElementTree

    error = {"Code": str(reply.status), "Message": http.client.responses.get(reply.status, "")}
    try:
        root = parsed_xml(reply.body)
    except (ElementTree.ParseError, Fault):
        pass  # no body, or a page of a proxy
    else:
        if tag_of(root) == "Error":
            error = {tag_of(child): child.text or "" for child in root}
    headers = {name.lower(): value for name, value in reply.headers.items()}
    return {"Error": error, "ResponseMetadata": {"HTTPStatusCode": reply.status, "HTTPHeaders": headers}}


def info_of(object_name: ObjectName, reply: HttpResponse) -> ObjectInfo:
    """Return what the answer to a HEAD says of an object.

    Raises
    ------
    Fault
        `Kind.GARBLED` if a header is missing that every object store sends.
    """
    headers, answer = reply.headers, answer_of(reply.headers)
    try:
        return ObjectInfo(
            object_name.key,
            int(headers["Content-Length"]),
            etag_of(answer),
            email.utils.parsedate_to_datetime(headers["Last-Modified"]).timestamp(),
            headers.get(f"x-amz-meta-{WRITE_ID}"),
            whole_crc32c(answer),
        )
    except (TypeError, ValueError):
        raise Fault(Kind.GARBLED, "the answer lacks size or date of the object") from None


def page_of(bucket: str, body: bytes) -> Page:
    """Return a page of ListObjectsV2, asked for with ``encoding-type=url``.

    Raises
    ------
    Fault
        `Kind.GARBLED` if it is not one.
    """
    from xml.etree import ElementTree

    try:
        root = parsed_xml(body)
        if tag_of(root) != "ListBucketResult":
            raise Fault(Kind.GARBLED, "the answer is not a list")
        whole = texts_of(root)
        # Some servers do not know it, and say so by not repeating it.
        decoded = unquote_plus if whole.get("EncodingType") == "url" else str
        objects = []
        for child in root:
            if tag_of(child) == "Contents":
                item = texts_of(child)
                changed = datetime.datetime.fromisoformat(item["LastModified"]).timestamp()
                key = f"{bucket}/{decoded(item['Key'])}"
                objects.append(ObjectInfo(key, int(item["Size"]), item["ETag"], changed))
    except (ElementTree.ParseError, KeyError, ValueError):
        raise Fault(Kind.GARBLED, "the list cannot be read") from None
    following = following_of(
        whole.get("NextContinuationToken"), is_truncated=whole.get("IsTruncated") == "true"
    )
    return Page(objects, following, sum(tag_of(child) == "CommonPrefixes" for child in root))


def parsed_xml(body: bytes) -> ElementTree.Element:
    """Return the root of an answer in XML; nobody can make it take a lot more memory than `body` does.

    Raises
    ------
    Fault
        `Kind.GARBLED` if it has more elements than any answer.
    ElementTree.ParseError
    """
    from xml.etree import ElementTree

    if body.count(b"<") > _MOST_TAGS:
        raise Fault(Kind.GARBLED, "the answer has more elements than any that the service gives")
    return ElementTree.fromstring(body)


def tag_of(element: ElementTree.Element) -> str:
    """Return the name of an element, without the namespace that only some servers write."""
    return element.tag.rpartition("}")[2]


def texts_of(element: ElementTree.Element) -> dict[str, str]:
    """Return the texts of the elements in it, by name."""
    return {tag_of(child): child.text or "" for child in element}
