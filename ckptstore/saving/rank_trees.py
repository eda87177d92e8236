"""One document for what all ranks of a job hold."""

from __future__ import annotations

import base64
import hashlib
import time
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ckptstore.distributed.agreement import Agreement
from ckptstore.distributed.coordinator import Coordinator, host_names_of
from ckptstore.errors import RanksMissingError, UsageError
from ckptstore.saving.ranks import Ranks
from ckptstore.tree.document import parse, serialize
from ckptstore.tree.habit import Habit
from ckptstore.tree.merge import merge

__all__ = ["one_document"]

# The documents of all ranks that differ travel to all: beyond this something else is wrong.
_MOST_BYTES: Final = 64 << 20


def one_document(
    ranks: Ranks | None, skeleton: Callable[[], Any], habit: Habit, what: str
) -> npt.NDArray[Any] | None:
    """Return the document as the array to store; None on a rank that stores none.

    The ranks compare what they have, and the chief stores it. If they hold different keys, as the stages of a
    pipeline do, it stores the union.

    Parameters
    ----------
    ranks : Ranks, optional
        Of the Saver that saves next: its deadline counts from here. None: there is one process.
    skeleton : callable
        Makes that of this rank. An error is raised on all ranks.
    what : str
        What is being done, for messages.

    Raises
    ------
    UsageError
        If two ranks have different values under one key, on all ranks.
    CkptStoreError
        What `skeleton` raised; the same class on all ranks.
    RanksMissingError
        If a rank does not come before the deadline; it names those. This was the save, then.
    """
    if ranks is None or ranks.coordinator.size == 1:
        return np.array(serialize(skeleton(), habit), object)
    coordinator = ranks.coordinator
    own = b""

    def digest() -> dict[str, Any]:
        nonlocal own
        own = serialize(skeleton(), habit)
        return {"digest": hashlib.sha256(own).hexdigest()}

    begun_s = time.monotonic()
    try:
        with Agreement(coordinator, what, deadline_s=ranks.deadline_s) as agreement:
            digests = [one["digest"] for one in agreement.all_or_none(digest)]
            if len(set(digests)) > 1:
                own = _union(agreement, coordinator, digests, own, habit, what)
    except RanksMissingError as error:
        # Some rank may have what it needs, and begin the save: this one does not come.
        ranks.refuse(error)
        raise
    ranks.spent_s = time.monotonic() - begun_s
    return np.array(own, object) if coordinator.rank == 0 else None


def _union(
    agreement: Agreement,
    coordinator: Coordinator,
    digests: list[str],
    own: bytes,
    habit: Habit,
    what: str,
) -> bytes:
    # Of those with equal documents one rank sends it.
    speaks = digests.index(digests[coordinator.rank]) == coordinator.rank

    def packed() -> dict[str, Any]:
        if len(own) > _MOST_BYTES:
            raise UsageError(
                "the plain values of a rank are too many to compare",
                expected=f"at most {_MOST_BYTES} bytes",
                actual=f"{len(own)} bytes",
                hint="Save large values as arrays.",
            )
        return {"document": base64.b64encode(zlib.compress(own)).decode("ascii") if speaks else ""}

    names = host_names_of(coordinator)
    skeletons = []
    for rank, answer in enumerate(agreement.all_or_none(packed)):
        if answer["document"]:
            data = zlib.decompress(base64.b64decode(answer["document"]))
            skeletons.append((f"rank {rank} ({names[rank]})", parse(data, habit, url=what).root))
    # The same on every rank, and so is what is wrong with it.
    return serialize(merge(skeletons, habit), habit)
