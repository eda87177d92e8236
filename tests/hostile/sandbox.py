"""Run a function in a process of its own, with a ceiling on memory and on time.

One helper process imports everything once and forks a child for each call, which takes milliseconds. Nothing
that a child does to itself (limits, another user, a crash) reaches the tests.

Calls
-----
`Sandbox.run` (tests) → `serve` (helper) → `_child` (forked, one call).
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["NOBODY", "Died", "Limits", "Ran", "Sandbox", "serve"]

NOBODY = 65534
"""A user who owns nothing."""

_ROOT = Path(__file__).parents[2]
_LENGTH = struct.Struct("<Q")
_MODULES = (
    "tests.hostile.entry_points",
    "ckptstore.testing",
    "ckptstore.train.checkpoint_manager",
    "ckptstore.train.saver",
    "google.protobuf.text_format",
)


@dataclass(frozen=True)
class Limits:
    """What one call may take.

    Attributes
    ----------
    memory_bytes : int or None
        Address space beyond what the helper has before the call.
    time_s : int
        Of the processor. After it, or six times as long by the clock (other tests run beside this one), the
        child ends and shows where it was.
    file_bytes : int or None
        The longest file that it may write.
    user : int or None
        Whose rights it has.
    """

    memory_bytes: int | None = 200 << 20
    time_s: int = 20
    file_bytes: int | None = None
    user: int | None = None


@dataclass(frozen=True)
class Ran:
    """What a call returned, and what it took.

    Attributes
    ----------
    value : object
    memory_bytes : int
        The most address space that it added.
    time_s : float
    """

    value: Any
    memory_bytes: int
    time_s: float


class Died(AssertionError):
    """The call raised something, or ended the process: by a limit, a signal, a crash."""


class Sandbox:
    """The helper process.

    Use it as a context manager, or `close` it.
    """

    def __init__(self) -> None:
        # One arena: each further one takes 64 MiB of address space, which says nothing about the code.
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "MALLOC_ARENA_MAX": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.hostile.sandbox import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=environment,
        )

    def run(self, function: Callable[..., Any], *arguments: Any, limits: Limits | None = None) -> Ran:
        """Call `function`, which must be importable by name, in a fresh process.

        Raises
        ------
        Died
            If it raised, or did not come to its end; with its stack.
        """
        request = (function.__module__, function.__qualname__, arguments, limits or Limits())
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, request)
        answer = _receive(self._process.stdout)
        if isinstance(answer, Ran):
            return answer
        raise Died(answer)

    def close(self) -> None:
        """End the helper."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _send(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))


def _address_space(key: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def _apply(limits: Limits) -> None:
    if limits.file_bytes is not None:
        _soft_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    if limits.user is not None and os.getuid() == 0:
        os.setgroups([])
        os.setgid(limits.user)
        os.setuid(limits.user)
    if limits.memory_bytes is not None:
        _soft_limit(resource.RLIMIT_AS, _address_space("VmSize") + limits.memory_bytes)


def _soft_limit(kind: int, value: int) -> None:
    # The hard one stays, so that the child can lift it again to tell what happened.
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _child(request: Any, answer_fd: int, stack: IO[str]) -> None:
    module, name, arguments, limits = request
    answer: Any
    try:
        function = getattr(importlib.import_module(module), name)
        faulthandler.dump_traceback_later(6 * limits.time_s, exit=True, file=stack)
        faulthandler.register(signal.SIGXCPU, file=stack, chain=True)
        _soft_limit(resource.RLIMIT_CPU, limits.time_s)
        before = _address_space("VmSize")
        _apply(limits)
        started = time.monotonic()
        value = function(*arguments)
        took = time.monotonic() - started
        answer = Ran(value, _address_space("VmPeak") - before, took)
        faulthandler.cancel_dump_traceback_later()
        data = pickle.dumps(answer)
    except BaseException:  # noqa: BLE001
        _soft_limit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1])
        data = pickle.dumps(traceback.format_exc())
    with open(answer_fd, "wb") as stream:
        stream.write(data)


def _warm_up() -> None:
    """Have done everything once: another user may not even be allowed to import Python's own modules."""
    import ckptstore
    from tests.hostile.entry_points import content_of_meta, read_everything

    prefix = "memory://warm/model"
    ckptstore.Saver().save({"w": [1.0], "text": ["a"]}, prefix)
    read_everything(prefix, True)
    saver = ckptstore.import_meta_graph(f"{prefix}.meta")
    content_of_meta(saver.export_meta_graph())
    ckptstore.latest_checkpoint("memory://warm")


def serve() -> None:
    """Answer calls until the other side closes; what the helper process runs."""
    for module in _MODULES:
        importlib.import_module(module)
    _warm_up()
    # The children's output must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        read_fd, write_fd = os.pipe()
        stack = open(os.memfd_create("stack"), "w+")  # noqa: SIM115
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            try:
                _child(request, write_fd, stack)
            finally:
                os._exit(0)
        os.close(write_fd)
        with open(read_fd, "rb") as stream:
            data = stream.read()
        _, status = os.waitpid(pid, 0)
        with stack:
            stack.seek(0)
            where = stack.read()
        _send(answers, pickle.loads(data) if data else f"it ended with wait status {status}\n{where}")
