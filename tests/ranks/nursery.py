"""Forks the ranks of jobs: everything is imported once, so that a rank starts in a moment.

Reads a line of JSON for each rank from its standard input: the address of the test and the rank's number.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

import s3fs  # noqa: F401 - as the next: each rank would take a second for it

import ckptstore.storage.s3.transport  # noqa: F401
from tests.ranks.rank import serve

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    # Nobody waits for a child: the test learns of its end by the socket.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            # A rank that is frozen when the test is aborted would stay for ever.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                serve(**json.loads(line))
            finally:
                os._exit(0)
