"""What is promised where, as tables for the pages, made from what the backends say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ckptstore.storage.values import Capabilities

__all__ = ["abilities_table", "guarantees_table"]


class _Guarantee(NamedTuple):
    """A sentence for the user, and what a backend must be able to do for it to hold."""

    text: str
    holds: Callable[[Capabilities], bool]


def _everywhere(_: Capabilities) -> bool:
    return True


_GUARANTEES = (
    _Guarantee(
        "**Same bytes.** Index and data files are, to the byte, those that TensorFlow 2.21 writes for the "
        "same tensors",
        _everywhere,
    ),
    _Guarantee(
        "**All or nothing.** A reader finds the complete old or the complete new checkpoint, wherever the "
        "writer died, also when a prefix is saved again",
        lambda has: has.create_if_absent and has.compare_and_swap,
    ),
    _Guarantee(
        "**Latest is restorable.** `latest_checkpoint` names a complete checkpoint, with or without a usable "
        'record; a place that cannot be looked at is an error, never "no checkpoint"',
        _everywhere,
    ),
    _Guarantee(
        "**One winner.** Of two runs that save under one name the newer goes on and the older gets "
        "`FencedError`; the record forgets no checkpoint of either",
        lambda has: not has.single_writer,
    ),
    _Guarantee(
        "**Retention deletes only its own**, after the commit, by exact name, and only the version that it "
        "decided on: never what another run has put there meanwhile",
        lambda has: has.conditional_delete,
    ),
    _Guarantee(
        "**Verified restore.** Every tensor that is read whole is checked; a fault names tensor, file and "
        "bytes",
        _everywhere,
    ),
    _Guarantee(
        "**Hostile files are harmless.** Whatever their bytes: a typed error, no code is run, no memory is "
        "taken that the size of the files does not account for",
        _everywhere,
    ),
    _Guarantee(
        "**Durable.** A checkpoint whose save returned survives a power cut",
        lambda has: has.durable_when_acknowledged,
    ),
    _Guarantee(
        "**Proved upload.** The store itself confirms the checksum of what it received, before anything is "
        "published",
        lambda has: has.checksum_proved_by_store,
    ),
    _Guarantee(
        "**Several hosts.** What is promised to several processes holds for processes on several machines",
        lambda has: has.several_hosts and not has.single_writer,
    ),
)

_ABILITIES: tuple[tuple[str, Callable[[Capabilities], bool]], ...] = (
    ("create only if nothing is there", lambda has: has.create_if_absent),
    ("replace only this version (compare-and-swap)", lambda has: has.compare_and_swap),
    ("delete only this version", lambda has: has.conditional_delete),
    ("what was acknowledged survives a power cut", lambda has: has.durable_when_acknowledged),
    ("the CRC32C of what was received is confirmed", lambda has: has.checksum_proved_by_store),
    ("the same files for several machines", lambda has: has.several_hosts),
)


def guarantees_table(columns: Mapping[str, Capabilities]) -> str:
    """Return what holds where for checkpoints, as a Markdown table.

    Parameters
    ----------
    columns : mapping of str to Capabilities
        Title of the column → what is true there.
    """
    return _table("guarantee", columns, [(one.text, one.holds) for one in _GUARANTEES])


def abilities_table(columns: Mapping[str, Capabilities]) -> str:
    """Return what the storages do with single objects, which the guarantees follow from, as a Markdown table.

    Parameters
    ----------
    columns : mapping of str to Capabilities
        Title of the column → what is true there.
    """
    return _table("ability", columns, _ABILITIES)


def _table(
    corner: str,
    columns: Mapping[str, Capabilities],
    questions: Iterable[tuple[str, Callable[[Capabilities], bool]]],
) -> str:
    rows = [
        [corner, *columns],
        ["---", *(":---:" for _ in columns)],
        *([text, *("yes" if holds(has) else "no" for has in columns.values())] for text, holds in questions),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
