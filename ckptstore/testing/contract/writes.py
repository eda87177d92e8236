"""`put_new` and `put_if`: one step, one winner."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ckptstore.storage.base import Location
from ckptstore.storage.values import Committed, Lost
from ckptstore.testing.contract.base import ContractBase, at_once, committed, one_winner

__all__ = ["WriteContract"]


class WriteContract(ContractBase):
    """Small writes: all of the bytes or none, and never over somebody else's."""

    def test_put_new_creates_and_says_which_version(self, directory: Location) -> None:
        location = directory.child("model.index")
        version = committed(location.storage.put_new(location.key, b"first"))
        assert self.get_raw(location) == b"first"
        assert location.storage.head(location.key).version == version

    def test_put_new_makes_missing_directories(self, directory: Location) -> None:
        location = directory.child("a").child("b c").child("model.index")
        committed(location.storage.put_new(location.key, b"deep"))
        assert self.get_raw(location) == b"deep"

    def test_put_new_leaves_alone_what_is_there(self, directory: Location) -> None:
        location = directory.child("model.index")
        self.need(location.storage, "create_if_absent")
        self.put_raw(location, b"theirs")
        version = location.storage.head(location.key).version
        assert location.storage.put_new(location.key, b"ours") == Lost(version)
        assert self.get_raw(location) == b"theirs"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"bytes",
            bytearray(b"bytearray"),
            memoryview(b"-memoryview-")[1:-1],
            np.arange(12, dtype=np.uint8),
            np.arange(12, dtype=np.uint8).reshape(3, 4),
            np.zeros((0, 4), np.uint8),
        ],
        ids=["empty", "bytes", "bytearray", "memoryview", "array", "matrix", "no rows"],
    )
    def test_every_kind_of_buffer_is_taken(
        self,
        directory: Location,
        data: bytes | bytearray | memoryview | np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    ) -> None:
        location = directory.child("buffer")
        version = committed(location.storage.put_new(location.key, data))
        assert self.get_raw(location) == bytes(data)
        committed(location.storage.put_if(location.key, data, version))
        assert self.get_raw(location) == bytes(data)

    def test_a_few_megabytes_arrive_whole(self, directory: Location) -> None:
        location = directory.child("large")
        data = bytes(range(256)) * (9 << 12)
        committed(location.storage.put_new(location.key, data))
        assert self.get_raw(location) == data

    def test_the_caller_may_reuse_the_buffer(self, directory: Location) -> None:
        location = directory.child("reused")
        buffer = bytearray(b"kept")
        version = committed(location.storage.put_new(location.key, buffer))
        buffer[:] = b"lost"
        assert location.storage.get(location.key).data == b"kept"
        committed(location.storage.put_if(location.key, buffer, version))
        buffer[:] = b"gone"
        assert location.storage.get(location.key).data == b"lost"

    def test_put_if_replaces_the_version_it_was_shown(self, directory: Location) -> None:
        location = directory.child("checkpoint")
        self.need(location.storage, "compare_and_swap")
        self.put_raw(location, b"old")
        old = location.storage.get(location.key).version
        new = committed(location.storage.put_if(location.key, b"newer", old))
        assert self.get_raw(location) == b"newer"
        assert location.storage.head(location.key).version == new
        assert new != old

    def test_put_if_leaves_alone_another_version(self, directory: Location) -> None:
        location = directory.child("checkpoint")
        self.need(location.storage, "compare_and_swap")
        old = committed(location.storage.put_new(location.key, b"one"))
        self.put_raw(location, b"two")
        there = location.storage.head(location.key).version
        assert location.storage.put_if(location.key, b"three", old) == Lost(there)
        assert self.get_raw(location) == b"two"

    def test_put_if_creates_nothing(self, directory: Location) -> None:
        self.need(directory.storage, "compare_and_swap")
        donor = directory.child("donor")
        version = committed(donor.storage.put_new(donor.key, b"x"))
        for location in (directory.child("absent"), directory.child("no").child("where")):
            assert location.storage.put_if(location.key, b"new", version) == Lost(None)
            assert self.get_raw(location) is None

    def test_every_change_is_another_version(self, directory: Location) -> None:
        # Of equal size and in quick succession: neither the size nor a coarse clock may be all of a version.
        location = directory.child("checkpoint")
        self.need(location.storage, "compare_and_swap")
        versions = [committed(location.storage.put_new(location.key, b"000"))]
        for number in range(1, 100):
            versions.append(committed(location.storage.put_if(location.key, b"%03d" % number, versions[-1])))
        assert len(set(versions)) == 100

    def test_a_key_made_anew_is_another_version(self, directory: Location) -> None:
        location = directory.child("model.index")
        versions = set()
        for number in range(20):
            version = committed(location.storage.put_new(location.key, b"%03d" % number))
            versions.add(version)
            assert location.storage.delete_if(location.key, version)
        assert len(versions) == 20

    def test_eight_writers_create_and_one_wins(self, directory: Location) -> None:
        self.need(directory.storage, "create_if_absent")
        for round_number in range(10):
            location = directory.child(f"model-{round_number}.index")
            outcomes = at_once(
                [
                    lambda number=number, location=location: location.storage.put_new(  # type: ignore[misc]
                        location.key, b"writer %d" % number
                    )
                    for number in range(8)
                ]
            )
            assert self.get_raw(location) == b"writer %d" % one_winner(outcomes)

    def test_no_increment_of_a_counter_is_lost(self, directory: Location) -> None:
        location = directory.child("counter")
        storage = location.storage
        self.need(storage, "compare_and_swap")
        committed(storage.put_new(location.key, b"0000"))

        def count() -> int:
            attempts = done = 0
            while done < 25:
                got = storage.get(location.key)
                outcome = storage.put_if(location.key, b"%04d" % (int(got.data) + 1), got.version)
                done += isinstance(outcome, Committed)
                attempts += 1
                assert attempts < 10_000
            return done

        assert sum(at_once([count] * 8)) == 200
        assert self.get_raw(location) == b"0200"

    def test_a_reader_sees_all_of_one_version(self, directory: Location) -> None:
        location = directory.child("checkpoint")
        storage = location.storage
        self.need(storage, "compare_and_swap")
        size_bytes = 300_000
        first = committed(storage.put_new(location.key, b"a" * size_bytes))
        over = threading.Event()

        def write() -> set[bytes]:
            version = first
            try:
                for number in range(40):
                    letter = b"ab"[number % 2 : number % 2 + 1]
                    version = committed(storage.put_if(location.key, letter * size_bytes, version))
            finally:
                over.set()
            return set()

        def read() -> set[bytes]:
            seen = set()
            while not over.is_set():
                got = storage.get(location.key)
                assert got.data == got.data[:1] * size_bytes
                seen.add(got.data[:1])
            return seen

        assert set().union(*at_once([write, read, read])) <= {b"a", b"b"}

    def test_a_delete_and_a_replacement_of_one_version_do_not_both_happen(self, directory: Location) -> None:
        storage = directory.storage
        self.need(storage, "compare_and_swap")
        self.need(storage, "conditional_delete")
        for number in range(20):
            location = directory.child(f"model-{number}.index")
            version = committed(storage.put_new(location.key, b"old"))
            replaced, deleted = at_once(
                [
                    lambda location=location, version=version: isinstance(  # type: ignore[misc]
                        storage.put_if(location.key, b"new", version), Committed
                    ),
                    lambda location=location, version=version: storage.delete_if(  # type: ignore[misc]
                        location.key, version
                    ),
                ]
            )
            assert replaced != deleted
            assert self.get_raw(location) == (b"new" if replaced else None)
