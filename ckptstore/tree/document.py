"""A skeleton as JSON and back: what the tensor `_CKPTSTORE_TREE` holds.

Format
------
Ours. The document is JSON in ASCII: ``{"version": 1, "separator": ".", "root": NODE}``. A node is

* null, a boolean, a finite number, a text, or a list of nodes: itself. An integer beyond 64 bits is
  ``{"int": "0x…"}``, any other float ``{"float": "nan"}``, a complex number ``{"complex": [NODE, NODE]}``;
* ``{"array": NAME}``, with ``"as": KIND`` unless it is the framework's usual one: a tensor of the checkpoint.
  Two nodes of one name were the same memory;
* ``{"dict": {TEXT: NODE}}``, or ``{"items": [[NODE, NODE], …]}`` if a key is no text. ``{"ordered": [[NODE,
  NODE], …]}`` and ``{"counter": …}`` are `collections.OrderedDict` and `Counter`;
* ``{"tuple": [NODE, …]}``, ``{"set": [NODE, …]}``, ``{"frozenset": [NODE, …]}``, ``{"bytes": BASE64}``;
* ``{"fields": [[IS_ATTRIBUTE, NODE, NODE], …]}``: the members of a container that only the framework knows;
* ``{TAG: …}`` with a dot in the tag: a value of a framework, as ``{"torch.dtype": "float32"}``.

No class is named and no code is run: whatever the bytes are, the result is made of the types above.
"""

from __future__ import annotations

import base64
import collections
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.tree.habit import FieldKey, Habit, Json
from ckptstore.tree.skeleton import DEPTH, TREE_TENSOR, ArrayNode, Fields, is_key

__all__ = ["Document", "parse", "serialize"]

_VERSION = 1
_INT_64 = 1 << 63
_MAPPINGS: dict[str, Callable[[Any], Any]] = {
    "items": dict,
    "ordered": collections.OrderedDict,
    "counter": lambda items: collections.Counter(dict(items)),
}
_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


@dataclass(frozen=True)
class Document:
    """What a checkpoint says of the tree that was saved.

    Attributes
    ----------
    separator : str
        Between the keys of the names of its arrays.
    """

    separator: str
    root: Any


def serialize(skeleton: Any, habit: Habit) -> bytes:
    """Return the document of a skeleton; equal skeletons give equal bytes."""
    content = {"version": _VERSION, "separator": habit.separator, "root": _Writer(habit).node(skeleton)}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(data: bytes, habit: Habit, *, url: str) -> Document:
    """Return the document that `serialize` made.

    Raises
    ------
    FormatError
        If the bytes are not one.
    UnsupportedError
        If a newer ckptstore or another framework wrote it.
    """
    try:
        content = json.loads(data.decode("ascii"), object_pairs_hook=_object, parse_constant=_refuse)
        version = content["version"]
        if type(version) is int and version > _VERSION:
            raise UnsupportedError(
                "the tree was written by a newer ckptstore",
                url=url,
                tensor=TREE_TENSOR,
                expected=f"version {_VERSION}",
                actual=f"version {version}",
                hint="Install a newer ckptstore.",
            )
        if version != _VERSION or type(content["separator"]) is not str:
            raise ValueError(f"version {version!r}, separator {content['separator']!r}")
        return Document(content["separator"], _Reader(habit, url).node(content["root"], 0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise FormatError(
            "this is not the description of a tree",
            url=url,
            tensor=TREE_TENSOR,
            actual=f"{type(error).__name__}: {str(error)[:200]}",
            hint="Restore another checkpoint, or read single tensors by name: they are not affected.",
        ) from error


class _Writer:
    def __init__(self, habit: Habit) -> None:
        self._habit = habit

    def node(self, value: Any) -> Json:
        if isinstance(value, ArrayNode):
            node: dict[str, Json] = {"array": value.name}
            return node | {"as": value.kind} if value.kind else node
        if type(value) is Fields:
            return {
                "fields": [
                    [
                        isinstance(key, FieldKey),
                        self.node(str(key) if isinstance(key, FieldKey) else key),
                        self.node(one),
                    ]
                    for key, one in value.items()
                ]
            }
        known = self._habit.plain_of(value)
        if known is not None:
            tag, text = known
            return {tag: text}
        return self._plain(value)

    def _plain(self, value: Any) -> Json:
        match value:
            case None | bool() | str():
                return value
            case int():
                return value if -_INT_64 <= value < 2 * _INT_64 else {"int": hex(value)}
            case float():
                return value if math.isfinite(value) else {"float": repr(value)}
            case complex():
                return {"complex": [self.node(value.real), self.node(value.imag)]}
            case bytes():
                return {"bytes": _base64(value)}
            case list():
                return self._nodes(value)
            case tuple():
                return {"tuple": self._nodes(value)}
            case set() | frozenset():
                # In an order that is the same in every process.
                return {type(value).__name__: sorted(self._nodes(value), key=json.dumps)}
            case collections.OrderedDict():
                return {"ordered": self._items(value)}
            case collections.Counter():
                return {"counter": self._items(value)}
            case dict() if all(type(key) is str for key in value):
                return {"dict": {key: self.node(one) for key, one in value.items()}}
            case dict():
                return {"items": self._items(value)}
        raise TypeError(type(value).__qualname__)

    def _nodes(self, values: Iterable[Any]) -> list[Json]:
        return [self.node(one) for one in values]

    def _items(self, mapping: dict[Any, Any]) -> list[Json]:
        return [[self.node(key), self.node(one)] for key, one in mapping.items()]


class _Reader:
    def __init__(self, habit: Habit, url: str) -> None:
        self._habit = habit
        self._url = url

    def node(self, node: Any, depth: int) -> Any:
        if depth > DEPTH + 2:
            raise ValueError(f"deeper than {DEPTH} containers")
        if type(node) is list:
            return [self.node(one, depth + 1) for one in node]
        if type(node) is not dict:
            return node
        if "array" in node:
            return self._array(node)
        [(tag, content)] = node.items()
        return self._tagged(tag, content, depth + 1)

    def _array(self, node: dict[str, Any]) -> ArrayNode:
        if node.keys() - {"array", "as"} or not all(type(one) is str for one in node.values()):
            raise ValueError(f"an array {node!r}")
        return ArrayNode(node["array"], node.get("as", ""))

    def _tagged(self, tag: str, content: Any, depth: int) -> Any:
        if "." in tag:
            return self._of_framework(tag, content)
        if tag == "dict":
            return {key: self.node(one, depth) for key, one in content.items()}
        if tag == "fields":
            return Fields(
                (
                    FieldKey(self._key(key, depth)) if is_attribute is True else self._key(key, depth),
                    self.node(one, depth),
                )
                for is_attribute, key, one in _list(content)
            )
        if tag in _MAPPINGS:
            items = [(self._key(key, depth), self.node(one, depth)) for key, one in _list(content)]
            made = _MAPPINGS[tag](items)
            if len(made) != len(items):
                raise ValueError(f"a key of {tag!r} twice")
            return made
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([self.node(one, depth) for one in _list(content)])
        match tag:
            case "int":
                return _written_as(int(content, 16), content, hex)
            case "float":
                return _written_as(float(content), content, repr)
            case "complex":
                real, imaginary = (self.node(one, depth) for one in content)
                return complex(real, imaginary)
            case "bytes":
                return _written_as(base64.b64decode(content, validate=True), content, _base64)
        raise ValueError(f"an unknown kind of value, {tag!r}")

    def _key(self, node: Any, depth: int) -> Any:
        key = self.node(node, depth)
        if not is_key(key):
            raise ValueError(f"a key {key!r}")
        return key

    def _of_framework(self, tag: str, content: Json) -> Any:
        try:
            return self._habit.plain_from(tag, content)
        except KeyError:
            raise UnsupportedError(
                "the tree holds a value that this adapter does not know",
                url=self._url,
                tensor=TREE_TENSOR,
                actual=f"{tag}: {str(content)[:200]}",
                hint="Restore with the adapter that saved it. Single tensors can be read by name.",
            ) from None


def _list(content: Any) -> list[Any]:
    if type(content) is not list:
        raise ValueError(f"not a list: {content!r}")
    return content


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _written_as(value: Any, text: str, written: Callable[[Any], str]) -> Any:
    if written(value) != text:
        raise ValueError(f"a value {text[:80]!r}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key twice")
    return made


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
