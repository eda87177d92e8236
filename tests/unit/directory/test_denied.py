"""Saving where listing or deleting is not allowed: it works, and says what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.own_warnings import own_warnings
from tests.unit.directory.helpers import fresh_memory

_T = TypeVar("_T")


class Denying(StorageWrapper):
    """A storage that allows everything but some primitives."""

    denied: tuple[str, ...] = ()

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        if primitive in self.denied:
            raise ck.AccessError(f"{primitive} is not allowed", url=keys[0])
        return call()


class NoListing(Denying):
    denied = ("list", "abort_stale_uploads")


class NoDeleting(Denying):
    denied = ("delete_if", "delete_many")


def save_four(url: str, run: str, first: int) -> ck.Saver:
    saver = ck.Saver(max_to_keep=2, run=run)
    for step in range(first, first + 4):
        saver.save({"w": np.full(2, float(step))}, f"{url}/m", step)
    return saver


def test_without_listing_saves_keep_and_delete_and_say_so_once() -> None:
    url = fresh_memory()
    with use_wrapper(NoListing):
        with pytest.warns(ck.CkptStoreWarning, match="cannot be listed") as told:
            save_four(url, "first", 1)
        assert len([w for w in told if "cannot be listed" in str(w.message)]) == 1
        with pytest.warns(ck.CkptStoreWarning, match="cannot be listed"):
            saver = save_four(url, "second", 5)
        assert saver.last_checkpoints == [f"{url}/m-7", f"{url}/m-8"]
        assert ck.latest_checkpoint(url) == f"{url}/m-8"
        with pytest.raises(ck.AccessError):
            ck.latest_checkpoint(fresh_memory())
    for step, there in ((3, False), (4, False), (6, False), (7, True)):
        assert ck.checkpoint_exists(f"{url}/m-{step}") == there


def test_without_deleting_saves_succeed_and_warn_and_a_later_save_cleans_up() -> None:
    url = fresh_memory()
    with use_wrapper(NoDeleting), pytest.warns(ck.CkptStoreWarning, match="not deleted yet"):
        saver = save_four(url, "run", 1)
    assert saver.last_checkpoints == [f"{url}/m-3", f"{url}/m-4"]
    assert ck.checkpoint_exists(f"{url}/m-1")
    with own_warnings("error"):
        save_four(url, "run", 5)
    assert not ck.checkpoint_exists(f"{url}/m-1")
    assert not ck.checkpoint_exists(f"{url}/m-2")


class NoCopying(Denying):
    denied = ("copy_from",)


def test_what_did_not_change_is_written_where_it_may_not_be_copied() -> None:
    url = fresh_memory()
    with use_wrapper(NoCopying), ck.Saver(reuse_unchanged=True) as saver:
        for step in (1, 2, 3):
            saver.save({"frozen": np.arange(5.0), "w": np.full(2, float(step))}, f"{url}/m", step)
    with ck.open_checkpoint(f"{url}/m-3") as checkpoint:
        assert checkpoint["frozen"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert checkpoint["w"].tolist() == [3.0, 3.0]
