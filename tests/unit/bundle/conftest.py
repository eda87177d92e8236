from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate

_NUMBERS = itertools.count()


@pytest.fixture
def prefix() -> Iterator[Location]:
    """A prefix in memory that nobody else uses."""
    location = locate(f"memory://bundle-tests/{next(_NUMBERS)}/model")
    yield location
    location.storage.delete_many([info.key for info in location.storage.list(location.key)])
