"""Ctrl-C: a save or a restore in the foreground is given up cleanly, a save in the background goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore as ck
from tests.lifecycle.child import Child


def names_in(directory: Path) -> list[str]:
    if not directory.exists():
        return []
    return sorted(path.name for path in directory.iterdir() if path.name != ".ckptstore.lock")


def interrupted(program: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    child = Child(program, *arguments, environment=environment)
    child.signal_when_ready()
    code, _, err = child.end()
    assert code == 0, err


# In the thread that is interrupted itself, and in those that work for it.
BIG = "{f'w{number}': np.full(1 << 20, float(number)) for number in range(40)}"


@pytest.mark.parametrize("primitive", ["upload", "upload.send", "upload.commit"])
def test_in_a_save_nothing_stays_and_nothing_runs(primitive: str, tmp_path: Path) -> None:
    interrupted(
        f"""
        hold_for_signal({primitive!r}, 0.5)
        big = {BIG}
        saver = ck.Saver()
        soon_ready(reached.wait)
        try:
            saver.save(big, sys.argv[1] + "/run/m", 1)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        assert quiet() == [], quiet()
        assert left(sys.argv[1] + "/run") == [], left(sys.argv[1] + "/run")
        blocks.clear()
        saver.save(big, sys.argv[1] + "/run/m", 2)
        """,
        str(tmp_path),
    )
    assert ck.latest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "m-2")
    assert {name.split(".")[0] for name in names_in(tmp_path / "run")} == {"checkpoint", "m-2"}


def test_in_result_the_save_goes_on(tmp_path: Path) -> None:
    interrupted(
        """
        hold_for_signal("upload", 1.0)
        saver = ck.Saver()
        handle = saver.save_async(W, sys.argv[1] + "/m", 1)
        soon_ready()
        try:
            handle.result()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        assert not handle.committed
        assert handle.result() == sys.argv[1] + "/m-1"
        saver.close()
        """,
        str(tmp_path),
    )
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_in_a_save_that_waits_for_another_the_other_goes_on(tmp_path: Path) -> None:
    interrupted(
        """
        hold_for_signal("upload", 1.0)
        saver = ck.Saver()
        handle = saver.save_async(W, sys.argv[1] + "/m", 1)
        soon_ready()
        try:
            saver.save(W, sys.argv[1] + "/m", 2)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        handle.result()
        saver.close()
        """,
        str(tmp_path),
    )
    assert {name.split(".")[0] for name in names_in(tmp_path)} == {"checkpoint", "m-1"}


def test_while_the_arrays_are_copied_nothing_stays(tmp_path: Path) -> None:
    interrupted(
        f"""
        hold_for_signal("upload.send", 0.5)
        big = {BIG}
        saver = ck.Saver(memory_budget=16 << 20)
        soon_ready(reached.wait)
        try:
            saver.save_async(big, sys.argv[1] + "/run/m", 1)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        assert left(sys.argv[1] + "/run") == [], left(sys.argv[1] + "/run")
        saver.close()  # what the caller interrupted is not reported again
        assert quiet() == [], quiet()
        """,
        str(tmp_path),
    )


def test_in_a_save_to_minio_no_upload_stays(minio: object) -> None:
    bucket = minio.make_bucket()  # type: ignore[attr-defined]
    interrupted(
        f"""
        hold_for_signal("upload.send", 0.5)
        big = {BIG}
        saver = ck.Saver()
        soon_ready(reached.wait)
        try:
            saver.save(big, sys.argv[1] + "/m", 1)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        assert [name for name in quiet() if name != "ckptstore-requests"] == [], quiet()
        """,
        f"s3://{bucket}/run",
        environment=minio.environment,  # type: ignore[attr-defined]
    )
    assert minio.uploads(bucket) == []  # type: ignore[attr-defined]
    assert minio.keys(bucket) == []  # type: ignore[attr-defined]


def test_in_a_restore_nothing_runs_and_nothing_is_written_into_the_arrays(tmp_path: Path) -> None:
    interrupted(
        f"""
        big = {BIG}
        ck.Saver().save(big, sys.argv[1] + "/run/m", 1)
        hold_for_signal("read_into", 0.5)
        soon_ready(reached.wait)
        try:
            ck.Saver().restore(big, sys.argv[1] + "/run/m-1")
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        for array in big.values():
            array[:] = -1
        assert quiet() == [], quiet()
        assert all((array == -1).all() for array in big.values())
        blocks.clear()
        ck.Saver().restore(big, sys.argv[1] + "/run/m-1")
        assert all((big[f"w{{number}}"] == number).all() for number in range(40))
        """,
        str(tmp_path),
    )


def test_in_a_restore_from_minio_nothing_runs(minio: object) -> None:
    bucket = minio.make_bucket()  # type: ignore[attr-defined]
    interrupted(
        f"""
        big = {BIG}
        ck.Saver().save(big, sys.argv[1], 1)
        hold_for_signal("read_into", 0.5)
        soon_ready(reached.wait)
        try:
            ck.Saver().restore({{}}, sys.argv[1] + "-1")
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        assert [name for name in quiet() if name != "ckptstore-requests"] == []
        blocks.clear()
        ck.Saver().restore(big, sys.argv[1] + "-1")
        """,
        f"s3://{bucket}/run/m",
        environment=minio.environment,  # type: ignore[attr-defined]
    )
