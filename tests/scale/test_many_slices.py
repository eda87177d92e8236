"""Partitioned tensors of many hosts: an index of all slices is built, checked and listed in linear steps.

What is counted is steps of Python and bytes of memory; there is no stop-watch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.bundle.write.index import IndexEntry, build_index
from ckptstore.bundle.write.merge import MergeInput, merge_indexes
from ckptstore.format.entry import BundleEntry, BundleHeader, name_to_key
from ckptstore.format.naming import data_name
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.types import Slice
from tests.scale.test_many_tensors import Steps, name_of, peak_bytes

FEW_HOSTS, MANY_HOSTS, TENSORS = 12, 120, 100

ROWS, COLUMNS = 4, 8
SIZE_BYTES = ROWS * COLUMNS * 4


def entries_of(host: int, hosts: int) -> list[IndexEntry]:
    """Return what one host says of its rows of each tensor."""
    entries = []
    box = Slice(((host * ROWS, ROWS), (0, -1)))
    for number in range(TENSORS):
        name = name_of(number)
        entries.append((name_to_key(name), BundleEntry(1, (ROWS * hosts, COLUMNS), host, slices=(box,))))
        piece = BundleEntry(1, (ROWS, COLUMNS), host, number * SIZE_BYTES, SIZE_BYTES, host + number)
        entries.append((encode_slice_key(name, box), piece))
    return entries


class Sharded:
    """A checkpoint of as many shards as hosts, each with its rows of every tensor; no bytes but the index."""

    def __init__(self, hosts: int) -> None:
        self.hosts = hosts
        self.slices = hosts * TENSORS
        self.place = locate(f"memory://many-slices/{hosts}/model")
        self.steps: dict[str, float] = {}
        of_hosts = [entries_of(host, hosts) for host in range(hosts)]
        together = [entry for entries in of_hosts for entry in entries]
        self._note("build", lambda: build_index(together, hosts))
        inputs = [MergeInput(sorted(own), BundleHeader(1), str(host)) for host, own in enumerate(of_hosts)]
        self._note("merge", lambda: merge_indexes(inputs))
        put(self.place.suffixed(".index"), build_index(together, hosts))
        for host in range(hosts):
            put(self.place.suffixed(data_name("", host, hosts)), bytes(TENSORS * SIZE_BYTES))
        names = [name_of(number) for number in range(TENSORS)]
        self._note("specs", lambda: open_bundle(self.place).specs())
        self._note("names", lambda: open_bundle(self.place).names())
        self._note("keys", lambda: open_bundle(self.place).raw_keys())
        self._note("stored", lambda: open_bundle(self.place).stored_many(names))
        self._note("verify", lambda: verify_bundle(self.place, quick=True))

    def _note(self, action: str, call: Callable[[], object]) -> None:
        self.steps[action] = Steps().of(call) / self.slices


def put(location: Location, data: bytes) -> None:
    location.storage.put_new(location.key, data)


def made(hosts: int) -> Iterator[Sharded]:
    checkpoint = Sharded(hosts)
    yield checkpoint
    storage, key = checkpoint.place.storage, checkpoint.place.key
    storage.delete_many([info.key for info in storage.list(key)])


@pytest.fixture(scope="module")
def few() -> Iterator[Sharded]:
    yield from made(FEW_HOSTS)


@pytest.fixture(scope="module")
def many() -> Iterator[Sharded]:
    yield from made(MANY_HOSTS)


def test_all_slices_are_listed_and_sound(many: Sharded) -> None:
    specs = open_bundle(many.place).specs()
    assert list(specs) == [name_of(number) for number in range(TENSORS)]
    assert {(spec.shape, spec.nbytes, spec.shards) for spec in specs.values()} == {
        ((ROWS * MANY_HOSTS, COLUMNS), SIZE_BYTES * MANY_HOSTS, tuple(range(MANY_HOSTS)))
    }
    assert specs[name_of(7)].slices == tuple(
        Slice(((host * ROWS, ROWS), (0, -1))) for host in range(MANY_HOSTS)
    )
    report = verify_bundle(many.place, quick=True)
    assert report.ok
    assert report.tensors_checked == TENSORS


@pytest.mark.parametrize(
    ("action", "most_steps"),
    [
        ("build", 30),
        ("merge", 25),
        ("specs", 12),
        ("names", 10),
        ("keys", 12),
        ("stored", 14),
        ("verify", 12),
    ],
)
def test_ten_times_the_hosts_take_ten_times_the_steps(
    few: Sharded, many: Sharded, action: str, most_steps: int
) -> None:
    assert many.steps[action] <= 1.3 * few.steps[action]
    assert many.steps[action] < most_steps


def test_listing_takes_a_few_hundred_bytes_per_slice(many: Sharded, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 MiB for a million, the index itself included."""
    monkeypatch.setattr("ckptstore.bundle.read.index_check._SLICES_AT_ONCE", many.slices // 16)
    assert peak_bytes(lambda: open_bundle(many.place).specs()) < 400 * many.slices
