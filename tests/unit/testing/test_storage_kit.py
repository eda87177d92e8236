"""The shipped test kit: what it counts, when it fails, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckptstore.errors import NotFoundError, TransientError
from ckptstore.storage.abilities import KnowsWriters, SupportsCopies, SupportsRelaxedDurability
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed, Lost
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import Call, CountingStorage, FaultyStorage, ManualClock, SimulatedCrash
from ckptstore.types import ByteRange

NEVER = float("inf")


@pytest.fixture
def key(tmp_path: Path) -> str:
    return str(tmp_path / "f")


def use_every_primitive(storage: Storage, key: str) -> None:
    """Fifteen calls."""
    first = storage.put_new(key, b"one")
    assert isinstance(first, Committed)
    second = storage.put_if(key, b"two", first.version)
    assert isinstance(second, Committed)
    storage.get(key)
    storage.read_into(key, [ByteRange(0, 1)], [memoryview(bytearray(1))])
    storage.head(key)
    with storage.upload(key + ".data", 3) as upload:
        upload.write(b"abc")
        upload.commit()
    assert isinstance(storage, KnowsWriters)
    storage.is_abandoned(key)
    list(storage.list(key))
    storage.delete_if(key, second.version)
    storage.delete_many([key + ".data", key + ".meta"])
    storage.abort_stale_uploads(key, 0.0)


EVERY_PRIMITIVE = [
    "put_new",
    "put_if",
    "get",
    "read_into",
    "head",
    "upload",
    "upload.send",
    "upload.commit",
    "upload.abort",
    "upload.close",
    "is_abandoned",
    "list",
    "delete_if",
    "delete_many",
    "abort_stale_uploads",
]


def test_every_call_is_counted(key: str) -> None:
    storage = CountingStorage(LocalStorage())
    use_every_primitive(storage, key)
    assert dict(storage.counts) == dict.fromkeys(EVERY_PRIMITIVE, 1)
    assert storage.calls[0] == Call("put_new", key)
    assert storage.keys("delete_many") == [key + ".data", key + ".meta"]
    assert storage.keys("upload.send") == [key + ".data"]
    storage.reset()
    assert storage.calls == []
    assert storage.counts.total() == 0


def test_the_bytes_that_reads_are_answered_with_are_counted(key: str) -> None:
    storage = CountingStorage(LocalStorage())
    storage.put_new(key, b"0123456789")
    version = storage.get(key).version
    storage.get(key, ByteRange(0, 3))
    storage.get_unless(key, version)
    storage.get_unless(key, "another", ByteRange(0, 1))
    assert storage.read_bytes == 10 + 3 + 1
    memory = memoryview(bytearray(4))
    assert storage.get_into(key, ByteRange(2, 6), memory) == (version, 10)
    storage.read_into(key, [ByteRange(0, 2)], [memory[:2]])
    assert storage.read_bytes == 14 + 4 + 2
    assert storage.counts["get"] == 3
    storage.reset()
    assert storage.read_bytes == 0


def test_calls_that_fail_are_counted_too(key: str) -> None:
    storage = CountingStorage(LocalStorage())
    with pytest.raises(NotFoundError):
        storage.get(key)
    assert storage.calls == [("get", key)]


def test_a_wrapped_storage_passes_for_the_one_inside(key: str) -> None:
    inner = LocalStorage()
    storage = CountingStorage(inner)
    assert storage.capabilities == inner.capabilities
    assert storage.url_of(key) == key


@pytest.mark.parametrize("number", range(1, len(EVERY_PRIMITIVE) + 1))
def test_a_crash_before_a_call_means_that_it_was_never_made(key: str, number: int) -> None:
    inner = CountingStorage(LocalStorage())
    storage = FaultyStorage(inner, crash_before=number)
    with pytest.raises(SimulatedCrash, match=EVERY_PRIMITIVE[number - 1]):
        use_every_primitive(storage, key)
    assert [call.primitive for call in storage.calls] == EVERY_PRIMITIVE[:number]
    assert inner.counts.total() == number - 1
    assert storage.crashed


@pytest.mark.parametrize("number", range(1, len(EVERY_PRIMITIVE) + 1))
def test_a_crash_after_a_call_means_that_it_was_the_last(key: str, number: int) -> None:
    inner = CountingStorage(LocalStorage())
    storage = FaultyStorage(inner, crash_after=number)
    with pytest.raises(SimulatedCrash, match=EVERY_PRIMITIVE[number - 1]):
        use_every_primitive(storage, key)
    assert inner.counts.total() == number


def test_without_faults_everything_passes(key: str) -> None:
    storage = FaultyStorage(LocalStorage(), crash_before=len(EVERY_PRIMITIVE) + 1)
    use_every_primitive(storage, key)
    assert [call.primitive for call in storage.calls] == EVERY_PRIMITIVE
    assert not storage.crashed


def test_the_dead_do_not_clean_up(key: str, tmp_path: Path) -> None:
    storage = FaultyStorage(LocalStorage(), crash_before=3)
    sent = b""

    def save() -> None:
        nonlocal sent
        try:
            with storage.upload(key) as upload:
                sent = b"h" * upload.part_size_bytes
                half = memoryview(sent)
                upload.send(0, (half,), 0)
                upload.send(1, (half,), 0)
        finally:
            storage.delete_many([key])

    with pytest.raises(SimulatedCrash):
        save()
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.put_new(key, b"x"),
        lambda: storage.list(key),
        lambda: storage.upload(key),
    ]
    for call in calls:
        with pytest.raises(SimulatedCrash):
            call()
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == sent


@pytest.mark.parametrize("after_commit", [False, True])
def test_the_locks_of_a_dead_process_are_released_on_request(
    key: str, tmp_path: Path, after_commit: bool
) -> None:
    inner = LocalStorage()
    storage = FaultyStorage(inner, crash_after=3 if after_commit else 2)

    def save() -> None:
        with storage.upload(key) as upload:
            upload.write(b"data")
            upload.commit()

    with pytest.raises(SimulatedCrash):
        save()
    # Here the process lives on, and so does the lock.
    assert inner.abort_stale_uploads(key, NEVER) == 0
    assert not inner.is_abandoned(key)
    storage.release_holds()
    if after_commit:
        assert inner.is_abandoned(key)
    else:
        assert inner.abort_stale_uploads(key, NEVER) == 1
        assert list(tmp_path.iterdir()) == []


def test_no_handler_of_exceptions_survives_a_crash() -> None:
    assert not issubclass(SimulatedCrash, Exception)


def test_chosen_calls_raise_and_the_run_goes_on(key: str) -> None:
    inner = CountingStorage(LocalStorage())
    storage = FaultyStorage(inner, errors={1: TransientError("first"), 3: TransientError("third")})
    for number in range(1, 5):
        if number in (1, 3):
            with pytest.raises(TransientError):
                storage.put_new(key, b"x")
        else:
            storage.put_new(key, b"x")
    assert inner.counts["put_new"] == 2


def test_the_answer_of_a_chosen_call_is_lost(key: str) -> None:
    storage = FaultyStorage(LocalStorage(), lost_answers={1: TransientError("connection reset")})
    with pytest.raises(TransientError):
        storage.put_new(key, b"x")
    assert storage.get(key).data == b"x"
    assert isinstance(storage.put_new(key, b"y"), Lost)


def test_only_the_calls_that_count_have_a_number(key: str) -> None:
    storage = FaultyStorage(
        LocalStorage(), crash_before=2, counted=lambda primitive, keys: primitive == "put_new" and key in keys
    )
    storage.put_new(key + "2", b"x")
    storage.put_new(key, b"x")
    storage.get(key)
    assert storage.calls == [("put_new", key)]
    with pytest.raises(SimulatedCrash):
        storage.put_new(key, b"x")


def test_a_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(100.0)
    assert clock() == clock() == 100.0
    clock.advance(3600.0)
    assert clock() == 3700.0
    clock.advance(-1.5)
    assert clock() == clock.now_s == 3698.5


def test_the_kit_needs_no_pytest_but_for_the_contract() -> None:
    script = """
import sys
import ckptstore, ckptstore.testing
from ckptstore.testing import Call, CountingStorage, FaultyStorage, ManualClock, SimulatedCrash
assert "pytest" not in sys.modules
from ckptstore.testing import StorageContract
assert "pytest" in sys.modules
try:
    ckptstore.testing.Nothing
except AttributeError:
    pass
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_contract_finds_a_storage_that_breaks_it(tmp_path: Path) -> None:
    # A contract that nothing fails proves nothing: three storages that each forget one promise.
    suite = tmp_path / "test_broken.py"
    suite.write_text(
        """
from pathlib import Path
import pytest
from ckptstore.storage.base import Location
from ckptstore.storage.values import Committed
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.testing import StorageContract

class Overwrites(LocalStorage):
    def put_new(self, key, data):
        Path(key).parent.mkdir(parents=True, exist_ok=True)
        Path(key).write_bytes(bytes(data))
        return Committed(self.head(key).version)

class SwapsBlindly(LocalStorage):
    def put_if(self, key, data, version):
        return super().put_if(key, data, self.head(key).version)

class DeletesBlindly(LocalStorage):
    def delete_if(self, key, version):
        self.delete_many([key])
        return True

class Place(StorageContract):
    made = LocalStorage
    @pytest.fixture
    def directory(self, tmp_path):
        return Location(self.made(), str(tmp_path / "run"), str(tmp_path / "run"))
    def put_raw(self, location, data):
        path = Path(location.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    def get_raw(self, location):
        path = Path(location.key)
        return path.read_bytes() if path.is_file() else None

class TestOverwrites(Place):
    made = Overwrites
class TestSwapsBlindly(Place):
    made = SwapsBlindly
class TestDeletesBlindly(Place):
    made = DeletesBlindly
"""
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "-rf",
            "-k",
            "leaves_alone",
            str(suite),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failed = {line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")}
    names = {line.partition("::")[2] for line in failed}
    assert names == {
        "TestOverwrites::test_put_new_leaves_alone_what_is_there",
        "TestSwapsBlindly::test_put_if_leaves_alone_another_version",
        "TestDeletesBlindly::test_delete_if_leaves_alone_another_version",
    }, done.stdout


def test_keys_may_be_given_by_name(key: str) -> None:
    storage = CountingStorage(LocalStorage())
    storage.put_new(key=key, data=b"one")
    assert storage.get(key=key).data == b"one"
    assert [info.key for info in storage.list(prefix=key)] == [key]
    storage.delete_many(keys=[key])
    assert [call.key for call in storage.calls] == [key] * 4


def test_an_ability_that_is_hidden_stays_hidden_without_sync() -> None:
    class NoCopies(StorageWrapper):
        hides = (SupportsCopies,)

    storage = NoCopies(LocalStorage())
    assert isinstance(storage, SupportsRelaxedDurability)
    assert not isinstance(storage, SupportsCopies)
    relaxed = storage.without_sync()
    assert isinstance(relaxed, SupportsRelaxedDurability)
    assert not isinstance(relaxed, SupportsCopies)


def test_buffers_of_numpy_go_through_the_wrappers(key: str) -> None:
    storage = FaultyStorage(CountingStorage(LocalStorage()))
    with storage.upload(key) as upload:
        upload.write(np.arange(4, dtype=np.uint8))
        upload.commit()
    location = Location(storage, key, key)
    assert location.storage.get(location.key).data == b"\0\1\2\3"
