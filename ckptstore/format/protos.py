"""The protobuf classes of TensorFlow's messages, without TensorFlow.

The classes are in a private descriptor pool. protobuf's default pool belongs to the whole process: the second
registration of ``tensorflow.NodeDef`` there, TensorFlow's or ours, raises ``TypeError``. Messages of the two
pools cannot be copied into each other, but their bytes are the same.

Everything here is made on first use: importing this module costs nothing, importing protobuf tens of
milliseconds.

Format
------
``schemas/descriptors.binpb`` is a ``FileDescriptorSet``: what protoc makes of the ``.proto`` files beside
it, which name the files of TensorFlow that they mirror. ``make protos`` renews it.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from ckptstore.format.coding import iter_fields

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["Proto", "descriptor_pool", "message_class", "parse_message", "parse_reason"]

Proto: TypeAlias = Any
"""A message or message class made at run time; a type checker does not know its fields."""

_DESCRIPTORS = "schemas/descriptors.binpb"

_lock = threading.Lock()
_classes: dict[str, Any] = {}


def descriptor_pool() -> DescriptorPool:
    """Return the private pool, for `google.protobuf.text_format`.

    Threads
    -------
    Safe for concurrent use.
    """
    with _lock:
        return _pool()


def message_class(name: str) -> Proto:
    """Return the class of TensorFlow's message `name`.

    Parameters
    ----------
    name : str
        Without the package, e.g. ``"MetaGraphDef"`` or ``"TensorShapeProto.Dim"``.

    Raises
    ------
    KeyError
        If the schemas do not have it.

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
    """Return the message `name` in `data`; None if `data` does not hold one.

    Fields that the schema does not have are kept in it.
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
    """Return the message of protobuf's text parser, shortened: it may quote the whole file."""
    text = str(error)
    if len(text) > 200:
        text = f"{text[:60]} … {text[-120:]}"
    return "".join(character if character.isprintable() else "?" for character in text)


@functools.cache
def _pool() -> DescriptorPool:
    import pkgutil

    from google.protobuf.descriptor_pool import DescriptorPool

    data = pkgutil.get_data("ckptstore.format", _DESCRIPTORS)
    assert data is not None, "the package was installed without its data"
    pool = DescriptorPool()
    # The set's one field, the files, each after those that it imports. Parsing the set with descriptor_pb2
    # would take longer than everything else here.
    for _, _, file in iter_fields(data, source=_DESCRIPTORS):
        pool.AddSerializedFile(bytes(file))
    return pool
