"""`ProbesCapabilities`, `KnowsServerTime` and `Diagnosable`: what is known about the server or the place."""

from __future__ import annotations

from typing import ClassVar

from ckptstore.storage.abilities import Diagnosable, KnowsServerTime, ProbesCapabilities
from ckptstore.storage.base import Location
from ckptstore.storage.races import race_findings
from ckptstore.testing.contract.base import AbilityContract, committed

__all__ = ["DiagnosisContract", "ProbeContract", "ServerTimeContract"]


class ProbeContract(AbilityContract):
    """Probes: one question, one answer, and no trace of it."""

    ability: ClassVar[type] = ProbesCapabilities

    def test_a_probe_finds_the_same_every_time_and_leaves_nothing(self, directory: Location) -> None:
        storage, key = directory.storage, directory.child("x").key
        assert isinstance(storage, ProbesCapabilities)
        found = storage.probe(key)
        assert storage.probe(key) == storage.capabilities == found
        assert list(storage.list(f"{directory.key}/")) == []


class ServerTimeContract(AbilityContract):
    """Server time: the clock that sets the times of objects."""

    ability: ClassVar[type] = KnowsServerTime

    def test_what_was_just_written_is_new_by_the_clock_of_the_server(self, directory: Location) -> None:
        storage, key = directory.storage, directory.child("x").key
        assert isinstance(storage, KnowsServerTime)
        committed(storage.put_new(key, b"x"))
        written_s = storage.head(key).mtime_s
        # Times of objects, and the Date header, may be whole seconds.
        assert -2.0 < storage.now_s() - written_s < 60.0


class DiagnosisContract(AbilityContract):
    """Diagnosis: findings, not errors, and nothing changed."""

    ability: ClassVar[type] = Diagnosable

    def test_a_healthy_place_has_no_failed_finding(self, directory: Location) -> None:
        storage = directory.storage
        assert isinstance(storage, Diagnosable)
        findings = storage.diagnose(directory.key)
        assert not [finding for finding in findings if finding.state == "failed"]
        assert list(storage.list(f"{directory.key}/")) == []

    def test_what_it_promises_holds_when_two_requests_meet(self, directory: Location) -> None:
        findings = list(race_findings(directory.storage, directory.key, rounds=5))
        assert not [finding for finding in findings if finding.state == "failed"]
        assert list(directory.storage.list(f"{directory.key}/")) == []

    def test_a_scratch_directory_takes_objects(self, directory: Location) -> None:
        storage = directory.storage
        assert isinstance(storage, Diagnosable)
        with storage.scratch(directory.key) as place:
            committed(storage.put_new(f"{place}/x", b"x"))
            storage.delete_many([f"{place}/x"])
        assert list(storage.list(f"{directory.key}/")) == []
