"""The document of a delete of many objects, and the answer to it."""

from __future__ import annotations

import base64
import hashlib
from xml.etree import ElementTree

import pytest

from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.s3.bulk_delete import delete_request, refused_in

_SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def test_names_arrive_as_they_are():
    names = ["a&amp;b", "<c>", "d'\"", "\u00e9\U0001f600", "e\tf", "g\rh\r\ni", " j ", "k]]>l"]
    body, headers = delete_request(names)
    root = ElementTree.fromstring(body)
    assert [key.text for key in root.iter(f"{_SPACE}Key")] == names
    assert [quiet.text for quiet in root.iter(f"{_SPACE}Quiet")] == ["true"]
    assert base64.b64decode(headers["Content-MD5"]) == hashlib.md5(body).digest()


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_refused_objects_are_told(namespace):
    error = "<Error><Key>a&amp;b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    assert refused_in(f"<DeleteResult{namespace}>{error}</DeleteResult>".encode()) == [
        {"Key": "a&b", "Code": "AccessDenied", "Message": "no"}
    ]
    assert refused_in(f"<DeleteResult{namespace}/>".encode()) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<Error><Code>InternalError</Code></Error>",
        b"<DeleteResult><Error><Code>AccessDenied</Code></Error></DeleteResult>",
    ],
)
def test_another_answer_is_not_a_yes(body):
    with pytest.raises(Fault) as found:
        refused_in(body)
    assert found.value.kind is Kind.GARBLED
