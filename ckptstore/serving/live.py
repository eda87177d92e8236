"""Serve the newest good step of a directory: load beside, accept, switch with one assignment."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    NotFoundError,
    TensorNotFoundError,
    TransientError,
    UnsupportedError,
    UsageError,
)
from ckptstore.reading.open_checkpoint import OpenCheckpoint
from ckptstore.serving.step import Step
from ckptstore.serving.watch import WatchHealth, watch
from ckptstore.types import Options, PathText

if TYPE_CHECKING:
    from ckptstore.cache.cache import Cache

__all__ = ["Live", "LiveHealth"]

_LOG = logging.getLogger("ckptstore")

_T = TypeVar("_T")

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
        Why.
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
    every_s, spread_s, latest_filename, cache, storage_options
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
        cache: Cache | PathText | None = None,
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
            cache=cache,
            storage_options=storage_options,
        )
        # Reentrant: `close` may be called in a signal handler.
        self._changed = threading.Condition()
        self._held: _Held[_T] | None = None
        self._is_closed = False
        # Why nothing can be served without somebody's help.
        self._fatal: CkptStoreError | None = None
        # What `load` or `accept` refused, by name and version; and how often `retry` was called.
        self._refused: dict[tuple[str, str], str] = {}
        self._retries = 0
        self._failed: Step | None = None
        self._error: str | None = None
        # The newest step, while it is not served, and when it is loaded, or loaded again.
        self._wanted: Step | None = None
        self._try_s = math.inf
        self._pause_s = every_s or _PAUSE_S
        self._threads = [
            threading.Thread(target=run, name=f"ckptstore-live-{what}", daemon=True)
            for what, run in (("follow", self._follow), ("load", self._load_wanted))
        ]
        for thread in self._threads:
            thread.start()

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
        with self._changed:
            self._changed.wait_for(self._is_settled, timeout_s)
            if self._held is None and self._is_failing():
                assert self._fatal is not None
                raise self._fatal
            return self._held is not None

    def _is_settled(self) -> bool:
        return self._held is not None or self._is_closed or self._is_failing()

    def _is_failing(self) -> bool:
        return self._fatal is not None and self._watcher.health().failures_in_a_row > 0

    def health(self) -> LiveHealth:
        """Return how it is; makes no request."""
        held = self._held
        step = None if held is None else held.step
        return LiveHealth(held is not None, step, self._failed, self._error, self._watcher.health())

    def retry(self) -> None:
        """Try the newest step again if it is not served, and forget which ones have failed."""
        with self._changed:
            self._refused.clear()
            self._retries += 1
            self._try_s = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """Stop following; what is served is closed when its last user has left.

        A load that is under way is waited for, a few seconds; what it returns later is closed too.
        """
        self._watcher.stop()
        with self._changed:
            self._is_closed = True
            held, self._held = self._held, None
            self._changed.notify_all()
        if held is not None:
            self._retire(held)
        ends_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            if threading.current_thread() is not thread:
                thread.join(max(0.0, ends_s - time.monotonic()))

    def __enter__(self) -> Live[_T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self) -> _Held[_T]:
        held = self._enter_if_any()
        if held is not None:
            return held
        if self._is_closed:
            raise UsageError("it is closed", hint="Make a new Live.")
        raise TransientError(
            "no step was loaded yet",
            actual=self._error or self._watcher.health().error,
            hint="Call wait_ready() first; health() says what is wrong.",
        )

    def _enter_if_any(self) -> _Held[_T] | None:
        with self._changed:
            held = self._held
            if held is not None:
                held.users += 1
            return held

    def _leave(self, held: _Held[_T]) -> None:
        with self._changed:
            held.users -= 1
            is_last = held.is_retired and not held.users
        if is_last:
            self._close_value(held.value)

    def _retire(self, held: _Held[_T]) -> None:
        with self._changed:
            held.is_retired = True
            is_last = not held.users
        if is_last:
            self._close_value(held.value)

    def _close_value(self, value: _T) -> None:
        if self._close is None:
            return
        try:
            self._close(value)
        except BaseException as error:
            if threading.current_thread() not in self._threads and not isinstance(error, Exception):
                raise
            _LOG.exception("what was served could not be closed")

    def _follow(self) -> None:
        while not self._is_closed:
            try:
                step = self._watcher.next()
            except Exception as error:  # noqa: BLE001 - a look that fails, however it does, is made again
                # Before the first look that succeeds. The watcher waits before the next one.
                if isinstance(error, AccessError | UsageError | UnsupportedError):
                    with self._changed:
                        self._fatal = error
                        self._changed.notify_all()
                continue
            if step is not None:
                with self._changed:
                    self._wanted, self._try_s = step, 0.0
                    self._changed.notify_all()

    def _load_wanted(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and (self._wanted is None or self._try_s > time.monotonic()):
                    pause_s = None if self._wanted is None else self._try_s - time.monotonic()
                    self._changed.wait(None if pause_s is None or pause_s == math.inf else max(pause_s, 0.0))
                step, self._try_s, retries = self._wanted, math.inf, self._retries
            if self._is_closed or step is None:
                return
            self._take(step, retries)

    def _take(self, step: Step, retries: int) -> None:
        """Load a step and serve it, or note why not."""
        held = self._held
        refusal = self._refused.get((step.prefix, step.version))
        if held is not None and (held.step.prefix, held.step.version) == (step.prefix, step.version):
            # Set back to the one that is served.
            self._done(step)
        elif refusal is not None:
            self._note(step, refusal)
            _LOG.error("%s has failed before, and is not tried again by itself: %s", step.prefix, refusal)
        else:
            try:
                value = self._loaded(step)
            except BaseException as error:  # noqa: BLE001 - of the caller's functions: the last good one serves
                self._cannot_serve(step, error, retries)
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
        held = self._enter_if_any()
        try:
            yield None if held is None else held.value
        finally:
            if held is not None:
                self._leave(held)

    def _cannot_serve(self, step: Step, error: BaseException, retries: int) -> None:
        # As text: an exception keeps the frames alive in which it was raised, and what they had loaded.
        text, trace = str(error), ""
        if not isinstance(error, CkptStoreError | _NotAcceptedError):
            text = f"{type(error).__name__}: {error}"
            trace = "\n" + "".join(traceback.format_exception(error)).rstrip()
        is_new = text != self._error
        self._note(step, text)
        is_passing = isinstance(error, AccessError | TransientError)
        is_gone = isinstance(error, NotFoundError) and not isinstance(error, TensorNotFoundError)
        if is_passing or is_gone:
            # One that is gone was replaced, by retention or under its name: the watcher will see that.
            if is_new:
                _LOG.warning("%s is not served yet: %s", step.prefix, text)
            again_s = time.monotonic() + self._pause_s
        else:
            _LOG.error("%s is not served, and not tried again by itself: %s%s", step.prefix, text, trace)
            again_s = math.inf
        with self._changed:
            if self._wanted is not step or self._retries != retries:
                return  # there is a newer one, or `retry` was called meanwhile
            self._try_s = again_s
            if again_s == math.inf:
                self._refused[step.prefix, step.version] = text

    def _note(self, step: Step, error: str) -> None:
        self._failed, self._error = step, error

    def _serve(self, value: _T, step: Step) -> None:
        held = _Held(value, step)
        with self._changed:
            is_late = self._is_closed
            if not is_late:
                before, self._held = self._held, held
        if is_late:
            self._close_value(value)
            return
        self._done(step)
        if before is not None:
            self._retire(before)

    def _done(self, step: Step) -> None:
        with self._changed:
            if self._wanted is step:
                self._wanted = None
            self._failed, self._error, self._fatal = None, None, None
            self._changed.notify_all()


class _NotAcceptedError(Exception):
    """`accept` said no."""
