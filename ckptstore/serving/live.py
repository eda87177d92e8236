"""Serve the newest good step of a directory: load beside, accept, switch with one assignment."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from ckptstore.errors import AccessError, CkptStoreError, NotFoundError, TransientError, UsageError
from ckptstore.reading.open_checkpoint import OpenCheckpoint
from ckptstore.serving.step import Step
from ckptstore.serving.watch import WatchHealth, watch
from ckptstore.storage.latch import Latch
from ckptstore.types import Options, PathText

__all__ = ["Live", "LiveHealth"]

_LOG = logging.getLogger("ckptstore")

_T = TypeVar("_T")

# How soon `retry` is noticed.
_LONGEST_WAIT_S = 1.0

# A step whose storage failed is loaded again after so long, unless a period is given.
_PAUSE_S = 10.0

# `close` waits so long for a load that is under way.
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class LiveHealth:
    """How a `Live` is, for probes and dashboards.

    Attributes
    ----------
    is_ready : bool
        Whether a step is served.
    step : Step or None
        The one that is served.
    failed : Step or None
        The newest step that could not be loaded or was not accepted, while none that came later is served.
    error : str or None
        Why, or why nothing could be loaded yet.
    watch : WatchHealth
        How following the directory goes.
    """

    is_ready: bool
    step: Step | None
    failed: Step | None
    error: str | None
    watch: WatchHealth


class _Held(Generic[_T]):
    """A loaded value, who uses it, and whether it is still the one that new users get."""

    def __init__(self, value: _T, step: Step) -> None:
        self.value = value
        self.step = step
        self.users = 0
        self.is_retired = False


class Live(Generic[_T]):
    """What is made of the newest good step of a directory, replaced while it is used.

    The last good one serves until the next is loaded, verified and accepted; then new users get that, and
    the old one is closed when its last user has left. A step that fails is never served. It is remembered by
    its version and not tried again by itself; the next one is.

    Parameters
    ----------
    load : callable
        ``load(checkpoint, previous)`` returns what is served. It is called in a thread of its own, with an
        open checkpoint, every byte of which is verified when it is read, and with what is served now, or
        None. It must not change that; it may take unchanged arrays from a copy
        (``checkpoint.restore(copy, only_changed=True)``).
    directory : str or PathLike
        Directory or URL.
    accept : callable, optional
        Gets what `load` returned; False, or an exception, refuses the step.
    close : callable, optional
        Gets what is not used any more, or was refused: once, when its last user has left, in the thread of
        that one.
    every_s, spread_s, latest_filename, storage_options
        As for `watch`.

    Raises
    ------
    UsageError
        If an option is wrong. Nothing is read yet.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore import Saver
    >>> with Saver() as saver:
    ...     _ = saver.save({"w": [1.0, 2.0]}, "memory://docs/live/model", global_step=1)
    >>> with Live(lambda checkpoint, previous: checkpoint.read("w"), "memory://docs/live") as live:
    ...     assert live.wait_ready(timeout_s=60)
    ...     with live.use() as w:
    ...         print(live.step.step, w)
    1 [1. 2.]
    """

    def __init__(
        self,
        load: Callable[[OpenCheckpoint, _T | None], _T],
        directory: PathText,
        *,
        accept: Callable[[_T], bool] | None = None,
        close: Callable[[_T], object] | None = None,
        every_s: float | None = None,
        spread_s: float = 0.0,
        latest_filename: str | None = None,
        storage_options: Options = None,
    ) -> None:
        if every_s == 0:
            raise UsageError("every_s must be above 0: 0 would look once", actual=repr(every_s))
        self._load = load
        self._accept = accept
        self._close = close
        self._watcher = watch(
            directory,
            every_s=every_s,
            spread_s=spread_s,
            latest_filename=latest_filename,
            storage_options=storage_options,
        )
        self._lock = threading.Lock()
        self._held: _Held[_T] | None = None
        self._is_closed = False
        # Opened when a step is served, or cannot be without somebody's help.
        self._settled = Latch()
        self._fatal: CkptStoreError | None = None
        # By version: a step that is saved again under its name is another one.
        self._refused: dict[str, str] = {}
        self._failed: Step | None = None
        self._error: str | None = None
        # The newest step, while it is not served.
        self._wanted: Step | None = None
        # When `_wanted` is tried again.
        self._try_s = math.inf
        self._pause_s = every_s or _PAUSE_S
        self._thread = threading.Thread(target=self._run, name="ckptstore-live", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        step = self.step
        return f"<Live {'without a step' if step is None else step.prefix}>"

    @property
    def step(self) -> Step | None:
        """The step that is served; None before the first one."""
        held = self._held
        return None if held is None else held.step

    @contextmanager
    def use(self) -> Iterator[_T]:
        """Give what is served now: the same for the whole block, whatever is loaded meanwhile.

        Raises
        ------
        TransientError
            If nothing was loaded yet.
        UsageError
            If it is closed.
        """
        held = self._enter()
        try:
            yield held.value
        finally:
            self._leave(held)

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Wait until a step is served, and return whether one is.

        Parameters
        ----------
        timeout_s : float, optional
            Seconds; None: no limit.

        Raises
        ------
        AccessError, UsageError
            If the directory cannot be read at all, and waiting does not help. It is tried again anyway.
        """
        self._settled.wait(timeout_s)
        fatal = self._fatal
        if self._held is None and fatal is not None:
            raise fatal
        return self._held is not None

    def health(self) -> LiveHealth:
        """Return how it is; makes no request."""
        held = self._held
        step = None if held is None else held.step
        return LiveHealth(held is not None, step, self._failed, self._error, self._watcher.health())

    def retry(self) -> None:
        """Try the newest step again, and forget which ones have failed."""
        self._refused.clear()
        self._try_s = 0.0

    def close(self) -> None:
        """Stop following; what is served is closed when its last user has left.

        A load that is under way is waited for, a few seconds; what it returns later is closed too.
        """
        self._watcher.stop()
        with self._lock:
            self._is_closed = True
            held, self._held = self._held, None
        self._settled.set()
        if held is not None:
            self._retire(held)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> Live[_T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self) -> _Held[_T]:
        with self._lock:
            held = self._held
            if held is not None:
                held.users += 1
                return held
        if self._is_closed:
            raise UsageError("it is closed", hint="Make a new Live.")
        raise TransientError(
            "no step was loaded yet",
            actual=self._error,
            hint="Call wait_ready() first; health() says what is wrong.",
        )

    def _leave(self, held: _Held[_T]) -> None:
        with self._lock:
            held.users -= 1
            is_last = held.is_retired and not held.users
        if is_last:
            self._close_value(held.value)

    def _retire(self, held: _Held[_T]) -> None:
        with self._lock:
            held.is_retired = True
            is_last = not held.users
        if is_last:
            self._close_value(held.value)

    def _close_value(self, value: _T) -> None:
        if self._close is None:
            return
        try:
            self._close(value)
        except Exception:  # noqa: BLE001 - of the caller's `close`: the new step is served all the same
            _LOG.exception("what was served could not be closed")

    def _run(self) -> None:
        while not self._is_closed:
            now_s = time.monotonic()
            try:
                step = self._watcher.next(min(max(self._try_s - now_s, 0.0), _LONGEST_WAIT_S))
            except CkptStoreError as error:
                self._cannot_start(error)
                continue
            if step is not None:
                self._wanted, self._try_s = step, 0.0
            if self._wanted is not None and self._try_s <= time.monotonic() and not self._is_closed:
                self._take(self._wanted)

    def _cannot_start(self, error: CkptStoreError) -> None:
        """Report that the directory could not be read yet; the watcher waits before it tries again."""
        self._error = str(error)
        if isinstance(error, AccessError | UsageError):
            self._fatal = error
            self._settled.set()

    def _take(self, step: Step) -> None:
        """Load a step and serve it, or note why not."""
        self._try_s = math.inf
        if step.version in self._refused:
            return
        try:
            value = self._loaded(step)
        except NotFoundError as error:
            # Retention was faster: there is a newer one, or the watcher says that there is none.
            self._error = str(error)
        except (AccessError, TransientError) as error:
            self._error = str(error)
            self._try_s = time.monotonic() + self._pause_s
            _LOG.warning("%s is loaded again later: %s", step.prefix, error)
        except Exception as error:  # noqa: BLE001 - of the caller's `load`: the step is refused
            self._refuse(step, error)
        else:
            self._serve(value, step)

    def _loaded(self, step: Step) -> _T:
        with step.open() as checkpoint, self._previous() as previous:
            value = self._load(checkpoint, previous)
        try:
            is_accepted = self._accept is None or self._accept(value)
        except BaseException:
            self._close_value(value)
            raise
        if not is_accepted:
            self._close_value(value)
            raise _NotAcceptedError("it was not accepted")
        return value

    @contextmanager
    def _previous(self) -> Iterator[_T | None]:
        with self._lock:
            held = self._held
            if held is not None:
                held.users += 1
        try:
            yield None if held is None else held.value
        finally:
            if held is not None:
                self._leave(held)

    def _refuse(self, step: Step, error: Exception) -> None:
        # As text: an exception keeps the frames alive in which it was raised, and what they had loaded.
        text = str(error) or type(error).__name__
        self._refused[step.version] = text
        self._failed, self._error = step, text
        _LOG.error("%s is not served, and will not be tried again by itself: %s", step.prefix, text)

    def _serve(self, value: _T, step: Step) -> None:
        held = _Held(value, step)
        with self._lock:
            is_late = self._is_closed
            if not is_late:
                before, self._held = self._held, held
        if is_late:
            self._close_value(value)
            return
        self._wanted, self._failed, self._error, self._fatal = None, None, None, None
        self._settled.set()
        if before is not None:
            self._retire(before)


class _NotAcceptedError(Exception):
    """`accept` said no."""
