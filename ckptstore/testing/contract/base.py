"""What a backend supplies to its tests, and what the parts of the contract share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import pytest

from ckptstore.storage.base import Location, Storage
from ckptstore.storage.values import Committed, Lost, PutOutcome

__all__ = [
    "CONTENT",
    "AbilityContract",
    "ContractBase",
    "at_once",
    "committed",
    "one_winner",
    "replace_object",
]

_T = TypeVar("_T")

CONTENT = bytes(range(256)) * 1000
"""Of the `source` that the tests of an ability start from."""


class ContractBase:
    """What the subclass supplies."""

    @pytest.fixture
    def directory(self) -> Location:
        """Return an empty directory, another one for each test; it need not exist yet."""
        raise NotImplementedError

    def put_raw(self, location: Location, data: bytes) -> None:
        """Put `data` there, replacing what is there, without the storage under test."""
        raise NotImplementedError

    def get_raw(self, location: Location) -> bytes | None:
        """Return what is there, None if nothing is, without the storage under test."""
        raise NotImplementedError

    @staticmethod
    def need(storage: Storage, capability: str) -> None:
        """Skip the test if the backend does not claim this."""
        if not getattr(storage.capabilities, capability):
            pytest.skip(f"{storage.capabilities.backend} does not claim {capability}")


class AbilityContract(ContractBase):
    """The tests of one optional ability; for a class that is also a `StorageContract`."""

    ability: ClassVar[type]

    @pytest.fixture
    def source(self, directory: Location) -> Location:
        location = directory.child("model-1.data-00000-of-00001")
        with location.storage.upload(location.key, len(CONTENT)) as upload:
            upload.write(CONTENT)
            committed(upload.commit())
        return location

    @pytest.fixture
    def target(self, directory: Location) -> Location:
        return directory.child("model-2.data-00000-of-00001")


def replace_object(location: Location, data: bytes) -> None:
    """Delete an object and create it anew."""
    location.storage.delete_many([location.key])
    committed(location.storage.put_new(location.key, data))


def committed(outcome: PutOutcome) -> str:
    """Return the version of a write that must have been committed."""
    assert isinstance(outcome, Committed), outcome
    return outcome.version


def at_once(tasks: Sequence[Callable[[], _T]]) -> list[_T]:
    """Run each task in a thread of its own, all at once; return their results in order."""
    barrier = threading.Barrier(len(tasks))
    results: list[_T | BaseException] = [RuntimeError("the thread did not finish")] * len(tasks)

    def run(number: int) -> None:
        barrier.wait(timeout=60)
        try:
            results[number] = tasks[number]()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    finished: list[_T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        finished.append(result)
    return finished


def one_winner(outcomes: Sequence[PutOutcome]) -> int:
    """Return the number of the only writer that won; check that all others got its version."""
    winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Committed)]
    assert len(winners) == 1, outcomes
    version = committed(outcomes[winners[0]])
    assert all(outcome == Lost(version) for outcome in outcomes if not isinstance(outcome, Committed))
    return winners[0]
