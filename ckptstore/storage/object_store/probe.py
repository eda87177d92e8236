"""What a server really does with conditions: six requests, once for each endpoint and bucket in a process.

Another six before the first object that would be composed of parts.

Many servers and proxies accept a condition and ignore it. The probe detects that before the first save relies
on it; the store then runs in single-writer mode, with one warning.

The requests come one after the other. That a condition also holds when two requests meet is inferred from
that, except for servers that are known to look and act in two steps; `races` tries it.
"""

from __future__ import annotations

import uuid
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutRequest,
    PutResult,
    Transport,
)
from ckptstore.storage.values import Capabilities, ObjectInfo

__all__ = [
    "Verdicts",
    "capabilities_of",
    "compose_verdict_for",
    "give_up_composing",
    "remember_verdicts",
    "verdicts_for",
    "verdicts_known",
]

Verdict: TypeAlias = Literal["yes", "ignored", "refused"]
ComposeVerdict: TypeAlias = Literal["yes", "ignored", "refused", "kept"]

_CONTENT = memoryview(b"ckptstore asks whether this server honours conditional requests\n")


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a server does with conditions.

    Attributes
    ----------
    create : {"yes", "ignored", "refused"}
        A PUT on condition that nothing is there: honoured, ignored, or never carried out.
    cas : {"yes", "ignored", "refused"}
        A PUT on condition that a version is there.
    cas_missing : {"404", "412", "created"}
        The same where nothing is there.
    cond_delete : bool
        Whether a DELETE on condition of another version leaves the object alone, whatever comes between.
    crc32c : bool
        Whether the server returns the checksum of what it stored.
    compose : {"yes", "ignored", "refused", "kept"} or None
        Composing an object of others: with its conditions; without them; not at all; the others cannot be
        deleted afterwards. None: not asked yet.
    """

    create: Verdict
    cas: Verdict
    cas_missing: Literal["404", "412", "created"]
    cond_delete: bool
    crc32c: bool
    compose: ComposeVerdict | None = None

    @property
    def can_create(self) -> bool:
        """Whether create-if-absent can be relied on."""
        return self.create == "yes"

    @property
    def can_swap(self) -> bool:
        """Whether compare-and-swap can be relied on."""
        return self.cas == "yes" and self.cas_missing != "created"

    @property
    def single_writer(self) -> bool:
        """Whether concurrent writers are not kept apart."""
        return not self.can_create or not self.can_swap


_LOCKS = ForkSafeLocks()
_known: dict[tuple[str, str, str], Verdicts] = {}


def verdicts_known(transport: Transport, bucket: str) -> Verdicts | None:
    """Return the verdicts of an earlier probe, without a request."""
    return _known.get((transport.scheme, transport.endpoint, bucket))


def verdicts_for(transport: Transport, object_name: ObjectName, attempts: Attempts) -> Verdicts:
    """Return what the server of `object_name` does; the first call asks it.

    The probe's objects lie beside `object_name`, because permissions often end at a directory.

    Raises
    ------
    Fault
        If the server cannot be asked.
    """
    identity = (transport.scheme, transport.endpoint, object_name.bucket)
    found = _known.get(identity)
    if found is not None:
        return found
    with _LOCKS[0]:
        found = _known.get(identity)
        if found is None:
            found = _known[identity] = _ask(transport, object_name, attempts)
            if found.single_writer:
                _warn(transport, object_name.bucket, found)
    return found


def compose_verdict_for(transport: Transport, object_name: ObjectName, attempts: Attempts) -> ComposeVerdict:
    """Return what the server of `object_name` does when objects are composed; the first call asks it.

    Raises
    ------
    Fault
        If the server cannot be asked.
    """
    identity = (transport.scheme, transport.endpoint, object_name.bucket)
    verdict = verdicts_for(transport, object_name, attempts).compose
    if verdict is None:
        with _LOCKS[0]:
            found = _known[identity]
            verdict = found.compose
            if verdict is None:
                verdict = _ask_to_compose(transport, object_name, attempts) if found.can_create else "ignored"
                _known[identity] = replace(found, compose=verdict)
    return verdict


def remember_verdicts(transport: Transport, bucket: str, verdicts: Verdicts) -> None:
    """Record the verdicts of a bucket that is not to be asked, unless it was asked before."""
    _known.setdefault((transport.scheme, transport.endpoint, bucket), verdicts)


def give_up_composing(transport: Transport, bucket: str) -> bool:
    """Record that parts cannot be deleted in this bucket; return False if that was known."""
    identity = (transport.scheme, transport.endpoint, bucket)
    with _LOCKS[0]:
        found = _known.get(identity)
        if found is None or found.compose == "kept":
            return False
        _known[identity] = replace(found, compose="kept")
    return True


def capabilities_of(nominal: Capabilities, verdicts: Verdicts | None) -> Capabilities:
    """Return what a backend really does: what it documents, as far as the probe confirms it."""
    if verdicts is None:
        return nominal
    return replace(
        nominal,
        create_if_absent=nominal.create_if_absent and verdicts.can_create,
        compare_and_swap=nominal.compare_and_swap and verdicts.can_swap,
        conditional_delete=nominal.conditional_delete and verdicts.cond_delete,
        checksum_proved_by_store=nominal.checksum_proved_by_store and verdicts.crc32c,
    )


def _warn(transport: Transport, bucket: str, verdicts: Verdicts) -> None:
    lacks = []
    if not verdicts.can_create:
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


def _ask(transport: Transport, beside: ObjectName, attempts: Attempts) -> Verdicts:
    there, first = _create_probe(transport, beside, attempts)
    absent = ObjectName(there.bucket, there.name + "-absent")
    if isinstance(first, PutResult):
        second = _put(transport, there, Precondition(None), attempts)
        create: Verdict = "ignored" if isinstance(second, PutResult) else "yes"
    else:
        # RELEASE.2025-09-06 of MinIO answers 404 to every create.
        create = "refused"
        first = _put(transport, there, None, attempts)
        if isinstance(first, Fault):
            raise first
    stale = _put(transport, there, Precondition(transport.bogus_version), attempts)
    missing = _put(transport, absent, Precondition(first.version), attempts)
    cas: Verdict
    if isinstance(stale, PutResult):
        cas = "ignored"
    else:
        cas = "yes" if stale.kind in (Kind.PRECONDITION, Kind.ABSENT) else "refused"
    cas_missing: Literal["404", "412", "created"]
    if isinstance(missing, PutResult):
        cas_missing = "created"
    else:
        cas_missing = "412" if missing.kind is Kind.PRECONDITION else "404"
    cond_delete = False
    try:
        attempts.child().run(partial(transport.delete, there, version=transport.bogus_version))
    except Fault as fault:
        # Where deleting is denied this stays unknown, and `delete_if` looks before it deletes.
        cond_delete = fault.kind is Kind.PRECONDITION and not transport.deletes_in_two_steps
    _clean_up(transport, [there, absent], attempts)
    return Verdicts(create, cas, cas_missing, cond_delete, first.crc32c is not None)


def _create_probe(
    transport: Transport, beside: ObjectName, attempts: Attempts
) -> tuple[ObjectName, PutResult | Fault]:
    """Return a fresh name, and how the server answered to its creation."""
    directory = beside.name.rpartition("/")[0]
    base = f"{directory}/.ckptstore-probe-" if directory else ".ckptstore-probe-"
    while True:
        there = ObjectName(beside.bucket, base + uuid.uuid4().hex[:12])
        first = _put(transport, there, Precondition(None), attempts)
        if isinstance(first, PutResult) or first.kind is not Kind.PRECONDITION:
            return there, first
        # Only our own request can have made an object of that name: its answer was lost, and it was sent
        # twice. This name proves nothing any more.
        _clean_up(transport, [there], attempts)
        if not attempts.wait_to_retry(Fault(Kind.CUT, "the answer to the probe was lost")):
            raise first


def _ask_to_compose(transport: Transport, beside: ObjectName, attempts: Attempts) -> ComposeVerdict:
    base = beside.name[: beside.name.rfind("/") + 1] + f".ckptstore-probe-{uuid.uuid4().hex[:12]}"
    first, second, target = (
        ObjectName(beside.bucket, f"{base}-{ending}") for ending in ("first", "second", "composed")
    )
    sources = []
    for source in (first, second):
        result = _put(transport, source, None, attempts)
        if isinstance(result, Fault):
            raise result
        sources.append((source.name, result.version))
    verdict = _try_to_compose(transport, target, sources, attempts)
    refused = _clean_up(transport, [first, second, target], attempts)
    return "kept" if verdict == "yes" and refused else verdict


def _try_to_compose(
    transport: Transport, target: ObjectName, sources: list[tuple[str, str]], attempts: Attempts
) -> ComposeVerdict:
    request = PutRequest(target, uuid.uuid4().hex, Precondition(None))

    def compose(of: list[tuple[str, str]], attempts: Attempts) -> ObjectInfo | Fault:
        try:
            return transport.compose(request, of, attempts)
        except Fault as fault:
            if fault.kind in _REFUSALS | {Kind.FORBIDDEN}:
                # The frames of its traceback would keep the caller's objects alive.
                return fault.with_traceback(None)
            raise

    stale = [(sources[0][0], transport.bogus_version), sources[1]]
    try:
        with_stale = attempts.child().run(partial(compose, stale))
        if isinstance(with_stale, ObjectInfo):
            return "ignored"
        if with_stale.kind is not Kind.PRECONDITION:
            return "refused"
        made = attempts.child().run(partial(compose, sources))
        if isinstance(made, Fault) and made.kind is Kind.PRECONDITION:
            # Only the first of two requests can have made it.
            made = attempts.child().run(partial(transport.head, target))
        again = attempts.child().run(partial(compose, sources))
    except Fault as fault:
        # An emulator may break on a request that it does not know.
        if fault.kind in (Kind.SERVER, Kind.GARBLED, Kind.ABSENT):
            return "refused"
        raise
    whole = crc32c(_CONTENT, crc32c(_CONTENT))
    if not isinstance(made, ObjectInfo) or (made.write_id, made.crc32c) != (request.write_id, whole):
        return "refused"
    return "yes" if isinstance(again, Fault) and again.kind is Kind.PRECONDITION else "ignored"


# Answers that say something about conditions; what would hinder every request is raised.
_REFUSALS = {Kind.PRECONDITION, Kind.ABSENT, Kind.UNPROVED, Kind.UNSUPPORTED, Kind.BAD_REQUEST}


def _put(
    transport: Transport, target: ObjectName, precondition: Precondition | None, attempts: Attempts
) -> PutResult | Fault:
    """Write the probe's content; return the server's answer, or how it refused."""

    def attempt(attempts: Attempts) -> PutResult | Fault:
        request = PutRequest(target, uuid.uuid4().hex, precondition, len(_CONTENT), crc32c(_CONTENT))
        try:
            return transport.put(request, (_CONTENT,), attempts)
        except Fault as fault:
            if fault.kind in _REFUSALS:
                return fault.with_traceback(None)
            raise

    return attempts.child().run(attempt)


def _clean_up(transport: Transport, object_names: list[ObjectName], attempts: Attempts) -> bool:
    """Delete the probe's objects as far as possible; return whether that was refused."""
    try:
        names = [object_name.name for object_name in object_names]
        faults = attempts.child().run(partial(transport.delete_many, object_names[0].bucket, names))
    except Fault as fault:
        if fault.kind is not Kind.UNSUPPORTED:
            return fault.kind is Kind.FORBIDDEN
        faults = {}
        for object_name in object_names:
            try:
                attempts.child().run(partial(transport.delete, object_name, version=None))
            except Fault as refusal:
                faults[object_name.name] = refusal
    return any(fault.kind is Kind.FORBIDDEN for fault in faults.values())
