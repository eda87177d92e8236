"""``python -m ckptstore.inspect_checkpoint``: the flags of TensorFlow's tool of that name.

Unlike that tool it has exit codes: those of ``ckptstore inspect``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ckptstore.cli.exit_codes import NOT_FOUND, OK, USAGE, exit_code_of
from ckptstore.cli.parameters import parse_printoption
from ckptstore.cli.run_guarded import run_guarded
from ckptstore.cli.shell_command import open_output
from ckptstore.errors import CkptStoreError

__all__ = ["main"]

_USAGE = (
    "Usage: inspect_checkpoint --file_name=checkpoint_file_name [--tensor_name=tensor_to_print] "
    "[--all_tensors] [--all_tensor_names] [--count_exclude_pattern] [--printoptions]"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; those of the process by default.
    """
    flags = _parser().parse_args(arguments)
    return run_guarded(lambda: _run(flags))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "inspect_checkpoint", description="Print the tensors of a checkpoint as TensorFlow's tool does."
    )
    parser.add_argument("--file_name", default="", help="Prefix of the checkpoint.")
    parser.add_argument("--tensor_name", default="", help="Print this tensor with its value.")
    parser.add_argument(
        "--count_exclude_pattern",
        default="",
        help="Do not count tensors whose name matches this regular expression.",
    )
    for name, text in (
        ("--all_tensors", "Print every tensor with its value."),
        ("--all_tensor_names", "Print name, type and shape of every tensor."),
    ):
        # As in TensorFlow: the flag alone and "true" in any case mean true, everything else false.
        parser.add_argument(name, nargs="?", const=True, default=False, type=_is_true, help=text)
    parser.add_argument(
        "--printoptions",
        nargs="*",
        default=[],
        type=_print_option,
        metavar="k=v",
        help="numpy's print options, e.g. threshold=100000.",
    )
    return parser


def _is_true(text: str) -> bool:
    return text.lower() == "true"


def _print_option(text: str) -> tuple[str, Any]:
    try:
        return parse_printoption(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(flags: argparse.Namespace) -> int:
    if not flags.file_name:
        print(_USAGE, file=sys.stderr)
        return USAGE
    import numpy as np

    from ckptstore.inspect_checkpoint import print_tensors_in_checkpoint_file
    from ckptstore.train.checkpoint_reader import load_checkpoint

    try:
        with np.printoptions(**dict(flags.printoptions)):
            print_tensors_in_checkpoint_file(
                flags.file_name,
                flags.tensor_name,
                flags.all_tensors,
                flags.all_tensor_names,
                flags.count_exclude_pattern,
            )
        if flags.tensor_name and not (flags.all_tensors or flags.all_tensor_names):
            # The output says the same to a person; the exit code is for scripts.
            has_it = load_checkpoint(flags.file_name).has_tensor(flags.tensor_name)
            return OK if has_it else NOT_FOUND
    except CkptStoreError as error:
        open_output(as_json=False).error(error)
        return exit_code_of(error)
    return OK


if __name__ == "__main__":
    sys.exit(main())
