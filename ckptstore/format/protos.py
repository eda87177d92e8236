"""The protobuf classes of TensorFlow's messages, without TensorFlow.

The classes live in a descriptor pool of their own. protobuf's default pool belongs to the whole process:
whoever registers ``tensorflow.NodeDef`` there second, TensorFlow or us, gets a ``TypeError``. Messages of the
two pools cannot be copied into each other; bytes travel freely.

Everything here is made on first use: importing this module costs nothing, importing protobuf tens of
milliseconds.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["Proto", "descriptor_pool", "message_class", "parse_message", "parse_reason"]

Proto: TypeAlias = Any
"""A message or message class made at run time; its fields are not known to a type checker."""

_lock = threading.Lock()
_pool: DescriptorPool | None = None
_classes: dict[str, Any] = {}


def descriptor_pool() -> DescriptorPool:
    """Return the private pool, for `google.protobuf.text_format`.

    Threads
    -------
    Safe for concurrent use.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = _build_pool()
        return _pool


def message_class(name: str) -> Proto:
    """Return the class of TensorFlow's message `name`.

    Parameters
    ----------
    name : str
        Without the package, e.g. ``"MetaGraphDef"`` or ``"TensorShapeProto.Dim"``.

    Raises
    ------
    KeyError
        If the schemas have no such message.

    Threads
    -------
    Safe for concurrent use.
    """
    found = _classes.get(name)
    if found is None:
        from google.protobuf.message_factory import GetMessageClass

        found = GetMessageClass(descriptor_pool().FindMessageTypeByName(f"tensorflow.{name}"))
        _classes[name] = found
    return found


def parse_message(name: str, data: bytes) -> Proto | None:
    """Return the message `name` in `data`; None if `data` is no such message.

    Fields that the schema does not know are kept in it.
    """
    from google.protobuf.message import DecodeError

    message = message_class(name)()
    try:
        message.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        # The latter two: protobuf's implementation in Python, where no compiled one is installed.
        return None
    return message


def parse_reason(error: Exception) -> str:
    """Return what protobuf's text parser says, cut short: it quotes the whole line, maybe the whole file."""
    text = str(error)
    if len(text) > 200:
        text = f"{text[:60]} … {text[-120:]}"
    return "".join(character if character.isprintable() else "?" for character in text)


def _build_pool() -> DescriptorPool:
    from google.protobuf.descriptor_pool import DescriptorPool

    from ckptstore.format import schemas
    from ckptstore.format.proto_language import parse_schema

    google = parse_schema(
        schemas.GOOGLE_PROTOBUF, package="google.protobuf", file_name="ckptstore/google.proto"
    )
    tensorflow = parse_schema(
        schemas.TENSORFLOW, package="tensorflow", file_name="ckptstore/tensorflow.proto", imports=(google,)
    )
    pool = DescriptorPool()
    pool.Add(google)
    pool.Add(tensorflow)
    return pool
