"""The ranks of a job find each other: once a run, before the first message.

Nothing tells the ranks which messages in a mailbox are of this start of the job: a restart under the same
job id may find what an earlier one left. So each member announces itself with a nonce of its own; the chief
answers each nonce with the run that it begins; who finds the answer confirms it under the name of that run;
and when all have, the chief says so, with the nonces that it counted and the hosts. An answer of an earlier
chief is never found, because it did not know the nonce; what an earlier member announced is never confirmed.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ckptstore import __version__
from ckptstore.config import host_name
from ckptstore.distributed.engine_calls import EngineCall
from ckptstore.distributed.mailbox import Announcement, Mailbox
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.errors import ConflictError, CorruptError, RanksMissingError, UsageError
from ckptstore.storage.retry import pause

__all__ = ["OPEN_TIMEOUT_S", "open_mailbox"]

OPEN_TIMEOUT_S: Final = 300.0
"""How long the ranks wait for each other at first, in seconds: hosts of one job start minutes apart."""

_OPENED: Final = "opened"
# Between two looks for announcements that came late.
_WAIT_S: Final = 0.25
_MEMBERS_GRACE_S: Final = 2.0
_GRACE_S: Final = 2.0


def open_mailbox(
    mailbox: Mailbox, rank: int, size: int, *, timeout_s: float = OPEN_TIMEOUT_S
) -> MailboxCoordinator:
    """Return the coordinator of `rank` when all ranks have found each other.

    Raises
    ------
    RanksMissingError
        If not all came within `timeout_s`.
    UsageError
        If ranks have another version of ckptstore, or were given another number of ranks, or if two processes
        are the same rank.
    CoordinatorLostError
        If the mailbox is gone.
    """
    opening = _Opening(mailbox, rank, size, timeout_s)
    found: list[MailboxCoordinator] = []
    call = EngineCall(opening.limit_s)
    try:
        work = opening.lead if rank == 0 else opening.follow
        call.start(lambda: found.append(work()), in_thread=mailbox.may_block)
        if not call.wait(opening.limit_s + _GRACE_S):
            raise opening.missing((0,))
    except BaseException:
        mailbox.close()
        raise
    return found[0]


class _Opening:
    def __init__(self, mailbox: Mailbox, rank: int, size: int, timeout_s: float) -> None:
        self._mailbox = mailbox
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        # A member waits longer, so that it is told which ranks are missing.
        self.limit_s = timeout_s + (_MEMBERS_GRACE_S + 0.01 * timeout_s if rank else 0.0)
        self._deadline = time.monotonic() + self.limit_s
        self._nonce = uuid.uuid4().hex
        self._self = {
            "nonce": self._nonce,
            "size": size,
            "host": host_name(),
            "pid": os.getpid(),
            "version": __version__,
        }

    @property
    def _left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    # Members.

    def follow(self) -> MailboxCoordinator:
        self._mailbox.announce(Announcement(self._rank, self._nonce))
        coordinator = MailboxCoordinator(self._mailbox, self._rank, self._size, self._wait_for_run())
        try:
            coordinator.gather(_OPENED, json.dumps(self._self).encode(), timeout_s=max(self._left_s, 1.0))
        except ConflictError:
            raise self._doubled() from None
        said = coordinator.broadcast(_OPENED, timeout_s=self._left_s)
        if said is None:
            raise self.missing((0,))
        final = _parse(said)
        if final.get("missing"):
            raise self.missing(tuple(map(int, final["missing"])))
        if final.get("error"):
            raise UsageError(str(final["error"]))
        if final.get("nonces", {}).get(str(self._rank)) != self._nonce:
            raise self._doubled()
        coordinator.host_names = tuple(str(name) for name in final.get("hosts", ()))
        return coordinator

    def _wait_for_run(self) -> str:
        name = f"{self._rank}.{self._nonce}"
        while True:
            found = self._mailbox.look("open", [name])
            if name in found:
                return found[name].decode("ascii", "replace")
            if self._left_s <= 0:
                raise self.missing((0,))
            pause(min(max(self._mailbox.shortest_wait_s, 0.02), self._left_s))

    def _doubled(self) -> UsageError:
        return UsageError(
            f"another process is rank {self._rank} of this job too",
            hint="Start each rank once, and give each start of the job an `attempt` of its own.",
        )

    # The chief.

    def lead(self) -> MailboxCoordinator:
        run = uuid.uuid4().hex[:12]
        coordinator = MailboxCoordinator(self._mailbox, 0, self._size, run)
        answered: set[Announcement] = set()
        confirmed: dict[int, bytes] = {}
        while True:
            self._answer_all(run, answered)
            wait_s = min(_WAIT_S, self._left_s)
            confirmed = coordinator.gather(_OPENED, json.dumps(self._self).encode(), timeout_s=wait_s)
            if len(confirmed) == self._size or self._left_s <= 0:
                break
        missing = [rank for rank in range(self._size) if rank not in confirmed]
        ranks = [_parse(confirmed[rank]) for rank in range(self._size)] if not missing else []
        error = self._disagreement(ranks)
        hosts = [str(one.get("host", "")) for one in ranks]
        nonces = {str(rank): one.get("nonce") for rank, one in enumerate(ranks)}
        final = {"missing": missing, "error": error, "nonces": nonces, "hosts": hosts}
        coordinator.broadcast(_OPENED, json.dumps(final).encode(), timeout_s=max(self._left_s, 1.0))
        self._mailbox.delete("open", [f"{one.rank}.{one.nonce}" for one in answered])
        if missing:
            raise self.missing(tuple(missing))
        if error:
            raise UsageError(error)
        coordinator.host_names = tuple(hosts)
        return coordinator

    def _answer_all(self, run: str, answered: set[Announcement]) -> None:
        """Tell the run to every process that announced itself since the last time."""
        for one in self._mailbox.announcements():
            if one not in answered:
                answered.add(one)
                self._mailbox.put("open", f"{one.rank}.{one.nonce}", run.encode())

    def _disagreement(self, ranks: Sequence[Mapping[str, Any]]) -> str | None:
        for key, what in (
            ("version", "different versions of ckptstore"),
            ("size", "different numbers of ranks"),
        ):
            if any(one.get(key) != self._self[key] for one in ranks):
                shown = ", ".join(
                    f"rank {rank} ({one.get('host')}) {one.get(key)}"
                    for rank, one in enumerate(ranks)
                    if rank == 0 or one.get(key) != self._self[key]
                )
                return f"the ranks have {what}: {shown}"
        return None

    def missing(self, ranks: tuple[int, ...]) -> RanksMissingError:
        return RanksMissingError(
            f"the ranks of the job did not find each other within {self._timeout_s:g} s:"
            f" nothing was heard of rank {', '.join(map(str, ranks))}",
            ranks=ranks,
            phase="open",
            hint="Look whether these processes run, and whether every rank opens the coordinator. `save` and "
            "`load` of ckptstore.torch and ckptstore.jax are for all ranks; one rank alone passes "
            'coordinator=ckptstore.coordinator("single").',
        )


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptError(
            "what a rank said of itself is not what this package writes",
            hint="Look whether another program uses the same mailbox.",
        )
    return found
