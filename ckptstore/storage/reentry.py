"""Calls from a signal handler, or a finalizer, in the middle of another call: refused where they never end.

Python runs a signal handler in the main thread, between any two steps. If the thread holds a lock at that
moment, or a request is under way, whatever needs the same waits for ever: the thread cannot go on before the
handler returns. Nothing is noted down when a call begins, because an interrupt could prevent that it is ever
taken back; the stack is looked at instead.
"""

from __future__ import annotations

import sys
import threading
from inspect import CO_VARARGS
from types import FrameType
from typing import Final

from ckptstore.errors import UsageError

__all__ = ["reentered", "refuse_reentry"]

_PACKAGE: Final = __name__.partition(".")[0]

# Where locks are held, and where a thread waits for others.
_CRITICAL: Final = tuple(
    f"{_PACKAGE}.{name}"
    for name in (
        "storage",
        "transfer",
        "format.protos",
        "format.table",
        "bundle.write.stage",
        "bundle.read.fetch",
        "bundle.read.index_file",
        "bundle.read.shard_files",
        "cache",
        "saving.at_exit",
        "saving.handle",
        "saving.save_queue",
        "saving.task",
    )
)


def reentered(url: str | None = None) -> UsageError:
    """Return the error for such a call."""
    return UsageError(
        "a signal handler, or a finalizer, interrupted another call of ckptstore in the same thread",
        url=url,
        hint="Let the handler set a flag or cancel the save, and save when the interrupted call is over.",
    )


def refuse_reentry(url: str | None = None) -> None:
    """Raise `UsageError` in a signal handler, or a finalizer, that interrupted another call.

    Only where the interrupted one may hold what this one needs; anywhere else, nothing happens.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return
    # inspect.currentframe is the same call.
    frame = _interrupted(sys._getframe(1))  # noqa: SLF001
    while frame is not None:
        if _module(frame).startswith(_CRITICAL):
            raise reentered(url)
        frame = frame.f_back


def _interrupted(frame: FrameType) -> FrameType | None:
    """Return the innermost frame of ckptstore that a handler or finalizer interrupted; None without one.

    Other code may stand between two calls of ckptstore too: a report of progress, a storage of the user, a
    tensor that is read from another checkpoint when it is asked for its values.
    """
    outer: FrameType | None = frame
    between: list[FrameType] = []
    while outer is not None:
        if _module(outer).partition(".")[0] != _PACKAGE:
            between.append(outer)
        elif any(map(_is_interruption, between)):
            return outer
        else:
            between.clear()
        outer = outer.f_back
    return None


def _is_interruption(frame: FrameType) -> bool:
    """Return whether `frame` is of a signal handler or a finalizer."""
    if frame.f_code.co_name == "__del__" or _module(frame) == "weakref":
        return True
    # Python calls a handler with the frame that it interrupted.
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + bool(code.co_flags & CO_VARARGS)]
    for value in map(frame.f_locals.get, names):
        if value is frame.f_back or (isinstance(value, tuple) and any(v is frame.f_back for v in value)):
            return frame.f_back is not None
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
