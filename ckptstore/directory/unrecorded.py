"""Checkpoints that are published, or may be, while the record does not list them yet."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.directory.ownership import Ownership
from ckptstore.directory.record_update import RECORD_NAME
from ckptstore.directory.retention import Entry
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError
from ckptstore.format.record_protocol import Superseded
from ckptstore.storage.base import Location

__all__ = ["Unrecorded", "adopt_unrecorded", "explain_unrecorded"]


@dataclass(slots=True)
class Unrecorded:
    """A save between index and record.

    Attributes
    ----------
    files : ShardSet
    time_s : float
        Of the save, seconds since 1970.
    replaced : list of Superseded
        Data files of the indexes that it replaced, as far as it did.
    """

    files: ShardSet
    time_s: float
    replaced: list[Superseded]


def adopt_unrecorded(
    unrecorded: dict[str, Unrecorded], prefix: str, ownership: Ownership
) -> list[Superseded]:
    """See what became of saves that failed between index and record; return what they replaced.

    Parameters
    ----------
    unrecorded : dict
        Prefix → save; emptied.
    prefix : str
        Is about to be saved anew.
    ownership : Ownership
        Adopts the others that were published.
    """
    replaced: list[Superseded] = []
    for name, save in list(unrecorded.items()):
        if save.files.recheck_publication():
            replaced += save.replaced
            if name != prefix:
                ownership.adopted.append(Entry(name, save.time_s))
        del unrecorded[name]
    return replaced


def explain_unrecorded(error: CkptStoreError, prefix: Location, record: Location) -> None:
    """Add to `error`, which came between index and record, what is there and what to do."""
    command = f"ckptstore repair {prefix.parent.url or '.'}"
    if record.name != RECORD_NAME:
        command += f" --record {record.name}"
    error.what = f"checkpoint {prefix.name!r} is published, but the record does not name it: {error.what}"
    error.hint = (
        "It restores by its prefix, and latest_checkpoint goes by the record, as far as there is one;"
        f" the next save names it, or `{command}`. {error.hint or ''}"
    ).strip()
