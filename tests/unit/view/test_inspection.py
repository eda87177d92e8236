from __future__ import annotations

import json

import numpy as np

from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.errors import FormatError
from ckptstore.format.dtypes import by_name
from ckptstore.format.entry import BundleEntry
from ckptstore.types import Slice, TensorSpec
from ckptstore.view.inspection import (
    Inspection,
    TensorFacts,
    count_parameters,
    heading_line,
    inspection_object,
    summary_lines,
    tensor_line,
    tensor_table,
    total_lines,
)
from ckptstore.view.problems import Problem
from ckptstore.view.text_table import table_lines

FLOAT = by_name("float32")


def facts(name, shape=(2, 2), shards=(0,), slices=()):
    size = 4 * int(np.prod(shape))
    spec = TensorSpec(name, tuple(shape), FLOAT, size, tuple(shards), slices)
    entry = BundleEntry(1, tuple(shape), shards[0], 16, size, 0x35E53C59)
    return TensorFacts(name, spec, StoredTensor(name, FLOAT, tuple(shape), slices, (entry,)))


def inspection(*tensors, num_shards=1, version=2, big_endian=False, exclude=""):
    return Inspection("run/model-7", version, num_shards, big_endian, tensors, exclude)


def shown(found):
    return [line for line, _ in table_lines(tensor_table(found))]


def test_the_plain_table():
    found = inspection(facts("b", ()), facts("w", (1024, 1024)))
    assert heading_line(found) == "run/model-7  (1 data file)"
    assert shown(found) == [
        "TENSOR  DTYPE    SHAPE            SIZE",
        "b       float32  []                4 B",
        "w       float32  [1024, 1024]  4.0 MiB",
    ]
    assert summary_lines(found) == ["2 tensors, 1,048,577 parameters, 4.0 MiB in all"]


def test_shards_and_slices_have_columns_where_there_are_any():
    slices = (Slice(((0, 1), (0, -1))), Slice(((1, 1), (0, -1))))
    found = inspection(facts("p", shards=(0, 1, 2, 5), slices=slices), facts("w"), num_shards=6)
    assert shown(found) == [
        "TENSOR  DTYPE    SHAPE   SIZE  SHARDS  SLICES",
        "p       float32  [2, 2]  16 B  0-2,5        2",
        "w       float32  [2, 2]  16 B  0",
    ]


def test_the_heading_says_what_is_unusual():
    assert (
        heading_line(inspection(num_shards=3, big_endian=True)) == "run/model-7  (3 data files, big-endian)"
    )
    assert heading_line(inspection(version=1)) == "run/model-7  (V1 format)"


def test_a_hostile_name_is_escaped_everywhere():
    found = inspection(facts("\x1b[31mw"), exclude="\x1b")
    text = "\n".join(
        [*shown(found), *summary_lines(found), *total_lines(found), tensor_line(found.tensors[0].spec)]
    )
    assert "\x1b" not in text
    assert "\\x1b[31mw" in text


def test_excluded_tensors_are_counted_apart():
    counted = count_parameters({"w": (2, 3), "w/Adam": (2, 3), "step": ()}, "Adam")
    assert (counted.tensors, counted.parameters) == (2, 7)
    assert (counted.excluded_tensors, counted.excluded_parameters) == (1, 6)


def test_totals_are_those_of_the_tensorflow_tool():
    found = inspection(facts("w"), facts("w/Adam"), exclude="Adam$")
    assert total_lines(found) == [
        "# Excluding 1 tensors (4 params) that match Adam$ when counting.",
        "# Total number of params: 4",
    ]


def test_a_damaged_entry_is_shown_and_does_not_count():
    problem = Problem.of_error(FormatError("bad shape", url="run/model-7.index", tensor="x"))
    found = inspection(facts("w"), TensorFacts("x", problem=problem))
    assert shown(found)[-1] == "x       damaged"
    assert summary_lines(found) == [
        f"damaged: x: bad shape [tensor 'x', run/model-7.index]. {FormatError.next_step}",
        "1 tensor, 4 parameters, 16 B in all",
    ]
    assert inspection_object(found)["tensors"][1]["problem"]["code"] == "format"


def test_the_object_has_the_place_of_every_piece():
    found = inspection_object(inspection(facts("w")))
    assert found["format_version"] == 2
    assert found["tensors"] == [
        {
            "name": "w",
            "dtype": "float32",
            "shape": [2, 2],
            "size_bytes": 16,
            "shards": [0],
            "slices": [],
            "pieces": [{"shard": 0, "offset": 16, "size_bytes": 16, "masked_crc32c": "0x35e53c59"}],
        }
    ]
    assert found["total"] == {"tensors": 1, "parameters": 4, "size_bytes": 16}
    json.dumps(found, allow_nan=False)
