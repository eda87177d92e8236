"""Which of the listed checkpoints are a run's own, and which of these the retention of one Saver counts."""

from __future__ import annotations

from collections.abc import Callable, Collection

from ckptstore.directory.owner_names import basename_of_step
from ckptstore.format.record_facts import Form, OwnerName, Record

__all__ = ["counted_lines", "counts_filter", "own_filter"]


def own_filter(names: Collection[OwnerName], record: Record) -> Callable[[str], bool]:
    """Return a function that tells which of the listed prefixes of `record` somebody of `names` owns."""
    alone = _basenames(names, "exact")
    with_steps = _basenames(names, "steps")
    of_others = _basenames(record.owners, "exact") - alone
    of_others.update(record.kept)
    alone.difference_update(record.kept)

    def is_own(prefix: str) -> bool:
        if prefix in alone:
            return True
        return prefix not in of_others and basename_of_step(prefix) in with_steps

    return is_own


def counts_filter(
    names: Collection[OwnerName], record: Record, keep: int, is_own: Callable[[str], bool]
) -> Callable[[str], bool]:
    """Return a function that tells which of those that `is_own` a Saver counts.

    Parameters
    ----------
    names : collection of OwnerName
    record : Record
    keep : int
        The ``max_to_keep`` of the Saver: by it the Savers of one run are told apart.
    is_own : callable
        What `own_filter` returns for `names`.
    """
    keeps = {name.basename: _keep_of(record, name) for name in names if name.form == "steps"}
    if not record.counted and all(each in (None, keep) for each in keeps.values()):
        return is_own
    alone = _basenames(names, "exact")

    def is_counted(prefix: str) -> bool:
        if not is_own(prefix):
            return False
        of_owner = None if prefix in alone else keeps.get(basename_of_step(prefix) or "")
        return of_owner is None or record.counted.get(prefix, of_owner) == keep

    return is_counted


def counted_lines(
    names: Collection[OwnerName], record: Record, keep: int, window: Collection[str]
) -> dict[str, int]:
    """Return the `counted` lines of `record`, which lists `window` and has the owner lines of `names`.

    Parameters
    ----------
    names : collection of OwnerName
    record : Record
    keep : int
        The ``max_to_keep`` of the Saver that counts `window`.
    window : collection of str
    """
    # Where this Saver is not the one that took over.
    others = {name.basename for name in names if _keep_of(record, name) not in (None, keep)}
    if not others and not record.counted:
        return {}
    listed = frozenset(() if record.state is None else record.state.all_model_checkpoint_paths)
    counted = {prefix: each for prefix, each in record.counted.items() if prefix in listed}
    for prefix in window:
        counted.pop(prefix, None)
        if basename_of_step(prefix) in others:
            counted[prefix] = keep
    return counted


def _basenames(names: Collection[OwnerName], form: Form) -> set[str]:
    return {name.basename for name in names if name.form == form}


def _keep_of(record: Record, name: OwnerName) -> int | None:
    """Return the ``max_to_keep`` in the owner line of `name`."""
    line = record.owners.get(name)
    return None if line is None else line.keep
