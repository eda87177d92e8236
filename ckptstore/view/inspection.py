"""The contents of one checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.format.slices import format_slice
from ckptstore.view.problems import Problem, problem_line, problem_object
from ckptstore.view.text import count, escaped, human_size, plural
from ckptstore.view.text_table import Column, Row, TextTable

if TYPE_CHECKING:
    from ckptstore.bundle.read.open_bundle import StoredTensor
    from ckptstore.types import TensorSpec

__all__ = [
    "Inspection",
    "TensorCounts",
    "TensorFacts",
    "count_parameters",
    "heading_line",
    "inspection_object",
    "problem_lines",
    "summary_lines",
    "tensor_line",
    "tensor_object",
    "tensor_table",
    "total_lines",
]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One tensor of the index, or why its entry cannot be understood.

    Attributes
    ----------
    stored : StoredTensor or None
        With the location of each piece.
    """

    name: str
    spec: TensorSpec | None = None
    stored: StoredTensor | None = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class TensorCounts:
    """Numbers of tensors and elements; those that match the pattern are counted apart, as excluded."""

    tensors: int
    parameters: int
    excluded_tensors: int = 0
    excluded_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Inspection:
    """One checkpoint.

    Attributes
    ----------
    url : str
        Its prefix.
    version : int
        Of the format: 1 or 2.
    num_shards : int
        Number of data files, from the header.
    tensors : sequence of TensorFacts
        Ascending by name.
    exclude_pattern : str
        Regular expression; tensors that match it are not counted.
    """

    url: str
    version: int
    num_shards: int
    big_endian: bool
    tensors: Sequence[TensorFacts]
    exclude_pattern: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(facts.spec.nbytes for facts in self.tensors if facts.spec is not None)

    @property
    def counted(self) -> TensorCounts:
        specs = (facts.spec for facts in self.tensors if facts.spec is not None)
        return count_parameters({spec.name: spec.shape for spec in specs}, self.exclude_pattern)


def count_parameters(shapes: dict[str, tuple[int, ...]], exclude_pattern: str = "") -> TensorCounts:
    """Count tensors and elements; a scalar has one."""
    pattern = re.compile(exclude_pattern) if exclude_pattern else None
    tensors = parameters = excluded_tensors = excluded_parameters = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if pattern is not None and pattern.search(name):
            excluded_tensors += 1
            excluded_parameters += size
        else:
            tensors += 1
            parameters += size
    return TensorCounts(tensors, parameters, excluded_tensors, excluded_parameters)


def heading_line(inspection: Inspection) -> str:
    """Return the line above the table: the checkpoint and its format."""
    kind = "V1 format" if inspection.version == 1 else plural(inspection.num_shards, "data file")
    order = ", big-endian" if inspection.big_endian else ""
    return f"{escaped(inspection.url)}  ({kind}{order})"


def tensor_table(inspection: Inspection) -> TextTable:
    """Return one row per tensor; without several shards, or slices, these columns are left out."""
    specs = [facts.spec for facts in inspection.tensors if facts.spec is not None]
    with_shards = inspection.num_shards > 1
    with_slices = any(spec.slices for spec in specs)
    columns = [
        Column("TENSOR", flexible=True),
        Column("DTYPE"),
        Column("SHAPE"),
        Column("SIZE", right=True),
        *([Column("SHARDS")] if with_shards else []),
        *([Column("SLICES", right=True)] if with_slices else []),
    ]
    rows = []
    for facts in inspection.tensors:
        spec = facts.spec
        if spec is None:
            cells = [escaped(facts.name), "damaged", "", "", *[""] * (len(columns) - 4)]
            rows.append(Row(tuple(cells), "bad"))
            continue
        cells = [escaped(spec.name), spec.dtype.name, str(list(spec.shape)), human_size(spec.nbytes)]
        if with_shards:
            cells.append(_ranges(spec.shards))
        if with_slices:
            cells.append(count(len(spec.slices)) if spec.slices else "")
        rows.append(Row(tuple(cells)))
    return TextTable(tuple(columns), rows)


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as ranges: ``"0-3,7"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def summary_lines(inspection: Inspection) -> list[str]:
    """Return the lines below the table: damaged entries, what was not counted, totals."""
    counted = inspection.counted
    lines = problem_lines(inspection)
    if inspection.exclude_pattern:
        lines.append(
            f"not counted: {plural(counted.excluded_tensors, 'tensor')}, "
            f"{plural(counted.excluded_parameters, 'parameter')} match {escaped(inspection.exclude_pattern)}"
        )
    lines.append(
        f"{plural(counted.tensors, 'tensor')}, {plural(counted.parameters, 'parameter')}, "
        f"{human_size(inspection.size_bytes)} in all"
    )
    return lines


def problem_lines(inspection: Inspection) -> list[str]:
    """Return one line for each entry that cannot be understood."""
    return [
        f"damaged: {escaped(facts.name)}: {problem_line(facts.problem)}"
        for facts in inspection.tensors
        if facts.problem is not None
    ]


def total_lines(inspection: Inspection) -> list[str]:
    """Return the last lines of TensorFlow's tool, after those of damaged entries."""
    counted = inspection.counted
    lines = problem_lines(inspection)
    if inspection.exclude_pattern:
        lines.append(
            f"# Excluding {counted.excluded_tensors} tensors ({counted.excluded_parameters} params) "
            f"that match {escaped(inspection.exclude_pattern)} when counting."
        )
    lines.append(f"# Total number of params: {counted.parameters}")
    return lines


def tensor_line(spec: TensorSpec) -> str:
    """Return the line that TensorFlow's tool prints for a tensor, the name escaped."""
    return f"tensor: {escaped(spec.name)} ({spec.dtype.name}) {list(spec.shape)}"


def tensor_object(facts: TensorFacts) -> dict[str, Any]:
    """Return one tensor for ``--json``; a damaged one with its problem."""
    spec, stored = facts.spec, facts.stored
    found: dict[str, Any] = {"name": facts.name}
    if facts.problem is not None:
        found["problem"] = problem_object(facts.problem)
    if spec is not None:
        found |= {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "size_bytes": spec.nbytes,
            "shards": list(spec.shards),
            "slices": [format_slice(box) for box in spec.slices],
        }
    if stored is not None:
        found["pieces"] = [
            {
                "shard": entry.shard_id,
                "offset": entry.offset,
                "size_bytes": entry.size_bytes,
                "masked_crc32c": f"{entry.masked_crc32c:#010x}",
            }
            for entry in stored.entries
        ]
    return found


def inspection_object(inspection: Inspection) -> dict[str, Any]:
    """Return the output of ``ckptstore inspect --json``, without ``schema``."""
    counted = inspection.counted
    return {
        "prefix": inspection.url,
        "format_version": inspection.version,
        "num_shards": inspection.num_shards,
        "big_endian": inspection.big_endian,
        "tensors": [tensor_object(facts) for facts in inspection.tensors],
        "total": {
            "tensors": counted.tensors,
            "parameters": counted.parameters,
            "size_bytes": inspection.size_bytes,
        },
        "not_counted": {
            "pattern": inspection.exclude_pattern,
            "tensors": counted.excluded_tensors,
            "parameters": counted.excluded_parameters,
        },
    }
