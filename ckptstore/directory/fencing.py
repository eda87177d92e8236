"""What a run is told that may not save any more."""

from __future__ import annotations

import datetime

from ckptstore.errors import FencedError
from ckptstore.format.record_facts import Owner
from ckptstore.storage.base import Location

__all__ = ["fenced_by", "fenced_by_unknown"]

_HINT = "This run saves nothing more here. To continue it, stop the other run and restart this one."
_HINT_SET_BACK = "Restart this run: it takes over what the record lists now, and saves again."


def fenced_by(owner: Owner, epoch: int, record: Location) -> FencedError:
    """Return the error of a run of `epoch` that finds `owner`, another run, in the place of its own line."""
    who = f"run {owner.run} on host {owner.host} since {_moment(owner.time_s)}"
    if owner.epoch > epoch:
        what = f"another run took over the checkpoints of {owner.basename!r}: {who}"
    elif owner.epoch == epoch:
        # Nothing separates two runs that begin where there is no record: the one that writes it goes on.
        what = (
            f"another run began to save the checkpoints of {owner.basename!r} at the same time,"
            f" and its record came first: {who}"
        )
    else:
        what = f"the record of {owner.basename!r} was set back to one of an earlier run: {who}"
    return FencedError(
        what,
        url=record.url,
        expected=f"epoch {epoch}",
        actual=f"epoch {owner.epoch}",
        hint=_HINT if owner.epoch >= epoch else _HINT_SET_BACK,
    )


def fenced_by_unknown(prefix: str, record: Location) -> FencedError:
    """Return the error of a run whose line is gone, and that finds a checkpoint which it never saw."""
    return FencedError(
        "the record was rewritten without the lines of this run, and since this run looked last"
        f" {prefix!r} was saved, not by this run",
        url=record.url,
        hint=f"Another run or program saves here, and this one must not undo that. {_HINT}",
    )


def _moment(time_s: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        # Outside of the calendar: the clock of that machine is wrong, or the line was forged.
        return f"{time_s!r} s"
