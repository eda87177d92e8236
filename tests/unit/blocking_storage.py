"""A storage whose calls wait at a gate until a test opens it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

_T = TypeVar("_T")

# A test waits as long as this only if it fails.
WATCHDOG_S = 60.0


class Gate:
    """Where the calls of one primitive wait, if their key contains `part`.

    Attributes
    ----------
    reached : threading.Event
        Set when a call waits.
    error : BaseException or None
        Raised in the place of the calls that go on.
    """

    def __init__(self, primitive: str, part: str = "", *, is_open: bool = False) -> None:
        self.primitive = primitive
        self.part = part
        self.reached = threading.Event()
        self.error: BaseException | None = None
        self._opened = threading.Event()
        if is_open:
            self._opened.set()

    def open(self, error: BaseException | None = None) -> None:
        self.error = error
        self._opened.set()

    def close(self) -> None:
        self.error = None
        self._opened.clear()
        self.reached.clear()

    def wait_reached(self) -> None:
        assert self.reached.wait(WATCHDOG_S), f"no call of {self.primitive} came"

    def pass_through(self, primitive: str, keys: Sequence[str]) -> None:
        if primitive == self.primitive and any(self.part in key for key in keys):
            self.reached.set()
            assert self._opened.wait(WATCHDOG_S), "the gate was never opened"
            if self.error is not None:
                raise self.error


class BlockingStorage(StorageWrapper):
    def __init__(self, inner: Storage, gate: Gate) -> None:
        super().__init__(inner)
        self.gate = gate
        self.calls: list[tuple[str, str]] = []

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls.append((primitive, keys[0] if keys else ""))
        self.gate.pass_through(primitive, keys)
        return call()


@contextmanager
def blocking(primitive: str, part: str = "", *, is_open: bool = False) -> Iterator[Gate]:
    """Let every storage wait at a gate while the block runs; it is opened at the end."""
    gate = Gate(primitive, part, is_open=is_open)
    with use_wrapper(lambda inner: BlockingStorage(inner, gate)):
        try:
            yield gate
        finally:
            gate.open()
