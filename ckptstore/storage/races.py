"""Two requests at the same moment, several times over: whether the storage keeps two writers apart.

A condition that holds when requests come one after the other may not hold when two come together: some
servers look at the version, and act, in two steps. The tries here can find that; they cannot prove that it
never happens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ckptstore.errors import CkptStoreError, UnsupportedError
from ckptstore.storage.base import Storage
from ckptstore.storage.finding import Finding, failed
from ckptstore.storage.values import Committed

__all__ = ["race_findings"]

_ROUNDS = 20

_OLD, _ONE, _OTHER = (f"ckptstore doctor: {which}\n".encode() for which in ("the old", "one", "the other"))


def race_findings(storage: Storage, directory_key: str, rounds: int = _ROUNDS) -> Iterator[Finding]:
    """Yield what happened where two requests met, for each pair of which the storage says that one wins."""
    has = storage.capabilities
    trial = _Races(storage, f"{directory_key}/.ckptstore-doctor-race-{os.urandom(6).hex()}", rounds)
    if has.create_if_absent:
        yield trial.outcome("two creators at once", trial.create)
    if has.compare_and_swap:
        yield trial.outcome("two replacements at once", trial.replace)
    if has.compare_and_swap and has.conditional_delete:
        yield trial.outcome("delete and replacement at once", trial.delete)


class _Races:
    """Pairs of requests for one object."""

    def __init__(self, storage: Storage, key: str, rounds: int) -> None:
        self._storage = storage
        self._key = key
        self._rounds = rounds

    def outcome(self, check: str, one_round: Callable[[], tuple[bool, bool]]) -> Finding:
        """Return how often both requests of a round succeeded."""
        try:
            both = sum(all(one_round()) for _ in range(self._rounds))
        except CkptStoreError as error:
            return failed(check, error)
        finally:
            with suppress(CkptStoreError):
                self._storage.delete_many([self._key])
        if both:
            broken = UnsupportedError(
                f"both succeeded in {both} of {self._rounds} rounds",
                url=self._storage.url_of(self._key),
                hint="The server looks and acts in two steps: let only one job save here.",
            )
            return failed(check, broken)
        return Finding(check, "ok", f"one of them won, in {self._rounds} rounds")

    def create(self) -> tuple[bool, bool]:
        self._storage.delete_many([self._key])
        return self._at_once(lambda: self._put_new(_ONE), lambda: self._put_new(_OTHER))

    def replace(self) -> tuple[bool, bool]:
        version = self._fresh()
        return self._at_once(lambda: self._put_if(_ONE, version), lambda: self._put_if(_OTHER, version))

    def delete(self) -> tuple[bool, bool]:
        version = self._fresh()
        return self._at_once(
            lambda: self._put_if(_ONE, version), lambda: self._storage.delete_if(self._key, version)
        )

    def _fresh(self) -> str:
        """Put the old content there, and return its version."""
        self._storage.delete_many([self._key])
        self._storage.put_new(self._key, _OLD)
        return self._storage.head(self._key).version

    def _put_new(self, data: bytes) -> bool:
        return isinstance(self._storage.put_new(self._key, data), Committed)

    def _put_if(self, data: bytes, version: str) -> bool:
        return isinstance(self._storage.put_if(self._key, data, version), Committed)

    @staticmethod
    def _at_once(one: Callable[[], bool], other: Callable[[], bool]) -> tuple[bool, bool]:
        start = threading.Barrier(2)

        def at_the_start(call: Callable[[], bool]) -> bool:
            start.wait()
            return call()

        with ThreadPoolExecutor(2) as pool:
            first, second = pool.submit(at_the_start, one), pool.submit(at_the_start, other)
            return first.result(), second.result()
