"""``ckptstore inspect``: what one checkpoint holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ckptstore.cli.exit_codes import CORRUPT, OK
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path, parse_printoption
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import CorruptError, UnsupportedError

if TYPE_CHECKING:
    from ckptstore.bundle.read.open_bundle import BundleReader
    from ckptstore.view.inspection import Inspection, TensorFacts

__all__ = ["inspect_command"]


def _regular_expression(context: click.Context, parameter: click.Parameter, text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise click.BadParameter(f"{text!r} is not a regular expression: {error}") from error
    return text


def _print_options(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    try:
        return dict(map(parse_printoption, texts))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@shell_command("inspect")
@click.argument("target", metavar="PREFIX|DIR|FILE", shell_complete=complete_path)
@click.option("--tensor-name", metavar="NAME", help="Show this tensor with its value.")
@click.option("--all-tensors", is_flag=True, help="Show every tensor with its value.")
@click.option(
    "--all-tensor-names", is_flag=True, help="Show names, types and shapes in the form of TensorFlow's tool."
)
@click.option(
    "--count-exclude-pattern",
    metavar="RE",
    default="",
    callback=_regular_expression,
    help="Do not count tensors whose name matches this regular expression.",
)
@click.option(
    "--printoptions",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_print_options,
    help="numpy's print options for values, e.g. threshold=100000; repeatable.",
)
def inspect_command(
    output: Output,
    storage_options: Options,
    *,
    target: str,
    tensor_name: str | None,
    all_tensors: bool,
    all_tensor_names: bool,
    count_exclude_pattern: str,
    printoptions: dict[str, Any],
) -> int:
    """Show the tensors of a checkpoint: names, types, shapes, sizes.

    Name a checkpoint by its PREFIX (run/model-1000) or by one of its files, or name a directory DIR for its
    latest checkpoint. V2 and V1 formats. Only the index is read, unless values are requested.
    """
    import numpy as np

    from ckptstore.bundle.read.open_bundle import open_bundle
    from ckptstore.cli.targets import at_checkpoint, at_directory, latest_in
    from ckptstore.storage.registry import locate

    location = locate(target, storage_options)
    reader = at_checkpoint(location, open_bundle, output)
    if reader is None:
        reader = open_bundle(latest_in(at_directory(location), output))
    inspection = _inspection(reader, count_exclude_pattern)
    damaged = [facts.name for facts in inspection.tensors if facts.problem is not None]
    with np.printoptions(**printoptions):
        if all_tensors:
            output.values(inspection, _values(reader, inspection.tensors, damaged))
        elif all_tensor_names:
            output.tensor_names(inspection)
        elif tensor_name is not None:
            value = _value(reader, tensor_name)
            output.values(inspection, [(_facts(reader, tensor_name), value)])
            return OK
        else:
            output.inspection(inspection)
    return CORRUPT if damaged else OK


def _inspection(reader: BundleReader, exclude_pattern: str) -> Inspection:
    from ckptstore.bundle.read.reader_v1 import ReaderV1
    from ckptstore.view.inspection import Inspection

    return Inspection(
        url=reader.location.url,
        version=1 if isinstance(reader, ReaderV1) else 2,
        num_shards=reader.header.num_shards,
        big_endian=reader.header.big_endian,
        tensors=[_facts(reader, name) for name in reader.names()],
        exclude_pattern=exclude_pattern,
    )


def _facts(reader: BundleReader, name: str) -> TensorFacts:
    """Return what the index says of one tensor; a damaged entry does not hide the others."""
    from ckptstore.view.inspection import TensorFacts
    from ckptstore.view.problems import Problem

    try:
        spec = reader.spec(name)
        try:
            return TensorFacts(name, spec, reader.stored(name))
        except UnsupportedError:
            return TensorFacts(name, spec)
    except (CorruptError, UnsupportedError) as error:
        return TensorFacts(name, problem=Problem.of_error(error))


def _value(reader: BundleReader, name: str) -> Any:
    value = reader.read(name)
    # As TensorFlow gives them: a scalar is a numpy scalar, or bytes.
    return value if value.ndim else value[()]


def _values(
    reader: BundleReader, tensors: Iterable[TensorFacts], damaged: list[str]
) -> Iterator[tuple[TensorFacts, Any]]:
    """Yield each tensor with its value, or with its problem, and then add its name to `damaged`."""
    from ckptstore.view.problems import Problem

    for facts in tensors:
        if facts.problem is not None:
            yield facts, None
            continue
        try:
            value = _value(reader, facts.name)
        except (CorruptError, UnsupportedError) as error:
            damaged.append(facts.name)
            yield replace(facts, problem=Problem.of_error(error)), None
        else:
            yield facts, value
