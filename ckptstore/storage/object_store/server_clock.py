"""The server's clock: ages of objects must not depend on ours."""

from __future__ import annotations

import email.utils
import time

__all__ = ["skew_of"]


def skew_of(date: str | None, otherwise_s: float) -> float:
    """Return how far the server's clock is ahead of ours.

    Parameters
    ----------
    date : str or None
        The ``Date`` header of an answer that just came.
    otherwise_s : float
        What to return if the header is missing or not a date.
    """
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp() - time.time()
    except ValueError:
        return otherwise_s
