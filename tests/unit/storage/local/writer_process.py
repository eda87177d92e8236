"""Another process that writes through the local backend, and what is left of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["kill", "leftovers", "process"]


@contextmanager
def process(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `script` in another process until it is ready; there it waits for a line before it goes on."""
    prelude = """
        import sys
        from ckptstore.storage.local.storage import LocalStorage
        storage = LocalStorage()
        def ready():
            print("ready", flush=True)
            sys.stdin.readline()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait(timeout=60)
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if ".tmp-" in path.name]
