"""``.meta`` files made to break a reader: typed errors or a graph, in little memory and time."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from ckptstore.format.coding import encode_bytes_field, encode_varint, encode_varint_field
from tests.hostile.entry_points import Outcome, content_of_meta, quiet, typed
from tests.hostile.sandbox import Limits, Sandbox

HUGE = 1 << 62


def field(number: int, payload: bytes | str) -> bytes:
    return encode_bytes_field(number, payload.encode() if isinstance(payload, str) else payload)


def nested(depth: int, *numbers: int, inner: bytes = b"") -> bytes:
    """Return a message that holds itself `depth` times, through these fields in turn."""
    # From the inside out, in one pass: lengths grow with each level.
    parts: list[bytes] = []
    size = len(inner)
    for level in range(depth * len(numbers)):
        head = encode_varint(numbers[-1 - level % len(numbers)] << 3 | 2) + encode_varint(size)
        parts.append(head)
        size += len(head)
    return b"".join(reversed(parts)) + inner


def attribute(name: str, value: bytes) -> bytes:
    return field(5, field(1, name) + field(2, value))


def node(name: str, op: str, *inputs: str, attributes: bytes = b"") -> bytes:
    return field(1, field(1, name) + field(2, op) + b"".join(field(3, each) for each in inputs) + attributes)


def graph(*nodes: bytes, library: bytes = b"") -> bytes:
    return field(2, b"".join(nodes) + (field(2, library) if library else b""))


def tensor(dtype: int, *sizes: int, rest: bytes = b"", shape: bytes | None = None) -> bytes:
    if shape is None:
        shape = b"".join(field(2, encode_varint_field(1, size)) for size in sizes)
    return encode_varint_field(1, dtype) + field(2, shape) + rest


def constant(value: bytes, dtype: int = 1, name: str = "c") -> bytes:
    return node(
        name,
        "Const",
        attributes=attribute("dtype", encode_varint_field(6, dtype)) + attribute("value", field(8, value)),
    )


def operation_definition(name: str, *outputs: bytes, attributes: bytes = b"") -> bytes:
    """Return a MetaInfoDef that defines an operation."""
    definition = field(1, name) + b"".join(field(3, output) for output in outputs) + attributes
    return field(1, field(2, field(1, definition)))


def collection(key: str, value: bytes) -> bytes:
    return field(4, field(1, key) + field(2, value))


FLOATS = field(5, b"\0\0\x80\x3f")
MANY = 60_000

METAS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\0",
    "all ones": lambda: b"\xff" * 1000,
    "text that is none": lambda: b"hello, world",
    "NULs": lambda: bytes(1000),
    "not UTF-8": lambda: b"graph_def { node { name: '\xff' } }",
    "name that is not UTF-8": lambda: graph(field(1, field(1, b"\xff\xfe"))),
    "nested nodes": lambda: nested(100_000, 2, 1, 5, 2, 10, 2),
    "nested functions in attributes": lambda: graph(
        node("a", "Const", attributes=attribute("f", nested(20, 10, 2, 2)))
    ),
    "nested too deeply for protobuf": lambda: graph(
        node("a", "A", attributes=attribute("f", nested(5000, 10, 2, 2)))
    ),
    "nested components of a signature": lambda: field(
        5, field(1, "s") + field(2, field(1, field(1, "i") + field(2, nested(40, 5, 2))))
    ),
    "nested lists": lambda: graph(node("a", "A", attributes=attribute("l", nested(30, 1, 9, 2, 2)))),
    "deep text": lambda: b"graph_def { " + b"node { " * 100_000,
    "deep text of attributes": lambda: (
        b"graph_def { node { attr { key: 'f' value { " + b"func { attr { value { " * 400
    ),
    "deep text that is closed": lambda: (
        b"graph_def { node { attr { key: 'f' value { "
        + b"func { attr { key: 'g' value { " * 60
        + b"} } } " * 60
        + b"} } } }"
    ),
    "text with an unknown field": lambda: b"graph_def { node { owner: 5 } }",
    "text with numbers out of range": lambda: b"saver_def { max_to_keep: 99999999999999999999 }",
    "text with a number of a million digits": lambda: b"saver_def { max_to_keep: " + b"9" * 1_000_000 + b" }",
    "text with a float of a million digits": lambda: (
        b"saver_def { keep_checkpoint_every_n_hours: " + b"9" * 1_000_000 + b" }"
    ),
    "text with a bad enum": lambda: b"saver_def { version: NONE }",
    "text with an Any": lambda: b"meta_info_def { any_info { [type.googleapis.com/a.B] { x: 1 } } }",
    "text with an Any of ours": lambda: (
        b"meta_info_def { any_info { [x/tensorflow.SaverDef] { version: V2 } } }"
    ),
    "text with an extension": lambda: b"[a.b.c]: 5",
    "text with a bad escape": lambda: b'graph_def { node { name: "\\xzz\\400\\u12" } }',
    "text with a surrogate": lambda: b'graph_def { node { name: "\\ud800" op: "NoOp" } }',
    "text with octal that is not UTF-8": lambda: b'graph_def { node { name: "\\377" } }',
    "text with a map entry twice": lambda: b'collection_def { key: "a" } collection_def { key: "a" }',
    "text of a megabyte without a space": lambda: b"a" * (1 << 20),
    "text of a megabyte of quotes": lambda: b'"' * (1 << 20),
    "length beyond the file": lambda: b"\x12" + encode_varint(1 << 40),
    "group that never ends": lambda: b"\x0b" * 100_000,
    "splat of 2 to the 40 elements": lambda: graph(constant(tensor(1, 1 << 40, rest=FLOATS))),
    "splat of 2 to the 62 elements": lambda: graph(constant(tensor(1, 1 << 61, rest=FLOATS))),
    "splat that overflows": lambda: graph(constant(tensor(1, HUGE, HUGE, rest=FLOATS))),
    "splat without a value": lambda: graph(constant(tensor(1, 1 << 40))),
    "two values of 2 to the 40": lambda: graph(constant(tensor(1, 1 << 40, rest=FLOATS * 2))),
    "strings without end": lambda: graph(constant(tensor(7, 1 << 40, rest=field(8, "a")), 7)),
    "two strings of 2 to the 30": lambda: graph(
        constant(tensor(7, 1 << 30, rest=field(8, "a") + field(8, "b")), 7)
    ),
    "no strings of 2 to the 40": lambda: graph(constant(tensor(7, 1 << 40), 7)),
    "string content that lies": lambda: graph(
        constant(tensor(7, 1 << 40, rest=field(4, encode_varint((1 << 64) - 1))), 7)
    ),
    "zero hides an overflow": lambda: graph(constant(tensor(1, 0, HUGE, HUGE, rest=FLOATS))),
    "negative dimension": lambda: graph(constant(tensor(1, -5, rest=FLOATS))),
    "smallest dimension": lambda: graph(constant(tensor(1, -(1 << 63), rest=FLOATS))),
    "unknown rank": lambda: graph(constant(tensor(1, rest=FLOATS, shape=encode_varint_field(3, 1)))),
    "three hundred dimensions": lambda: graph(constant(tensor(1, *([1] * 300), rest=FLOATS))),
    "seventy dimensions": lambda: graph(constant(tensor(1, *([1] * 70), rest=FLOATS))),
    "seventy dimensions of nothing": lambda: graph(constant(tensor(1, *([0] * 70), rest=FLOATS))),
    "a hundred thousand dimensions": lambda: graph(
        constant(tensor(1, shape=b"\x12\x00" * 100_000, rest=FLOATS))
    ),
    "content of another size": lambda: graph(constant(tensor(1, 3, rest=field(4, bytes(5))))),
    "content for no elements": lambda: graph(constant(tensor(1, 0, rest=field(4, bytes(8))))),
    "more values than elements": lambda: graph(constant(tensor(1, 1, rest=field(5, bytes(4000))))),
    "half a complex number": lambda: graph(constant(tensor(8, 1, rest=field(9, b"\0\0\x80\x3f")), 8)),
    "int that does not fit": lambda: graph(constant(tensor(4, 1, rest=encode_varint_field(7, 1 << 40)), 4)),
    "half of negative bits": lambda: graph(constant(tensor(19, 1, rest=encode_varint_field(13, -1)), 19)),
    "int4 of a thousand": lambda: graph(constant(tensor(29, 1, rest=encode_varint_field(7, 1000)), 29)),
    "unknown type": lambda: graph(constant(tensor(99, 1, rest=FLOATS), 99)),
    "negative type": lambda: graph(constant(tensor(-1, 1, rest=FLOATS), -1)),
    "reference to a reference": lambda: graph(constant(tensor(201, 1, rest=FLOATS), 201)),
    "no type": lambda: graph(constant(tensor(0, 1, rest=FLOATS), 0)),
    "resource": lambda: graph(constant(tensor(20, 1 << 40, rest=field(14, b"")), 20)),
    "variant": lambda: graph(constant(tensor(21, 1 << 40, rest=field(15, b"")), 21)),
    "float8 of another size": lambda: graph(constant(tensor(24, 5, rest=field(18, b"ab")), 24)),
    "the same name twice": lambda: graph(node("a", "NoOp"), node("a", "NoOp")),
    "no names": lambda: graph(*[node("", "")] * 2),
    "input of itself": lambda: graph(node("a", "Identity", "a", "a:0", "^a")),
    "circle of inputs": lambda: graph(node("a", "Identity", "b"), node("b", "Identity", "a")),
    "circle behind the file name": lambda: graph(
        node("s", "SaveV2", "a"), node("a", "Identity", "b"), node("b", "Identity", "a")
    ),
    "input that is not there": lambda: graph(
        node("a", "Identity", "nowhere:3", "", ":", "^", "a:-1", "a:x", "^^a")
    ),
    "output number of a thousand digits": lambda: graph(node("a", "A"), node("b", "B", "a:" + "9" * 1000)),
    "output number in odd digits": lambda: graph(node("a", "A"), node("b", "B", "a:\u0663", "a:\u00b2")),
    "output number of two billion": lambda: graph(node("a", "A"), node("b", "B", "a:2147483647")),
    "two billion outputs": lambda: (
        operation_definition(
            "A", field(1, "o") + encode_varint_field(3, 1) + field(5, "N"), attributes=field(4, field(1, "N"))
        )
        + graph(node("a", "A", attributes=attribute("N", encode_varint_field(3, (1 << 31) - 1))))
    ),
    "negative number of outputs": lambda: (
        operation_definition("A", field(1, "o") + field(5, "N"))
        + graph(node("a", "A", attributes=attribute("N", encode_varint_field(3, -5))))
    ),
    "many outputs of many nodes": lambda: (
        operation_definition("Placeholder", field(1, "o") + encode_varint_field(3, 1) + field(5, "N"))
        + graph(
            *(
                node(f"p{number}", "Placeholder", attributes=attribute("N", encode_varint_field(3, MANY)))
                for number in range(2000)
            )
        )
    ),
    "list of a million types": lambda: (
        operation_definition("A", field(1, "o") + field(6, "T"))
        + graph(node("a", "A", attributes=attribute("T", field(1, field(6, b"\1" * 300_000)))))
    ),
    "twenty thousand nodes": lambda: graph(*(node(f"n{number}", "NoOp") for number in range(20_000))),
    "hundred thousand empty nodes": lambda: field(2, b"\x0a\x00" * 100_000),
    "chain of inputs": lambda: graph(
        *(node(f"n{number}", "Identity", f"n{number - 1}") for number in range(20_000))
    ),
    "collection of damaged variables": lambda: collection("variables", field(2, field(1, b"\xff\xff"))),
    "collection of damaged savers": lambda: collection("savers", field(2, field(1, b"\x0a\xff"))),
    "collection of absent nodes": lambda: collection("losses", field(1, field(1, "nowhere:0"))),
    "collection of absent variables": lambda: collection(
        "variables", field(2, field(1, field(1, "nowhere:0")))
    ),
    "collection of bytes that are not UTF-8": lambda: collection("summaries", field(2, field(1, b"\xff"))),
    "collection of any": lambda: collection(
        "any", field(5, field(1, field(1, "type/x") + field(2, b"\xff")))
    ),
    "collection of nested contexts": lambda: collection(
        "while_context", field(2, field(1, nested(30, 12, 2, inner=field(1, "x"))))
    ),
    "collection without a kind": lambda: collection("nothing", b""),
    "signature of unknown types": lambda: field(
        5, field(1, "s") + field(2, field(1, field(1, "i") + field(2, encode_varint_field(2, 77))))
    ),
    "saver with a bad version": lambda: field(3, encode_varint_field(7, 99)),
    "saver that keeps a negative number": lambda: field(3, encode_varint_field(4, -5)),
    "saver that keeps for infinite hours": lambda: field(3, b"\x35\x00\x00\x80\x7f"),
    "saver that keeps for no number of hours": lambda: field(3, b"\x35\x00\x00\xc0\x7f"),
    "device of a megabyte": lambda: graph(field(1, field(1, "a") + field(4, "d" * (1 << 20)))),
    "name of a hundred kilobytes": lambda: graph(node("n" * 100_000, "NoOp"), node("b", "B", "x" * 100_000)),
    "names that steer a terminal": lambda: graph(node("\x1b[2J", "NoOp"), node("b", "\x07", "\x1b]0;x\x07")),
    "unknown fields": lambda: (
        graph(node("a", "NoOp")) + field(999, b"x" * 1000) + encode_varint_field(1000, 5)
    ),
    "function without a name": lambda: graph(library=field(1, field(1, b"") + field(3, field(1, "n")))),
    "function that calls itself": lambda: graph(
        node("a", "f"), library=field(1, field(1, field(1, "f")) + field(3, field(1, "n") + field(2, "f")))
    ),
    "location that is not UTF-8": lambda: graph(
        node("a", "A", attributes=attribute("_class", field(1, field(2, b"loc:@\xff"))))
    ),
    "attribute without a value": lambda: graph(
        constant(b""), node("b", "Const", attributes=attribute("value", b""))
    ),
    "shape without a shape": lambda: graph(node("a", "VariableV2", attributes=attribute("shape", b""))),
    "output shapes of another kind": lambda: graph(
        node("a", "A", attributes=attribute("_output_shapes", encode_varint_field(3, 5)))
    ),
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def examine(data: bytes) -> Outcome:
    """Ask a graph everything."""
    with quiet():
        outcome = typed(content_of_meta, data)
    return Outcome(content=None if outcome.content is None else len(outcome.content), error=outcome.error)


@pytest.mark.parametrize("name", METAS)
def test_meta_is_a_graph_or_a_typed_error(name: str, sandbox: Sandbox) -> None:
    data = METAS[name]()
    outcome = sandbox.run(examine, data, limits=Limits(memory_bytes=60 * len(data) + (50 << 20))).value
    assert outcome.error is None or isinstance(
        outcome.error, (ck.FormatError, ck.UnsupportedError, ck.UsageError)
    )


@pytest.mark.parametrize("name", ["empty", "all ones", "text that is none", "nested too deeply for protobuf"])
def test_meta_that_is_none_names_its_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.meta"
    path.write_bytes(METAS[name]())
    error = typed(ck.import_meta_graph, path).error
    assert isinstance(error, ck.FormatError)
    assert error.url == str(path)


def test_constant_that_repeats_one_value_takes_no_memory(sandbox: Sandbox) -> None:
    data = METAS["splat of 2 to the 40 elements"]()
    ran = sandbox.run(shape_of_constant, data, limits=Limits(memory_bytes=20 << 20))
    assert ran.value == (1 << 40,)


def shape_of_constant(data: bytes) -> Any:
    saver = ck.import_meta_graph(data)
    assert saver.graph is not None
    value = saver.graph.get_tensor_by_name("c:0").value
    assert value is not None
    assert value[-1] == 1.0
    return value.shape


WORDS = re.findall(
    r"\S+",
    """graph_def { node { name: op: input: device: attr { key: value { list { s: i: f: b: type: shape { dim {
    size: tensor { dtype: tensor_shape float_val: string_val: tensor_content: } } } : [ ] < > , ; "a" 'b:0' 1
    -1 0x7f 1e400 nan inf DT_FLOAT DT_STRING true # "x "\\377" "\\u0041" saver_def collection_def
    signature_def version: V2 max_to_keep: node_list bytes_list any_info [type.googleapis.com/x] \\""",
)


@pytest.mark.parametrize("seed", range(4))
def test_text_meta_with_random_pieces_is_a_graph_or_a_typed_error(seed: int) -> None:
    dice = random.Random(seed)
    with quiet():
        for _ in range(150):
            text = " ".join(dice.choices(WORDS, k=dice.randrange(1, 30))).encode()
            outcome = typed(content_of_meta, text)
            assert outcome.error is None or isinstance(outcome.error, ck.FormatError)
