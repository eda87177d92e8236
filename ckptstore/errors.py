"""Every exception that ckptstore raises, grouped by what the caller does next.

::

    CkptStoreError
    ├── UsageError (ValueError)              correct the call
    ├── NotFoundError (FileNotFoundError)    it does not exist; the place was readable
    │   └── TensorNotFoundError (KeyError)   ask for another name; close ones are in the hint
    ├── CorruptError                         these bytes are not a good checkpoint: take another
    │   ├── FormatError                      the structure is wrong
    │   ├── TruncatedFileError               a file ends too early
    │   ├── ChecksumError                    the bytes are not the ones that were written
    │   └── IncompleteBundleError            a file that the index names is missing
    ├── ConflictError (FileExistsError)      another writer was faster
    │   ├── FencedError                      this run was replaced by a newer one; final
    │   └── SaveCancelledError               a background save was cancelled on purpose
    ├── AccessError (PermissionError)        correct credentials or permissions
    ├── StorageFullError (OSError)           make room; retrying does not help
    ├── TransientError (OSError)             try again later
    │   ├── DeadlineError (TimeoutError)     it took longer than allowed
    │   │   └── RanksMissingError            ranks of the job were not heard in time; they are named
    │   └── CoordinatorLostError             the other ranks cannot be reached any more
    ├── AmbiguousOutcomeError                the write may or may not have happened: check before repeating
    └── UnsupportedError (NotImplementedError)  valid, but not possible here

Each has ``code`` (stable, append-only), ``url``, ``hint`` and, where they apply, ``tensor``, ``offset``,
``expected`` and ``actual``. They survive pickling with class, message and fields. No message ever holds a
secret.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ckptstore.suggest import did_you_mean_or_known

__all__ = [
    "AccessError",
    "AmbiguousOutcomeError",
    "ChecksumError",
    "CkptStoreError",
    "CkptStoreWarning",
    "ConflictError",
    "CoordinatorLostError",
    "CorruptError",
    "DeadlineError",
    "FencedError",
    "FormatError",
    "IncompleteBundleError",
    "NotFoundError",
    "RanksMissingError",
    "SaveCancelledError",
    "StorageFullError",
    "TensorNotFoundError",
    "TransientError",
    "TruncatedFileError",
    "UnsupportedError",
    "UsageError",
]

# Names and paths come from files: one may be a megabyte long, or contain control codes of a terminal.
# Messages shorten and escape them; the fields keep all of it.
_MOST_SHOWN = 600
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class CkptStoreError(Exception):
    """Base class: what failed, where, what was expected and found, what to do next.

    Parameters
    ----------
    what : str
        What failed, one clause without a full stop.
    url : str, optional
        The file or object concerned.
    tensor : str, optional
        The tensor concerned.
    offset : int, optional
        Bytes from the start of the file at `url`.
    expected, actual : object, optional
        What should have been there and what was.
    hint : str, optional
        What to do next, one sentence.
    """

    code = "error"
    next_step: str | None = None
    """What to do, unless a hint says more."""

    def __init__(
        self,
        what: str,
        *,
        url: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        expected: object = None,
        actual: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.url = url
        self.tensor = tensor
        self.offset = offset
        # Text, not the objects: an error must survive pickling and must not keep arrays alive.
        self.expected = None if expected is None else str(expected)
        self.actual = None if actual is None else str(actual)
        self.hint = hint or self.next_step

    def __str__(self) -> str:
        where = []
        if self.tensor is not None:
            where.append(f"tensor {abridged(self.tensor)!r}")
        if self.url is not None:
            where.append(abridged(self.url))
        if self.offset is not None:
            where.append(f"at byte {self.offset}")
        text = abridged(self.what)
        if where:
            text += f" [{', '.join(where)}]"
        if self.expected is not None:
            text += f": expected {abridged(self.expected)}"
            text += f", found {abridged(self.actual)}" if self.actual is not None else ""
        elif self.actual is not None:
            text += f": found {abridged(self.actual)}"
        if self.hint:
            text += f". {abridged(self.hint)}"
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.__dict__.copy()
        if isinstance(self, OSError):  # these two live outside __dict__
            fields.update(errno=self.errno, strerror=self.strerror)
        return _rebuild, (type(self), fields)


class CkptStoreWarning(UserWarning):
    """Something continued in a degraded way; the message says what and why."""


def abridged(text: str) -> str:
    """Return `text` as messages show it: the beginning and the end of a very long one."""
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 100]} … {text[-100:]}"


def _rebuild(cls: type[CkptStoreError], fields: dict[str, Any]) -> CkptStoreError:
    error = cls(fields["what"])
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class UsageError(CkptStoreError, ValueError):
    """The call itself is wrong: an argument, a name, a path."""

    code = "usage"


class NotFoundError(CkptStoreError, FileNotFoundError):
    """The file or checkpoint does not exist; the place was readable."""

    code = "not-found"


class TensorNotFoundError(NotFoundError, KeyError):
    """The checkpoint or graph has no tensor of that name; the hint lists close ones."""

    code = "tensor-not-found"

    @classmethod
    def among(
        cls,
        what: str,
        name: object,
        names: Iterable[str],
        kind: str,
        *,
        url: str | None = None,
        listed_by: str = "",
    ) -> TensorNotFoundError:
        """Return the error for `name`, with those of `names` that look like it in the hint.

        Parameters
        ----------
        what : str
            What failed: ``"the checkpoint has no such tensor"``.
        name : object
            What was asked for; normally text.
        names : iterable of str
            What is there.
        kind, listed_by : str
            See `did_you_mean_or_known`.
        """
        known = list(names)
        hint = did_you_mean_or_known(name, known, kind, listed_by=listed_by)
        if isinstance(name, str) and name.endswith(":0") and name[:-2] in known:
            # The name of the graph's tensor; checkpoints hold the variable's.
            hint = f"Did you mean {name[:-2]!r}?"
        return cls(what, url=url, tensor=name if isinstance(name, str) else repr(name), hint=hint)


class CorruptError(CkptStoreError):
    """The bytes are not a good checkpoint."""

    code = "corrupt"
    next_step = "Restore another checkpoint, or copy these files again from a good source."


class FormatError(CorruptError):
    """The structure of a file is not what the format asks for."""

    code = "format"


class TruncatedFileError(CorruptError):
    """A file ends before the bytes that it or its index promises."""

    code = "truncated"


class ChecksumError(CorruptError):
    """Stored and calculated checksum differ."""

    code = "checksum"


class IncompleteBundleError(CorruptError):
    """A data file that the index names is missing."""

    code = "incomplete"


class ConflictError(CkptStoreError, FileExistsError):
    """Another writer changed the same thing first."""

    code = "conflict"


class FencedError(ConflictError):
    """A newer run took over this basename. Final: this run writes nothing more."""

    code = "fenced"


class SaveCancelledError(ConflictError):
    """The save was cancelled before it was published: by `cancel`, or because a newer one took its place."""

    code = "cancelled"


class AccessError(CkptStoreError, PermissionError):
    """The storage refused access."""

    code = "access"


class StorageFullError(CkptStoreError, OSError):
    """No room is left on the storage. Permanent until room is made."""

    code = "storage-full"


class TransientError(CkptStoreError, OSError):
    """The storage failed in a way that may pass."""

    code = "transient"


class DeadlineError(TransientError, TimeoutError):
    """An operation took longer than it was allowed to."""

    code = "deadline"


class RanksMissingError(DeadlineError):
    """Ranks of the job were not heard of in time, or are known to be dead; nothing was published.

    Parameters
    ----------
    what, **fields
        See `CkptStoreError`.
    ranks : sequence of int
        The ranks that are missing; 0 is the chief.
    host_names : sequence of str
        The host of each of `ranks`, in the same order.
    phase : str
        What they had not finished, e.g. ``"write"``.
    """

    code = "ranks-missing"
    next_step = "Look at the hosts of these ranks; the checkpoint before this one is still the latest."

    def __init__(
        self,
        what: str,
        *,
        ranks: Sequence[int] = (),
        host_names: Sequence[str] = (),
        phase: str = "",
        **fields: Any,
    ) -> None:
        super().__init__(what, **fields)
        self.ranks = tuple(ranks)
        self.host_names = tuple(host_names)
        self.phase = phase


class CoordinatorLostError(TransientError):
    """The chief cannot be reached any more, and it is not known whether the save was published."""

    code = "coordinator-lost"
    next_step = "Ask the storage: `latest_checkpoint` names the newest checkpoint that was published."


class AmbiguousOutcomeError(CkptStoreError):
    """The answer to a write was lost: it may have happened. Nothing was cleaned up."""

    code = "ambiguous"


class UnsupportedError(CkptStoreError, NotImplementedError):
    """A valid request that this backend or this file cannot serve."""

    code = "unsupported"


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ESTALE}
_MISPLACED = {
    errno.ENOTDIR: "A file stands where a directory should be; choose another path.",
    errno.EISDIR: "A directory stands where a file should be; choose another path.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "The path leads through a loop of symbolic links; choose another path.",
}


def from_os_error(error: OSError, what: str, url: str) -> CkptStoreError:
    """Translate an error of the operating system, by errno and never by its text.

    Parameters
    ----------
    error : OSError
        What the system call raised.
    what : str
        What was being done, e.g. ``"cannot read the index"``.
    url : str
        The file concerned.

    Returns
    -------
    CkptStoreError
        `NotFoundError`, `AccessError`, `StorageFullError`, `UsageError` (a file where a directory should be)
        or, for everything else, `TransientError`. ``errno`` is kept on the classes that derive from OSError.
    """
    result: CkptStoreError
    reason = error.strerror or type(error).__name__
    text = f"{what}: {reason}"
    if error.errno in _ABSENT:
        result = NotFoundError(text, url=url, hint="Check the path.")
    elif error.errno in _DENIED:
        result = AccessError(text, url=url, hint="Check the permissions of the directory and its files.")
    elif error.errno in _FULL:
        result = StorageFullError(
            text, url=url, hint="Make room or raise the quota; existing files are unchanged."
        )
    elif error.errno in _MISPLACED:
        result = UsageError(text, url=url, hint=_MISPLACED[error.errno])
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        result = TransientError(
            text,
            url=url,
            hint="Raise the limit of open files (`ulimit -n`): a save keeps each of its data files open.",
        )
    else:
        result = TransientError(
            text, url=url, hint="Try again; if it persists, check the disk and the system log."
        )
    if isinstance(result, OSError):
        result.errno = error.errno
        result.strerror = error.strerror
    return result
