"""Saves in the background when the interpreter exits: they finish, and never block the exit without end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.saving import at_exit
from tests.lifecycle.child import Child, run


@pytest.fixture
def stuck_server() -> Iterator[str]:
    """The address of a server that takes connections and answers nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                taken.append(listener.accept()[0])

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    for connection in taken:
        connection.close()


def environment_of(url: str) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize("snapshot", ["True", "False"])
@pytest.mark.parametrize("primitive", ["upload", "upload.commit", "put_new"])
def test_what_is_in_flight_finishes(primitive: str, snapshot: str, tmp_path: Path) -> None:
    run(
        f"""
        hold({primitive!r}, 0.5)
        handle = ck.Saver().save_async(W, sys.argv[1] + "/m", 1, snapshot={snapshot})
        """,
        str(tmp_path),
    )
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")
    assert ck.load_variable(tmp_path / "m-1", "b").tolist() == [0, 1, 2, 3, 4]


def test_those_that_wait_finish_too(tmp_path: Path) -> None:
    run(
        """
        hold("upload", 0.2)
        saver = ck.Saver()
        for step in (1, 2, 3):
            saver.save_async(W, sys.argv[1] + "/m", step, snapshot=False)
        """,
        str(tmp_path),
    )
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-3")


def test_many_parts_are_sent_by_threads_begun_while_it_exits(tmp_path: Path) -> None:
    run(
        """
        hold("upload", 0.5)
        big = {f"w{number}": np.full(3_000_000, float(number)) for number in range(4)}
        ck.Saver().save_async(big, sys.argv[1] + "/m")
        """,
        str(tmp_path),
    )
    assert ck.load_variable(tmp_path / "m", "w3")[-1] == 3


def test_an_uncaught_exception_does_not_lose_it(tmp_path: Path) -> None:
    code, _, err = Child(
        """
        hold("upload", 0.5)
        ck.Saver().save_async(W, sys.argv[1] + "/m", 1)
        raise ZeroDivisionError
        """,
        str(tmp_path),
    ).end()
    assert code == 1
    assert "ZeroDivisionError" in err
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_one_begun_by_an_exit_handler_finishes(tmp_path: Path) -> None:
    run(
        """
        import atexit
        saver = ck.Saver()
        atexit.register(lambda: saver.save_async(W, sys.argv[1] + "/m", 1))
        hold("upload", 0.3)
        """,
        str(tmp_path),
    )
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_an_unreported_failure_is_printed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, err = run(
        """
        hold("upload", 0.3)
        saver = ck.Saver()
        handle = saver.save_async(W, sys.argv[1] + "/file/m", 1)
        """,
        str(tmp_path),
    )
    assert "its result was never asked for" in err
    assert f"{tmp_path}/file" in err


def test_a_save_to_a_stuck_server_ends_with_its_deadline(stuck_server: str) -> None:
    _, err = run(
        """
        saver = ck.Saver(deadline_s=1)
        handle = saver.save_async(W, "s3://bucket/run/m", 1)
        """,
        environment=environment_of(stuck_server),
    )
    assert "its result was never asked for" in err


def test_a_save_to_a_stuck_server_is_given_up(stuck_server: str) -> None:
    _, err = run(
        """
        at_exit.EXIT_STALL_S = 1
        ck.Saver().save_async(W, "s3://bucket/run/m", 1)
        """,
        environment=environment_of(stuck_server),
    )
    assert "the interpreter ended before this checkpoint was saved: s3://bucket/run/m-1" in err


def test_cancel_drops_the_request_under_way(stuck_server: str) -> None:
    run(
        """
        saver = ck.Saver()
        handle = saver.save_async(W, "s3://bucket/run/m", 1)
        threading.Event().wait(1.0)  # in the middle of its first request
        assert handle.cancel()
        try:
            handle.result(60)
        except ck.SaveCancelledError:
            pass
        else:
            raise AssertionError("not cancelled")
        saver.close()
        """,
        environment=environment_of(stuck_server),
    )


def test_a_call_that_never_returns_does_not_block_the_exit(tmp_path: Path) -> None:
    _, err = run(
        """
        at_exit.EXIT_STALL_S = at_exit.CLEAN_UP_S = 0.5
        hold("upload")
        ck.Saver().save_async(W, sys.argv[1] + "/m", 1)
        """,
        str(tmp_path),
    )
    assert f"the interpreter ended before this checkpoint was saved: {tmp_path}/m-1" in err


def test_one_that_is_being_published_is_named_as_such(tmp_path: Path) -> None:
    _, err = run(
        """
        at_exit.EXIT_STALL_S = at_exit.CLEAN_UP_S = 0.5
        class HeldIndex(Held):
            def intercept(self, primitive, keys, call):
                return super().intercept(primitive, keys, call) if ".index" in keys[0] else call()
        wrap(lambda inner: HeldIndex(inner, "put_new", None))
        ck.Saver().save_async(W, sys.argv[1] + "/m", 1)
        """,
        str(tmp_path),
    )
    assert f"while this checkpoint was being published: {tmp_path}/m-1" in err


def test_the_deadline_as_a_whole_bounds_a_save_that_crawls(tmp_path: Path) -> None:
    _, err = run(
        """
        at_exit.EXIT_DEADLINE_S = 1
        hold("upload.send", 0.4)
        big = {f"w{number}": np.ones(1 << 20) for number in range(40)}
        ck.Saver().save_async(big, sys.argv[1] + "/m", 1)
        """,
        str(tmp_path),
    )
    assert f"before this checkpoint was saved: {tmp_path}/m-1" in err
    assert [path.name for path in tmp_path.iterdir() if "m-1" in path.name] == []


def test_the_usual_bounds_are_within_what_a_scheduler_gives() -> None:
    assert at_exit.EXIT_STALL_S + at_exit.CLEAN_UP_S < 30


def test_a_save_to_minio_by_name_finishes(minio: object) -> None:
    bucket = minio.make_bucket()  # type: ignore[attr-defined]
    environment = dict(minio.environment)  # type: ignore[attr-defined]
    # A name has to be looked up, which asyncio does in a pool that takes no work at this time.
    environment = {name: value.replace("127.0.0.1", "localhost") for name, value in environment.items()}
    _, err = run(
        """
        hold("upload", 1.0)
        big = {f"w{number}": np.full(3_000_000, float(number)) for number in range(4)}
        ck.Saver().save_async(big, sys.argv[1] + "/m", 1)
        """,
        f"s3://{bucket}/run",
        environment=environment,
    )
    assert "run/m-1.index" in minio.keys(bucket), err  # type: ignore[attr-defined]
