"""The result of a restore: what was found, what was not, and assertions about it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from ckptstore.errors import CkptStoreWarning, UsageError
from ckptstore.trackable.describe import SAVE_COUNTER

__all__ = ["NothingRestored", "RestoreStatus", "UnmatchedError"]

_MOST_SHOWN = 10


class UnmatchedError(UsageError, AssertionError):
    """Tree and checkpoint hold different things; an AssertionError, as in TensorFlow."""


class RestoreStatus:
    """The result of `Checkpoint.read` or `Checkpoint.restore`; the values are in place already.

    Without a call of any of its methods it warns about what is left over when it is collected, as in
    TensorFlow.

    Parameters
    ----------
    url : str
        The checkpoint.
    unmatched, unused : sequence of str
        See the attributes.

    Attributes
    ----------
    unmatched : tuple of str
        Paths of the tree for which the checkpoint has no value; they were left as they were.
    unused : tuple of str
        Tensors of the checkpoint which nothing in the tree received.
    """

    def __init__(self, url: str, unmatched: Sequence[str], unused: Sequence[str]) -> None:
        self._url = url
        self.unmatched = tuple(unmatched)
        self.unused = tuple(unused)
        self._seen = not (self.unmatched or self.unused)

    def assert_consumed(self) -> RestoreStatus:
        """Raise unless every value of the checkpoint was used, and everything in the tree was found.

        Raises
        ------
        AssertionError
            With the names. It is a `UsageError`, too.
        """
        self.assert_existing_objects_matched()
        if self.unused:
            raise UnmatchedError(
                f"Unresolved objects: {_listed(self.unused)} of the checkpoint belong to nothing in the tree",
                url=self._url,
                hint="Add them to the tree, or ask for assert_existing_objects_matched() only.",
            )
        return self

    def assert_existing_objects_matched(self) -> RestoreStatus:
        """Raise unless everything in the tree was found in the checkpoint.

        Raises
        ------
        AssertionError
            With the names. It is a `UsageError`, too.
        """
        self._seen = True
        if self.unmatched:
            left = f"; left over in the checkpoint: {_listed(self.unused)}" if self.unused else ""
            hint = "Compare the names: matching goes from the root along equal names."
            if self.unmatched == (SAVE_COUNTER,):
                hint = "Only save() stores the counter; what write() wrote is for read()."
            raise UnmatchedError(
                f"{_listed(self.unmatched)} of the tree have no value in the checkpoint{left}",
                url=self._url,
                hint=hint,
            )
        return self

    def expect_partial(self) -> RestoreStatus:
        """Do not warn about what is left over."""
        self._seen = True
        return self

    def __repr__(self) -> str:
        left = f"unmatched={len(self.unmatched)}, unused={len(self.unused)}"
        return f"{type(self).__name__}({self._url!r}, {left})"

    def __del__(self) -> None:
        if getattr(self, "_seen", True) or sys.is_finalizing():
            return
        parts = []
        # The counter is added by Checkpoint; a checkpoint without one is not worth a warning.
        unmatched = [path for path in self.unmatched if path != SAVE_COUNTER]
        if unmatched:
            parts.append(f"{_listed(unmatched)} of the tree have no value in the checkpoint")
        if self.unused:
            parts.append(f"{_listed(self.unused)} of the checkpoint belong to nothing in the tree")
        if parts:
            warnings.warn(
                f"{self._url} was restored in part: {'; '.join(parts)}. "
                "Silence this with .expect_partial(), or ask with .assert_consumed().",
                CkptStoreWarning,
                stacklevel=2,
            )


class NothingRestored(RestoreStatus):
    """The result of restoring None: there was no checkpoint, the tree is unchanged."""

    def __init__(self) -> None:
        super().__init__("", (), ())

    def assert_consumed(self) -> RestoreStatus:
        """Raise: nothing was restored."""
        return self.assert_existing_objects_matched()

    def assert_existing_objects_matched(self) -> RestoreStatus:
        """Raise: nothing was restored."""
        raise UnmatchedError(
            "No checkpoint specified (save_path=None); nothing is being restored",
            hint="latest_checkpoint() returns None when there is no checkpoint yet.",
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name or "(root)" for name in names[:_MOST_SHOWN])
    rest = len(names) - _MOST_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
