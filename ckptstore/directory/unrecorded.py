"""Checkpoints that are published, or may be, but are not in the record yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckptstore.directory.ownership import Ownership
from ckptstore.directory.record_update import RECORD_NAME
from ckptstore.directory.retention import Entry
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError
from ckptstore.format.record_facts import Superseded
from ckptstore.storage.base import Location

__all__ = ["Unrecorded", "adopt_unrecorded", "explain_unrecorded"]


@dataclass(slots=True)
class Unrecorded:
    """A save that was interrupted between index and record.

    Attributes
    ----------
    time_s : float
        Of the save, seconds since 1970.
    replaced : list of Superseded
        Data files of the indexes that it has replaced.
    metrics : mapping
        Of the save.
    """

    files: ShardSet
    time_s: float
    replaced: list[Superseded]
    metrics: Mapping[str, float]


def adopt_unrecorded(
    unrecorded: dict[str, Unrecorded], prefix: str, ownership: Ownership
) -> list[Superseded]:
    """Adopt the published ones of the saves that failed between index and record.

    Parameters
    ----------
    unrecorded : dict
        Prefix → save; emptied.
    prefix : str
        About to be saved again; it is not adopted.
    ownership : Ownership
        Gets the adopted ones.

    Returns
    -------
    list of Superseded
        Data files of the indexes that the published ones replaced.
    """
    replaced: list[Superseded] = []
    for name, save in list(unrecorded.items()):
        if save.files.recheck_publication():
            replaced += save.replaced
            if name != prefix:
                ownership.adopted.append(Entry(name, save.time_s, metrics=save.metrics))
        del unrecorded[name]
    return replaced


def explain_unrecorded(error: CkptStoreError, prefix: Location, record: Location) -> None:
    """Add to `error`, raised between index and record, the state of the checkpoint and what to do."""
    command = f"ckptstore repair {prefix.parent.url or '.'}"
    if record.name != RECORD_NAME:
        command += f" --record {record.name}"
    error.what = f"checkpoint {prefix.name!r} is published, but the record does not name it: {error.what}"
    error.hint = (
        "It can be restored by its prefix; latest_checkpoint follows the record, if there is one."
        f" The next save adds it to the record, or `{command}` does. {error.hint or ''}"
    ).strip()
