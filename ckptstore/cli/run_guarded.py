"""Run a program so that every outcome becomes an exit code."""

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
    """Return the exit code of `program`, also if it is interrupted or cannot write its output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding cannot express must not abort a report.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program()
        sys.stdout.flush()
    except BrokenPipeError:
        # Closed here: otherwise the interpreter reports at exit that it cannot flush.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return BROKEN_PIPE
    except OSError as error:
        # Commands handle errors of the storage. This is one of the output, e.g. a full disk.
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
        print("ckptstore: this is a bug in ckptstore; please report it", file=sys.stderr)
        return INTERNAL
    return code
