"""One conditional write to an object store, from the first attempt to a verdict that can be trusted."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress

from ckptstore.errors import ChecksumError
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import RULES, Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutResult, Transport
from ckptstore.storage.values import Ambiguous, Committed, Lost, ObjectInfo, PutOutcome

__all__ = ["ConditionalWrite", "new_write_id"]

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
    """Return a fresh id that tells one write from every other."""
    return uuid.uuid4().hex


class ConditionalWrite:
    """One write under way.

    Parameters
    ----------
    transport : Transport
    object_name : ObjectName
    url : str
        For messages.
    precondition : Precondition
    is_honoured : bool
        Whether the server keeps it. If not, it is checked beforehand, and only one writer is safe.
    write_id : str
    size_bytes, crc32c : int
        Of the object as it shall be; None: nobody knows its CRC32C, and its size has to be enough.
    doubts_repeats : bool
        Whether the success of a repeated request proves nothing until the object was looked at: a server
        that lost an upload in a crash acknowledges its completion all the same.
    """

    def __init__(
        self,
        transport: Transport,
        object_name: ObjectName,
        url: str,
        *,
        precondition: Precondition,
        is_honoured: bool,
        write_id: str,
        size_bytes: int,
        crc32c: int | None,
        doubts_repeats: bool = False,
    ) -> None:
        self._transport = transport
        self._object_name = object_name
        self._url = url
        self._precondition = precondition
        self._is_honoured = is_honoured
        self._write_id = write_id
        self._size_bytes = size_bytes
        self._crc32c = crc32c
        self._doubts_repeats = doubts_repeats
        self._may_have_landed = False

    def run(
        self, send: Callable[[Attempts, Precondition | None], PutResult], attempts: Attempts
    ) -> PutOutcome:
        """Write, by as many calls of `send` as it takes.

        Parameters
        ----------
        send : callable
            One attempt, with the condition that the request is to carry.
        attempts : Attempts

        Raises
        ------
        CkptStoreError
            If the write was refused for certain. Whatever may have landed is `Ambiguous` instead.
        """
        if not self._is_honoured:
            outcome = self._look_first(attempts)
            if outcome is not None:
                return outcome
        condition = self._precondition if self._is_honoured else None
        while True:
            try:
                attempts.begin()
                result = send(attempts, condition)
            except Fault as fault:
                if not attempts.tries:
                    # Given up before anything was sent: nothing is in doubt.
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
        return None if found == self._precondition.version else Lost(found)

    def _judge(self, fault: Fault, attempts: Attempts) -> PutOutcome | None:
        """Return what a failed attempt amounts to, None if it is to be repeated."""
        is_late = not attempts.wait_to_retry(fault) if fault.kind not in _READ_BACK else False
        if fault.kind not in _READ_BACK and not is_late:
            self._note(fault)
            return None
        self._note(fault)
        if fault.kind in _READ_BACK or self._may_have_landed or fault.kind is Kind.THROTTLED:
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

    def _note(self, fault: Fault) -> None:
        # A throttled request was turned away at the door; only a proxy could have let it in.
        if RULES[fault.kind].may_have_landed and fault.kind is not Kind.THROTTLED:
            self._may_have_landed = True

    def _look(self, attempts: Attempts) -> ObjectInfo | Fault | None:
        """Return what is there now, None for nothing, or why that cannot be told."""
        try:
            return attempts.child().run(lambda attempts: self._transport.head(self._object_name, attempts))
        except Fault as fault:
            # A 404 is enough here: where the whole bucket is missing the next request says so.
            return None if fault.kind in (Kind.ABSENT, Kind.UNPROVED) else fault

    def _compare(self, seen: ObjectInfo | None, attempts: Attempts) -> PutOutcome | None:
        """Return the outcome that shows in what is there, None if nothing happened yet."""
        if seen is not None and seen.write_id == self._write_id:
            self._check(seen.size_bytes, seen.crc32c, seen.version, attempts)
            return Committed(seen.version)
        wanted = self._precondition.version
        found = None if seen is None else seen.version
        return None if found == wanted else Lost(found)

    def _prove(self, result: PutResult, attempts: Attempts) -> PutOutcome | None:
        """Compare what the server took with what was sent; look at it where the answer proves nothing."""
        self._check(self._size_bytes, result.crc32c, result.version, attempts)
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

    def _check(self, size_bytes: int, crc32c: int | None, version: str, attempts: Attempts) -> None:
        is_other = None not in (crc32c, self._crc32c) and crc32c != self._crc32c
        if size_bytes != self._size_bytes or is_other:
            self._withdraw(version, attempts)
            raise ChecksumError(
                "the object that the server stored is not the one that was sent",
                url=self._url,
                expected=_described(self._size_bytes, self._crc32c),
                actual=_described(size_bytes, crc32c),
                hint="Save again; if it stays, look at the network and the server.",
            )

    def _withdraw(self, version: str, attempts: Attempts) -> None:
        """Delete what this write created, if that is what it did: it has a good name and wrong bytes."""
        if self._precondition.version is None and self._is_honoured:
            with suppress(Fault):
                attempts.child().run(
                    lambda attempts: self._transport.delete(self._object_name, attempts, version=version)
                )


def _described(size_bytes: int, crc32c: int | None) -> str:
    return f"{size_bytes} bytes" + ("" if crc32c is None else f" with crc32c {crc32c:#010x}")
