"""TensorFlow's ``inspect_checkpoint`` tool: the tensors of one checkpoint as text.

``python -m ckptstore.inspect_checkpoint --file_name=PREFIX`` takes the flags of ``python -m
tensorflow.python.tools.inspect_checkpoint``, so that existing scripts work. For new ones ``ckptstore
inspect`` is better: it also writes JSON.
"""

from __future__ import annotations

import math
import os
import re
import runpy
from collections.abc import Mapping
from typing import Any

from ckptstore.errors import UsageError
from ckptstore.train.checkpoint_reader import CheckpointReader, load_checkpoint

__all__ = ["print_tensors_in_checkpoint_file"]


def print_tensors_in_checkpoint_file(
    file_name: str | os.PathLike[str],
    tensor_name: str | None,
    all_tensors: bool,
    all_tensor_names: bool = False,
    count_exclude_pattern: str = "",
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Print the tensors of a checkpoint, character for character as TensorFlow's tool does.

    Names are printed as they are in the file, and a terminal obeys control characters in them. ``ckptstore
    inspect`` escapes them.

    Parameters
    ----------
    file_name : str or PathLike
        Prefix or URL of a checkpoint; a directory stands for its latest one.
    tensor_name : str or None
        Print only this tensor: its type, shape and value, or that the checkpoint does not have it. Empty or
        None: print the entries of the index.
    all_tensors : bool
        Print every tensor with its value, whatever `tensor_name` says.
    all_tensor_names : bool
        Print type and shape of every tensor, whatever `tensor_name` says.
    count_exclude_pattern : str
        Regular expression; tensors whose name matches do not count in the total that is printed last.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If there is no such checkpoint. TensorFlow's tool prints this error and the following ones, and exits
        with 0.
    CorruptError
        If the checkpoint is damaged.
    UsageError
        If `count_exclude_pattern` is not a regular expression.
    """
    exclude = _compiled(count_exclude_pattern)
    reader = load_checkpoint(file_name, storage_options=storage_options)
    shapes = reader.get_variable_to_shape_map()
    if all_tensors or all_tensor_names:
        dtypes = reader.get_variable_to_dtype_map()
        for name, shape in sorted(shapes.items()):
            print(f"tensor: {_shown(name)} ({dtypes[name].name}) {shape}")
            if all_tensors:
                is_variant = dtypes[name].name == "variant"
                print("<not convertible to a numpy dtype>" if is_variant else reader.get_tensor(name))
    elif not tensor_name:
        print(reader.debug_string().decode("utf-8", errors="ignore"))
    elif tensor_name not in shapes:
        print(f"Tensor {_shown(tensor_name)} not found in checkpoint")
        return
    elif not _print_tensor(reader, tensor_name, shapes[tensor_name]):
        return
    _print_total(shapes, count_exclude_pattern, exclude)


def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise UsageError(
            f"count_exclude_pattern is not a regular expression: {error}", actual=repr(pattern)
        ) from error


def _shown(name: str) -> str:
    """Return `name`; bytes that are not UTF-8, which no text file can take, as escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _print_tensor(reader: CheckpointReader, name: str, shape: list[int]) -> bool:
    dtype = reader.get_variable_to_dtype_map()[name]
    print(f"tensor: {_shown(name)} ({dtype.name}) {shape}")
    if dtype.name == "variant":
        # The text of the exception with which TensorFlow's tool ends here, before the total.
        print(f"Tensorflow type {dtype.as_datatype_enum} not convertible to numpy dtype.")
        return False
    print(reader.get_tensor(name))
    return True


def _print_total(shapes: dict[str, list[int]], pattern: str, exclude: re.Pattern[str] | None) -> None:
    if exclude is not None:
        excluded = {name: shape for name, shape in shapes.items() if exclude.search(name)}
        shapes = {name: shape for name, shape in shapes.items() if name not in excluded}
        count = sum(map(math.prod, excluded.values()))
        print(f"# Excluding {len(excluded)} tensors ({count} params) that match {pattern} when counting.")
    print(f"# Total number of params: {sum(map(math.prod, shapes.values()))}")


if __name__ == "__main__":
    # Run by name and not imported: the library does not import the command line, and only cli/ exits.
    runpy.run_module("ckptstore.cli.tensorflow_flags", run_name="__main__")
