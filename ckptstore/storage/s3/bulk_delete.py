"""DeleteObjects over connections of our own: the document that names the objects, and the answer to it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence

from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.s3.answers import parsed_xml, tag_of, texts_of

__all__ = ["delete_request", "refused_in"]

# A parser turns line breaks into others, unless they are written so.
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def delete_request(names: Sequence[str]) -> tuple[bytes, Mapping[str, str]]:
    """Return body and headers of a request that deletes these objects, and tells of failures alone.

    Parameters
    ----------
    names : sequence of str
        Every character of which XML can carry.

    Format
    ------
    AWS, "DeleteObjects". Of the checksums that it may come with, every server knows Content-MD5.
    """
    objects = "".join(f"<Object><Key>{name.translate(_ESCAPED)}</Key></Object>" for name in names)
    text = f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{objects}<Quiet>true</Quiet></Delete>'
    body = text.encode()
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    return body, {"Content-MD5": base64.b64encode(digest).decode("ascii"), "Content-Type": "application/xml"}


def refused_in(body: bytes) -> list[Mapping[str, str]]:
    """Return the objects that were not deleted, each with ``Key``, ``Code`` and ``Message``.

    Raises
    ------
    Fault
        `Kind.GARBLED` if it is not an answer to `delete_request`.
    """
    from xml.etree import ElementTree

    try:
        root = parsed_xml(body)
    except ElementTree.ParseError:
        raise Fault(Kind.GARBLED, "the answer to a delete of many objects cannot be read") from None
    refused = [texts_of(child) for child in root if tag_of(child) == "Error"]
    if tag_of(root) != "DeleteResult" or any("Key" not in each for each in refused):
        raise Fault(Kind.GARBLED, "the answer does not say which objects were deleted")
    return list(refused)
