"""One conditional write to an object store, from the first attempt to a verdict that can be trusted."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ckptstore.errors import ChecksumError
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import RULES, Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, PutRequest, PutResult, Transport
from ckptstore.storage.values import Ambiguous, Committed, Lost, ObjectInfo, PutOutcome

__all__ = ["ConditionalWrite", "is_of_upload", "new_upload_id", "new_write_id"]

# After these the object is looked at before anything else: the first of two identical requests may have won.
_READ_BACK = {
    Kind.PRECONDITION,
    Kind.CONFLICT,
    Kind.ABSENT,
    Kind.UNPROVED,
    Kind.UPLOAD_GONE,
    Kind.SERVER,
    Kind.CUT,
    Kind.STALLED,
    Kind.GARBLED,
}


def new_write_id() -> str:
    """Return a fresh id that distinguishes one write from every other."""
    return uuid.uuid4().hex


def new_upload_id(target: ObjectName) -> str:
    """Return a fresh write id that also says for which object it was made: copies keep the metadata."""
    return f"{_digest(target)}{new_write_id()[:24]}"


def is_of_upload(write_id: str | None, target: ObjectName) -> bool:
    """Return whether `write_id` was made by `new_upload_id` for this object."""
    return write_id is not None and write_id.startswith(_digest(target))


def _digest(target: ObjectName) -> str:
    return hashlib.blake2b(target.key.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


class ConditionalWrite:
    """One write under way.

    Parameters
    ----------
    url : str
        For messages.
    request : PutRequest
        With the condition that has to hold, and the size that the object will have. Without a CRC32C the size
        alone is compared.
    is_honoured : bool
        Whether the server keeps the condition. If not, it is checked beforehand, and only one writer is safe.
    doubts_repeats : bool
        Whether the success of a repeated request proves nothing until the object was looked at: a server
        that lost an upload in a crash still acknowledges its completion.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        request: PutRequest,
        *,
        is_honoured: bool,
        doubts_repeats: bool = False,
    ) -> None:
        self._transport = transport
        self._url = url
        self._request = request
        self._wanted_version = None if request.precondition is None else request.precondition.version
        self._is_honoured = is_honoured
        self._doubts_repeats = doubts_repeats
        self._may_have_landed = False

    def run(self, send: Callable[[PutRequest, Attempts], PutResult], attempts: Attempts) -> PutOutcome:
        """Write, by as many calls of `send` as it takes.

        Parameters
        ----------
        send : callable
            One attempt, with the request as it is to be sent: without the condition if the server ignores it.
        attempts : Attempts

        Raises
        ------
        CkptStoreError
            If the write was certainly refused. Whatever may have landed is `Ambiguous` instead.
        """
        if not self._is_honoured:
            outcome = self._look_first(attempts)
            if outcome is not None:
                return outcome
        request = self._request if self._is_honoured else replace(self._request, precondition=None)
        while True:
            try:
                attempts.begin()
                result = send(request, attempts)
            except Fault as fault:
                if not attempts.tries:
                    # Cancelled before anything was sent: nothing is in doubt.
                    raise error_of(fault, "cannot write the object", self._url, attempts) from None
                outcome = self._judge(fault, attempts)
            else:
                outcome = self._prove(result, attempts)
            if outcome is not None:
                return outcome

    def _look_first(self, attempts: Attempts) -> PutOutcome | None:
        seen = self._look(attempts)
        if isinstance(seen, Fault):
            raise error_of(seen, "cannot look at the object before writing it", self._url)
        found = None if seen is None else seen.version
        return None if found == self._wanted_version else Lost(found)

    def _judge(self, fault: Fault, attempts: Attempts) -> PutOutcome | None:
        """Return the outcome after a failed attempt, None if it is to be repeated."""
        # A throttled request was refused before anything was written; only a proxy could have passed it on.
        if RULES[fault.kind].may_have_landed and fault.kind is not Kind.THROTTLED:
            self._may_have_landed = True
        is_read_back = fault.kind in _READ_BACK
        is_late = not is_read_back and not attempts.wait_to_retry(fault)
        if not is_read_back and not is_late:
            return None
        if is_read_back or self._may_have_landed or fault.kind is Kind.THROTTLED:
            seen = self._look(attempts)
            if isinstance(seen, Fault):
                return Ambiguous(f"{fault}, and it could not be read back: {seen}")
            outcome = self._compare(seen, attempts)
            if outcome is not None:
                return outcome
        if not is_late and fault.kind is not Kind.UPLOAD_GONE and attempts.wait_to_retry(fault):
            return None
        if self._may_have_landed:
            return Ambiguous(f"{fault}; it is not there yet and may still land")
        raise error_of(fault, "cannot write the object", self._url, attempts)

    def _look(self, attempts: Attempts) -> ObjectInfo | Fault | None:
        """Return what is there now, None for nothing, or the fault that leaves it open."""
        try:
            return attempts.child().run(lambda attempts: self._transport.head(self._request.target, attempts))
        except Fault as fault:
            # A 404 is enough here: if the whole bucket is missing, the next request fails with that.
            return None if fault.kind in (Kind.ABSENT, Kind.UNPROVED) else fault

    def _compare(self, seen: ObjectInfo | None, attempts: Attempts) -> PutOutcome | None:
        """Return the outcome that follows from what is there, None if nothing was written yet."""
        if seen is not None and seen.write_id == self._request.write_id:
            self._check(seen.size_bytes, seen.crc32c, seen.version, attempts)
            return Committed(seen.version)
        found = None if seen is None else seen.version
        return None if found == self._wanted_version else Lost(found)

    def _prove(self, result: PutResult, attempts: Attempts) -> PutOutcome | None:
        """Compare what the server stored with what was sent; look at it where the answer proves nothing."""
        self._check(self._request.size_bytes, result.crc32c, result.version, attempts)
        is_doubtful = attempts.tries > 1 or result.is_repeated or result.crc32c is None
        if not (self._doubts_repeats and is_doubtful):
            return Committed(result.version)
        seen = self._look(attempts)
        if isinstance(seen, Fault):
            return Ambiguous(f"acknowledged, but it could not be looked at: {seen}")
        outcome = self._compare(seen, attempts)
        if outcome is not None:
            return outcome
        lost = Fault(Kind.UPLOAD_GONE, "the server acknowledged the object, and does not have it")
        raise error_of(lost, "cannot write the object", self._url, attempts)

    def _check(self, size_bytes: int | None, crc32c: int | None, version: str, attempts: Attempts) -> None:
        request = self._request
        differs = None not in (crc32c, request.crc32c) and crc32c != request.crc32c
        if size_bytes != request.size_bytes or differs:
            self._withdraw(version, attempts)
            raise ChecksumError(
                "the object that the server stored is not the one that was sent",
                url=self._url,
                expected=_described(request.size_bytes, request.crc32c),
                actual=_described(size_bytes, crc32c),
                hint="Save again, without changing the arrays; if it stays, look at the network and server.",
            )

    def _withdraw(self, version: str, attempts: Attempts) -> None:
        """Delete the object if this write created it: its name is valid but its bytes are wrong."""
        if self._wanted_version is None and self._is_honoured:
            with suppress(Fault):
                attempts.child().run(
                    lambda attempts: self._transport.delete(self._request.target, attempts, version=version)
                )


def _described(size_bytes: int | None, crc32c: int | None) -> str:
    return f"{size_bytes} bytes" + ("" if crc32c is None else f" with crc32c {crc32c:#010x}")
