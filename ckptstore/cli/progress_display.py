"""The progress of a long command, on standard error, if that is a terminal."""

from __future__ import annotations

import importlib.util
import sys
import time

from ckptstore.config import terminal_style
from ckptstore.transfer.progress import Event, Report, reporter
from ckptstore.view.text import escaped, human_size

__all__ = ["progress_display"]

# A shorter transfer needs no bar, and redrawing more often costs time without showing more.
_FIRST_S = 0.5
_EVERY_S = 0.1


def progress_display() -> Report | None:
    """Return a function that shows the events of one transfer.

    None unless standard error is a terminal that can rewrite a line.
    """
    if not sys.stderr.isatty() or terminal_style() == "dumb":
        return None
    show = reporter("rich") if importlib.util.find_spec("rich") is not None else _Line()
    assert show is not None
    is_shown = False

    def report(event: Event) -> None:
        nonlocal is_shown
        is_shown = is_shown or (event.seconds >= _FIRST_S and not event.is_over)
        if is_shown:
            show(event)

    return report


class _Line:
    """One line, rewritten in place; used if rich is not installed."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def __call__(self, event: Event) -> None:
        if event.is_over:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            return
        now_s = time.monotonic()
        if event.total_bytes is None or now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        name = escaped(event.url.rpartition("/")[2])
        percent = 100 * event.done_bytes // max(event.total_bytes, 1)
        sizes = f"{human_size(event.done_bytes)} of {human_size(event.total_bytes)}"
        # Return to the first column, and erase the rest of a longer line.
        print(f"\r{event.kind} {name}  {percent} %  {sizes}\x1b[K", end="", file=sys.stderr, flush=True)
