from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate
from tests.ranks.group import SIZE, Group, Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@dataclass(frozen=True)
class Place:
    """Where the ranks save."""

    url: str
    options: dict[str, Any] | None

    def names(self) -> list[str]:
        directory = locate(self.url, self.options)
        return sorted(info.key.rpartition("/")[2] for info in directory.storage.list(directory.child("").key))

    def latest(self) -> str | None:
        return ck.latest_checkpoint(self.url, storage_options=self.options)

    def check(self, step: int) -> None:
        """The checkpoint of `step` is whole, which reading it proves, and of one save."""
        with ck.open_checkpoint(f"{self.url}/m-{step}", storage_options=self.options) as checkpoint:
            assert set(checkpoint) == {"shared", *(f"own/{rank}" for rank in range(SIZE))}
            for name in checkpoint:
                assert set(np.unique(checkpoint[name])) == {step}, name


@pytest.fixture(params=["local", "minio"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(str(tmp_path / "run"), None)
    server = request.getfixturevalue("minio")
    return Place(f"s3://{server.make_bucket()}/run", server.options)


@pytest.fixture
def make_group(nursery: Nursery, tmp_path: Path) -> Iterator[Callable[[], Group]]:
    groups: list[Group] = []

    def make() -> Group:
        groups.append(Group(nursery, tmp_path / "messages"))
        return groups[-1]

    yield make
    for group in groups:
        group.__exit__()
