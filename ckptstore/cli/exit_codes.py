"""The exit code for each kind of error. Scripts rely on the numbers.

====  ==========================================================================
code  meaning
====  ==========================================================================
0     done
1     not used; kept for commands that compare
2     usage: the command line, or something that this installation cannot do
3     not found: file, checkpoint, tensor
4     corrupt or incomplete
5     access: refused by the storage, or no space left on it
6     transient: still failing after retries; try again later
7     conflict: another writer was first
70    a fault of ckptstore itself, with a traceback
130   interrupted (Ctrl-C)
141   the reader of the output has gone away (``| head``)
====  ==========================================================================
"""

from __future__ import annotations

from ckptstore.errors import (
    AccessError,
    AmbiguousOutcomeError,
    CkptStoreError,
    ConflictError,
    CorruptError,
    NotFoundError,
    StorageFullError,
    TransientError,
    UnsupportedError,
    UsageError,
)

__all__ = [
    "BROKEN_PIPE",
    "CORRUPT",
    "INTERNAL",
    "INTERRUPTED",
    "NOT_FOUND",
    "OK",
    "USAGE",
    "exit_code_of",
]

OK = 0
USAGE = 2
NOT_FOUND = 3
CORRUPT = 4
INTERNAL = 70
INTERRUPTED = 130
BROKEN_PIPE = 141

_CODES: tuple[tuple[type[CkptStoreError], int], ...] = (
    (UsageError, USAGE),
    (NotFoundError, NOT_FOUND),
    (CorruptError, CORRUPT),
    (AccessError, 5),
    # Permanent until space is freed, so not 6, after which a script may wait and repeat.
    (StorageFullError, 5),
    (TransientError, 6),
    # Nothing is known to be wrong; every command can be run again.
    (AmbiguousOutcomeError, 6),
    (ConflictError, 7),
    (UnsupportedError, USAGE),
)


def exit_code_of(error: CkptStoreError) -> int:
    """Return the exit code for an error, by its class."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), INTERNAL)
