"""Refused access is reported as such: never as a missing file, and never after half of the work."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed

PRELUDE = """
import os, sys
import ckptstore.storage.retry
from ckptstore import errors
from ckptstore.storage.values import Committed
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.types import ByteRange
if os.getuid() == 0:
    # Root may do everything, so become the user nobody; after the imports, which that user may not be able
    # to read.
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
storage = LocalStorage()
place = sys.argv[1]
def outcome_of(call):
    try:
        answer = call()
    except errors.CkptStoreError as error:
        assert error.url.startswith(place), error.url
        return type(error).__name__
    return "done" if isinstance(answer, Committed) else answer
def upload(key):
    with storage.upload(key) as handle:
        handle.write(b"x")
        return handle.commit()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    # Not tmp_path: other users may not enter pytest's directory.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        for directory in path.iterdir():
            directory.chmod(0o755)


def as_nobody(place: Path, script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(place)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_read_only_directory_can_be_read_and_changes_are_refused(place: Path) -> None:
    directory = place / "run"
    LocalStorage().put_new(str(directory / "checkpoint"), b"data")
    directory.chmod(0o555)
    script = """
key = place + "/run/checkpoint"
print(storage.get(key).data.decode(), storage.head(key).size_bytes, len(list(storage.list(key))))
version = storage.head(key).version
print(storage.is_abandoned(key), storage.abort_stale_uploads(place + "/run/", 0.0))
for call in (
    lambda: storage.put_new(key + "2", b"x"),
    lambda: storage.put_new(place + "/run/new/deep/er", b"x"),
    lambda: storage.put_if(key, b"x", version),
    lambda: upload(key + "2"),
    lambda: storage.delete_if(key, version),
    lambda: storage.delete_many([key]),
):
    print(outcome_of(call))
"""
    assert as_nobody(place, script) == ["data", "4", "1", "False", "0"] + ["AccessError"] * 6
    assert [path.name for path in directory.iterdir()] == ["checkpoint"]


def test_a_directory_that_may_not_be_entered_is_not_an_empty_one(place: Path) -> None:
    directory = place / "run"
    LocalStorage().put_new(str(directory / "checkpoint"), b"data")
    script = """
for key in (place + "/run/checkpoint", place + "/run/absent"):
    for call in (
        lambda: storage.get(key),
        lambda: storage.read_into(key, [ByteRange(0, 1)], [memoryview(bytearray(1))]),
        lambda: storage.head(key),
        lambda: list(storage.list(key)),
        lambda: storage.abort_stale_uploads(key, 0.0),
        lambda: storage.put_new(key, b"x"),
        lambda: storage.put_if(key, b"x", "1:2:3:4"),
        lambda: storage.delete_if(key, "1:2:3:4"),
        lambda: storage.delete_many([key]),
    ):
        print(outcome_of(call))
print(storage.is_abandoned(place + "/run/checkpoint"))
"""
    directory.chmod(0o000)
    assert as_nobody(place, script) == ["AccessError"] * 18 + ["False"]


def test_what_may_be_opened_by_name_need_not_be_listed(place: Path) -> None:
    directory = place / "run"
    LocalStorage().put_new(str(directory / "checkpoint"), b"data")
    script = """
print(storage.get(place + "/run/checkpoint").data.decode())
print(outcome_of(lambda: storage.get(place + "/run/absent")))
print(outcome_of(lambda: list(storage.list(place + "/run/"))))
"""
    directory.chmod(0o711)
    assert as_nobody(place, script) == ["data", "NotFoundError", "AccessError"]


def test_a_file_that_may_not_be_read_is_not_a_missing_one(place: Path) -> None:
    LocalStorage().put_new(str(place / "checkpoint"), b"data")
    (place / "checkpoint").chmod(0o000)
    script = """
print(outcome_of(lambda: storage.get(place + "/checkpoint")), storage.head(place + "/checkpoint").size_bytes)
"""
    assert as_nobody(place, script) == ["AccessError", "4"]
    (place / "checkpoint").chmod(0o755)


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of two users")
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["shared", "sticky"])
def test_two_users_share_the_lock_of_a_directory(place: Path, mode: int) -> None:
    # In a sticky directory Linux refuses to open the lock file of another user for creation.
    directory = place / "run"
    storage = LocalStorage()
    outcome = storage.put_new(str(directory / "checkpoint"), b"one")
    assert isinstance(outcome, Committed)
    directory.chmod(mode)
    assert isinstance(storage.put_if(str(directory / "checkpoint"), b"two", outcome.version), Committed)
    script = """
key = place + "/run/theirs"
print(outcome_of(lambda: storage.put_new(key, b"one")))
print(outcome_of(lambda: storage.put_if(key, b"two", storage.head(key).version)))
print(outcome_of(lambda: storage.delete_if(key, storage.head(key).version)))
"""
    assert as_nobody(place, script) == ["done", "done", "True"]


@pytest.mark.parametrize(
    ("directory_mode", "lock_mode"),
    [(0o755, 0o600), (0o700, 0o600), (0o775, 0o660), (0o777, 0o666), (0o1777, 0o666), (0o757, 0o606)],
)
def test_only_who_may_write_to_the_directory_may_lock_it(
    place: Path, directory_mode: int, lock_mode: int
) -> None:
    directory = place / "run"
    directory.mkdir()
    directory.chmod(directory_mode)
    storage = LocalStorage()
    # One that an earlier release has made is corrected.
    (directory / LOCK_NAME).touch(0o644)
    first = storage.put_new(str(directory / "f"), b"1")
    assert isinstance(first, Committed)
    assert isinstance(storage.put_if(str(directory / "f"), b"2", first.version), Committed)
    assert stat.S_IMODE((directory / LOCK_NAME).stat().st_mode) == lock_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_reader_cannot_stop_the_savers(place: Path) -> None:
    directory = place / "run"
    directory.mkdir()
    directory.chmod(0o755)
    storage = LocalStorage()
    first = storage.put_new(str(directory / "f"), b"1")
    assert isinstance(first, Committed)
    second = storage.put_if(str(directory / "f"), b"2", first.version)
    assert isinstance(second, Committed)
    lines = as_nobody(
        place,
        f"""
try:
    os.open(place + "/run/{LOCK_NAME}", os.O_RDONLY)
except PermissionError:
    print("refused")
print(storage.get(place + "/run/f").data)
""",
    )
    assert lines == ["refused", "b'2'"]
