"""After a notice to one rank: a step on which all ranks agree, without a message on the way of a step.

The rank that is told hands the notice to the chief, which tells all. Then each rank closes its gate, so that
its next step does not begin, and says at which step it stands. One more than the highest is the step at which
all save: no rank has passed it, because its gate was closed, and the gates open when all know it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ckptstore.distributed.coordinator import Coordinator, host_names_of
from ckptstore.errors import CkptStoreError

__all__ = ["StopStep"]

_LOG = logging.getLogger("ckptstore")

# Between two looks for a notice, for as long as the job runs, unless the coordinator has a better number.
_LOOK_EVERY_S: Final = 0.5
# The ranks agree within this share of the time that there is, or not at all.
_SHARE: Final = 1 / 3
_MEMBERS_GRACE_S: Final = 1.0
# A step waits longer than the agreement can take, so that none passes the step that is agreed on.
_GATE_MARGIN_S: Final = 5.0

# The same number on all ranks, because all make them in the same order.
_counts: weakref.WeakKeyDictionary[Coordinator, int] = weakref.WeakKeyDictionary()


class StopStep:
    """The step at which all ranks are to save.

    Calls
    -----
    `start` once, then `request` when this rank is told, `should_save` at each step; at last `stop`.

    Parameters
    ----------
    coordinator : Coordinator
    grace_s : float
        How long after the notice the job may live, in seconds.

    Threads
    -------
    `should_save` in one thread, the others in any.
    """

    def __init__(self, coordinator: Coordinator, grace_s: float) -> None:
        self._coordinator = coordinator
        self._grace_s = grace_s
        number = _counts.get(coordinator, 0)
        _counts[coordinator] = number + 1
        self._name = f"preemption-{number}"
        self._step = -1
        # False as long as there is nothing to think about: all that a step looks at.
        self._is_undecided = False
        self._gate = threading.Event()
        self._gate.set()
        self._agreed: float | None = None
        self._is_told = False
        self._ends_s: float | None = None
        self._lock = threading.Lock()
        self._has_begun = False
        self._stopped = threading.Event()

    @property
    def is_requested(self) -> bool:
        """Whether this rank has heard of a notice."""
        return self._ends_s is not None

    @property
    def left_s(self) -> float:
        """Seconds until the job ends, by what this rank knows; all of the grace before a notice."""
        return self._grace_s if self._ends_s is None else max(self._ends_s - time.monotonic(), 0.0)

    def should_save(self, step: int) -> bool:
        """Return whether this is the step: True once, at the agreed step or the first one after it."""
        self._step = step
        if not self._is_undecided:
            return False
        # Closed for a moment, until all ranks have said where they stand.
        self._gate.wait(self._grace_s * _SHARE + _GATE_MARGIN_S)
        if self._agreed is None or step < self._agreed or self._is_told:
            return False
        self._is_told = True
        return True

    def start(self) -> None:
        """Begin to listen to the other ranks."""
        if self._coordinator.size > 1:
            self._begin(self._listen)

    def request(self) -> None:
        """Take a notice to this rank; returns at once."""
        with self._lock:
            if self._ends_s is not None:
                return
            self._ends_s = time.monotonic() + self._grace_s
        if self._coordinator.size == 1:
            self._open_gate(float("-inf"))
        else:
            work = self._lead if self._coordinator.rank == 0 else self._hand_over
            self._begin(partial(self._guarded, work))

    def stop(self) -> None:
        """End listening; a step that waits goes on."""
        self._stopped.set()
        self._gate.set()
        if self._has_begun:
            for what in ("notice", "begin", "steps", "agreed"):
                self._coordinator.forget(self._topic(what))

    def _begin(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="ckptstore preemption", daemon=True).start()

    def _listen(self) -> None:
        self._guarded(self._listen_as_chief if self._coordinator.rank == 0 else self._listen_as_member)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CkptStoreError as error:
            if not self._stopped.is_set():
                _LOG.warning("no step for a save before the preemption can be agreed on: %s", error)
            self._gate.set()

    @property
    def _look_every_s(self) -> float:
        return float(getattr(self._coordinator, "idle_look_s", _LOOK_EVERY_S))

    def _topic(self, what: str) -> str:
        return f"{self._name}.{what}"

    # Members.

    def _hand_over(self) -> None:
        notice = json.dumps({"left_s": self.left_s}).encode()
        self._coordinator.gather(self._topic("notice"), notice, timeout_s=self.left_s)

    def _listen_as_member(self) -> None:
        said = None
        while said is None:
            if self._stopped.wait(self._look_every_s):
                return
            said = self._coordinator.broadcast(self._topic("begin"), timeout_s=0)
        self._note_end(_parse(said).get("left_s"))
        step = self._close_gate()
        ends_s = time.monotonic() + self.left_s * _SHARE + _MEMBERS_GRACE_S
        own = json.dumps({"step": step}).encode()
        self._coordinator.gather(self._topic("steps"), own, timeout_s=_MEMBERS_GRACE_S)
        answer = self._coordinator.broadcast(self._topic("agreed"), timeout_s=ends_s - time.monotonic())
        agreed = _parse(answer).get("step") if answer is not None else None
        self._open_gate(agreed if isinstance(agreed, int) else None)

    # The chief.

    def _listen_as_chief(self) -> None:
        while not (self._stopped.wait(self._look_every_s) or self._has_begun):
            for rank, data in self._coordinator.gather(self._topic("notice"), b"", timeout_s=0).items():
                if rank:
                    self._note_end(_parse(data).get("left_s"))
                    self._lead()
                    return

    def _lead(self) -> None:
        with self._lock:
            if self._has_begun:
                return
            self._has_begun = True
        begin = json.dumps({"left_s": self.left_s}).encode()
        wait_s = self.left_s * _SHARE
        self._coordinator.broadcast(self._topic("begin"), begin, timeout_s=wait_s)
        own = json.dumps({"step": self._close_gate()}).encode()
        found = self._coordinator.gather(self._topic("steps"), own, timeout_s=wait_s)
        missing = [rank for rank in range(self._coordinator.size) if rank not in found]
        agreed = None if missing else 1 + max(int(_parse(data).get("step", -1)) for data in found.values())
        self._coordinator.broadcast(
            self._topic("agreed"), json.dumps({"step": agreed}).encode(), timeout_s=wait_s
        )
        if missing:
            hosts = host_names_of(self._coordinator)
            _LOG.warning(
                "no save before the preemption: %s did not say at which step; the last checkpoint stands",
                ", ".join(f"rank {rank} ({hosts[rank]})" for rank in missing),
            )
        self._open_gate(agreed)

    # Both.

    def _note_end(self, left_s: Any) -> None:
        left_s = float(left_s) if isinstance(left_s, (int, float)) else self._grace_s
        with self._lock:
            ends_s = time.monotonic() + min(left_s, self._grace_s)
            self._ends_s = ends_s if self._ends_s is None else min(self._ends_s, ends_s)

    def _close_gate(self) -> int:
        """Let no step begin, and return the last one that did."""
        self._gate.clear()
        self._is_undecided = True
        # A step that did not see this had written its number before.
        return self._step

    def _open_gate(self, agreed: float | None) -> None:
        self._agreed = agreed
        self._is_undecided = agreed is not None
        self._gate.set()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
