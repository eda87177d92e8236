"""What is promised where: the table in the README, made from what the backends say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ckptstore.storage.base import Capabilities

__all__ = ["guarantees_table"]


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
        "`FencedError`; no checkpoint whose save returned is lost",
        lambda has: not has.single_writer,
    ),
    _Guarantee(
        "**Retention deletes only its own**, after the commit, by exact name, and only the version that it "
        "decided on",
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
        "**Several hosts** write their parts of one checkpoint",
        lambda has: has.several_hosts,
    ),
)

_TITLES = {"local": "local disk", "memory": "`memory://`"}


def guarantees_table(backends: Sequence[Capabilities]) -> str:
    """Return the table as Markdown, a column for each backend.

    Parameters
    ----------
    backends : sequence of Capabilities
        As the storages state them, in the order of the columns.
    """
    titles = ["guarantee", *(_TITLES.get(one.backend, one.backend) for one in backends)]
    rows = [
        [guarantee.text, *("yes" if guarantee.holds(one) else "no" for one in backends)]
        for guarantee in _GUARANTEES
    ]
    lines = [titles, ["---", *(":---:" for _ in backends)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
