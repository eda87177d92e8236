"""System calls that fail, and a record of those that were made.

After leveldb's fault injection environment: the code under test is the real one, and what fails is the
world below it. The functions of `os` and `fcntl` are replaced for as long as a ``with`` block runs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, NoReturn
from unittest import mock

__all__ = [
    "FailingCall",
    "each_call_failing",
    "record_calls",
    "refuse",
    "refuse_directories",
    "replace_calls",
]

_OF_FCNTL = frozenset({"fcntl", "flock", "ioctl"})
_close = os.close


def _module_of(name: str) -> Any:
    return fcntl if name in _OF_FCNTL else os


@contextmanager
def replace_calls(**replacements: Callable[..., object]) -> Iterator[None]:
    """Replace system calls by name."""
    with ExitStack() as stack:
        for name, function in replacements.items():
            stack.enter_context(mock.patch.object(_module_of(name), name, function))
        yield


def refuse(number: int) -> Callable[..., NoReturn]:
    """Return a system call that fails with this errno."""

    def call(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return call


def refuse_directories(number: int) -> Callable[[int], None]:
    """Return an fsync that fails with this errno for directories only."""
    fsync = os.fsync

    def call(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    return call


@contextmanager
def record_calls(*names: str) -> Iterator[list[str]]:
    """Record the calls of these names while the block runs, with what they were for."""
    made: list[str] = []

    def record(name: str) -> Callable[..., object]:
        real = getattr(_module_of(name), name)

        def call(*args: object, **kwargs: object) -> object:
            made.append(name + _purpose(name, args))
            return real(*args, **kwargs)

        return call

    with replace_calls(**{name: record(name) for name in names}):
        yield made


def _purpose(name: str, args: Sequence[object]) -> str:
    if name == "fsync":
        return " directory" if os.path.isdir(f"/proc/self/fd/{args[0]}") else " file"
    if name == "mkdir":
        return f" {os.path.basename(str(args[0]))}"
    return " temporary" if name == "unlink" and ".tmp-" in str(args[0]) else ""


class FailingCall:
    """A context in which the n-th of the chosen system calls fails, before or after it was carried out.

    Attributes
    ----------
    made : list of str
        The calls so far, the failed one included.
    """

    def __init__(self, names: Sequence[str], number: int, error: BaseException, *, after: bool) -> None:
        self.number = number
        self.made: list[str] = []
        self._error = error
        self._after = after
        self._patch = replace_calls(**{name: self._wrap(name) for name in names})

    @property
    def was_reached(self) -> bool:
        return len(self.made) >= self.number

    def __str__(self) -> str:
        name = self.made[self.number - 1] if self.was_reached else "none"
        return f"{name} (call {self.number} of {self.made})"

    def __enter__(self) -> FailingCall:
        self._patch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.__exit__(kind, error, trace)

    def _wrap(self, name: str) -> Callable[..., object]:
        real = getattr(_module_of(name), name)

        def call(*args: object, **kwargs: object) -> object:
            self.made.append(name)
            fails = len(self.made) == self.number
            if fails and not self._after:
                raise self._error
            result = real(*args, **kwargs)
            if fails:
                if name == "open" and isinstance(self._error, OSError):
                    # A failed open opened nothing.
                    _close(result)
                raise self._error
            return result

        return call


def each_call_failing(names: Sequence[str], error: BaseException, *, after: bool) -> Iterator[FailingCall]:
    """Yield a `FailingCall` for the first call, the second, …; the last one is a run in which none failed."""
    for number in range(1, 100):
        fault = FailingCall(names, number, error, after=after)
        yield fault
        if not fault.was_reached:
            return
    raise AssertionError("the run never ends without a failure")
