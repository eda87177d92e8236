"""The outermost edge of a program: whatever happens becomes an exit code."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from collections.abc import Callable

import click

from ckptstore.cli.exit_codes import BROKEN_PIPE, INTERNAL, INTERRUPTED, exit_code_of
from ckptstore.errors import from_os_error

__all__ = ["run_guarded"]


def run_guarded(program: Callable[[], int]) -> int:
    """Return the exit code of `program`, also where it was interrupted or cannot write its output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding cannot express must not end a report in the middle.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program()
        sys.stdout.flush()
    except BrokenPipeError:
        # Close it here, or the interpreter complains on the way out that it cannot flush.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return BROKEN_PIPE
    except OSError as error:
        # Errors of the storage were told by the command: this one is of the output, a full disk for example.
        failure = from_os_error(error, "cannot write the output", "standard output")
        print(f"ckptstore: error: {failure}", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return exit_code_of(failure)
    except (KeyboardInterrupt, click.Abort):
        print("ckptstore: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - the interpreter's own exit code, 1, means something else here
        traceback.print_exc()
        print("ckptstore: this is a fault of ckptstore itself; please report it", file=sys.stderr)
        return INTERNAL
    return code
