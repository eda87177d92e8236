"""SIGTERM, and a handler that runs `sys.exit`, while a save is in the background: it ends by itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from tests.lifecycle.child import Child, run

# 64 MiB. Where the main thread is when the signal comes is the first argument.
PROGRAM = """
where, url, deadline_s = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))
big = {f"w{number}": np.full(1 << 20, float(number)) for number in range(16)}
saver = ck.Saver(deadline_s=float(deadline_s) or None)
handle = saver.save_async(big, url + "/m", 1)
if where == "asleep":
    ready()
    asleep()
elif where == "waiting for it":
    soon_ready()
    handle.result()
    asleep()
elif where == "saving again":
    soon_ready()
    saver.save(big, url + "/m", 2)
    asleep()
"""
WHERE = ["asleep", "waiting for it", "saving again"]


def terminated(where: str, url: str, deadline_s: float, environment: dict[str, str] | None = None) -> str:
    """Return what the program printed as errors; it came to its end without help."""
    child = Child(PROGRAM, where, url, str(deadline_s), environment=environment)
    child.signal_when_ready(signal.SIGTERM)
    code, _, err = child.end()
    assert code == 7, err
    return err


@contextmanager
def slow(minio: Any, toxiproxy: Any, kib_per_s: int) -> Iterator[dict[str, str]]:
    """The environment of a program that sends so much on each connection."""
    with (
        toxiproxy.proxy(minio.process.port) as proxy,
        proxy.toxic("bandwidth", stream="upstream", rate=kib_per_s),
    ):
        yield minio.through(proxy.url).environment


@pytest.mark.parametrize("where", WHERE)
def test_on_a_local_disk_the_save_is_there(where: str, tmp_path: Path) -> None:
    assert terminated(where, str(tmp_path), 0) == ""
    assert ck.load_variable(tmp_path / "m-1", "w15")[-1] == 15


@pytest.mark.parametrize("where", WHERE)
def test_on_minio_the_save_is_there(where: str, minio: Any, toxiproxy: Any) -> None:
    bucket = minio.make_bucket()
    with slow(minio, toxiproxy, 4000) as environment:
        assert terminated(where, f"s3://{bucket}/run", 0, environment) == ""
    assert "run/m-1.index" in minio.keys(bucket)


@pytest.mark.parametrize("where", WHERE)
def test_on_minio_it_ends_with_the_deadline_of_the_save(where: str, minio: Any, toxiproxy: Any) -> None:
    bucket = minio.make_bucket()
    with slow(minio, toxiproxy, 50) as environment:
        err = terminated(where, f"s3://{bucket}/run", 5, environment)
    assert "its result was never asked for" in err
    assert "an end within 5 s" in err
    assert minio.keys(bucket) == []
    assert minio.uploads(bucket) == []


# An exception of a handler in `Condition.__enter__`, which is Python, leaves the lock taken for ever, and the
# threads that save wait for it. `with lock:` has no such moment.
HOLES = """
seen = []

def note(frame, event, argument):
    code = frame.f_code
    if event != "call":
        return
    caller = frame.f_back.f_code.co_filename
    is_ours = f"{os.sep}ckptstore{os.sep}" in caller
    if is_ours and code.co_name == "__enter__" and code.co_filename == threading.__file__:
        seen.append((caller, frame.f_back.f_lineno))

url = sys.argv[1]
saver = ck.Saver()
saver.save(W, url + "/m", 1)
sys.setprofile(note)
for step in range(2, 6):
    saver.save(W, url + "/m", step)
    ck.latest_checkpoint(url)
    saver.save_async(W, url + "/m", 10 + step).result()
    saver.save_async(W, url + "/m", 20 + step).cancel()
    saver.close()
sys.setprofile(None)
assert seen == [], sorted(set(seen))
"""


@pytest.mark.parametrize("where", ["local", "minio"])
def test_an_exception_of_a_handler_leaves_no_lock_taken(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "local":
        run(HOLES, str(tmp_path))
    else:
        minio = request.getfixturevalue("minio")
        run(HOLES, f"s3://{minio.make_bucket()}/run", environment=minio.environment)
