"""Whose a checkpoint is: what the user said when it was saved, never what its name looks like."""

from __future__ import annotations

from collections.abc import Iterable

from ckptstore.format.naming import split_step
from ckptstore.format.record_facts import Owner, OwnerName, Record

__all__ = [
    "basename_of_step",
    "common_basename",
    "highest_step",
    "is_beside",
    "line_of",
    "may_have_saved",
    "owner_of_save",
    "owner_of_step",
    "start_of",
    "step_of",
]

_MOST_DIGITS = 20


def basename_of_step(prefix: str) -> str | None:
    """Return the basename of `prefix` if a save with a step made it; None if no such save has this name.

    Unlike for `split_step`, the last minus sign counts: what is saved with a step that is not negative ends
    in exactly these digits. A record may list ten thousand, so no regular expression.
    """
    basename, _, digits = prefix.rpartition("-")
    if basename and len(digits) <= _MOST_DIGITS and digits.isdecimal() and digits.isascii():
        return basename
    return None


def step_of(prefix: str) -> int | None:
    """Return the step with which `prefix` was saved if a save with a step made it."""
    return None if basename_of_step(prefix) is None else int(prefix.rpartition("-")[2])


def owner_of_step(prefix: str) -> OwnerName | None:
    """Return the owner of `prefix` if a save with a step made it; None if no such save has this name."""
    basename = basename_of_step(prefix)
    return None if basename is None else OwnerName(basename, "steps")


def owner_of_save(prefix: str, step: int | None) -> OwnerName:
    """Return who owns what is saved as `prefix`.

    Parameters
    ----------
    prefix : str
        The whole name, with the step.
    step : int or None
        That the user gave. With a negative one the prefix is owned alone, as without a step: ``model--1`` is
        also the name of step 1 of ``model-``.
    """
    owner = None if step is None or step < 0 else owner_of_step(prefix)
    return owner or OwnerName(prefix, "exact")


def may_have_saved(name: OwnerName, prefix: str) -> bool:
    """Return whether `prefix` is one of the names under which `name` saves."""
    if name.form == "steps":
        return basename_of_step(prefix) == name.basename
    return name.form == "exact" and prefix == name.basename


def start_of(name: OwnerName) -> str:
    """Return how the names of all its files begin."""
    return f"{name.basename}-" if name.form == "steps" else name.basename


def common_basename(name: OwnerName) -> str:
    """Return the basename that `name` has in common with others.

    It is ``model`` for the steps of ``model`` and for ``model-7`` alone. Who owns what is never decided by
    this, only whether a program that saves one of them begins from nothing.
    """
    return name.basename if name.form == "steps" else split_step(name.basename)[0]


def is_beside(name: OwnerName, prefix: str) -> bool:
    """Return whether `prefix` has the basename of `name`, whoever owns it."""
    return may_have_saved(name, prefix) or split_step(prefix)[0] == common_basename(name)


def line_of(record: Record, name: OwnerName) -> Owner | None:
    """Return the owner line of `name`, or the one without a form, of 0.1.0rc1, that may mean it."""
    return record.owners.get(name) or record.owners.get(OwnerName(name.basename, ""))


def highest_step(owner: Owner | None, prefixes: Iterable[str]) -> int | None:
    """Return the highest step that the line of `owner` or one of `prefixes` names."""
    steps = [step for prefix in prefixes if (step := step_of(prefix)) is not None]
    if owner is not None and owner.highest_step is not None:
        steps.append(owner.highest_step)
    return max(steps, default=None)
