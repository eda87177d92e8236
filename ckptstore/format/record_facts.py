"""What the record says beside TensorFlow's four fields: owners, announcements, unfinished deletes.

How each fact is written as a line is `ckptstore.format.record_protocol`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias

from ckptstore.format.record import CheckpointState

__all__ = [
    "DEFAULT_SUFFIX",
    "Counted",
    "Fact",
    "Form",
    "Intent",
    "Kept",
    "Note",
    "Owner",
    "OwnerName",
    "Pending",
    "Pin",
    "Record",
    "ShardName",
    "Superseded",
    "record_of",
]

# Of graphs.
DEFAULT_SUFFIX = "meta"

# Of owners that own nothing any more.
_MOST_FENCES = 8

ShardName = tuple[int, int]
"""Shard number and count, as in ``.data-00003-of-00007``."""


Form: TypeAlias = Literal["", "steps", "exact"]
"""How an owner names what it saves: ``steps`` is ``<basename>-<step>``, ``exact`` is the basename itself.

A line of 0.1.0rc1 has none.
"""


class OwnerName(NamedTuple):
    """Who owns checkpoints of a record: what the user said when they were saved."""

    basename: str
    form: Form


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of some checkpoints.

    Attributes
    ----------
    basename : str
        ``"model"`` with the form ``steps`` owns ``model-<step>``, with the form ``exact`` it owns ``model``.
    epoch : int
        Grows with each run that takes over; the highest one is the owner.
    run, host : str
        Identity of the run, and of the machine it runs on.
    time_s : float
        When it took over, seconds since 1970.
    write_id : str
        Of the record write that this line came with; makes the bytes of each record unique.
    highest_step : int or None
        The highest step that it ever listed.
    next_keep_s : float or None
        Saver's every-H-hours clock.
    last_preserved_s : float or None
        CheckpointManager's clock; TensorFlow's own field holds one for the whole record only.
    keep : int or None
        The ``max_to_keep`` (0 without a limit) of the Saver that counts what has no `Counted` line.
    suffix : str
        Of the graphs that it writes: no others are deleted with its checkpoints.
    """

    basename: str
    epoch: int
    run: str
    host: str
    time_s: float
    write_id: str
    highest_step: int | None = None
    next_keep_s: float | None = None
    last_preserved_s: float | None = None
    form: Form = ""
    keep: int | None = None
    suffix: str = DEFAULT_SUFFIX

    @property
    def name(self) -> OwnerName:
        """What it owns."""
        return OwnerName(self.basename, self.form)


@dataclass(frozen=True, slots=True)
class Pending:
    """A checkpoint that left the record and whose files are to be deleted."""

    prefix: str
    version: str
    shards: tuple[ShardName, ...]
    suffix: str = DEFAULT_SUFFIX


@dataclass(frozen=True, slots=True)
class Superseded:
    """Data files of an overwritten checkpoint, deleted one save later so that readers in flight finish."""

    prefix: str
    shards: tuple[ShardName, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """A listed checkpoint that no saver owns: retention neither counts nor deletes it."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Pin:
    """A checkpoint that is not deleted, and takes no place in a window, until somebody unpins it."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Note:
    """The metrics with which a listed checkpoint was saved."""

    prefix: str
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """A listed checkpoint that another Saver of the same run saved than the one in the owner's line.

    Attributes
    ----------
    keep : int
        Its ``max_to_keep``, or the negative number of its rules: only a Saver with the same one counts the
        checkpoint.
    """

    prefix: str
    keep: int


@dataclass(frozen=True, slots=True)
class Intent:
    """A checkpoint that is about to be published: proof that what is found there is its owner's.

    Attributes
    ----------
    form : {"steps", "exact"}
        How the user named it.
    run : str
        Of the save.
    index_crc32c : int
        Of the bytes of the index.
    after : str
        The newest listed checkpoint of the owner when this was written; "" if there was none.
    metrics : tuple of (str, float)
        Of the save. Not compared: NaN is not equal to itself.
    replaces_crc32c : int or None
        Of the bytes of the index that was there when the save began; None if there was none.
    """

    prefix: str
    form: Form
    run: str
    index_crc32c: int
    after: str = ""
    metrics: tuple[tuple[str, float], ...] = field(default=(), compare=False)
    replaces_crc32c: int | None = None

    @property
    def owner(self) -> OwnerName:
        """Who saves it."""
        return OwnerName(self.prefix if self.form == "exact" else self.prefix.rpartition("-")[0], self.form)


Fact: TypeAlias = Owner | Pending | Superseded | Kept | Pin | Note | Counted | Intent
"""The content of one protocol line."""


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record: TensorFlow's four fields and our protocol state.

    ``state`` is None while a record names no checkpoint. ``kept`` are the prefixes of `Kept` lines
    (docs/design/004-repair.md), ``pins`` those of `Pin` lines. ``counted`` is prefix → ``max_to_keep`` of
    `Counted` lines, ``notes`` prefix → metrics of `Note` lines.
    """

    state: CheckpointState | None = None
    owners: Mapping[OwnerName, Owner] = field(default_factory=dict)
    pending: tuple[Pending, ...] = ()
    superseded: tuple[Superseded, ...] = ()
    kept: tuple[str, ...] = ()
    intents: tuple[Intent, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    pins: tuple[str, ...] = ()
    notes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def with_owner(self, owner: Owner) -> Record:
        """Return this record with `owner` in the place of the owner of the same name.

        An owner of steps takes the place of a line without a form, too.
        """
        owners = {**self.owners, owner.name: owner}
        if owner.form == "steps":
            owners.pop(OwnerName(owner.basename, ""), None)
        return replace(self, owners=owners)

    def without_idle_owners(self, besides: Collection[OwnerName] = ()) -> Record:
        """Return this record without the owners of single prefixes that nothing names, `besides` these.

        The newest few that have replaced another run stay: they fence it, should it wake up.
        """
        paths = () if self.state is None else self.state.all_model_checkpoint_paths
        # By its name, or by a longer path, as TensorFlow writes it.
        named = {*paths, *(path.rpartition("/")[2] for path in paths if "/" in path)}
        named.update(line.prefix for line in self.pending)
        named.update(line.prefix for line in self.superseded)
        named.update(line.prefix for line in self.intents)
        idle = [
            owner for owner in self.owners.values() if owner.form == "exact" and owner.basename not in named
        ]
        fences = sorted((owner for owner in idle if owner.epoch > 1), key=attrgetter("time_s"))[
            -_MOST_FENCES:
        ]
        gone = {owner.name for owner in idle} - {owner.name for owner in fences} - {*besides}
        return replace(self, owners={name: each for name, each in self.owners.items() if name not in gone})

    def shards_named(self, prefix: str) -> set[ShardName]:
        """Shards of `prefix` in pending and superseded lines; a new save must not use their counts."""
        lines: Iterable[Pending | Superseded] = (*self.pending, *self.superseded)
        return {shard for line in lines if line.prefix == prefix for shard in line.shards}


def record_of(state: CheckpointState | None, facts: Iterable[Fact]) -> Record:
    """Return the record with these protocol lines; of several of one owner or note the last one counts."""
    lines = list(facts)
    return Record(
        state,
        {line.name: line for line in lines if isinstance(line, Owner)},
        tuple(line for line in lines if isinstance(line, Pending)),
        tuple(line for line in lines if isinstance(line, Superseded)),
        tuple(dict.fromkeys(line.prefix for line in lines if isinstance(line, Kept))),
        tuple(line for line in lines if isinstance(line, Intent)),
        {line.prefix: line.keep for line in lines if isinstance(line, Counted)},
        tuple(dict.fromkeys(line.prefix for line in lines if isinstance(line, Pin))),
        {line.prefix: dict(line.metrics) for line in lines if isinstance(line, Note)},
    )
