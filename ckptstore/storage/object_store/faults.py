"""What can go wrong with one request, classified once: how often to repeat it, and what a failure means.

A service module (`s3`, `gcs`) turns whatever its client raises into a `Fault`, by status and code. From there
on only the kind counts: `RULES` says how it is retried and whether a failed write may have landed,
`errors.error_of` which exception the caller gets.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum

__all__ = ["PROXY_HINT", "RULES", "Fault", "Kind", "Rule", "scarcity_hint"]


PROXY_HINT = "Name user and password of the proxy in its URL: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT."
"""What to do about a 407, which comes from a proxy on the way."""


class Kind(Enum):
    """What happened to a request, by what follows from it."""

    ABSENT = "the object is not there, and the bucket answered"
    UNPROVED = "a 404 that may also mean a missing bucket or a refused key"
    NO_BUCKET = "the bucket does not exist"
    FORBIDDEN = "credentials or permissions"
    UNTRUSTED = "the server's certificate"
    MISPLACED = "an object stands where a directory should be, or the other way round"
    BAD_REQUEST = "the request itself is not accepted"
    UNSUPPORTED = "the server does not know how"
    FULL = "no room left"
    PRECONDITION = "the condition of the request does not hold"
    UNCHANGED = "the version that is known already is there"
    CONFLICT = "another request writes the same object at this moment"
    UPLOAD_GONE = "the upload, or a part of it, is not known any more"
    BAD_RANGE = "the range lies outside the object"
    BAD_CHECKSUM = "the server calculated another checksum"
    THROTTLED = "too many requests"
    SERVER = "an error inside the server"
    NOT_SENT = "no connection: the server cannot have seen the request"
    CUT = "the connection ended before the answer did"
    STALLED = "no progress for as long as one attempt may wait"
    GARBLED = "the answer is not one that the service would give"
    CANCELLED = "another request of the same operation failed"


class Fault(Exception):  # noqa: N818 - internal; `error_of` makes the error
    """One attempt of one request failed.

    Parameters
    ----------
    text : str
        The message of the server or the client, without secrets.
    code : str, optional
        The server's own code, or the status as text.
    retry_after_s : float
        How long the server asked to wait.
    hint : str, optional
        What to do about it, where more is known than the kind.
    """

    def __init__(
        self, kind: Kind, text: str, *, code: str = "", retry_after_s: float = 0.0, hint: str | None = None
    ) -> None:
        super().__init__(f"{code}: {text}" if code else text)
        self.kind = kind
        self.text = text
        self.code = code
        self.retry_after_s = retry_after_s
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of fault is treated.

    Attributes
    ----------
    tries : int
        Attempts in all before the operation gives up; 1 = it is final.
    first_pause_s, longest_pause_s : float
        Bounds of the pause before the second attempt and before a late one; full jitter below them.
    may_have_landed : bool
        Whether a write that failed so can be in place, or come into place later.
    """

    tries: int = 1
    first_pause_s: float = 0.0
    longest_pause_s: float = 0.0
    may_have_landed: bool = False


# Eight tries of a server that is down take 5 s on average: MinIO starts in 0.5 s, a balancer notices in 3.
# A throttled client waits longer, 18 s on average. Stalled requests end by the deadline, not by their tries.
RULES: dict[Kind, Rule] = {
    Kind.ABSENT: Rule(),
    Kind.UNPROVED: Rule(),
    Kind.NO_BUCKET: Rule(),
    Kind.FORBIDDEN: Rule(),
    Kind.UNTRUSTED: Rule(),
    Kind.MISPLACED: Rule(),
    Kind.BAD_REQUEST: Rule(),
    Kind.UNSUPPORTED: Rule(),
    Kind.UNCHANGED: Rule(),
    Kind.FULL: Rule(),
    # A condition that does not hold is final, except where the read-back shows that it does hold.
    Kind.PRECONDITION: Rule(4, 0.02, 0.5),
    Kind.CONFLICT: Rule(10, 0.02, 1.0),
    Kind.UPLOAD_GONE: Rule(),
    Kind.BAD_RANGE: Rule(),
    Kind.BAD_CHECKSUM: Rule(2, 0.02, 0.02),
    Kind.THROTTLED: Rule(10, 0.25, 8.0, may_have_landed=True),
    Kind.SERVER: Rule(6, 0.1, 4.0, may_have_landed=True),
    Kind.NOT_SENT: Rule(8, 0.1, 4.0),
    Kind.CUT: Rule(8, 0.05, 4.0, may_have_landed=True),
    Kind.STALLED: Rule(4, 0.05, 1.0, may_have_landed=True),
    Kind.GARBLED: Rule(3, 0.1, 1.0, may_have_landed=True),
    Kind.CANCELLED: Rule(may_have_landed=True),
}


def scarcity_hint(error: BaseException) -> str | None:
    """Return what to do if `error` means that no file descriptor is left; None if it does not."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "Raise the limit of open files (`ulimit -n`): each connection takes one."
    return None
