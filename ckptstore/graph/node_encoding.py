"""Encode nodes and variable definitions by hand.

A ``.meta`` for 100 000 arrays has 200 000 nodes; protobuf objects for them take ten times as long as these
functions. The bytes are those of protobuf's deterministic form: fields and map keys ascending.

Format
------
``NodeDef``: name=1, op=2, input=3, device=4, attr=5 (map). ``AttrValue``: list=1, s=2, b=5, type=6, shape=7,
tensor=8. Mirrors TensorFlow `tensorflow/core/framework/node_def.proto` and `attr_value.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptstore.format.coding import encode_varint, encode_varint_field

__all__ = [
    "attributes",
    "bool_value",
    "message_field",
    "node",
    "read_variable_node",
    "shape_value",
    "string_list_tensor",
    "string_tensor",
    "string_value",
    "text_field",
    "type_list_value",
    "type_value",
    "variable_def",
]

_STRING_ENUM = 7

_LENGTHS = tuple(map(encode_varint, range(1024)))
_TAGS = tuple(bytes((number << 3 | 2,)) for number in range(16))
_IS_RESOURCE = encode_varint_field(5, 1)
_TRAINABLE = encode_varint_field(7, 1)


def text_field(field_number: int, text: str) -> bytes:
    """Return a string field, UTF-8; the field number is at most 15."""
    return _delimited(_TAGS[field_number], text.encode("utf-8"))


def message_field(field_number: int, message: bytes) -> bytes:
    """Return a field that holds an encoded message; the field number is at most 15."""
    return _delimited(_TAGS[field_number], message)


def _delimited(tag: bytes, payload: bytes) -> bytes:
    size = len(payload)
    return tag + (_LENGTHS[size] if size < 1024 else encode_varint(size)) + payload


def node(name: str, op: str, inputs: Iterable[str], encoded_attributes: bytes) -> bytes:
    """Return a node as an element of ``GraphDef.node``."""
    encoded_inputs = [text_field(3, tensor) for tensor in inputs]
    fields = [text_field(1, name), text_field(2, op), *encoded_inputs, encoded_attributes]
    return _delimited(_TAGS[1], b"".join(fields))


def attributes(values: Mapping[str, bytes]) -> bytes:
    """Return the attributes of a node; the values are encoded ``AttrValue`` messages.

    No name may be a prefix of another: implementations of protobuf differ in the order of such keys.
    """
    return b"".join(
        message_field(5, text_field(1, name) + message_field(2, value))
        for name, value in sorted(values.items())
    )


def type_value(enum: int) -> bytes:
    """Return the ``AttrValue`` of an element type."""
    return encode_varint_field(6, enum)


def type_list_value(enums: Iterable[int]) -> bytes:
    """Return the ``AttrValue`` of a list of element types."""
    # Every type's number is below 128, so that the packed varints are the numbers as bytes.
    return message_field(1, message_field(6, bytes(enums)))


def bool_value(value: bool) -> bytes:
    """Return the ``AttrValue`` of a truth value."""
    return encode_varint_field(5, int(value))


def shape_value(shape: Sequence[int]) -> bytes:
    """Return the ``AttrValue`` of a complete shape."""
    return message_field(7, _shape(shape))


def string_value(value: str) -> bytes:
    """Return the ``AttrValue`` of a string."""
    return text_field(2, value)


def string_tensor(value: str) -> bytes:
    """Return the ``AttrValue`` of a scalar string constant."""
    return _string_tensor((), (value,))


def string_list_tensor(values: Sequence[str]) -> bytes:
    """Return the ``AttrValue`` of a string constant with one dimension."""
    return _string_tensor((len(values),), values)


def read_variable_node(name: str, variable: str, enum: int) -> bytes:
    """Return the node that reads a resource variable."""
    return node(name, "ReadVariableOp", (variable,), attributes({"dtype": type_value(enum)}))


def variable_def(variable: str, snapshot: str, *, is_resource: bool, trainable: bool) -> bytes:
    """Return the ``VariableDef`` of a variable that has no initial value.

    Its initializer is its own operation, which does nothing: initializing all variables leaves it
    uninitialized, so that reading it before it is restored is an error and not a plausible zero.
    """
    encoded = text_field(1, f"{variable}:0") + text_field(2, variable) + text_field(3, f"{snapshot}:0")
    if is_resource:
        encoded += _IS_RESOURCE
    return encoded + _TRAINABLE if trainable else encoded


def _shape(shape: Sequence[int]) -> bytes:
    return b"".join(message_field(2, encode_varint_field(1, size) if size else b"") for size in shape)


def _string_tensor(shape: Sequence[int], values: Sequence[str]) -> bytes:
    elements = b"".join([text_field(8, value) for value in values])
    tensor = encode_varint_field(1, _STRING_ENUM) + message_field(2, _shape(shape)) + elements
    return message_field(8, tensor)
