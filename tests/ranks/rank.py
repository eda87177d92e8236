"""One rank of a job: it does what the test says, and stops, dies or waits at a chosen call."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import ckptstore as ck
from ckptstore.distributed import rounds
from ckptstore.distributed.messages import unpack
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.values import Ambiguous
from ckptstore.storage.wrappers import StorageWrapper

__all__ = ["serve"]


def serve(address: str, rank: int, size: int, mailbox: str, attempt: str) -> None:
    """Do what the test says until it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        stream = connection.makefile("rw")
        _Rank(stream, rank, size, mailbox, attempt).run()


class _Rank:
    def __init__(self, stream: Any, rank: int, size: int, mailbox: str, attempt: str) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._rank = rank
        self._at = ""
        self._how = ""
        self._lines: list[str] = []
        self._calls: list[str] = []
        self._say(rank=rank, pid=os.getpid())
        inner = ck.coordinator("store", url=mailbox, rank=rank, size=size, attempt=attempt)
        self.coordinator = _Talk(inner, self.reach)
        self._saver: ck.Saver | None = None
        handler = logging.Handler()
        handler.emit = lambda record: self._lines.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("ckptstore").addHandler(handler)

    def _say(self, **message: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def run(self) -> None:
        self._say(opened=True)
        with use_wrapper(lambda inner: _Watched(inner, self.reach, self._count, lambda: self._how)):
            for line in self._stream:
                command = json.loads(line)
                try:
                    self._say(**getattr(self, command.pop("do"))(**command))
                except BaseException as error:  # noqa: BLE001 - the test looks at it
                    self._say(
                        error=type(error).__name__,
                        text=str(error),
                        ranks=list(getattr(error, "ranks", ())),
                        phase=getattr(error, "phase", ""),
                        trace=traceback.format_exc(),
                        log=self._lines,
                    )

    def reach(self, point: str) -> None:
        """Stop, die or wait here, if this is the chosen point."""
        if point != self._at:
            return
        self._at = ""
        self._say(at=point)
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._how == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)

    def _count(self, call: str) -> None:
        with self._lock:
            self._calls.append(call)
            number = len(self._calls)
        self.reach(f"call {number}")

    def saver(self, log_every_s: float = 30.0, **options: Any) -> dict[str, Any]:
        rounds._LOG_EVERY_S = log_every_s  # type: ignore[misc]  # noqa: SLF001
        self._saver = ck.Saver(coordinator=self.coordinator, **options)
        return {"ok": True}

    def save(
        self,
        url: str,
        step: int,
        at: str = "",
        how: str = "",
        length: int = 1000,
        fill: int | None = None,
        options: dict[str, Any] | None = None,
        in_background: bool = False,
    ) -> dict[str, Any]:
        self._at, self._how = at, how
        self._lines.clear()
        self._calls.clear()
        assert self._saver is not None
        fill = step if fill is None else fill
        values = {f"own/{self._rank}": np.full(length, fill), "shared": np.full(7, fill)}
        begun_s = time.monotonic()
        call = self._saver.save_async if in_background else self._saver.save
        found = call(values, f"{url}/m", step, storage_options=options)
        if isinstance(found, ck.SaveHandle):
            found = found.result()
        report = self._saver.last_report
        return {
            "prefix": found,
            "seconds": time.monotonic() - begun_s,
            "slowest": None if report is None else report.slowest.rank,
            "log": self._lines,
            "calls": self._calls,
        }


class _Talk:
    """A coordinator that says which message is due."""

    def __init__(self, inner: Any, reach: Callable[[str], None]) -> None:
        self._inner = inner
        self._reach = reach
        self.rank = inner.rank
        self.size = inner.size
        self.host_names = tuple(f"host-{rank}" for rank in range(inner.size))
        self.forget = inner.forget
        self.close = inner.close

    def gather(self, topic: str, data: bytes, **options: Any) -> Any:
        if topic.endswith(".hello"):
            self._reach("hello")
        elif topic.endswith(".done-0") and self.rank:
            self._reach("done")
        return self._inner.gather(topic, data, **options)

    def broadcast(self, topic: str, data: bytes | None = None, **options: Any) -> Any:
        if data is not None and unpack(data)[0]["kind"] == "committed":
            self._reach("committed")
        found = self._inner.broadcast(topic, data, **options)
        if found is not None and unpack(found)[0]["kind"] == "committed":
            self._reach("outcome")
        return found


class _Watched(StorageWrapper):
    """A storage that says which call is due."""

    def __init__(
        self,
        inner: Storage,
        reach: Callable[[str], None],
        count: Callable[[str], None],
        how: Callable[[], str],
    ) -> None:
        super().__init__(inner)
        self._reach = reach
        self._count = count
        self._how = how
        self._has_index = False

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], Any]) -> Any:
        key = keys[0] if keys else ""
        self._count(f"{primitive} {key.rpartition('/')[2]}")
        if primitive == "upload.commit" and ".data-" in key:
            self._reach("write")
        elif primitive in ("put_new", "put_if") and key.endswith(".index"):
            self._reach("index")
            self._has_index = True
            if self._how() == "lose":
                call()
                return Ambiguous("the answer was lost")
        elif primitive in ("put_new", "put_if") and key.endswith("/checkpoint"):
            # Before the index, the record only announces it.
            self._reach("record" if self._has_index else "announcement")
            self._has_index = False
        return call()
