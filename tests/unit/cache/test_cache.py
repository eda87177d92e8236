"""A cache on this host's disk: what is read is kept, verified, and fetched again where it is wrong."""

from __future__ import annotations

import errno
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cache import fetching, shards, turns
from ckptstore.cache.copy import Part, copies_in
from ckptstore.storage.local import private_directory
from ckptstore.storage.local.private_directory import PrivateDirectory
from ckptstore.storage.local.range_locks import RangeLocks
from ckptstore.storage.local.sparse_file import SparseFile
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.scope import current_scope
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.types import ByteRange
from tests.own_warnings import own_warnings

_T = TypeVar("_T")
MANY = 1 << 40
CELL = 2  # of the second 16 MiB, in the lock file


class Origin(StorageWrapper):
    """Counts the bytes of data files that leave the storage; answers nothing while `is_away`."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.sent_bytes = 0
        self.calls: list[str] = []
        self.is_away = False
        self.error: ck.CkptStoreError = ck.TransientError("the store is away")
        self.before_bytes: Callable[[], object] = lambda: None

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls.append(primitive)
        if self.is_away:
            raise self.error
        return call()

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self.before_bytes()
        super().read_into(key, ranges, buffers, version=version)
        self.sent_bytes += sum(wanted.size_bytes for wanted in ranges)


@pytest.fixture
def origin() -> Iterator[Origin]:
    found: list[Origin] = []

    def wrap(inner: Any) -> Origin:
        found.append(Origin(inner))
        return found[-1]

    with use_wrapper(wrap):
        ck.checkpoint_exists("memory://cache/none")
        yield found[0]


@pytest.fixture
def values() -> dict[str, Any]:
    chance = np.random.default_rng(7)
    found: dict[str, Any] = {f"w{number}": chance.standard_normal((50, 100)) for number in range(30)}
    found["large"] = chance.standard_normal((300, 10_000))
    found["words"] = np.array([b"one", b"", b"three" * 100], object)
    found["zeros"] = np.zeros(50_000, np.float32)
    found["nothing"] = np.zeros((0, 3))
    found["number"] = np.int32(7)
    return found


@pytest.fixture
def prefix(values: dict[str, Any], origin: Origin, request: pytest.FixtureRequest) -> str:
    found = save(values, f"memory://cache/{request.node.name}/model", 1)
    origin.calls.clear()
    return found


@pytest.fixture
def cache(tmp_path: Path) -> ck.Cache:
    return ck.Cache(tmp_path / "cache", max_bytes=MANY)


def save(values: dict[str, Any], path: str | Path, step: int | None = None) -> str:
    with ck.Saver(run="job") as saver:
        found = saver.save(values, path, step)
    assert found is not None
    return found


def total_bytes(values: dict[str, Any]) -> int:
    return sum(np.asarray(value).nbytes for value in values.values() if np.asarray(value).dtype != object)


def data_file(directory: Path) -> Path:
    (found,) = directory.rglob("*.data-*")
    return found


def read_all(prefix: str, cache: ck.Cache | Path | str) -> dict[str, Any]:
    with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
        return {name: checkpoint[name] for name in checkpoint}


def check_all(found: dict[str, Any], values: dict[str, Any]) -> None:
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


class TestReading:
    def test_bytes_are_fetched_once(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], origin: Origin
    ) -> None:
        check_all(read_all(prefix, cache), values)
        first_bytes = origin.sent_bytes
        assert total_bytes(values) <= first_bytes <= 1.01 * total_bytes(values) + 2000
        origin.calls.clear()
        for _ in range(2):
            check_all(read_all(prefix, cache), values)
        assert origin.sent_bytes == first_bytes
        # One conditional read of the index each.
        assert origin.calls == ["get_unless"] * 2

    def test_a_tensor_is_the_memory_of_the_file(self, prefix: str, cache: ck.Cache) -> None:
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            array = checkpoint["large"]
            assert not array.flags.owndata
            assert not array.flags.writeable
            assert checkpoint["large"].ctypes.data == array.ctypes.data

    def test_only_what_is_wanted_is_fetched(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], origin: Origin
    ) -> None:
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w3"], values["w3"])
        assert origin.sent_bytes == values["w3"].nbytes

    @pytest.mark.parametrize("memory_budget", [None, 1 << 20])
    def test_restore_fills_the_cache_and_reads_from_it(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], origin: Origin, memory_budget: int | None
    ) -> None:
        for _ in range(2):
            into = {name: np.empty_like(value) for name, value in values.items()}
            with ck.open_checkpoint(prefix, cache=cache, memory_budget=memory_budget) as checkpoint:
                checkpoint.restore(into)
            check_all(into, values)
        assert origin.sent_bytes <= 1.01 * total_bytes(values) + 2000

    def test_a_tensor_above_the_memory_limit_goes_through_a_file_of_its_own(
        self,
        prefix: str,
        cache: ck.Cache,
        values: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(fetching, "_MEMORY_SIZE_BYTES", 1 << 20)
        check_all(read_all(prefix, cache), values)
        assert not [path for path in tmp_path.rglob("*") if ".part-" in path.name]

    def test_a_part_of_a_tensor_fetches_all_of_it(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], origin: Origin
    ) -> None:
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            for row in range(20):
                np.testing.assert_array_equal(checkpoint.read("large", row), values["large"][row])
        assert origin.sent_bytes == values["large"].nbytes

    def test_a_small_part_of_a_very_large_tensor_goes_around(
        self,
        prefix: str,
        cache: ck.Cache,
        values: dict[str, Any],
        origin: Origin,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(shards, "_WHOLE_SIZE_BYTES", 1 << 20)
        large = values["large"]
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint.read("large", np.s_[3:9]), large[3:9])
            assert origin.sent_bytes < large.nbytes / 8
            np.testing.assert_array_equal(checkpoint.read("large", np.s_[:200]), large[:200])
            sent_bytes = origin.sent_bytes
            # Now it is there.
            np.testing.assert_array_equal(checkpoint.read("large", np.s_[3:9]), large[3:9])
            assert origin.sent_bytes == sent_bytes

    def test_slices_and_parts_of_them(
        self, cache: ck.Cache, origin: Origin, request: pytest.FixtureRequest
    ) -> None:
        whole = np.arange(4000.0).reshape(40, 100)
        pieces = [ck.Piece(whole[at : at + 10], whole.shape, (at, 0)) for at in range(0, 40, 10)]
        prefix = save({"w": pieces}, f"memory://cache/{request.node.name}/model")
        for _ in range(2):
            with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
                np.testing.assert_array_equal(checkpoint["w"], whole)
                np.testing.assert_array_equal(checkpoint.read("w", np.s_[5:15, ::3]), whole[5:15, ::3])
        assert origin.sent_bytes == whole.nbytes

    def test_a_replaced_checkpoint_is_another_one(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any]
    ) -> None:
        read_all(prefix, cache)
        checkpoint = ck.open_checkpoint(prefix, cache=cache)
        save({"w0": np.ones(3)}, prefix)
        assert read_all(prefix, cache)["w0"].tolist() == [1.0] * 3
        # What is there of the old one stays readable.
        np.testing.assert_array_equal(checkpoint["w0"], values["w0"])

    def test_a_path_stands_for_the_cache_there(
        self, prefix: str, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        with pytest.raises(ck.UsageError, match="no cache"):
            ck.open_checkpoint(prefix, cache=tmp_path / "cache")
        ck.Cache(tmp_path / "cache", max_bytes=12345678901)
        check_all(read_all(prefix, tmp_path / "cache"), values)
        check_all(read_all(prefix, str(tmp_path / "cache")), values)
        assert "12345678901" in repr(ck.Cache(tmp_path / "cache", max_bytes=12345678901))

    def test_a_cache_can_be_pickled(self, prefix: str, cache: ck.Cache, values: dict[str, Any]) -> None:
        check_all(read_all(prefix, pickle.loads(pickle.dumps(cache))), values)

    def test_a_complete_copy_is_a_checkpoint(
        self, cache: ck.Cache, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        prefix = save(values, f"{tmp_path}/store/model")
        read_all(prefix, cache)
        (index,) = (tmp_path / "cache").rglob("model.index")
        copy = str(index).removesuffix(".index")
        for suffix in (".index", ".data-00000-of-00001"):
            assert Path(copy + suffix).read_bytes() == Path(prefix + suffix).read_bytes()
        with ck.open_checkpoint(copy) as checkpoint:
            check_all(dict(checkpoint), values)

    def test_v1_is_read_as_without_it(self, cache: ck.Cache, fixtures_dir: Path) -> None:
        path = str(fixtures_dir / "05_v1_format" / "v1.ckpt-7")
        with ck.open_checkpoint(path, cache=cache) as checkpoint, ck.open_checkpoint(path) as plain:
            check_all(dict(checkpoint), dict(plain))
        assert cache.contents() == []


class TestDamage:
    def test_a_flipped_byte_is_never_returned(
        self, cache: ck.Cache, values: dict[str, Any], tmp_path: Path, origin: Origin
    ) -> None:
        values["large"] = values["large"][:, :1000]
        prefix = save(values, "memory://cache/flipped/model")
        read_all(prefix, cache)
        chance = random.Random(11)
        for _ in range(30):
            paths = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.stat().st_size]
            path = chance.choice(paths)
            with path.open("r+b") as file:
                at = chance.randrange(path.stat().st_size)
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 1 << chance.randrange(8)]))
            check_all(read_all(prefix, cache), values)
            with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
                check_all(checkpoint.restore().restored, values)

    def test_what_is_wrong_is_fetched_again_and_nothing_else(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], tmp_path: Path, origin: Origin
    ) -> None:
        read_all(prefix, cache)
        before = origin.sent_bytes
        with ck.open_checkpoint(prefix) as checkpoint:
            offset = [*checkpoint.specs()].index("w1")  # by name: w0, w1, w10, …
        assert offset > 0
        path = data_file(tmp_path)
        good = path.read_bytes()
        at = good.index(values["w1"].tobytes())
        with path.open("r+b") as file:
            file.seek(at + 100)
            file.write(b"\xff" * 50)
        assert cache.verify() == [f"{path}: bytes {at} to {at + values['w1'].nbytes}, tensor 'w1'"]
        check_all(read_all(prefix, cache), values)
        assert origin.sent_bytes - before == values["w1"].nbytes
        assert path.read_bytes() == good
        assert cache.verify() == []

    def test_a_damaged_object_is_an_error_and_is_not_kept(
        self, cache: ck.Cache, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        prefix = save(values, f"{tmp_path}/store/model")
        path = Path(f"{prefix}.data-00000-of-00001")
        data = bytearray(path.read_bytes())
        at = bytes(data).index(values["w5"].tobytes())
        data[at] ^= 1
        path.write_bytes(data)
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            for _ in range(2):
                with pytest.raises(ck.ChecksumError) as raised:
                    checkpoint["w5"]
                assert raised.value.tensor == "w5"
                assert raised.value.url == str(path)
            # Also where it would be fetched along with its neighbours.
            names = [name for name in checkpoint if name != "w5"]
            for name in names:
                np.testing.assert_array_equal(checkpoint[name], values[name])
        assert not cache.contents()[0].is_complete

    def test_a_file_that_is_too_short_is_an_error(self, cache: ck.Cache, tmp_path: Path) -> None:
        prefix = save({"w": np.arange(1000.0)}, f"{tmp_path}/store/model")
        os.truncate(f"{prefix}.data-00000-of-00001", 100)
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            with pytest.raises(ck.TruncatedFileError):
                checkpoint["w"]
            into = {"w": np.zeros(1000)}
            with pytest.raises(ck.TruncatedFileError):
                checkpoint.restore(into)
            assert not into["w"].any()

    def test_the_directory_is_deleted_meanwhile(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], tmp_path: Path
    ) -> None:
        checkpoint = ck.open_checkpoint(prefix, cache=cache)
        kept = checkpoint["large"]
        for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "cache").rmdir()
        np.testing.assert_array_equal(kept, values["large"])
        with own_warnings():
            check_all({name: checkpoint[name] for name in checkpoint}, values)
            check_all(checkpoint.restore().restored, values)
            check_all(read_all(prefix, cache), values)


class TestDirectory:
    def test_it_is_for_its_owner_alone(self, cache: ck.Cache, prefix: str, tmp_path: Path) -> None:
        read_all(prefix, cache)
        for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
    def test_one_that_others_may_write_to_is_refused(self, tmp_path: Path, mode: int) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(mode)
        with pytest.raises(ck.AccessError, match="not private"):
            ck.Cache(tmp_path / "open", max_bytes=1)

    def test_one_that_others_may_replace_is_warned_of(self, tmp_path: Path) -> None:
        above = tmp_path / "scratch"
        above.mkdir()
        above.chmod(0o777)
        with pytest.warns(ck.CkptStoreWarning, match=f"all may write to {above}: call `chmod .t"):
            ck.Cache(above / "job" / "cache", max_bytes=1)
        above.chmod(0o1777)
        with own_warnings("error"):
            ck.Cache(above / "job" / "cache", max_bytes=1)

    def test_one_of_another_user_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(ck.AccessError, match="owner"):
            ck.Cache(tmp_path / "cache", max_bytes=1)

    def test_one_that_other_machines_can_change_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(private_directory, "has_one_kernel", lambda fd: False)
        monkeypatch.setattr(private_directory, "file_system_type", lambda fd: "nfs4")
        with pytest.raises(ck.UsageError, match="nfs4"):
            ck.Cache(tmp_path / "cache", max_bytes=1)

    @pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True, None])
    def test_the_bound_is_a_number_of_bytes(self, tmp_path: Path, max_bytes: Any) -> None:
        with pytest.raises(ck.UsageError, match="max_bytes"):
            ck.Cache(tmp_path / "cache", max_bytes=max_bytes)

    def test_a_url_is_refused(self) -> None:
        with pytest.raises(ck.UsageError, match="local disk"):
            ck.Cache("memory://cache/directory", max_bytes=1)


class TestBound:
    def test_least_recently_used_goes_first_and_the_newest_complete_stays(
        self, tmp_path: Path, origin: Origin, request: pytest.FixtureRequest
    ) -> None:
        size_bytes = 1 << 20
        cache = ck.Cache(tmp_path / "cache", max_bytes=int(3.5 * size_bytes))
        prefixes = []
        for step in range(5):
            weights = {"w": np.full(size_bytes // 8, float(step))}
            prefixes.append(save(weights, f"memory://cache/{request.node.name}/model", step))
        for number, prefix in enumerate(prefixes):
            read_all(prefix, cache)
            for path in (tmp_path / "cache").rglob("used"):
                stamp = path.stat().st_mtime - 10
                os.utime(path, (stamp, stamp))
            assert used_bytes(tmp_path / "cache") <= 3.5 * size_bytes, number
        assert [found.prefix for found in cache.contents()] == prefixes[:1:-1]
        # The newest one is kept although it is the one that was used least recently.
        read_all(prefixes[2], cache)
        read_all(prefixes[3], cache)
        read_all(prefixes[0], cache)
        assert {found.prefix for found in cache.contents()} == {prefixes[0], prefixes[3], prefixes[4]}

    def test_the_newest_of_a_directory_that_nobody_reads_goes_at_last(
        self, tmp_path: Path, origin: Origin, request: pytest.FixtureRequest
    ) -> None:
        size_bytes = 1 << 20
        cache = ck.Cache(tmp_path / "cache", max_bytes=int(2.5 * size_bytes))
        prefixes = []
        for run in range(4):
            weights = {"w": np.full(size_bytes // 8, float(run))}
            prefixes.append(save(weights, f"memory://cache/{request.node.name}/{run}/model", 1))
        with own_warnings("error"):
            for prefix in prefixes:
                read_all(prefix, cache)
                assert used_bytes(tmp_path / "cache") <= 2.5 * size_bytes
        assert [found.prefix for found in cache.contents() if found.is_complete] == prefixes[:1:-1]
        assert cache.trim() == 0

    @pytest.mark.parametrize("is_killed", [False, True])
    def test_a_part_counts_and_is_removed_when_its_process_is_gone(
        self, cache: ck.Cache, prefix: str, tmp_path: Path, is_killed: bool
    ) -> None:
        read_all(prefix, cache)
        before = used_bytes(tmp_path / "cache")
        (copy,) = copies_in(PrivateDirectory(str(tmp_path / "cache" / "v1")))
        child = os.fork() if is_killed else 0
        if child == 0:
            part = Part(copy.directory)
            part.file.write(0, memoryview(bytes(1 << 20)))
            if is_killed:
                os._exit(0)
        else:
            os.waitpid(child, 0)
        assert cache.contents()[0].size_bytes >= before - (1 << 16) + (1 << 20)
        if is_killed:
            assert cache.trim() >= 1 << 20
        else:
            assert cache.trim() == 0
            part.remove()
        assert not [*(tmp_path / "cache").rglob(".part-*")]
        assert cache.contents()[0].is_complete

    def test_no_part_is_left_by_an_error(
        self,
        prefix: str,
        cache: ck.Cache,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(fetching, "_MEMORY_SIZE_BYTES", 1 << 20)
        seen: list[Path] = []

        def fail(*_: object, **__: object) -> None:
            seen.extend((tmp_path / "cache").rglob(".part-*"))
            raise ck.TransientError("cut")

        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            monkeypatch.setattr(Origin, "read_into", fail)
            monkeypatch.setattr(Origin, "get", fail)
            with pytest.raises(ck.TransientError):
                checkpoint["large"]
        assert seen
        assert not [*(tmp_path / "cache").rglob(".part-*")]

    def test_what_is_in_use_stays(self, tmp_path: Path, prefix: str, values: dict[str, Any]) -> None:
        cache = ck.Cache(tmp_path / "cache", max_bytes=MANY)
        checkpoint = ck.open_checkpoint(prefix, cache=cache)
        array = checkpoint["w0"]
        assert cache.remove(prefix) == 0
        small = ck.Cache(tmp_path / "cache", max_bytes=1)
        assert small.trim() == 0
        checkpoint.close()
        assert small.trim() > 0
        # It is removed, and what was mapped stays valid.
        np.testing.assert_array_equal(array, values["w0"])
        assert cache.contents() == []

    def test_one_that_is_too_small_is_gone_around_with_one_warning(
        self, tmp_path: Path, prefix: str, values: dict[str, Any]
    ) -> None:
        cache = ck.Cache(tmp_path / "cache", max_bytes=200_000)
        with own_warnings() as warned:
            for _ in range(3):
                check_all(read_all(prefix, cache), values)
                with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
                    check_all(checkpoint.restore().restored, values)
        assert len(warned) == 1
        assert "is full" in str(warned[0].message)
        assert used_bytes(tmp_path / "cache") <= 200_000 + (1 << 16)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    def test_a_write_that_fails_leads_around_the_cache(
        self,
        code: int,
        tmp_path: Path,
        prefix: str,
        values: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cache = ck.Cache(tmp_path / "cache", max_bytes=MANY)
        write, done = SparseFile.write, 0

        def some(self: SparseFile, offset: int, data: memoryview) -> None:
            nonlocal done
            done += 1
            if done % 2:
                write(self, offset, data[: len(data) // 2])
                raise OSError(code, os.strerror(code))
            write(self, offset, data)

        monkeypatch.setattr(SparseFile, "write", some)
        with own_warnings() as warned:
            check_all(read_all(prefix, cache), values)
            with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
                check_all(checkpoint.restore().restored, values)
        assert done
        assert len(warned) == 1
        monkeypatch.undo()
        with own_warnings():
            check_all(read_all(prefix, cache), values)

    def test_remove(self, cache: ck.Cache, prefix: str, tmp_path: Path) -> None:
        read_all(prefix, cache)
        (found,) = cache.contents()
        assert (found.prefix, found.is_complete) == (prefix, True)
        assert cache.remove("memory://cache/another") == 0
        assert cache.remove(prefix) == 1
        assert cache.contents() == []
        assert used_bytes(tmp_path / "cache") < 1 << 16

    def test_what_a_killed_process_left_is_removed(
        self, cache: ck.Cache, prefix: str, tmp_path: Path
    ) -> None:
        read_all(prefix, cache)
        (origin,) = (tmp_path / "cache").rglob("origin")
        origin.unlink()
        assert cache.contents() == []
        assert cache.trim() > 0
        assert not [*(tmp_path / "cache").rglob("*.data-*")]


def used_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


class TestWaiting:
    @pytest.fixture
    def held(self, prefix: str, cache: ck.Cache, tmp_path: Path) -> Iterator[RangeLocks]:
        """The locks of another process, which has that of the cell of all but the large tensor."""
        ck.open_checkpoint(prefix, cache=cache).close()
        (path,) = (tmp_path / "cache").rglob("lock")
        locks = RangeLocks(str(path))
        assert locks.acquire(CELL)
        yield locks
        locks.close()

    def test_patience_that_was_lost_is_not_found_again_for_each_tensor(
        self,
        prefix: str,
        cache: ck.Cache,
        values: dict[str, Any],
        held: RangeLocks,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(turns, "_PATIENCE_S", 0.05)
        pauses: list[float] = []
        monkeypatch.setattr(fetching, "pause", lambda seconds, *_: pauses.append(seconds))
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w1"], values["w1"])
            assert pauses
            pauses.clear()
            for name in ("w7", "w3", "w5"):
                np.testing.assert_array_equal(checkpoint[name], values[name])
            assert not pauses

    def test_an_owner_gives_a_sign_of_life_while_the_bytes_of_one_request_come(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], tmp_path: Path, origin: Origin
    ) -> None:
        ck.open_checkpoint(prefix, cache=cache).close()
        (path,) = (tmp_path / "cache").rglob("lock")
        seen: list[bytes] = []

        def receive() -> None:
            others = RangeLocks(str(path))
            seen.append(others.last_beat(CELL))
            scope = current_scope()
            assert scope is not None
            scope.record_progress()
            seen.append(others.last_beat(CELL))
            others.close()

        origin.before_bytes = receive
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w1"], values["w1"])
        assert len(set(seen)) == 2

    def test_an_owner_that_gets_on_is_waited_for(
        self,
        prefix: str,
        cache: ck.Cache,
        values: dict[str, Any],
        held: RangeLocks,
        origin: Origin,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(turns, "_PATIENCE_S", 0.0)
        waits = 0

        def wait(*_: object) -> None:
            nonlocal waits
            assert not origin.sent_bytes
            waits += 1
            if waits == 50:
                held.close()
            else:
                held.beat(CELL)

        monkeypatch.setattr(fetching, "pause", wait)
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w1"], values["w1"])
        assert waits == 50

    def test_a_fetch_shows_that_it_gets_on(self, prefix: str, cache: ck.Cache, held: RangeLocks) -> None:
        held.release(CELL)
        before = held.last_beat(CELL)
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            checkpoint["w1"]
        assert held.last_beat(CELL) != before

    def test_a_forked_child_keeps_no_lock_that_its_parent_gave_up(
        self, cache: ck.Cache, prefix: str, held: RangeLocks, tmp_path: Path
    ) -> None:
        (path,) = (tmp_path / "cache").rglob("lock")
        other = RangeLocks(str(path))
        checkpoint = ck.open_checkpoint(prefix, cache=cache)
        go_on, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(go_on, 1)
            os._exit(0)
        try:
            assert not other.acquire(CELL)
            held.close()
            assert other.acquire(CELL)
            assert cache.remove(prefix) == 0
            checkpoint.close()
            assert cache.remove(prefix) == 1
        finally:
            os.close(end)
            os.waitpid(child, 0)
            os.close(go_on)
        other.close()

    def test_a_forked_child_gives_up_nothing_of_its_parent(self, held: RangeLocks, tmp_path: Path) -> None:
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        os.waitpid(child, 0)
        (path,) = (tmp_path / "cache").rglob("lock")
        other = RangeLocks(str(path))
        assert not other.acquire(CELL)
        other.close()


class TestOutage:
    def test_the_last_version_is_opened_with_a_warning(
        self, prefix: str, cache: ck.Cache, values: dict[str, Any], origin: Origin
    ) -> None:
        read_all(prefix, cache)
        origin.is_away = True
        with pytest.warns(ck.CkptStoreWarning, match="the store is away"):
            check_all(read_all(prefix, cache), values)

    def test_what_was_not_fetched_cannot_be_read(self, prefix: str, cache: ck.Cache, origin: Origin) -> None:
        with ck.open_checkpoint(prefix, cache=cache) as checkpoint:
            checkpoint["w0"]
            origin.is_away = True
            checkpoint["w0"]
            with pytest.raises(ck.TransientError):
                checkpoint["w1"]

    def test_never(self, prefix: str, tmp_path: Path, origin: Origin) -> None:
        cache = ck.Cache(tmp_path / "cache", max_bytes=MANY, stale="never")
        read_all(prefix, cache)
        origin.is_away = True
        with pytest.raises(ck.TransientError):
            read_all(prefix, cache)

    def test_a_path_keeps_never(self, prefix: str, tmp_path: Path, origin: Origin) -> None:
        ck.Cache(tmp_path / "cache", max_bytes=MANY, stale="never")
        read_all(prefix, tmp_path / "cache")
        origin.is_away = True
        with pytest.raises(ck.TransientError):
            read_all(prefix, tmp_path / "cache")

    def test_credentials_that_have_expired_are_an_error(
        self, prefix: str, cache: ck.Cache, origin: Origin
    ) -> None:
        read_all(prefix, cache)
        origin.is_away, origin.error = True, ck.AccessError("expired")
        with pytest.raises(ck.AccessError):
            read_all(prefix, cache)

    def test_another_version_is_not_opened_in_its_place(
        self, prefix: str, cache: ck.Cache, origin: Origin, values: dict[str, Any]
    ) -> None:
        step = ck.watch(prefix.rpartition("/")[0], every_s=0).check()
        assert step is not None
        with step.open(cache=cache) as checkpoint:
            checkpoint.restore()
        save({"w0": np.ones(3)}, prefix)
        read_all(prefix, cache)
        with pytest.raises(ck.NotFoundError):
            step.open(cache=cache)
        origin.is_away = True
        with pytest.warns(ck.CkptStoreWarning), step.open(cache=cache) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w0"], values["w0"])

    def test_latest_answers_with_what_was_seen_last(
        self, prefix: str, cache: ck.Cache, origin: Origin, values: dict[str, Any]
    ) -> None:
        directory = prefix.rpartition("/")[0]
        assert ck.latest_checkpoint(directory, cache=cache) == prefix
        read_all(prefix, cache)
        later = save({"w0": np.ones(3)}, f"{directory}/model", 2)
        assert ck.latest_checkpoint(directory, cache=cache) == later
        origin.is_away = True
        # All of the first one is there, and nothing of the second.
        with pytest.warns(ck.CkptStoreWarning, match="seen last"):
            assert ck.latest_checkpoint(directory, cache=cache) == prefix
        with pytest.raises(ck.TransientError):
            ck.latest_checkpoint(directory)
        with pytest.raises(ck.TransientError):
            ck.latest_checkpoint(f"{directory}/other", cache=cache)
        origin.is_away = False
        read_all(later, cache)
        origin.is_away = True
        with pytest.warns(ck.CkptStoreWarning, match="seen last"):
            assert ck.latest_checkpoint(directory, cache=cache) == later
        origin.error = ck.AccessError("expired")
        with pytest.raises(ck.AccessError):
            ck.latest_checkpoint(directory, cache=cache)

    def test_an_operator_may_go_back(self, prefix: str, cache: ck.Cache, origin: Origin) -> None:
        directory = prefix.rpartition("/")[0]
        later = save({"w0": np.ones(3)}, f"{directory}/model", 2)
        for one in (prefix, later):
            read_all(one, cache)
        ck.update_checkpoint_state(directory, prefix)
        assert ck.latest_checkpoint(directory, cache=cache) == prefix
        origin.is_away = True
        with pytest.warns(ck.CkptStoreWarning):
            assert ck.latest_checkpoint(directory, cache=cache) == prefix

    def test_a_watcher_that_starts_in_an_outage_serves_and_recovers(
        self, prefix: str, cache: ck.Cache, origin: Origin, values: dict[str, Any]
    ) -> None:
        directory = prefix.rpartition("/")[0]
        with ck.watch(directory, every_s=0.02, cache=cache) as watcher:
            step = watcher.next(60)
            assert step is not None
            with step.open() as checkpoint:
                checkpoint.restore()
        origin.is_away = True
        with own_warnings() as warned, ck.watch(directory, every_s=0.02, cache=cache) as watcher:
            again = watcher.next(60)
            assert again == ck.Step(step.prefix, 1, step.version, again.seen_s if again else 0.0)
            assert again is not None
            with again.open() as checkpoint:
                check_all(checkpoint.restore().restored, values)
            assert watcher.next(0.2) is None
            assert watcher.health().is_stale
            assert watcher.health().failures_in_a_row > 0
            origin.is_away = False
            # The same step is not a new one.
            assert watcher.next(1.0) is None
            assert watcher.health().failures_in_a_row == 0
            save({"w0": np.ones(3)}, f"{directory}/model", 2)
            later = watcher.next(60)
            assert later is not None
            assert later.step == 2
        assert warned

    def test_a_watcher_without_an_answer_raises(self, prefix: str, cache: ck.Cache, origin: Origin) -> None:
        origin.is_away = True
        with pytest.raises(ck.TransientError):
            ck.watch(prefix.rpartition("/")[0], every_s=0.02, cache=cache).next(60)

    def test_live_serves_from_the_cache(
        self, prefix: str, cache: ck.Cache, origin: Origin, values: dict[str, Any]
    ) -> None:
        directory = prefix.rpartition("/")[0]
        ck.latest_checkpoint(directory, cache=cache)
        read_all(prefix, cache)
        origin.is_away = True
        with (
            own_warnings(),
            ck.Live(lambda found, _: found.read("w1"), directory, every_s=0.02, cache=cache) as live,
        ):
            assert live.wait_ready(60)
            with live.use() as w1:
                np.testing.assert_array_equal(w1, values["w1"])
            assert live.health().watch.is_stale


class Labelled(Origin):
    """A server of another name."""

    def __init__(self, inner: Any, server: str | None) -> None:
        super().__init__(inner)
        self._server = server

    @property
    def server(self) -> str | None:
        return self._server


def test_a_storage_whose_servers_have_no_names_is_refused(tmp_path: Path) -> None:
    prefix = save({"w": np.ones(3)}, tmp_path / "there" / "model", 1)
    cache = ck.Cache(tmp_path / "cache", max_bytes=MANY)
    with use_wrapper(lambda inner: Labelled(inner, None)):
        with pytest.raises(ck.UnsupportedError, match="cannot be cached"):
            ck.open_checkpoint(prefix, cache=cache)
        with pytest.raises(ck.UnsupportedError, match="cannot be cached"):
            ck.latest_checkpoint(tmp_path / "there", cache=cache)


def test_in_an_outage_no_server_answers_for_another(tmp_path: Path) -> None:
    directory = tmp_path / "there"
    cache = ck.Cache(tmp_path / "cache", max_bytes=MANY)
    first = save({"w": np.ones(3)}, directory / "model", 1)
    with use_wrapper(lambda inner: Labelled(inner, "one")):
        assert ck.latest_checkpoint(directory, cache=cache) == first
        with ck.open_checkpoint(first, cache=cache) as checkpoint:
            dict(checkpoint)
        second = save({"w": np.zeros(3)}, directory / "model", 2)
        assert ck.latest_checkpoint(directory, cache=cache) == second
    with use_wrapper(lambda inner: Labelled(inner, "other")), ck.open_checkpoint(second, cache=cache) as it:
        dict(it)
    away = []

    def wrap(inner: Any) -> Labelled:
        away.append(Labelled(inner, "one"))
        away[-1].is_away = True
        return away[-1]

    with use_wrapper(wrap), pytest.warns(ck.CkptStoreWarning):
        assert ck.latest_checkpoint(directory, cache=cache) == first
