"""Try everything that a save and a restore need, in a place for checkpoints.

Each check really writes, reads and deletes: small objects with random names beside the checkpoints, which are
removed again. A backend adds what it knows about itself (`Diagnosable`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import islice

from ckptstore.errors import (
    AccessError,
    AmbiguousOutcomeError,
    ChecksumError,
    CkptStoreError,
    ConflictError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.abilities import Diagnosable, now_s
from ckptstore.storage.base import Storage
from ckptstore.storage.finding import Finding, failed
from ckptstore.storage.races import race_findings
from ckptstore.storage.values import Ambiguous, Capabilities, Committed, PutOutcome
from ckptstore.types import ByteRange

__all__ = ["diagnose"]

# S3 refuses requests from 15 minutes on; ages are wrong long before.
_SKEW_S = 60.0
# A listing gives whole seconds on some servers.
_CLOCK_NOISE_S = 2.0

# The checks that fail where nothing may be written.
_WRITING = frozenset({"write", "conditions", "directory"})

# Of a directory that is only read.
_SAMPLES = 20
_SAMPLE_BYTES = 4096

# What listing and reading are called where they are granted.
_PERMISSIONS = {
    "s3": ("s3:ListBucket", "s3:GetObject"),
    "gcs": ("storage.objects.list", "storage.objects.get"),
}

# Different bytes: on some servers equal bytes have the same version.
_FIRST = b"ckptstore doctor: the first of two\n"
_SECOND = b"ckptstore doctor: the second of two\n"


def diagnose(
    storage: Storage,
    directory_key: str,
    *,
    record_name: str = "checkpoint",
    read_only: bool = False,
    races: bool = False,
) -> list[Finding]:
    """Return what works in the directory `directory_key`, in the order in which it was tried.

    Parameters
    ----------
    storage : Storage
    directory_key : str
        Need not exist, unless only reading is tried.
    record_name : str
        Of the file that every save replaces.
    read_only : bool
        Try what a reader needs, and write nothing.
    races : bool
        Whether to try two requests at the same moment, too, several times over.

    Guarantees
    ----------
    Nothing that was there is changed, and nothing is left behind unless deleting is what fails; the finding
    then names it.
    """
    findings: list[Finding] = []
    scratch: AbstractContextManager[str] = nullcontext(directory_key)
    if isinstance(storage, Diagnosable):
        findings += storage.diagnose(directory_key, read_only=read_only)
        scratch = storage.scratch(directory_key)
    # After a failure the rest would only say the same in other words.
    if not read_only and not _has_failed(findings):
        findings += _record_place(storage, f"{directory_key}/{record_name}")
    if not read_only and not _has_failed(findings):
        try:
            with scratch as place:
                findings += _Trial(storage, place).findings()
                if races and not _has_failed(findings):
                    findings += race_findings(storage, place)
        except CkptStoreError as error:
            findings.append(failed("write", error))
        if not _has_failed(findings):
            # What the backend has looked at stands in place of what it states.
            known = {finding.check: finding for finding in findings if finding.check == "durable"}
            findings = [finding for finding in findings if finding.check not in known]
            findings += [known.get(each.check, each) for each in _promises(storage.capabilities)]
    if read_only and _has_failed(findings):
        return findings
    if read_only or any(isinstance(f.error, AccessError) and f.check in _WRITING for f in findings):
        findings += _reading(storage, directory_key, record_name)
    return findings


def _has_failed(findings: Sequence[Finding]) -> bool:
    return any(finding.state == "failed" for finding in findings)


def _record_place(storage: Storage, key: str) -> Iterator[Finding]:
    """Yield what is wrong with the place of the record, if a directory is there."""
    hint = "Move it away, or choose another directory: every save writes the record there."
    try:
        storage.head(key)
    except UsageError as error:
        error.hint = hint
        yield failed("record", error)
    except NotFoundError:
        with suppress(CkptStoreError):
            if next(iter(storage.list(f"{key}/")), None) is not None:
                detail = f"objects lie below its name, {storage.url_of(key)}/"
                yield Finding("record", "degraded", detail, hint=hint)
    except CkptStoreError:
        pass  # the trial shows what it means


def _reading(storage: Storage, directory_key: str, record_name: str) -> Iterator[Finding]:
    """Yield what a reader may do, tried with what is there: the record, or the first file."""
    keys = [f"{directory_key}/{record_name}"]
    granted: dict[str, str] = {}
    try:
        listed = [info.key for info in islice(storage.list(f"{directory_key}/"), _SAMPLES) if info.size_bytes]
    except AccessError as error:
        granted["list"] = "refused"
        hint = "What the record names, and exact prefixes, can be read; there is no search for anything else."
        yield Finding("list", "degraded", str(error), hint=hint)
    except CkptStoreError as error:
        yield failed("list", error)
        return
    else:
        granted["list"] = "granted"
        yield Finding("list", "ok", "files are there" if listed else "nothing is there")
        keys += listed
    finding = _read_one(storage, keys)
    granted["read"] = {"ok": "granted", "failed": "refused"}.get(finding.state, "not tried")
    yield finding
    names = _PERMISSIONS.get(storage.capabilities.backend, ("list", "read"))
    texts = [f"{name} {granted[kind]}" for kind, name in zip(("list", "read"), names, strict=True)]
    yield Finding("permissions", "ok", ", ".join(texts))


def _read_one(storage: Storage, keys: Sequence[str]) -> Finding:
    """Return whether the first of `keys` that is there can be read, as a whole and by a range."""
    refusal: CkptStoreError | None = None
    for key in keys:
        try:
            size_bytes = storage.head(key).size_bytes
            part = ByteRange(0, min(size_bytes, _SAMPLE_BYTES))
            if not size_bytes:
                continue
            data = storage.get(key, part).data
            buffer = bytearray(part.stop)
            storage.read_into(key, [part], [memoryview(buffer)])
        except NotFoundError:
            continue
        except CkptStoreError as error:
            # Who may not list is refused what is missing: perhaps the next one is there.
            refusal = refusal or error
            continue
        if buffer != data:
            return failed("read", _other_bytes(storage.url_of(key)))
        return Finding("read", "ok", f"{len(data)} bytes of {storage.url_of(key)}")
    if refusal is not None:
        return failed("read", refusal)
    return Finding("read", "degraded", "not tried: there is nothing to read")


def _other_bytes(url: str) -> ChecksumError:
    return ChecksumError(
        "a range of the object holds other bytes than the whole",
        url=url,
        hint="Look for a proxy or a cache between here and the storage.",
    )


class _Trial:
    """One object, written, read, replaced and deleted."""

    def __init__(self, storage: Storage, directory_key: str) -> None:
        self._storage = storage
        self._base = f"{directory_key}/.ckptstore-doctor-{os.urandom(6).hex()}"
        self._keys = [self._base, f"{self._base}-upload"]

    def findings(self) -> list[Finding]:
        findings = list(self._write())
        if findings[0].state == "failed":
            # Nothing is there, unless the answer was lost.
            with suppress(CkptStoreError):
                self._storage.delete_many(self._keys)
            return findings
        try:
            for check in (self._read, self._list, self._swap, self._upload):
                if findings[-1].state == "failed":
                    break
                findings += check()
        finally:
            findings += self._delete()
        return findings

    def _write(self) -> Iterator[Finding]:
        storage = self._storage
        before_s = time.time()
        try:
            _check_committed(storage.put_new(self._base, _FIRST), storage.url_of(self._base))
            after_s = time.time()
            info = storage.head(self._base)
        except CkptStoreError as error:
            yield failed("write", error)
            return
        yield Finding("write", "ok", f"an object of {len(_FIRST)} bytes, {_milliseconds(after_s - before_s)}")
        skew_s = now_s(storage) - time.time()
        if abs(skew_s) < _CLOCK_NOISE_S:
            # The storage uses the clock of this machine, but a file server sets times by its own.
            skew_s = max(0.0, info.mtime_s - after_s) or min(0.0, info.mtime_s - before_s)
        yield _clock(skew_s)
        try:
            again = storage.put_new(self._base, _SECOND)
            is_there = storage.get(self._base).data
        except CkptStoreError as error:
            yield failed("create if absent", error)
            return
        if isinstance(again, Committed) or is_there != _FIRST:
            yield _broken_promise(
                "create if absent",
                "a second writer replaced what was there",
                storage.capabilities.create_if_absent,
            )
        else:
            yield Finding("create if absent", "ok", "a second writer is refused")

    def _read(self) -> Iterator[Finding]:
        storage = self._storage
        url = storage.url_of(self._base)
        part = ByteRange(10, 20)
        buffer = bytearray(part.stop - part.start)
        try:
            whole = storage.get(self._base).data
            storage.read_into(self._base, [part], [memoryview(buffer)])
        except CkptStoreError as error:
            yield failed("read", error)
            return
        if buffer != whole[part.start : part.stop]:
            yield failed("read", _other_bytes(url))
            return
        yield Finding("read", "ok", "the whole and a range of it")

    def _list(self) -> Iterator[Finding]:
        try:
            names = [info.key for info in self._storage.list(self._base)]
        except CkptStoreError as error:
            yield Finding(
                "list",
                "degraded",
                str(error),
                hint="Saving works; but without a record no checkpoint is found, and ls and gc cannot work.",
            )
            return
        if self._base in names:
            yield Finding("list", "ok", "shows what was just written")
            return
        yield Finding(
            "list",
            "degraded",
            "does not show what was just written",
            hint="Look for a cache between here and the storage.",
        )

    def _swap(self) -> Iterator[Finding]:
        storage = self._storage
        url = storage.url_of(self._base)
        try:
            old = storage.head(self._base).version
            _check_committed(storage.put_if(self._base, _SECOND, old), url)
            stale = storage.put_if(self._base, _FIRST, old)
            is_there = storage.get(self._base).data
        except CkptStoreError as error:
            yield failed("compare and swap", error)
            return
        if isinstance(stale, Committed) or is_there != _SECOND:
            yield _broken_promise(
                "compare and swap",
                "a writer with a stale version replaced a newer one",
                storage.capabilities.compare_and_swap,
            )
        else:
            yield Finding("compare and swap", "ok", "a stale writer is refused")
        try:
            was_deleted = storage.delete_if(self._base, old)
            storage.head(self._base)
        except NotFoundError:
            yield Finding(
                "conditional delete",
                "degraded",
                "a delete of an old version took the new one",
                hint="Let only one job save here.",
            )
        except CkptStoreError:
            # A later check tries whether deleting is allowed.
            pass
        else:
            detail = (
                "another version is spared" if not was_deleted else "reports success, and deletes nothing"
            )
            yield Finding("conditional delete", "ok" if not was_deleted else "degraded", detail)

    def _upload(self) -> Iterator[Finding]:
        storage = self._storage
        key = self._keys[1]
        try:
            with storage.upload(key, len(_FIRST)) as upload:
                upload.write(_FIRST)
                _check_committed(upload.commit(), storage.url_of(key))
        except CkptStoreError as error:
            yield failed("upload", error)
        else:
            yield Finding("upload", "ok", "invisible until it is whole")

    def _delete(self) -> Iterator[Finding]:
        storage = self._storage
        try:
            storage.delete_many(self._keys)
            left = [key for key in self._keys if _is_there(storage, key)]
        except CkptStoreError as error:
            yield Finding(
                "delete",
                "degraded",
                str(error),
                hint="Saves succeed and warn; nothing old is deleted. Objects named"
                f" {storage.url_of(self._base)} may be left behind.",
            )
            return
        if left:
            yield Finding("delete", "degraded", f"still there: {', '.join(map(storage.url_of, left))}")
        else:
            yield Finding("delete", "ok", "nothing is left behind")


def _check_committed(outcome: PutOutcome, url: str) -> None:
    if isinstance(outcome, Committed):
        return
    if isinstance(outcome, Ambiguous):
        raise AmbiguousOutcomeError("the object may or may not be there", url=url, actual=outcome.reason)
    raise ConflictError("somebody else wrote an object of this random name", url=url)


def _is_there(storage: Storage, key: str) -> bool:
    try:
        storage.head(key)
    except NotFoundError:
        return False
    return True


def _broken_promise(check: str, detail: str, is_promised: bool) -> Finding:
    if not is_promised:
        return Finding(check, "degraded", detail, hint="Let only one job save here.")
    error = UnsupportedError(
        detail, hint="Concurrent writers would destroy each other's checkpoints: use another."
    )
    return failed(check, error)


def _clock(skew_s: float) -> Finding:
    if abs(skew_s) < _CLOCK_NOISE_S:
        return Finding("clock", "ok", "as on the storage")
    direction = "ahead of" if skew_s > 0 else "behind"
    detail = f"the storage's is {abs(skew_s):.0f} s {direction} this machine's"
    if abs(skew_s) < _SKEW_S:
        return Finding("clock", "ok", detail)
    return Finding(
        "clock",
        "degraded",
        detail,
        hint="Ages are wrong, and from 15 minutes on S3 refuses every request: synchronize the clock.",
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _promises(has: Capabilities) -> Iterator[Finding]:
    """Yield the capabilities that the backend states, after the trial."""
    if has.single_writer:
        lacks = [
            name
            for name, is_there in (
                ("create if absent", has.create_if_absent),
                ("compare and swap", has.compare_and_swap),
            )
            if not is_there
        ]
        yield Finding(
            "several writers",
            "degraded",
            f"single-writer mode: {' and '.join(lacks)} is missing",
            hint="Let only one job save here: neither the store nor a proxy in between keeps two apart.",
        )
    else:
        yield Finding("several writers", "ok", "kept apart; the newer run wins")
    if not has.conditional_delete:
        yield Finding(
            "delete by version",
            "degraded",
            "the version is checked before a delete, and may change in between",
            hint="Do not let two jobs save under one name.",
        )
    if has.durable_when_acknowledged:
        yield Finding("durable", "ok", "the storage promises it for what it acknowledges; not tried")
    elif has.backend == "memory":
        yield Finding("durable", "degraded", "nothing here outlives this process")
    else:
        yield Finding("durable", "degraded", "a power cut may take what was acknowledged")
    if has.backend in ("local", "memory"):
        return
    if has.checksum_proved_by_store:
        yield Finding("proved upload", "ok", "the store confirms the CRC32C of what it received")
    else:
        yield Finding(
            "proved upload",
            "degraded",
            "the store does not report the CRC32C of what it received",
            hint="Only the size of an upload is compared. Restores check every byte all the same.",
        )
