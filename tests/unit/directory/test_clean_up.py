"""A save that failed because nothing moved does not wait as long again while it cleans up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory import shard_set
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.scope import current_scope
from ckptstore.storage.wrappers import StorageWrapper

_T = TypeVar("_T")


class _Stalling(StorageWrapper):
    """Nothing moves any more from the index on; notes how long each later call may take."""

    failed = False

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        if self.failed:
            scope = current_scope()
            allowed_s.append(float("inf") if scope is None else scope.remaining_s())
            # What any request on an object store is bound by, then.
            attempts = Attempts(RetryPolicy(deadline_s=60.0), RetryBudget())
            attempts.begin()
            assert attempts.remaining_s() <= shard_set._CLEAN_UP_S
        if primitive == "put_new" and keys[0].endswith(".index"):
            self.failed = True
            raise ck.DeadlineError("no byte moved", url=keys[0], hint="Try again.")
        return call()


allowed_s: list[float] = []


def test_clean_up_after_a_stall_has_an_end_of_its_own(tmp_path: Path) -> None:
    allowed_s.clear()
    with use_wrapper(_Stalling), pytest.raises(ck.DeadlineError):
        ck.Saver().save({"w": np.zeros(3)}, tmp_path / "model", 1)
    assert allowed_s
    assert max(allowed_s) <= shard_set._CLEAN_UP_S <= 10.0
    assert not list(tmp_path.glob("model*"))
