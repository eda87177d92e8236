"""Large files past the page cache: every byte in its place, and what happens when that is refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreError, StorageFullError, TransientError, UsageError
from ckptstore.storage.local import direct_io
from ckptstore.storage.local.diagnosis import diagnose_directory
from ckptstore.storage.local.direct_io import DirectRules, DirectWriter, direct_rules
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.local.upload import LocalUpload
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Committed
from tests.open_files import open_files
from tests.small_disk import small_disk
from tests.unit.storage.local.syscalls import each_call_failing, record_calls, refuse, replace_calls

PART = LocalUpload.part_size_bytes
BUFFER = direct_io.BUFFER_BYTES
LARGE = PART * 2 + BUFFER + 4096 + 5

SYSTEM_CALLS = [
    "pwrite",
    "pwritev",
    "posix_fallocate",
    "ftruncate",
    "fsync",
    "fcntl",
    "utime",
    "link",
    "fstat",
]


@pytest.fixture(scope="module")
def content() -> npt.NDArray[np.uint8]:
    """Bytes in memory that begins at a page."""
    memory = mmap.mmap(-1, PART * 3, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    array = np.frombuffer(memory, np.uint8)
    array[:] = np.random.default_rng(5).integers(0, 256, len(array), dtype=np.uint8)
    return array


@pytest.fixture
def direct(tmp_path: Path) -> Path:
    """Return a path where direct I/O works."""
    with open(tmp_path / "trial", "wb") as file:
        rules = direct_rules(file.fileno())
    (tmp_path / "trial").unlink()
    if isinstance(rules, str):
        pytest.skip(f"direct I/O is {rules}")
    return tmp_path / "f"


def parts_of(data: npt.NDArray[np.uint8], cuts: list[int] | None = None) -> list[list[memoryview]]:
    """Return the pieces of each part; `cuts` are where pieces end, besides."""
    view = memoryview(data)  # type: ignore[arg-type]
    edges = sorted({*range(0, len(view), PART), *(cuts or ()), len(view)})
    parts: list[list[memoryview]] = [[] for _ in range(max(1, -(-len(view) // PART)))]
    for start, stop in pairwise(edges):
        parts[start // PART].append(view[start:stop])
    return parts


def send_all(
    upload: Upload, data: npt.NDArray[np.uint8], cuts: list[int] | None = None, *, threads: int = 1
) -> None:
    parts = list(enumerate(parts_of(data, cuts)))
    last = len(parts) - 1
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                try:
                    number, pieces = parts.pop()
                except IndexError:
                    return
                upload.send(number, pieces, crc32c(b"".join(pieces)), is_last=number == last)
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    if errors:
        raise errors[0]


def save(
    path: Path, data: npt.NDArray[np.uint8], cuts: list[int] | None = None, *, threads: int = 1
) -> Upload:
    with LocalStorage().upload(str(path), len(data)) as upload:
        send_all(upload, data, cuts, threads=threads)
        assert isinstance(upload.commit(), Committed)
    return upload


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_once(number: int) -> Callable[..., int]:
    """Return a pwrite whose first call fails."""
    pwrite = os.pwrite
    errors = iter([OSError(number, os.strerror(number))])

    def call(*args: Any) -> int:
        for error in errors:
            raise error
        return pwrite(*args)

    return call


def kernel_says(monkeypatch: pytest.MonkeyPatch, *rules: int) -> None:
    """Let statx answer with these sizes of memory and block, or fail if there are none."""

    class Library:
        @staticmethod
        def statx(fd: int, path: bytes, flags: int, mask: int, answer: Any) -> int:
            if not rules:
                return -1
            struct.pack_into("=I", answer, 0, mask)
            struct.pack_into("=II", answer, 0x98, *rules)
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: Library())


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, int]]:
    """Note of every write whether it was direct, its offset and its size."""
    noted: list[tuple[bool, int, int]] = []
    pwrite, pwritev = os.pwrite, os.pwritev

    def call(fd: int, data: memoryview, offset: int) -> int:
        noted.append((is_direct(fd), offset, len(data)))
        return pwrite(fd, data, offset)

    def call_many(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        noted.append((is_direct(fd), offset, sum(map(len, pieces))))
        return pwritev(fd, pieces, offset)

    monkeypatch.setattr(os, "pwrite", call)
    monkeypatch.setattr(os, "pwritev", call_many)
    return noted


SIZES = [
    0,
    1,
    4095,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    (1 << 20) + 511,
    (1 << 20) + 512,
    BUFFER - 1,
    BUFFER,
    BUFFER + 4097,
    PART - 1,
    PART,
    PART + 1,
    PART + 4096,
    2 * PART,
    LARGE,
]


@pytest.mark.parametrize("shift", [0, 16, 512, 13])
@pytest.mark.parametrize("size_bytes", SIZES)
def test_what_is_written_is_what_was_given(
    tmp_path: Path, content: npt.NDArray[np.uint8], size_bytes: int, shift: int
) -> None:
    data = content[shift : shift + size_bytes]
    save(tmp_path / "f", data, threads=2)
    assert (tmp_path / "f").read_bytes() == data.tobytes()
    assert (tmp_path / "f").stat().st_size == size_bytes


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_size_lie_end_to_end(tmp_path: Path, content: npt.NDArray[np.uint8], seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_bytes = LARGE - int(rng.integers(0, 9000))
    cuts = [int(cut) for cut in rng.integers(0, size_bytes, 200)] + [BUFFER, PART - 1, PART + 1]
    save(tmp_path / "f", content[:size_bytes], cuts, threads=4)
    assert (tmp_path / "f").read_bytes() == content[:size_bytes].tobytes()


def test_empty_pieces_are_nothing(tmp_path: Path, content: npt.NDArray[np.uint8]) -> None:
    data = content[: (1 << 20) + 3]
    view = memoryview(data)  # type: ignore[arg-type]
    with LocalStorage().upload(str(tmp_path / "f"), len(data)) as upload:
        upload.send(0, [view[:0], view, view[:0]], crc32c(data), is_last=True)
        upload.commit()
    assert (tmp_path / "f").read_bytes() == data.tobytes()


def test_aligned_memory_goes_to_the_disk_as_it_is(
    direct: Path, content: npt.NDArray[np.uint8], writes: list[tuple[bool, int, int]]
) -> None:
    save(direct, content[: 2 * PART + 4096 + 7])
    assert sorted(writes, key=lambda write: write[1]) == [
        (True, 0, PART),
        (True, PART, PART),
        (True, 2 * PART, 4096),
        (False, 2 * PART + 4096, 7),
    ]


def test_other_memory_is_copied_through_few_buffers_that_are_kept(
    direct: Path,
    content: npt.NDArray[np.uint8],
    writes: list[tuple[bool, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        save(direct, content[1 : 2 * PART + 1], threads=4)
        direct.unlink()
    assert len(writes) == 2 * 2 * PART // BUFFER
    assert all(was_direct for was_direct, _, _ in writes)
    # No memory is needed for the next file.
    monkeypatch.setattr(direct_io, "allocate_pages", refuse(errno.ENOMEM))
    save(direct, content[1 : 2 * PART + 1])
    assert all(was_direct for was_direct, _, _ in writes)
    assert BUFFER <= direct_io.release_buffers() <= 4 * BUFFER


def test_a_small_file_and_one_of_unknown_size_go_through_the_cache(
    direct: Path, content: npt.NDArray[np.uint8], writes: list[tuple[bool, int, int]]
) -> None:
    save(direct, content[: 1 << 19])
    with LocalStorage().upload(f"{direct}2") as upload:
        upload.write(content)
        upload.commit()
    assert not any(was_direct for was_direct, _, _ in writes)
    assert Path(f"{direct}2").read_bytes() == content.tobytes()


@pytest.mark.parametrize("announced", [1 << 20, PART, LARGE + 9_000_000])
def test_another_size_than_announced_changes_nothing(
    tmp_path: Path, content: npt.NDArray[np.uint8], announced: int
) -> None:
    with LocalStorage().upload(str(tmp_path / "f"), announced) as upload:
        send_all(upload, content[:LARGE])
        upload.commit()
    assert (tmp_path / "f").read_bytes() == content[:LARGE].tobytes()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EFAULT, errno.ENOMEM])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("at", [1, 2])
def test_a_write_that_is_refused_goes_through_the_cache(
    direct: Path,
    content: npt.NDArray[np.uint8],
    caplog: pytest.LogCaptureFixture,
    number: int,
    shift: int,
    at: int,
) -> None:
    pwrite = os.pwrite
    tries: list[int] = []

    def refuse_direct(fd: int, data: memoryview, offset: int) -> int:
        if is_direct(fd):
            tries.append(offset)
            if len(tries) >= at:
                raise OSError(number, os.strerror(number))
        return pwrite(fd, data, offset)

    with caplog.at_level(logging.DEBUG, "ckptstore"), replace_calls(pwrite=refuse_direct):
        save(direct, content[shift : LARGE + shift], threads=3)
    assert direct.read_bytes() == content[shift : LARGE + shift].tobytes()
    assert at <= len(tries) <= at + 3
    assert "direct I/O was refused" in caplog.text


def test_no_thread_is_sent_through_the_page_cache_before_it_is_on(direct: Path) -> None:
    # Otherwise it would write an odd size directly, which is refused.
    seen: list[bool] = []
    real = fcntl.fcntl

    def watch(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and not value & os.O_DIRECT:
            seen.append(writer.is_direct)
        return real(fd, command, value)

    with open(direct, "w+b") as file:
        writer = DirectWriter(file.fileno(), DirectRules(512, 4096), "trial")
        assert writer.is_direct
        with replace_calls(fcntl=watch, pwrite=refuse_once(errno.EINVAL)):
            writer.write_at(0, [memoryview(mmap.mmap(-1, 4096))])
        assert seen == [True]
        assert not writer.is_direct
        assert not is_direct(file.fileno())


def test_a_file_that_cannot_be_switched_is_written_through_the_cache(
    direct: Path,
    content: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = fcntl.fcntl

    def refuse_direct(fd: int, command: int, value: int = 0) -> int:
        if command == fcntl.F_SETFL and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, command, value)

    with replace_calls(fcntl=refuse_direct):
        with caplog.at_level(logging.DEBUG, "ckptstore"):
            save(direct, content[:LARGE])
        assert direct.read_bytes() == content[:LARGE].tobytes()
        assert "through the page cache" in caplog.text
        monkeypatch.setattr(direct_io, "direct_rules", lambda fd: DirectRules(512, 4096))
        findings = list(diagnose_directory(str(direct.parent)))
    (finding,) = [found for found in findings if found.check == "large files"]
    assert (finding.state, finding.detail) == ("ok", "written through the page cache: direct I/O is refused")


@pytest.mark.parametrize(
    ("kind", "memory_bytes", "block_bytes"), [("nfs4", 512, 512), ("btrfs", 512, 512), ("ext4", 8192, 512)]
)
def test_where_direct_io_is_not_known_to_be_good_it_is_not_used(
    tmp_path: Path,
    content: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    writes: list[tuple[bool, int, int]],
    kind: str,
    memory_bytes: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(direct_io, "file_system_type", lambda fd: kind)
    kernel_says(monkeypatch, memory_bytes, block_bytes)
    upload = save(tmp_path / "f", content[:LARGE])
    assert upload.parallel == 2
    assert not any(was_direct for was_direct, _, _ in writes)
    (finding,) = [found for found in diagnose_directory(str(tmp_path)) if found.check == "large files"]
    assert finding.state == "ok"
    assert kind in finding.detail
    assert "through the page cache" in finding.detail


def test_a_kernel_that_says_nothing_is_taken_to_want_pages(
    direct: Path, content: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_says(monkeypatch)
    with open(direct, "wb") as file:
        assert direct_rules(file.fileno()) == DirectRules(4096, 4096)
    direct.unlink()
    save(direct, content[512 : LARGE + 512])
    assert direct.read_bytes() == content[512 : LARGE + 512].tobytes()


def test_doctor_says_how_large_files_are_written(direct: Path) -> None:
    (finding,) = [found for found in diagnose_directory(str(direct.parent)) if found.check == "large files"]
    assert finding.state == "ok"
    assert "past the page cache" in finding.detail


@pytest.mark.parametrize("step", [7, 4096, 5000, 1 << 20])
@pytest.mark.parametrize("shift", [0, 1])
def test_short_direct_writes_go_on_where_they_stopped(
    direct: Path, content: npt.NDArray[np.uint8], caplog: pytest.LogCaptureFixture, step: int, shift: int
) -> None:
    pwrite = os.pwrite
    size_bytes = PART + 5000 if step == 1 << 20 else (1 << 20) + 5000

    def short(fd: int, data: memoryview, offset: int) -> int:
        if not is_direct(fd):
            return pwrite(fd, data, offset)
        # What the disk took before it stopped; the kernel itself takes whole blocks only.
        whole = max(4096, step - step % 4096)
        return min(pwrite(fd, data[:whole], offset), step)

    with replace_calls(pwrite=short), caplog.at_level(logging.DEBUG, "ckptstore"):
        save(direct, content[shift : size_bytes + shift])
    assert ("direct I/O was refused" in caplog.text) == (step < 4096)
    assert direct.read_bytes() == content[shift : size_bytes + shift].tobytes()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFullError), (errno.EDQUOT, StorageFullError), (errno.EIO, TransientError)],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_an_error_of_the_disk_is_raised_and_leaves_the_old_file(
    direct: Path,
    content: npt.NDArray[np.uint8],
    number: int,
    kind: type[CkptStoreError],
    shift: int,
) -> None:
    storage = LocalStorage()
    old = direct.with_name("old")
    save(old, content[:LARGE])
    pwrite = os.pwrite

    def fail(fd: int, data: memoryview, offset: int) -> int:
        if offset >= PART:
            raise OSError(number, os.strerror(number))
        return pwrite(fd, data, offset)

    with storage.upload(str(direct), LARGE) as upload:
        with replace_calls(pwrite=fail), pytest.raises(kind) as caught:
            send_all(upload, content[shift : LARGE + shift], threads=3)
        assert caught.value.url == str(direct)
        assert os.listdir(direct.parent) == ["old"]
        with pytest.raises(UsageError):
            upload.commit()
    assert old.read_bytes() == content[:LARGE].tobytes()
    assert direct_io.release_buffers() <= 4 * BUFFER


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    script = f"""
import resource
from ckptstore.errors import StorageFullError
from ckptstore.storage.local.storage import LocalStorage
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
def save(announced):
    with LocalStorage().upload({str(tmp_path / "f")!r}, announced) as upload:
        upload.write(bytes(5 << 20))
        upload.commit()
for announced in (5 << 20, 2 << 20, None):
    try:
        save(announced)
    except StorageFullError as error:
        print("full", error.errno)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"full {errno.EFBIG}\n" * 3, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_comes_after_a_failure_raises_the_same(
    direct: Path, content: npt.NDArray[np.uint8]
) -> None:
    with LocalStorage().upload(str(direct), LARGE) as upload:
        first, second, _ = parts_of(content[:LARGE])
        with replace_calls(pwrite=refuse(errno.ENOSPC)), pytest.raises(StorageFullError):
            upload.send(0, first, 0)
        with pytest.raises(StorageFullError):
            upload.send(1, second, 0)
        with pytest.raises(UsageError):
            upload.commit()
    assert os.listdir(direct.parent) == []


@pytest.fixture
def memory_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 40 MiB, which newer kernels write directly and older ones do not."""
    with small_disk(tmp_path / "disk", 40 * 1024) as disk:
        yield disk


def test_a_disk_without_direct_io_and_without_room(memory_disk: Path, content: npt.NDArray[np.uint8]) -> None:
    save(memory_disk / "f", content[:LARGE], threads=2)
    with pytest.raises(StorageFullError):
        save(memory_disk / "g", content[:LARGE])
    with LocalStorage().upload(str(memory_disk / "g")) as upload, pytest.raises(StorageFullError):
        send_all(upload, content)
    assert os.listdir(memory_disk) == ["f"]
    assert (memory_disk / "f").read_bytes() == content[:LARGE].tobytes()


def test_the_end_of_the_file_is_durable_too(direct: Path, content: npt.NDArray[np.uint8]) -> None:
    with record_calls("pwrite", "pwritev", "fsync") as calls:
        save(direct, content[: (1 << 20) + 9])
    assert calls == ["pwrite", "pwritev", "fsync file", "fsync directory"]


def test_two_uploads_at_once_do_not_share_a_buffer(direct: Path, content: npt.NDArray[np.uint8]) -> None:
    tasks = [
        threading.Thread(
            target=save, args=(direct.with_name(f"f{k}"), content[k : LARGE + k]), kwargs={"threads": 3}
        )
        for k in range(1, 4)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(timeout=120)
    for k in range(1, 4):
        assert direct.with_name(f"f{k}").read_bytes() == content[k : LARGE + k].tobytes()
    assert direct_io.release_buffers() <= 4 * BUFFER


def test_a_forked_child_writes_files_of_its_own(direct: Path, content: npt.NDArray[np.uint8]) -> None:
    data = content[3 : LARGE + 3]
    save(direct, data)
    with LocalStorage().upload(f"{direct}2", LARGE) as upload:
        upload.send(0, parts_of(data)[0], crc32c(data[:PART]))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                save(Path(f"{direct}3"), data[::-1].copy()[:LARGE])
                try:
                    upload.send(1, parts_of(data)[1], 0)
                except UsageError:
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for number in (1, 2):
            pieces = parts_of(data)[number]
            upload.send(number, pieces, crc32c(b"".join(pieces)), is_last=number == 2)
        assert isinstance(upload.commit(), Committed)
    assert Path(f"{direct}2").read_bytes() == data.tobytes()
    assert Path(f"{direct}3").read_bytes() == data[::-1].tobytes()


def test_without_memory_for_a_buffer_the_page_cache_does(
    direct: Path, content: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    direct_io.release_buffers()
    monkeypatch.setattr(mmap, "mmap", refuse(errno.ENOMEM))
    save(direct, content[1 : LARGE + 1])
    assert direct.read_bytes() == content[1 : LARGE + 1].tobytes()


def test_no_descriptor_is_needed_beyond_those_of_a_small_file(
    direct: Path, content: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    with LocalStorage().upload(str(direct), 10) as small:
        counts.append(len(open_files(direct.parent)))
        small.abort()
    with LocalStorage().upload(str(direct), LARGE) as large:
        send_all(large, content[:LARGE])
        counts.append(len(open_files(direct.parent)))
    assert counts[0] == counts[1]


def test_more_parts_at_a_time_are_asked_for_where_that_helps(direct: Path) -> None:
    storage = LocalStorage()
    found: list[int] = []
    opened: list[Callable[[], LocalUpload]] = [
        lambda: storage.upload(str(direct), LARGE),
        lambda: storage.upload(str(direct), 10),
        lambda: storage.without_sync().upload(str(direct), LARGE),
    ]
    for begin in opened:
        with begin() as upload:
            found.append(upload.parallel)
    assert found == [4, 2, 2]


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_in_any_system_call_leaves_the_whole_file_or_none(
    direct: Path, content: npt.NDArray[np.uint8], error: BaseException, after: bool
) -> None:
    data = content[1 : (1 << 20) + 700]
    for fault in each_call_failing(SYSTEM_CALLS, error, after=after):
        failure: BaseException | None = None
        try:
            # Announced larger than it is, so that it is cut.
            with fault, LocalStorage().upload(str(direct), 2 << 20) as upload:
                send_all(upload, data)
                outcome = upload.commit()
        except (CkptStoreError, KeyboardInterrupt) as caught:
            failure = caught
        content_now = direct.read_bytes() if direct.exists() else None
        assert set(os.listdir(direct.parent)) <= {direct.name}, fault
        if failure is None and isinstance(outcome, Committed):
            assert content_now == data.tobytes(), fault
        else:
            assert content_now in (None, data.tobytes()), fault
            if isinstance(failure, CkptStoreError):
                assert content_now is None, fault
        direct.unlink(missing_ok=True)
    assert {"pwrite", "pwritev", "posix_fallocate", "ftruncate", "fsync", "fcntl"} <= set(fault.made)


def test_any_number_of_pieces_of_any_size_is_written_in_order(tmp_path: Path) -> None:
    # More than the kernel takes in one call, empty ones among them, and calls that stop anywhere.
    data = os.urandom(20_000)
    cuts = sorted({0, 20_000, *(7 * n for n in range(2500)), *range(19_000, 19_100)})
    pieces = [memoryview(data)[low:high] for low, high in pairwise(cuts)]
    pieces[5:5] = [memoryview(b"")] * 3
    pwritev = os.pwritev
    with (tmp_path / "f").open("wb") as file, pytest.MonkeyPatch.context() as patch:
        direct_io.write_all(file.fileno(), 11, pieces)
        patch.setattr(
            os, "pwritev", lambda fd, some, offset: pwritev(fd, [b"".join(some)[: 1 + offset % 900]], offset)
        )
        direct_io.write_all(file.fileno(), 30_011, pieces)
        direct_io.write_all(file.fileno(), 60_000, [memoryview(b"")])
    assert (tmp_path / "f").read_bytes() == bytes(11) + data + bytes(10_000) + data
