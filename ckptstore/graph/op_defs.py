"""Definitions of operations: arguments, attributes, and from these the number and types of outputs."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ckptstore.errors import FormatError
from ckptstore.format.protos import Proto, message_class
from ckptstore.graph.attributes import as_dtype, fill_attribute
from ckptstore.graph.op_catalog import CATALOG

__all__ = ["Definitions", "argument_types", "builtin_definition"]

_STATEMENT = re.compile(r"([\w, ]+?)\((.*?)\) -> \((.*?)\)(?: \{(.*)\})?")
_NEXT_ATTRIBUTE = re.compile(r", (?=\w+: )")


class Definitions:
    """The definitions of the operations in one graph.

    In this order: those in the ``.meta``, the graph's own functions, which are operations too, and the
    catalogue.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, op_list: Iterable[Proto] = (), functions: Iterable[Proto] = ()) -> None:
        self._known = {function.signature.name: function.signature for function in functions}
        self._known.update((op_def.name, op_def) for op_def in op_list)

    def find(self, op_type: str) -> Proto | None:
        """Return the ``OpDef`` of an operation's type, or None."""
        return self._known.get(op_type) or builtin_definition(op_type)


@dataclass(frozen=True, slots=True)
class _CatalogEntry:
    inputs: str
    outputs: str
    attributes: str


@functools.cache
def _catalog() -> dict[str, _CatalogEntry]:
    """Return the catalogue with each operation still as text: most are never used."""
    found = {}
    statements = re.sub(r"\n +", " ", CATALOG)
    for line in statements.splitlines():
        if line and not line.startswith("#"):
            match = _STATEMENT.fullmatch(line)
            if match is None:
                raise ValueError(f"the catalogue has an unreadable statement: {line}")
            for name in match[1].split(", "):
                found[name] = _CatalogEntry(match[2], match[3], match[4] or "")
    return found


@functools.cache
def builtin_definition(op_type: str) -> Proto | None:
    """Return the catalogue's ``OpDef`` for `op_type`, or None."""
    entry = _catalog().get(op_type)
    if entry is None:
        return None
    op_def = message_class("OpDef")(name=op_type)
    attributes = set()
    for text in _NEXT_ATTRIBUTE.split(entry.attributes) if entry.attributes else ():
        name, _, rest = text.partition(": ")
        kind, has_default, default = rest.partition(" = ")
        attributes.add(name)
        attr = op_def.attr.add(name=name, type=kind)
        if has_default:
            value: Any = default if kind == "type" else None if default == "?" else json.loads(default)
            fill_attribute(attr.default_value, value, kind, attribute=name, operation=op_type)
    for arguments, text in ((op_def.input_arg, entry.inputs), (op_def.output_arg, entry.outputs)):
        for argument in text.split(", ") if text else ():
            name, _, type_text = argument.partition(": ")
            _fill_argument(arguments.add(name=name), type_text, attributes)
    return op_def


def _fill_argument(argument: Proto, text: str, attributes: set[str]) -> None:
    if text.startswith("ref "):
        argument.is_ref = True
        text = text.removeprefix("ref ")
    if text.startswith("list("):
        argument.type_list_attr = text[5:-1]
        return
    count, _, type_name = text.rpartition(" * ")
    argument.number_attr = count
    if type_name in attributes:
        argument.type_attr = type_name
    else:
        argument.type = as_dtype(type_name).as_datatype_enum


def argument_types(
    arguments: Iterable[Proto],
    attributes: Mapping[str, Proto],
    op_def: Proto,
    *,
    limit: int,
    source: str,
    operation: str,
) -> list[int] | None:
    """Return the element type, as TensorFlow's number, of each tensor in `arguments`.

    Parameters
    ----------
    arguments : iterable of OpDef.ArgDef
        The inputs or outputs of `op_def`.
    attributes : mapping of str to AttrValue
        The attributes of one operation; defaults come from `op_def`.
    limit : int
        More tensors than this are refused.
    source, operation : str
        URL and name for error messages.

    Returns
    -------
    list of int or None
        None if an attribute that the count depends on is missing; a missing type is 0.

    Raises
    ------
    FormatError
        If the attributes declare more than `limit` tensors, or a negative number.
    """
    defaults = {attr.name: attr.default_value for attr in op_def.attr if attr.HasField("default_value")}

    def attribute(name: str) -> Proto | None:
        return attributes[name] if name in attributes else defaults.get(name)

    types: list[int] = []
    for argument in arguments:
        if argument.type_list_attr:
            listed = attribute(argument.type_list_attr)
            if listed is None:
                return None
            types += listed.list.type
            continue
        element_type = argument.type
        if argument.type_attr:
            value = attribute(argument.type_attr)
            element_type = value.type if value is not None else 0
        count = 1
        if argument.number_attr:
            number = attribute(argument.number_attr)
            if number is None:
                return None
            count = number.i
        if not 0 <= count <= limit - len(types):
            raise FormatError(
                f"operation {operation!r} declares an impossible number of tensors in {argument.name!r}",
                url=source,
                expected=f"at most {limit}",
                actual=count,
            )
        types += [element_type] * count
    return types
