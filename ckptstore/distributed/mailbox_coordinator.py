"""The two verbs over the mailbox of any engine."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from ckptstore.distributed.coordinator import check_message, check_timeout, check_topic, sent_twice
from ckptstore.distributed.engine_calls import EngineCall
from ckptstore.distributed.framing import Head, join, read_head, split
from ckptstore.distributed.mailbox import Mailbox
from ckptstore.errors import CoordinatorLostError, CorruptError, UsageError

__all__ = ["MailboxCoordinator"]

# What a call may take beyond its time-out: a look that is under way is not cut off at once.
_GRACE_S: Final = 1.0
# The chief stays so long for ranks that have not closed yet, because the mailbox may end with its process.
_LINGER_S: Final = 5.0
# The pause grows with what was waited for already: it adds a tenth at most.
_WAIT_SHARE: Final = 0.1
# Of a thousand ranks that look for a notice, as long as the job runs, the engine shall feel nothing.
_IDLE_LOOK_S: Final = 0.5
# A look takes half of the time of who waits at most, so that a server which is slow is asked less often. To
# look whether a thousand ranks have said something takes some ten milliseconds: of so many, a fifth.
_LOOK_PAUSES: Final = 1
_MANY_LOOK_PAUSES: Final = 4
_MANY_RANKS: Final = 256
# Parts that are fetched, or deleted, in one call.
_PARTS_AT_ONCE: Final = 8


class MailboxCoordinator:
    """A coordinator over `mailbox`; see `ckptstore.distributed.coordinator.Coordinator`.

    Parameters
    ----------
    mailbox : Mailbox
        Closed with the coordinator.
    rank, size : int
    run : str
        Begins every directory: no other start of the job may have used it.

    Attributes
    ----------
    mailbox : Mailbox
    host_names : tuple of str
        The host of each rank; empty until it is known.
    longest_deadline_s : float
        The engine ends the job so long after a rank was heard of for the last time; a save is to fail before.
    idle_look_s : float
        How often to look for something that may come at any time while the job runs.
    """

    def __init__(self, mailbox: Mailbox, rank: int, size: int, run: str) -> None:
        self.rank = rank
        self.size = size
        self.run = run
        self.host_names: tuple[str, ...] = ()
        self.longest_deadline_s = math.inf
        self.idle_look_s = max(mailbox.longest_wait_s, _IDLE_LOOK_S)
        self.mailbox = mailbox
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._sent: dict[str, int] = {}  # directory of a message sent by this rank → number of its parts
        self._seen: dict[str, dict[int, int]] = {}  # gathered topic → rank → number of parts
        # What is to be deleted, topic and what `forget` knows of it; and the call that does it, one for all.
        self._forgotten: deque[tuple[str, int | None, dict[int, int] | None]] = deque()
        self._forgetting: EngineCall | None = None

    def __repr__(self) -> str:
        return f"<coordinator of rank {self.rank} of {self.size}>"

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        """Hand `data` to the chief; the chief waits for what all ranks hand over."""
        self._check(topic, data, timeout_s)
        if self.rank == 0:
            found = {0: data}
            if self.size > 1:
                with self._lock:
                    self._seen.setdefault(topic, {})
                call = EngineCall(timeout_s)
                self._run(call, lambda: self._collect(call, topic, found, enough), timeout_s)
            return {rank: found[rank] for rank in sorted(found.copy())}
        directory = self._begin_sending(f"{self.run}/g/{topic}", topic)
        self._send(directory, str(self.rank), data, timeout_s)
        return {}

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        """Hand the chief's `data` to all ranks."""
        self._check(topic, data, timeout_s)
        if (data is None) is (self.rank == 0):
            raise UsageError("the chief broadcasts something, the others None", actual=f"rank {self.rank}")
        if data is not None:
            directory = self._begin_sending(f"{self.run}/b/{topic}", topic)
            if self.size > 1:
                self._send(directory, "0", data, timeout_s)
            return data
        found: dict[int, bytes] = {}
        call = EngineCall(timeout_s)
        self._run(call, lambda: self._receive(call, f"{self.run}/b/{topic}", (0,), topic, found), timeout_s)
        return found.get(0)

    def forget(self, topic: str) -> None:
        """Drop what was sent under `topic`: the chief all of it, another rank what it sent itself."""
        check_topic(topic)
        if self._closed.is_set() or self.size == 1:
            return
        verb = "b" if self.rank == 0 else "g"
        with self._lock:
            sent = self._sent.pop(f"{self.run}/{verb}/{topic}", None)
            seen = self._seen.pop(topic, None)
            self._forgotten.append((topic, sent, seen))
            if self._forgetting is not None and not self._forgetting.is_done:
                return
            # Nobody waits for it, but the end of the job.
            call = self._forgetting = EngineCall(_LINGER_S)
        call.start(self._delete_forgotten, in_thread=self.mailbox.may_block)

    def close(self) -> None:
        """Tell the chief, or as the chief wait a little for the others, and end the use of the mailbox."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        if self.size > 1:
            call = EngineCall(_LINGER_S if self.rank == 0 else _GRACE_S)
            if self._forgetting is not None:
                with suppress(CoordinatorLostError):
                    self._forgetting.wait(_GRACE_S)
            # If the mailbox is gone, the others were faster.
            with suppress(CoordinatorLostError):
                self._run(call, lambda: self._say_goodbye(call), 0.0 if self.rank else _LINGER_S)
        self.mailbox.close()

    # Sending.

    def _begin_sending(self, directory: str, topic: str) -> str:
        with self._lock:
            if directory in self._sent:
                raise sent_twice(self.rank, topic)
            self._sent[directory] = 0
        return directory

    def _send(self, directory: str, name: str, data: bytes, timeout_s: float) -> None:
        head, parts = split(data, self.mailbox.max_value_bytes)
        with self._lock:
            self._sent[directory] = len(parts)
        call = EngineCall(timeout_s)

        def put() -> None:
            for number, part in enumerate(parts):
                if call.is_over:
                    return
                self.mailbox.put(_parts(directory, name), str(number), part)
            self.mailbox.put(directory, name, head)

        if not self._run(call, put, timeout_s):
            raise CoordinatorLostError(
                f"rank {self.rank} could not hand over its message within {max(timeout_s, 0):g} s"
            )

    # Receiving.

    def _collect(
        self,
        call: EngineCall,
        topic: str,
        found: dict[int, bytes],
        enough: Callable[[Mapping[int, bytes]], bool] | None,
    ) -> None:
        directory = f"{self.run}/g/{topic}"
        self._receive(call, directory, range(1, self.size), topic, found, enough)

    def _receive(
        self,
        call: EngineCall,
        directory: str,
        ranks: Sequence[int],
        topic: str,
        found: dict[int, bytes],
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> None:
        """Fill `found` until all `ranks` are in it, it is enough, or the time is over."""
        heads: dict[int, Head] = {}
        asked_about = looks = 0
        while True:
            began_s = time.monotonic()
            missing = [rank for rank in ranks if rank not in found]
            unseen = [rank for rank in missing if rank not in heads]
            if looks and self.mailbox.asks_each and unseen:
                # One after the other, and all at once as soon as there is something new.
                one = unseen.pop(looks % len(unseen))
                seen = self._look(directory, [one], topic)
                heads |= seen
                unseen = unseen if seen else []
            looks += 1
            heads |= self._look(directory, unseen, topic)
            for rank in list(heads):
                message = self._fetch(directory, rank, heads[rank], topic)
                if message is not None:
                    found[rank] = message
                    self._note_seen(topic, rank, heads.pop(rank).parts)
            if all(rank in found for rank in missing) or call.is_over or self._closed.is_set():
                return
            if enough is not None and len(found) != asked_about:
                asked_about = len(found)
                if enough(found.copy()):
                    return
            pauses = _MANY_LOOK_PAUSES if len(missing) >= _MANY_RANKS else _LOOK_PAUSES
            if not self._wait(call, pauses * (time.monotonic() - began_s)):
                return

    def _look(self, directory: str, ranks: Sequence[int], topic: str) -> dict[int, Head]:
        values = self.mailbox.look(directory, [str(rank) for rank in ranks]) if ranks else {}
        wanted = {str(rank): rank for rank in ranks}
        return {
            wanted[name]: read_head(value, _what(wanted[name], topic))
            for name, value in values.items()
            if name in wanted
        }

    def _fetch(self, directory: str, rank: int, head: Head, topic: str) -> bytes | None:
        """Return the message, or None if its parts are not all there yet."""
        parts: list[bytes] = []
        while len(parts) < head.parts:
            names = [str(n) for n in range(len(parts), min(len(parts) + _PARTS_AT_ONCE, head.parts))]
            values = self.mailbox.look(_parts(directory, str(rank)), names)
            if any(name not in values for name in names):
                return None
            parts += [values[name] for name in names]
            if sum(map(len, parts)) > head.size_bytes:
                break
        return join(head, parts, _what(rank, topic))

    def _note_seen(self, topic: str, rank: int, parts: int) -> None:
        if self.rank == 0:
            with self._lock:
                self._seen.setdefault(topic, {})[rank] = parts

    def _wait(self, call: EngineCall, at_least_s: float) -> bool:
        """Wait before the next look; False when there is no time for another one."""
        now = time.monotonic()
        if now >= call.deadline:
            return False
        pause_s = _WAIT_SHARE * (now - call.began)
        pause_s = max(
            self.mailbox.shortest_wait_s, min(max(pause_s, at_least_s), self.mailbox.longest_wait_s)
        )
        self._closed.wait(min(pause_s, call.deadline - now))
        return True

    # Dropping.

    def _delete_forgotten(self) -> None:
        while True:
            with self._lock:
                if not self._forgotten:
                    self._forgetting = None
                    return
                topic, sent, seen = self._forgotten.popleft()
            self._delete(topic, sent, seen)

    def _delete(self, topic: str, sent: int | None, seen: dict[int, int] | None) -> None:
        if self.rank:
            if sent is not None:
                self._delete_message(f"{self.run}/g/{topic}", {self.rank: sent})
            return
        if sent is not None:
            self._delete_message(f"{self.run}/b/{topic}", {0: sent})
            if seen is None:
                # What the chief only says, nobody hands over.
                return
        seen = seen or {}
        directory = f"{self.run}/g/{topic}"
        others = [str(rank) for rank in range(1, self.size) if rank not in seen]
        for name, value in self.mailbox.look(directory, others).items() if others else ():
            seen[int(name)] = 0
            with suppress(CorruptError):
                seen[int(name)] = read_head(value, "a message").parts
        self._delete_message(directory, seen)

    def _delete_message(self, directory: str, parts: Mapping[int, int]) -> None:
        for rank, count in parts.items():
            if count:
                self.mailbox.delete(_parts(directory, str(rank)), [str(number) for number in range(count)])
        if parts:
            self.mailbox.delete(directory, [str(rank) for rank in parts])

    def _say_goodbye(self, call: EngineCall) -> None:
        directory = f"{self.run}/c"
        if self.rank:
            self.mailbox.put(directory, str(self.rank), b"")
            return
        names = [str(rank) for rank in range(1, self.size)]
        while not call.is_over and len(self.mailbox.look(directory, names)) < len(names):
            if time.monotonic() >= call.deadline:
                break
            call.over.wait(max(self.mailbox.shortest_wait_s, 0.01))
        self.mailbox.delete(directory, names)

    # Calling.

    def _check(self, topic: str, data: bytes | None, timeout_s: float) -> None:
        if self._closed.is_set():
            raise UsageError("the coordinator is closed")
        check_topic(topic)
        check_timeout(timeout_s)
        if data is not None:
            check_message(topic, data)

    def _run(self, call: EngineCall, work: Callable[[], None], timeout_s: float) -> bool:
        """Do `work` within its time and a grace; return whether it came to an end, or raise its error."""
        call.start(work, in_thread=self.mailbox.may_block)
        return call.wait(max(timeout_s, 0.0) + _GRACE_S)


def _parts(directory: str, name: str) -> str:
    """Return where the parts of a message are: not below the directory of the heads, which is looked at."""
    run, verb, topic = directory.split("/")
    return f"{run}/{verb}-parts/{topic}/{name}"


def _what(rank: int, topic: str) -> str:
    return f"the message of rank {rank} under topic {topic!r}"
