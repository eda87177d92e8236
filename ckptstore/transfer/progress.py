"""How far a transfer is: events, and what shows them."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ckptstore.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Event", "Progress", "Report", "reporter"]

_LOG = logging.getLogger("ckptstore")

# Redrawing more often costs more than it shows.
_EVERY_S = 0.1
_LOG_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """How far a save, a restore or a verification is.

    Attributes
    ----------
    kind : str
        ``"save"``, ``"restore"`` or ``"verify"``.
    url : str
    done_bytes : int
    total_bytes : int or None
        None while that is not known.
    seconds : float
        Since it began.
    step : int or None
        Of the checkpoint, if it has one.
    is_over : bool
        Whether this is the last event.
    error : str or None
        Why it failed; only with `is_over`.
    """

    kind: str
    url: str
    done_bytes: int
    total_bytes: int | None
    seconds: float
    step: int | None = None
    is_over: bool = False
    error: str | None = None


Report: TypeAlias = Callable[[Event], object]
Progress: TypeAlias = Literal["rich", "tqdm", "log"] | Report | None


def reporter(progress: Progress) -> Report | None:
    """Return what shows the events of one transfer.

    Parameters
    ----------
    progress : {"rich", "tqdm", "log"} or callable or None
        A bar on a terminal or in a notebook, elsewhere a line in the log that says so (the transfer writes
        its line to the log in any case); a line in the log every ten seconds; or the caller's own function.

    Raises
    ------
    UsageError
        If it is none of these, or the package for the bar is not installed.
    """
    if progress is None:
        return None
    if progress == "log":
        return _LogReport()
    if progress in ("rich", "tqdm"):
        if importlib.util.find_spec(progress) is None:
            raise UsageError(
                f"progress={progress!r} needs the package {progress}, which is not installed",
                hint=f"Install it with: pip install {progress}",
            )
        return _RichReport() if progress == "rich" else _TqdmReport()
    if not callable(progress):
        raise UsageError(
            "progress has an unknown value",
            expected='"rich", "tqdm", "log", a function, or None',
            actual=repr(progress),
        )
    return progress


def _is_notebook() -> bool:
    """Return whether this is a kernel of a notebook, whose streams call themselves no terminals."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def _say_hidden() -> None:
    _LOG.info(
        "no progress bar, because standard error is not a terminal; progress='log' writes lines to the log"
    )


def _title(event: Event) -> str:
    name = event.url.rstrip("/").rpartition("/")[2] or event.url
    # It may come from a listing, and hold what a terminal obeys.
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
    return f"{event.kind} {shown}"


class _LogReport:
    """A line now and then; the last one is the transfer's own."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + _LOG_EVERY_S

    def __call__(self, event: Event) -> None:
        if event.is_over or time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + _LOG_EVERY_S
        total = "" if event.total_bytes is None else f" of {event.total_bytes}"
        _LOG.info("%s: %d%s bytes after %.0f s", _title(event), event.done_bytes, total, event.seconds)


class _RichReport:
    """A bar by rich, drawn by the reporting thread: it has no thread of its own."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._is_hidden = False
        self._due_s = 0.0

    def __call__(self, event: Event) -> None:
        now_s = time.monotonic()
        if self._is_hidden or (now_s < self._due_s and not event.is_over):
            return
        self._due_s = now_s + _EVERY_S
        if self._bar is None:
            self._begin(event)
        if self._bar is not None:
            self._bar.update(self._task, completed=event.done_bytes, total=event.total_bytes, refresh=True)
            if event.is_over:
                self._bar.stop()

    def _begin(self, event: Event) -> None:
        from rich.console import Console
        from rich.errors import LiveError
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        if not console.is_terminal and not console.is_jupyter:
            self._is_hidden = True
            _say_hidden()
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = bar.add_task(escape(_title(event)), total=event.total_bytes)
        try:
            bar.start()
        except LiveError:
            # Another bar has the terminal.
            self._is_hidden = True
            return
        self._bar = bar


class _TqdmReport:
    """A bar by tqdm."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        if self._bar is None:
            is_notebook = _is_notebook()
            if is_notebook:
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm

            # disable=None: nothing where standard error is not a terminal.
            self._bar = tqdm(
                desc=_title(event),
                total=event.total_bytes,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                mininterval=_EVERY_S,
                leave=False,
                disable=False if is_notebook else None,
            )
            if self._bar.disable:
                _say_hidden()
        if event.total_bytes is not None:
            self._bar.total = event.total_bytes
        self._bar.update(event.done_bytes - self._bar.n)
        if event.is_over:
            self._bar.close()
