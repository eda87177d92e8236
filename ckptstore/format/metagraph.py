"""The ``.meta`` file: a ``MetaGraphDef``, the network and how to save and restore it.

Format
------
Binary protobuf with map entries in the order of their keys, or protobuf's text format; mirrors TensorFlow
`tensorflow/core/protobuf/meta_graph.proto`. TensorFlow 2.21 tries binary first, then text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.file_kind import HEAD_SIZE_BYTES, file_kind
from ckptstore.format.protos import Proto, descriptor_pool, message_class, parse_message, parse_reason

__all__ = [
    "COLLECTION_MESSAGES",
    "SaverDef",
    "clear_devices",
    "decode_saver_def",
    "encode_saver_def",
    "format_meta_graph_text",
    "iter_nodes",
    "parse_entry",
    "parse_meta_graph",
    "serialize_meta_graph",
]

_HINT = "Pass the .meta file of a checkpoint; if it is one, it is damaged: take another checkpoint's."

COLLECTION_MESSAGES = {
    "variables": "VariableDef",
    "trainable_variables": "VariableDef",
    "moving_average_variables": "VariableDef",
    "local_variables": "VariableDef",
    "model_variables": "VariableDef",
    "metric_variables": "VariableDef",
    "global_step": "VariableDef",
    "savers": "SaverDef",
    "queue_runners": "QueueRunnerDef",
    "cond_context": "CondContextDef",
    "while_context": "WhileContextDef",
}
"""Collections whose byte strings are serialized messages, and of which type, as TensorFlow registers them."""


@dataclass(frozen=True, slots=True)
class SaverDef:
    """How the graph saves and restores itself, field for field as TensorFlow's ``SaverDef``.

    Attributes
    ----------
    filename_tensor_name : str
        The tensor to feed the prefix to, e.g. ``"save/Const:0"``.
    save_tensor_name : str
        The tensor to fetch in order to save.
    restore_op_name : str
        The operation to run in order to restore.
    max_to_keep : int
        Checkpoints to keep; 0 keeps all.
    sharded : bool
    keep_checkpoint_every_n_hours : float
        A 32-bit float in the file.
    version : int
        2 for the bundle format, 1 and 0 for older ones.
    """

    filename_tensor_name: str = ""
    save_tensor_name: str = ""
    restore_op_name: str = ""
    max_to_keep: int = 5
    sharded: bool = False
    keep_checkpoint_every_n_hours: float = 10000.0
    version: int = 2

    @classmethod
    def coerce(cls, value: Any) -> SaverDef:
        """Return `value`, a `SaverDef` or TensorFlow's protobuf message of that type, as a `SaverDef`.

        Raises
        ------
        UsageError
            If it is neither.
        """
        if isinstance(value, cls):
            return value
        try:
            return decode_saver_def(value)
        except AttributeError as error:
            raise UsageError("saver_def must be a SaverDef", actual=repr(value)[:80]) from error

    def without_scope(self, scope: str) -> SaverDef | None:
        """Return a copy with ``scope/`` removed from its names; None if not all names start with it."""
        prefix = scope.rstrip("/") + "/"
        names = (self.filename_tensor_name, self.save_tensor_name, self.restore_op_name)
        if not all(name.startswith(prefix) for name in names):
            return None
        filename, save, restore = (name.removeprefix(prefix) for name in names)
        return replace(self, filename_tensor_name=filename, save_tensor_name=save, restore_op_name=restore)


def decode_saver_def(proto: Proto) -> SaverDef:
    """Return a ``SaverDef`` message as plain data."""
    return SaverDef(
        proto.filename_tensor_name,
        proto.save_tensor_name,
        proto.restore_op_name,
        proto.max_to_keep,
        proto.sharded,
        proto.keep_checkpoint_every_n_hours,
        proto.version,
    )


def encode_saver_def(saver_def: SaverDef) -> Proto:
    """Return the message for `saver_def`.

    Raises
    ------
    UsageError
        If a field has the wrong type, or a number is too large for it.
    """
    try:
        return message_class("SaverDef")(
            filename_tensor_name=saver_def.filename_tensor_name,
            save_tensor_name=saver_def.save_tensor_name,
            restore_op_name=saver_def.restore_op_name,
            max_to_keep=saver_def.max_to_keep,
            sharded=saver_def.sharded,
            keep_checkpoint_every_n_hours=saver_def.keep_checkpoint_every_n_hours,
            version=saver_def.version,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"the saver's settings cannot be stored: {error}", actual=saver_def) from error


def parse_meta_graph(data: bytes, *, source: str) -> tuple[Proto, bool]:
    """Return the ``MetaGraphDef`` in `data`.

    Parameters
    ----------
    data : bytes
        The whole file.
    source : str
        URL for error messages.

    Returns
    -------
    message : MetaGraphDef
        Fields that are not in the schema are kept in it.
    is_text : bool
        Whether `data` is the text form.

    Raises
    ------
    FormatError
        If `data` is empty, or neither the binary nor the text form of a ``MetaGraphDef``.
    """
    from google.protobuf import text_format

    if not data:
        raise FormatError("the .meta file is empty", url=source, hint=_HINT)
    meta = parse_message("MetaGraphDef", data)
    if meta is not None:
        return meta, False
    meta = message_class("MetaGraphDef")()
    try:
        text_format.Merge(data.decode("utf-8"), meta, descriptor_pool=descriptor_pool())
    except UnicodeDecodeError:
        reason = "not binary protobuf, and not text"
    except (text_format.ParseError, ValueError, RecursionError) as error:
        reason = f"not binary protobuf, and as text: {parse_reason(error)}"
    else:
        return meta, True
    kind = file_kind(data[:HEAD_SIZE_BYTES])
    if kind is not None:
        what = f"the file is not a MetaGraphDef: its first bytes are those of {kind.name}"
        raise FormatError(what, url=source, hint=kind.advice)
    raise FormatError(f"the file is not a MetaGraphDef: {reason}", url=source, hint=_HINT)


def parse_entry(message_name: str, data: bytes, key: str, *, source: str) -> Proto:
    """Return the message that an entry of the collection `key` holds, see `COLLECTION_MESSAGES`.

    Raises
    ------
    FormatError
        If it is not that message.
    """
    message = parse_message(message_name, data)
    if message is None:
        raise FormatError(f"an entry of the collection {key!r} is not a {message_name}", url=source)
    return message


def serialize_meta_graph(meta: Proto) -> bytes:
    """Return the binary form; the same message gives the same bytes each time, as in TensorFlow.

    Raises
    ------
    UnsupportedError
        If the message is too large for protobuf (2 GiB).
    """
    from google.protobuf.message import EncodeError

    try:
        return bytes(meta.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise UnsupportedError(
            f"the graph cannot be serialized: {error}",
            hint="A graph is limited to 2 GiB and 100 levels; keep large constants in variables.",
        ) from error


def format_meta_graph_text(meta: Proto) -> bytes:
    """Return protobuf's text form, UTF-8.

    Raises
    ------
    UnsupportedError
        If the message has fields that are not in the schema: the text form cannot express them.
    """
    from google.protobuf import text_format

    known = message_class("MetaGraphDef")()
    known.CopyFrom(meta)
    known.DiscardUnknownFields()
    if known.ByteSize() != meta.ByteSize():
        raise UnsupportedError(
            "the graph has fields that this version does not know, which the text form cannot express",
            hint="Export it in the binary form.",
        )
    text: str = text_format.MessageToString(meta, as_utf8=True, descriptor_pool=descriptor_pool())
    return text.encode("utf-8")


def iter_nodes(meta: Proto) -> Iterator[Proto]:
    """Yield every ``NodeDef``: those of the graph, then those of its functions."""
    yield from meta.graph_def.node
    for function in meta.graph_def.library.function:
        yield from function.node_def


def clear_devices(meta: Proto) -> None:
    """Clear the device of every node, those of functions included (which TensorFlow does not change)."""
    for node in iter_nodes(meta):
        node.device = ""
