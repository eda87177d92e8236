"""What a Saver of many ranks keeps between its saves."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ckptstore.bundle.write.index_memory import IndexMemory, IndexReporter
from ckptstore.bundle.write.manifest import Manifest, manifest_of
from ckptstore.bundle.write.plan import SavePlan, ShardPlan, WriteItem
from ckptstore.bundle.write.shares import Deal, Share, deal
from ckptstore.distributed.coordinator import Coordinator, longest_deadline_of
from ckptstore.distributed.manifests import decode_manifest, encode_manifest, fingerprint_of
from ckptstore.distributed.rounds import Chief, Member, Round
from ckptstore.errors import CorruptError, UnsupportedError, UsageError
from ckptstore.format import dtypes
from ckptstore.saving.options import SaveOptions, check_one_of, positive_seconds

__all__ = ["CheckReplicas", "Plan", "Ranks"]

CheckReplicas: TypeAlias = Literal["first", "always", "never"]

DEFAULT_DEADLINE_S: Final = 600.0
"""How long a save of many ranks may take if the user sets no limit: a frozen rank must not hold up a job."""

# Of a save whose time is over before it begins: a limit is above 0.
_LEAST_S: Final = 0.001

# Of one rank: a job alternates between few layouts.
_MOST_MANIFESTS: Final = 4

# How many Savers this process has made for each coordinator: all ranks make them in the same order.
_SAVERS: weakref.WeakKeyDictionary[Coordinator, Iterator[int]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


class Plan(NamedTuple):
    """Who writes what, and its name.

    Attributes
    ----------
    name : str
        The same on all ranks that have the same plan.
    """

    name: str
    deal: Deal


class Ranks:
    """What a Saver of many ranks keeps between its saves.

    Parameters
    ----------
    coordinator : Coordinator
    check_replicas : str
    stall_s : float
        See `Saver`.
    options : SaveOptions
        Of the Saver.

    Attributes
    ----------
    plan : Plan or None
        Of the last save.
    acknowledged : str
        Fingerprint of the manifest that the chief has.
    indexes : IndexMemory
        What the chief has heard of all data files.
    reporter : IndexReporter
        What this rank has reported of its own.
    failed_counts : dict
        Prefix → counts in the names of files that failed saves of this run may have left.
    missed : int
        How many saves of the others this rank did not begin; they failed.
    spent_s : float
        Seconds of the deadline that are gone when the next save is called: the ranks have compared their
        trees.

    Raises
    ------
    UsageError, UnsupportedError
        If an option is wrong, or does not go together with many ranks.

    Threads
    -------
    One save at a time.
    """

    def __init__(
        self, coordinator: Coordinator, check_replicas: CheckReplicas, stall_s: float, options: SaveOptions
    ) -> None:
        if not isinstance(coordinator, Coordinator):
            raise UsageError(
                "this is no coordinator",
                expected="what ckptstore.coordinator() returns, or an object with its methods",
                actual=type(coordinator).__name__,
            )
        check_one_of("check_replicas", check_replicas, get_args(CheckReplicas))
        self.coordinator = coordinator
        self.check_replicas = check_replicas
        self.stall_s = positive_seconds("stall_s", stall_s)
        if options.queue != "wait":
            raise UsageError(
                "with a coordinator, saves wait for each other: every rank has to save the same ones",
                expected="queue='wait'",
                actual=repr(options.queue),
            )
        if options.reuse_unchanged:
            raise UnsupportedError(
                "reuse_unchanged does not go together with a coordinator yet",
                hint="Leave one of them out.",
            )
        self.deadline_s = options.deadline_s or min(DEFAULT_DEADLINE_S, longest_deadline_of(coordinator))
        with _LOCK:
            number = next(_SAVERS.setdefault(coordinator, itertools.count()))
        self._name = f"save-{number}-"
        self._calls = itertools.count()
        self.missed = 0
        self.spent_s = 0.0
        self.plan: Plan | None = None
        self.acknowledged = ""
        self.failed_counts: dict[str, set[int]] = {}
        self.indexes = IndexMemory()
        self.reporter = IndexReporter()
        self._manifests: list[dict[str, Manifest]] = [{} for _ in range(coordinator.size)]
        # Saves that are over here, of which some rank may not have heard the outcome.
        self._over: list[Round] = []
        self._pid = os.getpid()
        # Everything but the values of the last save, its manifest and the fingerprint of that.
        self._held: tuple[Sequence[tuple[Any, ...]] | None, bytes, str] = (None, b"", "")
        # The tensors of all ranks under a plan of this name.
        self._whole: tuple[str, SavePlan] | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0."""
        return self.coordinator.rank == 0

    def next_call(self) -> int:
        """Return the number of the next save: the same on all ranks, as each of them counts its calls."""
        if os.getpid() != self._pid:
            raise UsageError(
                "this Saver saves together with other ranks, and belongs to the process that made it",
                hint="A forked child is not a rank of its own: save in the parent.",
            )
        return next(self._calls)

    def take_limit_s(self) -> float:
        """Return how many seconds the save that is called now may take."""
        spent_s, self.spent_s = self.spent_s, 0.0
        return max(self.deadline_s - spent_s, _LEAST_S)

    def name_of(self, call: int) -> str:
        """Return the name of a save: the same on all ranks, also on one that has missed some."""
        return f"{self._name}{call + self.missed}"

    def held(self, items: Sequence[WriteItem]) -> tuple[bytes, str]:
        """Return the manifest of what this rank holds, encoded, and its fingerprint.

        They are made anew where more than values differs from the last save.
        """
        heads = [item[:-1] for item in items]
        known, manifest, fingerprint = self._held
        if known != heads:
            manifest = encode_manifest(manifest_of(items))
            fingerprint = fingerprint_of(manifest)
            self._held = heads, manifest, fingerprint
        return manifest, fingerprint

    def refuse(self, error: BaseException) -> None:
        """Tell the others that this rank cannot even begin its next save."""
        if os.getpid() != self._pid:
            # A forked child: nobody waits for it.
            return
        name = self.name_of(self.next_call())
        if self.is_chief:
            chief = Chief(self.coordinator, name, lambda: 0.0, self.stall_s)
            chief.fail(error, may_be_published=False)
            self.ended(chief)
        else:
            member = Member(self.coordinator, name, self.deadline_s, self.stall_s)
            member.fail(("hello",), error)
            self.ended(member)

    def agree(self, hellos: Sequence[tuple[dict[str, Any], bytes]]) -> tuple[Plan, list[Manifest], bool]:
        """Decide who writes what, from what every rank says that it holds; only on the chief.

        Parameters
        ----------
        hellos : sequence of (dict, bytes)
            By rank: a head with the ``"fingerprint"`` of its manifest, the name of the ``"plan"`` that it
            knows and whether it has ``"staged"`` its part of it; and the manifest, if it is new.

        Returns
        -------
        Plan, list of Manifest, bool
            The plan, what each rank holds, and whether the ranks have to be told.

        Raises
        ------
        UsageError
            As `deal`.
        CorruptError
            If a rank says something else.
        """
        manifests = [self._manifest(rank, head, blob) for rank, (head, blob) in enumerate(hellos)]
        prints = [str(head.get("fingerprint")) for head, _ in hellos]
        name = fingerprint_of("".join(prints).encode())
        if self.plan is None or self.plan.name != name:
            fixed: dict[int, Sequence[Share]] = {}
            if self.plan is not None:
                known = self.plan
                fixed = {
                    rank: known.deal.shares[rank]
                    for rank, (head, _) in enumerate(hellos)
                    if head.get("staged") is True and head.get("plan") == known.name
                }
            self.plan = Plan(name, deal(manifests, fixed))
        return self.plan, manifests, any(head.get("plan") != name for head, _ in hellos)

    def whole_plan(self, manifests: Sequence[Manifest]) -> SavePlan:
        """Return a plan, without arrays, of all tensors that ranks hold under `plan`; only on the chief."""
        assert self.plan is not None
        if self._whole is None or self._whole[0] != self.plan.name:
            none = np.empty(0, np.uint8)
            whole = {}
            for tensors in {id(manifest.tensors): manifest.tensors for manifest in manifests}.values():
                for name, dtype, shape in zip(tensors.names, tensors.dtypes, tensors.shapes, strict=True):
                    if name not in whole:
                        whole[name] = WriteItem(name, dtypes.by_name(dtype), shape, None, shape, 0, none)
            items = tuple(whole[name] for name in sorted(whole))
            self._whole = self.plan.name, SavePlan((ShardPlan("", items, 0),))
        return self._whole[1]

    def _manifest(self, rank: int, head: dict[str, Any], blob: bytes) -> Manifest:
        known = self._manifests[rank]
        name = str(head.get("fingerprint"))
        if blob:
            if fingerprint_of(blob) != name:
                raise CorruptError(f"rank {rank} holds something else than it says")
            if len(known) >= _MOST_MANIFESTS:
                del known[next(iter(known))]
            known[name] = decode_manifest(blob)
        if name not in known:
            raise CorruptError(f"rank {rank} has not said what it holds")
        return known[name]

    def ended(self, one: Round) -> None:
        """Keep the messages of a save that is over here, until `forget_ended`."""
        self._over.append(one)

    def forget_ended(self, now: Round) -> None:
        """Drop the messages of saves before `now` that are over here: every rank is in `now`, or beyond."""
        over, self._over = self._over, []
        for one in over:
            if one.number < now.number:
                one.forget()
            else:
                self._over.append(one)
