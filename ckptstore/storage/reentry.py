"""Calls from a signal handler, or a finalizer, in the middle of another call: refused where they never end.

Python runs a signal handler in the main thread, between any two steps. If the thread holds a lock at that
moment, or a request is under way, whatever needs the same waits for ever: the thread cannot go on before the
handler returns. Nothing is noted down when a call begins, because an interrupt could prevent that it is ever
taken back; the stack is looked at instead.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Final, TypeVar

from ckptstore.errors import UsageError

__all__ = ["calls_out", "reentered", "refuse_reentry"]

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
        "saving.at_exit",
        "saving.handle",
        "saving.save_queue",
        "saving.task",
    )
)

# Functions that call one of the user, which may call ckptstore; and a module full of them.
_CALLS_OUT: set[CodeType] = set()
_WRAPPERS: Final = f"{_PACKAGE}.storage.wrappers"

_F = TypeVar("_F", bound=Callable[..., object])


def calls_out(function: _F) -> _F:
    """Mark a function that calls functions of the user, which may call ckptstore."""
    if not isinstance(function, FunctionType):
        raise TypeError("only a function has code to be found on the stack")
    _CALLS_OUT.add(function.__code__)
    return function


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
    interrupted = _beyond_user_code(sys._getframe(1))  # noqa: SLF001  (inspect.currentframe is the same call)
    if interrupted is None or interrupted.f_code in _CALLS_OUT or _module(interrupted) == _WRAPPERS:
        return
    frame: FrameType | None = interrupted
    while frame is not None:
        if _module(frame).startswith(_CRITICAL):
            raise reentered(url)
        frame = frame.f_back


def _beyond_user_code(frame: FrameType) -> FrameType | None:
    """Return the innermost frame of ckptstore that is outside of code of the user."""
    outer: FrameType | None = frame
    is_beyond = False
    while outer is not None:
        top = _module(outer).partition(".")[0]
        if top == _PACKAGE:
            if is_beyond:
                return outer
        elif top not in sys.stdlib_module_names:
            is_beyond = True
        outer = outer.f_back
    return None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
