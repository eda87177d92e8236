"""Forked children: what is in flight stays the parent's, and a Saver of the child works by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore as ck
from tests.lifecycle.child import run

# Forks in the middle of a save, and goes on in the child with what `in_child` does.
FORK = """
def in_child():
{body}

hold("upload", 1.0)
saver = ck.Saver(queue={queue!r})
handle = saver.save_async(W, sys.argv[1] + "/m", 1)
assert reached.wait(60)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        in_child()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
assert handle.result() == sys.argv[1] + "/m-1"
saver.close()
"""


def fork(body: str, directory: Path, queue: str = "wait") -> None:
    import textwrap

    run(FORK.format(body=textwrap.indent(textwrap.dedent(body), "    "), queue=queue), str(directory))
    assert ck.load_variable(directory / "m-1", "b").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "call",
    ["handle.result()", "handle.result(0)", "handle.wait_staged()", "handle.cancel()",
     "handle.add_done_callback(print)"],
)  # fmt: skip
def test_a_handle_in_the_child_says_whose_it_is(call: str, tmp_path: Path) -> None:
    fork(
        f"""
        try:
            {call}
        except ck.UsageError as error:
            assert "forked child" in str(error), error
        else:
            raise AssertionError("nothing was raised")
        assert not handle.committed
        assert "parent" in repr(handle)
        """,
        tmp_path,
    )


@pytest.mark.parametrize("queue", ["wait", "skip", "refuse"])
def test_the_saver_works_in_the_child_by_itself(queue: str, tmp_path: Path) -> None:
    fork(
        """
        blocks.clear()  # no more doors
        saver.save(W, sys.argv[1] + "/child/m", 2)
        assert saver.save_async(W, sys.argv[1] + "/child/m", 3).result() == sys.argv[1] + "/child/m-3"
        saver.close()
        assert quiet() == [], quiet()
        """,
        tmp_path,
        queue,
    )
    assert ck.latest_checkpoint(tmp_path / "child") == str(tmp_path / "child" / "m-3")


def test_the_child_ends_without_waiting_for_the_parents_save(tmp_path: Path) -> None:
    run(
        """
        hold("upload")
        handle = ck.Saver().save_async(W, sys.argv[1] + "/m", 1)
        assert reached.wait(60)
        pid = os.fork()
        if pid == 0:
            sys.exit(0)  # exit handlers run
        assert os.waitpid(pid, 0)[1] == 0
        assert not handle.committed
        os._exit(0)
        """,
        str(tmp_path),
    )


def test_a_failure_of_the_parent_is_reported_in_the_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run(
        """
        saver = ck.Saver()
        handle = saver.save_async(W, sys.argv[1] + "/file/m", 1)
        over = threading.Event()
        handle.add_done_callback(lambda _: over.set())
        assert over.wait(60)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                saver.save(W, sys.argv[1] + "/child/m", 1)
                try:
                    handle.result()
                except ck.UsageError as error:
                    code = 0 if "file" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        try:
            saver.close()
        except ck.UsageError:
            pass
        else:
            raise AssertionError("the failure was lost")
        """,
        str(tmp_path),
    )
