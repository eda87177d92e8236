"""The source archive is the whole project: its own tests pass in it."""

from __future__ import annotations

import sys
import tarfile

import pytest

from tests.dist.archives import names_in_sdist, run, sdist, tracked_files


def test_the_archive_holds_every_tracked_file_and_nothing_else():
    assert names_in_sdist() == tracked_files() | {"PKG-INFO"}


@pytest.mark.timeout(600)
def test_its_tests_pass_in_the_unpacked_archive(tmp_path):
    with tarfile.open(sdist()) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    where = run(
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, ''); import ckptstore; print(ckptstore.__file__)",
        cwd=unpacked,
    )
    assert where.strip() == str(unpacked / "ckptstore" / "__init__.py")
    printed = run(
        *(sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider"),
        *("tests/meta", "tests/unit/format"),
        cwd=unpacked,
        timeout=540,
    )
    assert " passed" in printed
