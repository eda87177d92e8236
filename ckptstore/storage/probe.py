"""What a server really does with conditions: six requests, once for each endpoint and bucket in a process.

Many servers and proxies accept a condition and ignore it. One that does so is found out before the first save
relies on it; the store then runs in single-writer mode and says so once.
"""

from __future__ import annotations

import uuid
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.base import Capabilities
from ckptstore.storage.faults import Fault, Kind
from ckptstore.storage.locks import ForkSafeLocks
from ckptstore.storage.retry import Operation
from ckptstore.storage.transport import Place, Precondition, Stored, Transport

__all__ = ["Verdicts", "capabilities_of", "verdicts_for", "verdicts_known"]

Answer: TypeAlias = Literal["yes", "ignored", "refused"]

_CONTENT = memoryview(b"ckptstore asks whether this server honours conditional requests\n")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a server does with conditions.

    Attributes
    ----------
    create : {"yes", "ignored", "refused"}
        A PUT that asks for nothing to be there: honoured, carried out all the same, or never carried out.
    cas : {"yes", "ignored", "refused"}
        A PUT that asks for a version.
    cas_missing : {"404", "412", "created"}
        The same where nothing is there.
    cond_delete : bool
        Whether a DELETE that asks for another version leaves the object alone.
    crc32c : bool
        Whether the server tells the checksum of what it took.
    """

    create: Answer
    cas: Answer
    cas_missing: Literal["404", "412", "created"]
    cond_delete: bool
    crc32c: bool

    @property
    def can_swap(self) -> bool:
        """Whether compare-and-swap can be relied on."""
        return self.cas == "yes" and self.cas_missing != "created"

    @property
    def single_writer(self) -> bool:
        """Whether concurrent writers are not kept apart."""
        return self.create != "yes" or not self.can_swap


_LOCKS = ForkSafeLocks()
_known: dict[tuple[str, str, str], Verdicts] = {}


def verdicts_known(transport: Transport, bucket: str) -> Verdicts | None:
    """Return what was found out before, without a request."""
    return _known.get((transport.scheme, transport.endpoint, bucket))


def verdicts_for(transport: Transport, place: Place, operation: Operation) -> Verdicts:
    """Return what the server of `place` does; ask it if nobody did before.

    The probe's objects lie beside `place`, because permissions often end at a directory.

    Raises
    ------
    Fault
        If the server cannot be asked.
    """
    identity = (transport.scheme, transport.endpoint, place.bucket)
    found = _known.get(identity)
    if found is not None:
        return found
    with _LOCKS[0]:
        found = _known.get(identity)
        if found is None:
            found = _known[identity] = _ask(transport, place, operation)
            if found.single_writer:
                _warn(transport, place.bucket, found)
    return found


def capabilities_of(nominal: Capabilities, verdicts: Verdicts | None) -> Capabilities:
    """Return what a backend really does, from what it documents and what was found out."""
    if verdicts is None:
        return nominal
    return replace(
        nominal,
        create_if_absent=verdicts.create == "yes",
        compare_and_swap=verdicts.can_swap,
        conditional_delete=verdicts.cond_delete,
        checksum_proved_by_store=verdicts.crc32c,
    )


def _warn(transport: Transport, bucket: str, verdicts: Verdicts) -> None:
    lacks = []
    if verdicts.create != "yes":
        lacks.append(f"create-if-absent is {verdicts.create}")
    if verdicts.cas != "yes":
        lacks.append(f"compare-and-swap is {verdicts.cas}")
    elif not verdicts.can_swap:
        lacks.append("compare-and-swap of a missing object creates it")
    warnings.warn(
        f"{transport.scheme}://{bucket} at {transport.endpoint} runs in single-writer mode, because the"
        f" server does not keep concurrent writers apart ({'; '.join(lacks)}): let only one job save here",
        CkptStoreWarning,
        stacklevel=2,
    )


def _ask(transport: Transport, beside: Place, operation: Operation) -> Verdicts:
    directory = beside.name.rpartition("/")[0]
    while True:
        base = f"{directory}/.ckptstore-probe-" if directory else ".ckptstore-probe-"
        place = Place(beside.bucket, base + uuid.uuid4().hex[:12])
        first = _put(transport, place, Precondition(None), operation)
        if isinstance(first, Stored) or first.kind is not Kind.PRECONDITION:
            break
        # Only our own request can have made an object of that name: its answer was lost, and it was sent
        # twice. Nothing can be learned from this name any more.
        _clean_up(transport, [place], operation)
        if not operation.again(Fault(Kind.CUT, "the answer to the probe was lost")):
            raise first
    absent = Place(place.bucket, place.name + "-absent")
    if isinstance(first, Stored):
        second = _put(transport, place, Precondition(None), operation)
        create: Answer = "ignored" if isinstance(second, Stored) else "yes"
    else:
        # RELEASE.2025-09-06 of MinIO answers 404 to every create.
        create = "refused"
        first = _put(transport, place, None, operation)
        if isinstance(first, Fault):
            raise first
    stale = _put(transport, place, Precondition(transport.bogus_version), operation)
    missing = _put(transport, absent, Precondition(first.version), operation)
    cas: Answer
    if isinstance(stale, Stored):
        cas = "ignored"
    else:
        cas = "yes" if stale.kind in (Kind.PRECONDITION, Kind.ABSENT) else "refused"
    cas_missing: Literal["404", "412", "created"]
    if isinstance(missing, Stored):
        cas_missing = "created"
    else:
        cas_missing = "412" if missing.kind is Kind.PRECONDITION else "404"
    cond_delete = False
    try:
        operation.child().run(lambda op: transport.delete(place, op, version=transport.bogus_version))
    except Fault as fault:
        # Where deleting is denied nothing is known, and `delete_if` looks before it deletes.
        cond_delete = fault.kind is Kind.PRECONDITION
    _clean_up(transport, [place, absent], operation)
    return Verdicts(create, cas, cas_missing, cond_delete, first.crc32c is not None)


# Only such an answer says something about conditions; what hinders every request is raised.
_REFUSALS = {Kind.PRECONDITION, Kind.ABSENT, Kind.UNPROVED, Kind.UNSUPPORTED, Kind.BAD_REQUEST}


def _put(
    transport: Transport, place: Place, precondition: Precondition | None, operation: Operation
) -> Stored | Fault:
    """Return the server's answer: done, or how it refused."""

    def attempt(op: Operation) -> Stored | Fault:
        try:
            return transport.put(
                place,
                (_CONTENT,),
                op,
                crc32c=crc32c(_CONTENT),
                write_id=uuid.uuid4().hex,
                precondition=precondition,
            )
        except Fault as fault:
            if fault.kind in _REFUSALS:
                return fault
            raise

    return operation.child().run(attempt)


def _clean_up(transport: Transport, places: list[Place], operation: Operation) -> None:
    """Delete what the probe made, as far as that is possible: small, and named for what it is."""
    try:
        names = [place.name for place in places]
        operation.child().run(lambda op: transport.delete_many(places[0].bucket, names, op))
    except Fault as fault:
        if fault.kind is not Kind.UNSUPPORTED:
            return
        for place in places:
            with suppress(Fault):
                operation.child().run(partial(transport.delete, place, version=None))
