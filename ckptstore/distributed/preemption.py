"""A signal that announces the end of a job, and the step at which all ranks save before it.

Python calls a signal handler when the main thread is back in Python, which it is not while it waits in a
collective. The C handler writes the number of the signal to a descriptor at once; a thread reads it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, TypeAlias

from ckptstore.distributed.coordinator import Coordinator, SingleCoordinator
from ckptstore.distributed.stop_step import StopStep
from ckptstore.errors import UsageError

__all__ = ["Preemption"]

_Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

_active: weakref.WeakSet[Preemption] = weakref.WeakSet()


class Preemption:
    """Save once before the job is preempted: all ranks at the same step.

    ::

        with ckptstore.Preemption(coordinator) as preemption:
            for step in range(first, last):
                train(step)
                if preemption.should_save(step):
                    saver.save(state, prefix, global_step=step)
                    break

    One rank that gets the signal is enough. Nothing is sent on the way of a step; the ranks agree in
    background threads, and a step waits for that only while they do. If a rank does not answer in a third of
    `grace_s`, nothing is saved: the log names it, and the last checkpoint stands.

    Parameters
    ----------
    coordinator : Coordinator, optional
        Of this job; all ranks make their `Preemption` objects in the same order. Without one, this process is
        alone.
    signals : sequence of int
        They no longer end the process. A handler that there was is still called; its `SystemExit` or
        `KeyboardInterrupt` is not raised.
    grace_s : float
        How long the process lives after the signal, in seconds. torchrun gives a node 30 s.

    Raises
    ------
    UsageError
        If `grace_s` is not positive, or it is entered in another thread than the main one.

    Threads
    -------
    Enter and leave it in the main thread; `should_save` in one thread, the properties in any. In a child that
    is forked, the signals do again what they did before.
    """

    def __init__(
        self,
        coordinator: Coordinator | None = None,
        *,
        signals: Sequence[int] = (signal.SIGTERM,),
        grace_s: float = 25.0,
    ) -> None:
        if not grace_s > 0:
            raise UsageError("grace_s must be positive", actual=repr(grace_s))
        self._signals = tuple(signals)
        self._stop_step = StopStep(coordinator or SingleCoordinator(), grace_s)
        self._earlier: dict[int, _Handler] = {}
        self._earlier_fd = -1
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def should_save(self, step: int) -> bool:
        """Return whether to save now: True once, at the same step on all ranks.

        Call it at each step, with numbers that grow in the same way on all ranks, also while evaluating.

        Parameters
        ----------
        step : int
            At least 0.
        """
        return self._stop_step.should_save(step)

    @property
    def requested(self) -> bool:
        """Whether this rank has got the signal, or heard from another rank that did."""
        return self._stop_step.is_requested

    @property
    def left_s(self) -> float:
        """Seconds until the process is ended; `grace_s` before a notice."""
        return self._stop_step.left_s

    def __enter__(self) -> Preemption:
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("signals are handled in the main thread", hint="Enter it there.")
        reading, writing = self._sockets = socket.socketpair()
        writing.setblocking(False)
        self._earlier_fd = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in self._signals:
            self._earlier[number] = signal.signal(number, self._handle)
        _active.add(self)
        self._stop_step.start()
        threading.Thread(target=self._listen, args=(reading,), name="ckptstore signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore_handlers()
        self._stop_step.stop()
        if self._sockets is not None:
            # The thread reads the end, and closes the other one.
            self._sockets[1].close()
            self._sockets = None

    def restore_handlers(self) -> None:
        """Let the signals do what they did before, unless somebody else has changed that since.

        Leaving the block does it, and a child after a fork.
        """
        _active.discard(self)
        for number, earlier in self._earlier.items():
            if signal.getsignal(number) == self._handle:
                # None: a handler that Python cannot put back.
                signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
        self._earlier.clear()
        if self._sockets is not None:
            current = signal.set_wakeup_fd(self._earlier_fd)
            if current != self._sockets[1].fileno():
                signal.set_wakeup_fd(current)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The thread has heard of it already. The end, which is SIGTERM's default and what the handler of a
        # Ray worker or `default_int_handler` asks for, is what this is there to prevent.
        earlier = self._earlier.get(number)
        if callable(earlier):
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                earlier(number, frame)

    def _listen(self, reading: socket.socket) -> None:
        with reading:
            while numbers := reading.recv(64):
                if self._earlier_fd >= 0:
                    # Whoever listened before hears of every signal, as we do.
                    with contextlib.suppress(OSError):
                        os.write(self._earlier_fd, numbers)
                if any(number in self._signals for number in numbers):
                    self._stop_step.request()


def _forget_in_child() -> None:
    # Otherwise a signal to the child, a worker that loads data for example, is taken for one to its parent.
    for one in list(_active):
        one.restore_handlers()


os.register_at_fork(after_in_child=_forget_in_child)
