"""Infer the attributes of a new operation from its inputs, and check the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckptstore.errors import UsageError
from ckptstore.format import dtypes
from ckptstore.format.protos import Proto
from ckptstore.format.tensor_proto import RESOURCE
from ckptstore.graph.attributes import fill_attribute
from ckptstore.suggest import did_you_mean_or_known

__all__ = ["fill_attributes"]

_NAMES = {dtype.as_datatype_enum: dtype.name for dtype in (*dtypes.ALL, RESOURCE)}


def fill_attributes(
    node: Proto, op_def: Proto | None, given: dict[str, Any], input_types: Sequence[int]
) -> None:
    """Write the attributes of `node`: those given, then those inferred from the types of its inputs.

    Parameters
    ----------
    node : NodeDef
    op_def : OpDef or None
        Without a definition the given attributes are used unchecked.
    given : dict
        Attribute name → Python value.
    input_types : sequence of int
        The type number of each input except control inputs; 0 if unknown.

    Raises
    ------
    UsageError
        If an attribute is unknown, unsuitable or missing, or the inputs do not fit the operation.
    """
    kinds = {attr.name: attr.type for attr in op_def.attr} if op_def is not None else {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise UsageError(f"operation {node.name!r} has an attribute without a name", actual=repr(name))
        # Names that start with an underscore are allowed everywhere, e.g. _class, _output_shapes.
        if op_def is not None and name not in kinds and not name.startswith("_"):
            raise UsageError(
                f"operation {node.name!r} ({node.op}) has no attribute {name!r}",
                hint=did_you_mean_or_known(name, kinds, "attributes"),
            )
        fill_attribute(node.attr[name], value, kinds.get(name), attribute=name, operation=node.name)
    if op_def is None:
        return
    sizes = _argument_sizes(node, op_def, len(input_types))
    position = 0
    for argument, size in zip(op_def.input_arg, sizes, strict=True):
        _match_argument(node, argument, list(input_types[position : position + size]))
        position += size
    missing = [
        attr.name for attr in op_def.attr if attr.name not in node.attr and not attr.HasField("default_value")
    ]
    if missing:
        raise UsageError(
            f"operation {node.name!r} ({node.op}) needs {'attributes' if missing[1:] else 'the attribute'} "
            f"{', '.join(missing)}",
            hint="They do not follow from its inputs: pass them in attrs.",
        )


def _argument_sizes(node: Proto, op_def: Proto, available: int) -> list[int]:
    """Return how many of the inputs each argument takes."""
    sizes: list[int | None] = []
    for argument in op_def.input_arg:
        if argument.type_list_attr in node.attr:
            sizes.append(len(node.attr[argument.type_list_attr].list.type))
        elif argument.number_attr in node.attr:
            sizes.append(node.attr[argument.number_attr].i)
        else:
            sizes.append(None if argument.type_list_attr or argument.number_attr else 1)
    open_arguments = [arg for arg, size in zip(op_def.input_arg, sizes, strict=True) if size is None]
    rest = available - sum(size for size in sizes if size is not None)
    share = 0
    if open_arguments:
        # Several lists of unknown length can only be separated if they are equally long by definition.
        counts = {argument.number_attr for argument in open_arguments}
        if len(open_arguments) > 1 and (len(counts) > 1 or "" in counts):
            names = sorted({argument.number_attr or argument.type_list_attr for argument in open_arguments})
            raise UsageError(
                f"operation {node.name!r} ({node.op}) takes several lists of inputs",
                hint=f"Pass attrs {', '.join(names)}.",
            )
        share, remainder = divmod(rest, len(open_arguments))
        rest = remainder if rest >= 0 else rest
    if rest != 0:
        expected = ", ".join(argument.name for argument in op_def.input_arg)
        raise UsageError(
            f"operation {node.name!r} ({node.op}) does not take {available} inputs",
            expected=expected or "none",
            actual=available,
        )
    return [share if size is None else size for size in sizes]


def _match_argument(node: Proto, argument: Proto, types: list[int]) -> None:
    if argument.number_attr and argument.number_attr not in node.attr:
        node.attr[argument.number_attr].i = len(types)
    if argument.type_list_attr:
        if argument.type_list_attr not in node.attr:
            _require_known(node, argument.type_list_attr, types)
            node.attr[argument.type_list_attr].list.type.extend(types)
        expected = list(node.attr[argument.type_list_attr].list.type)
    elif argument.type_attr:
        if argument.type_attr not in node.attr:
            known = [number for number in types if number]
            _require_known(node, argument.type_attr, known[:1])
            if not known:
                return
            node.attr[argument.type_attr].type = known[0]
        expected = [node.attr[argument.type_attr].type] * len(types)
    else:
        expected = [argument.type] * len(types)
    for wanted, number in zip(expected, types, strict=True):
        if number and number != wanted:
            raise UsageError(
                f"operation {node.name!r} ({node.op}) has an input of the wrong type in {argument.name!r}",
                expected=_NAMES.get(wanted, wanted),
                actual=_NAMES.get(number, number),
                hint="Convert one side with a Cast operation.",
            )


def _require_known(node: Proto, attribute: str, types: list[int]) -> None:
    if 0 in types:
        raise UsageError(
            f"the type of an input of operation {node.name!r} ({node.op}) is not known",
            hint=f"Pass attrs {attribute}.",
        )
