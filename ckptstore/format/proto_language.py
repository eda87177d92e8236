"""Read the part of the ``.proto`` notation that the schemas here use, into descriptors.

Format
------
proto3: ``message``, ``enum``, ``oneof``, ``map<k, v>``, ``repeated``, ``//`` comments. No options, imports,
services or reserved numbers: those of TensorFlow's files have no influence on the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

__all__ = ["parse_schema"]

# The numbers of FieldDescriptorProto.Type.
_SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "fixed64": 6, "fixed32": 7, "bool": 8,
    "string": 9, "bytes": 12, "uint32": 13, "sfixed32": 15, "sfixed64": 16, "sint32": 17, "sint64": 18,
}  # fmt: skip
_TYPE_MESSAGE, _TYPE_ENUM = 11, 14
_LABEL_OPTIONAL, _LABEL_REPEATED = 1, 3

_COMMENT = re.compile(r"//[^\n]*")
_TOKEN = re.compile(r"[A-Za-z_][\w.]*|\d+|[{}<>=;,]")


def parse_schema(
    text: str, *, package: str, file_name: str, imports: tuple[FileDescriptorProto, ...] = ()
) -> FileDescriptorProto:
    """Return the descriptors of the messages and enums in `text`.

    Parameters
    ----------
    text : str
        A schema of this package; never input from outside.
    package, file_name : str
        What the messages' full names start with; what other files import this one as.
    imports : tuple of FileDescriptorProto
        Files whose messages `text` may name, by their full names.

    Raises
    ------
    ValueError
        If `text` is not in the notation, or names an unknown type.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name=file_name, package=package, syntax="proto3")
    file.dependency.extend(imported.name for imported in imports)
    tokens = iter(_TOKEN.findall(_COMMENT.sub("", text)))
    for keyword in tokens:
        if keyword == "message":
            _parse_message(tokens, file.message_type.add())
        elif keyword == "enum":
            _parse_enum(tokens, file.enum_type.add())
        else:
            raise ValueError(f"a schema starts neither a message nor an enum with {keyword!r}")
    kinds: dict[str, int] = {}
    for known in (*imports, file):
        _collect_kinds(known, f".{known.package}", kinds)
    for message in file.message_type:
        _resolve_types(message, f".{package}.{message.name}", kinds)
    return file


def _parse_message(tokens: Iterator[str], message: DescriptorProto) -> None:
    message.name = next(tokens)
    _expect(tokens, "{")
    for token in tokens:
        if token == "}":
            return
        if token == "message":
            _parse_message(tokens, message.nested_type.add())
        elif token == "enum":
            _parse_enum(tokens, message.enum_type.add())
        elif token == "oneof":
            message.oneof_decl.add(name=next(tokens))
            _expect(tokens, "{")
            for member in tokens:
                if member == "}":
                    break
                _parse_field(tokens, member, message)
                message.field[-1].oneof_index = len(message.oneof_decl) - 1
        elif token == "map":
            _parse_map_field(tokens, message)
        else:
            _parse_field(tokens, token, message)
    raise ValueError(f"the schema ends inside message {message.name}")


def _parse_enum(tokens: Iterator[str], enum: EnumDescriptorProto) -> None:
    enum.name = next(tokens)
    _expect(tokens, "{")
    for token in tokens:
        if token == "}":
            return
        _expect(tokens, "=")
        enum.value.add(name=token, number=int(next(tokens)))
        _expect(tokens, ";")


def _parse_field(tokens: Iterator[str], token: str, message: DescriptorProto) -> None:
    label = _LABEL_OPTIONAL
    if token == "repeated":
        label, token = _LABEL_REPEATED, next(tokens)
    name = next(tokens)
    _expect(tokens, "=")
    # The type's name stays in type_name until every message is known, scalars included.
    message.field.add(name=name, number=int(next(tokens)), label=label, type_name=token)
    _expect(tokens, ";")


def _parse_map_field(tokens: Iterator[str], message: DescriptorProto) -> None:
    """Parse the rest of ``map<key, value> name = n;``: on the wire a repeated message of keys and values."""
    _expect(tokens, "<")
    key_type = next(tokens)
    _expect(tokens, ",")
    value_type = next(tokens)
    _expect(tokens, ">")
    name = next(tokens)
    _expect(tokens, "=")
    entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_LABEL_OPTIONAL, type_name=key_type)
    entry.field.add(name="value", number=2, label=_LABEL_OPTIONAL, type_name=value_type)
    message.field.add(name=name, number=int(next(tokens)), label=_LABEL_REPEATED, type_name=entry.name)
    _expect(tokens, ";")


def _expect(tokens: Iterator[str], wanted: str) -> None:
    token = next(tokens, "the end")
    if token != wanted:
        raise ValueError(f"the schema has {token!r} where {wanted!r} should be")


def _collect_kinds(scope: FileDescriptorProto | DescriptorProto, prefix: str, kinds: dict[str, int]) -> None:
    """Note, for each full name, whether it is a message or an enum."""
    from google.protobuf.descriptor_pb2 import DescriptorProto

    nested = scope.nested_type if isinstance(scope, DescriptorProto) else scope.message_type
    for enum in scope.enum_type:
        kinds[f"{prefix}.{enum.name}"] = _TYPE_ENUM
    for message in nested:
        name = f"{prefix}.{message.name}"
        kinds[name] = _TYPE_MESSAGE
        _collect_kinds(message, name, kinds)


def _resolve_types(message: DescriptorProto, full_name: str, kinds: dict[str, int]) -> None:
    """Replace each field's type by a number, and a full name, looked up from the innermost scope."""
    for field in message.field:
        if field.type_name in _SCALARS:
            field.type = _SCALARS[field.type_name]  # type: ignore[assignment]
            field.ClearField("type_name")
            continue
        scope = full_name
        while f"{scope}.{field.type_name}" not in kinds:
            if not scope:
                raise ValueError(f"{full_name[1:]}.{field.name} has the unknown type {field.type_name}")
            scope = scope.rpartition(".")[0]
        field.type_name = f"{scope}.{field.type_name}"
        field.type = kinds[field.type_name]  # type: ignore[assignment]
    for nested in message.nested_type:
        _resolve_types(nested, f"{full_name}.{nested.name}", kinds)
