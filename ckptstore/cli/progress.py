"""How far a long command is, on standard error, for a person who watches."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.view.text import human_size

if TYPE_CHECKING:
    from ckptstore.bundle.verify import Progress

__all__ = ["watched"]

# What is done sooner needs no bar, and redrawing more often costs more than it tells.
_FIRST_S = 0.5
_EVERY_S = 0.1


@contextmanager
def watched(title: str) -> Iterator[Progress]:
    """Show the bytes done and to do while the block runs; nothing unless standard error is a terminal.

    Parameters
    ----------
    title : str
        Escaped already.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
    elif importlib.util.find_spec("rich") is not None:
        with _rich_bar(title) as progress:
            yield progress
    else:
        with _plain_bar(title) as progress:
            yield progress


@contextmanager
def _rich_bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )
    task = bar.add_task(escape(title), total=None)
    due_s = time.monotonic() + _FIRST_S

    def progress(done: int, total: int) -> None:
        nonlocal due_s
        now_s = time.monotonic()
        if now_s >= due_s:
            bar.start()
            due_s = now_s + _EVERY_S
            bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        bar.stop()


@contextmanager
def _plain_bar(title: str) -> Iterator[Progress]:
    due_s = time.monotonic() + _FIRST_S
    is_drawn = False

    def progress(done: int, total: int) -> None:
        nonlocal due_s, is_drawn
        now_s = time.monotonic()
        if now_s >= due_s:
            due_s = now_s + _EVERY_S
            is_drawn = True
            percent = 100 * done // max(total, 1)
            line = f"{title}  {percent} %  {human_size(done)} of {human_size(total)}"
            # Back to the first column, and erase what a longer line left.
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if is_drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
