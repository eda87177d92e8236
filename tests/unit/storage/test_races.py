"""Two requests at once: a storage that looks and acts in two steps is found out."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from ckptstore.storage.base import Storage
from ckptstore.storage.diagnosis import diagnose
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.races import race_findings
from ckptstore.storage.values import Capabilities, PutOutcome
from ckptstore.storage.wrappers import StorageWrapper


class Together(StorageWrapper):
    """Every condition holds, as where both have looked before one of them acts."""

    def __init__(self, inner: Storage, loose: str) -> None:
        super().__init__(inner)
        self._loose = loose
        # Looking and acting are two calls here, which the other thread must not come between.
        self._turn = threading.Lock()

    def put_new(self, key: str, data: Any) -> PutOutcome:
        if self._loose != "create":
            return super().put_new(key, data)
        with self._turn:
            self.delete_many([key])
            return super().put_new(key, data)

    def put_if(self, key: str, data: Any, version: str) -> PutOutcome:
        if self._loose != "swap":
            return super().put_if(key, data, version)
        with self._turn:
            return super().put_if(key, data, self.head(key).version)

    def delete_if(self, key: str, version: str) -> bool:
        if self._loose != "delete":
            return super().delete_if(key, version)
        return True


@pytest.mark.parametrize(
    ("loose", "check"),
    [
        ("create", "two creators at once"),
        ("swap", "two replacements at once"),
        ("delete", "delete and replacement at once"),
    ],
)
def test_a_storage_where_both_succeed_is_found_out(loose: str, check: str) -> None:
    findings = list(race_findings(Together(MemoryStorage(), loose), "/run"))
    assert check in [finding.check for finding in findings if finding.state == "failed"]


def test_where_one_wins_all_is_well_and_nothing_stays() -> None:
    storage = MemoryStorage()
    findings = diagnose(storage, "/run", races=True)
    assert len([finding for finding in findings if "at once" in finding.check]) == 3
    assert not [finding for finding in findings if finding.state == "failed"]
    assert list(storage.list("/run/")) == []
    assert not [finding for finding in diagnose(storage, "/run") if "at once" in finding.check]


def test_what_is_not_promised_is_not_tried() -> None:
    class Weak(StorageWrapper):
        @property
        def capabilities(self) -> Capabilities:  # type: ignore[override]
            return replace(super().capabilities, conditional_delete=False, create_if_absent=False)

    assert [finding.check for finding in race_findings(Weak(MemoryStorage()), "/run")] == [
        "two replacements at once"
    ]
