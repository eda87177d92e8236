from __future__ import annotations

import os
import shutil
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest

import ckptstore as ck
from ckptstore import errors
from ckptstore.cli import gc as gc_module
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

NOW_S = 1_795_000_000.0


@pytest.fixture
def directory(tmp_path, save, monkeypatch):
    """A checkpoint, and one of each that may go: old and young."""
    run = tmp_path / "run"
    save(run / "model-1")
    (run / "checkpoint").write_text('model_checkpoint_path: "model-1"\n')
    sizes = {
        "model-1.data-00000-of-00007": (12 * 1024, 4 * 86400),
        "model-9.data-00000-of-00001": (3 << 19, 3 * 86400),
        "model-9.meta": (200, 3 * 86400),
        "checkpoint.tmp" + "0" * 32: (8, 2 * 86400),
        "model-10.data-00000-of-00001": (1000, 3600),
        "exported.meta": (5, 9 * 86400),
        "torn.index": (10, 9 * 86400),
        "torn.data-00000-of-00001": (10, 9 * 86400),
        "torn.data-00000-of-00002": (10, 9 * 86400),
    }
    for name, (size, age_s) in sizes.items():
        (run / name).write_bytes(b"x" * size)
        os.utime(run / name, (NOW_S - age_s, NOW_S - age_s))
    monkeypatch.setattr("ckptstore.storage.abilities.time.time", lambda: NOW_S)
    monkeypatch.chdir(tmp_path)
    return run


GOLDEN = f"""\
FILE                                            WHY              SIZE  AGE
checkpoint.tmp{"0" * 32}  temporary         8 B  2 d
model-1.data-00000-of-00007                     replaced     12.0 KiB  4 d
model-9.data-00000-of-00001                     unpublished   1.5 MiB  3 d
model-9.meta                                    unpublished     200 B  3 d
"""

LEFT_ALONE = """\
kept: torn: the index names no data file, or cannot be read [run/torn.index]. \
ckptstore verify shows what is wrong with it.
kept: exported.meta: a graph that may have been exported by itself
kept, because younger than 1 d: 1 file, 1000 B
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".ckptstore.lock")


def test_golden(run, directory):
    before = names(directory)
    result = run("gc", "run")
    assert (result.code, result.err) == (0, "")
    assert result.out == GOLDEN + LEFT_ALONE + "removed 4 files, 1.5 MiB\n"
    gone = {line.split()[0] for line in GOLDEN.splitlines()[1:]}
    assert names(directory) == [name for name in before if name not in gone]
    result = run("gc", "run")
    assert result.out == LEFT_ALONE + "nothing to remove in run\n"


def test_dry_run(run, directory):
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.iterdir()}
    result = run("gc", "run", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out == (GOLDEN + LEFT_ALONE + "would remove 4 files, 1.5 MiB (dry run)\n")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.iterdir()} == before


@pytest.mark.parametrize("target", ["run/", "run/checkpoint", "./run"])
def test_the_directory_in_other_words(run, directory, target):
    assert run("gc", target, "--dry-run").out.startswith(GOLDEN)


def test_json(run, directory):
    result = run("gc", "run", "--json")
    found = result.json
    assert (result.code, result.err) == (0, "")
    assert found == {
        "schema": "ckptstore.gc/1",
        "directory": "run",
        "dry_run": False,
        "min_age_s": 86400.0,
        "files": found["files"],
        "files_removed": 4,
        "bytes_removed": 8 + 12 * 1024 + (3 << 19) + 200,
        "uploads": [],
        "uploads_dropped": 0,
        "young": [
            {
                "name": "model-10.data-00000-of-00001",
                "reason": "unpublished",
                "size_bytes": 1000,
                "mtime_s": NOW_S - 3600,
                "age_s": 3600.0,
            }
        ],
        "pending": [],
        "in_use": [],
        "graphs": ["exported.meta"],
        "pinned": [],
        "unreadable": [{"prefix": "torn", "problem": found["unreadable"][0]["problem"]}],
    }
    assert [file["name"] for file in found["files"]] == [line.split()[0] for line in GOLDEN.splitlines()[1:]]
    assert found["files"][3] == {
        "name": "model-9.meta",
        "reason": "unpublished",
        "size_bytes": 200,
        "mtime_s": NOW_S - 3 * 86400,
        "age_s": 3 * 86400.0,
        "removed": True,
    }
    assert found["unreadable"][0]["problem"]["code"] == "corrupt"


def test_json_of_a_dry_run(run, directory):
    found = run("gc", "run", "--dry-run", "--json").json
    assert (found["dry_run"], found["files_removed"], found["uploads_dropped"]) == (True, 0, None)
    assert [file["removed"] for file in found["files"]] == [False] * 4


@pytest.mark.parametrize(
    ("age", "gone"),
    [
        ("0s", ["model-10", "model-9"]),
        ("59m", ["model-10", "model-9"]),
        ("61m", ["model-9"]),
        ("3601s", ["model-9"]),
        ("2d", ["model-9"]),
        ("80h", []),
        ("4d", []),
    ],
)
def test_ages(run, directory, age, gone):
    files = run("gc", "run", "--dry-run", "--min-age", age, "--json").json["files"]
    assert [
        f["name"].split(".")[0] for f in files if ".data" in f["name"] and "model-1." not in f["name"]
    ] == gone


@pytest.mark.parametrize(
    "age", ["", "24", "h", "-1h", "1.5h", "1w", "1h30m", " 1h", "24H", "1e3s", "٣h", "0"]
)
def test_what_is_no_age(run, directory, age):
    before = names(directory)
    result = run("gc", "run", "--min-age", age)
    assert (result.code, result.out) == (2, "")
    assert "is not an age" in result.err or "--min-age" in result.err
    assert names(directory) == before


def test_nothing_to_remove(run, tmp_path, save):
    save(tmp_path / "model-1")
    result = run("gc", tmp_path)
    assert (result.code, result.out, result.err) == (0, f"nothing to remove in {tmp_path}\n", "")


def test_without_a_terminal_nobody_is_asked(run, directory, monkeypatch):
    monkeypatch.setattr("click.confirm", lambda *args, **options: pytest.fail("asked"))
    assert run("gc", "run").code == 0


@pytest.fixture
def watched(monkeypatch):
    """Somebody sits at the terminal, and answers what the test says."""
    asked = []
    answers: list[Any] = []

    def confirm(question, **options):
        assert options == {"err": True}
        asked.append(question)
        answer = answers.pop()
        return answer() if callable(answer) else answer

    monkeypatch.setattr("ckptstore.cli.gc.is_interactive", lambda: True)
    monkeypatch.setattr("click.confirm", confirm)
    return asked, answers


def test_a_person_is_asked(run, directory, watched):
    asked, answers = watched
    before = names(directory)
    answers.append(False)
    result = run("gc", "run")
    assert (result.code, result.err) == (0, "ckptstore: nothing was removed\n")
    assert asked == ["Remove 4 files, 1.5 MiB, from run?"]
    assert names(directory) == before
    answers.append(True)
    assert "removed 4 files" in run("gc", "run").out


@pytest.mark.parametrize("flags", [["--yes"], ["--dry-run"]])
def test_a_person_who_said_so_is_not_asked(run, directory, watched, flags):
    assert run("gc", "run", *flags).code == 0
    assert watched[0] == []


def test_nothing_is_asked_about_nothing(run, tmp_path, save, watched):
    save(tmp_path / "model-1")
    assert run("gc", tmp_path).code == 0
    assert watched[0] == []


def test_what_happened_before_the_answer_counts(run, directory, watched, save):
    def publish():
        # While the person thought, the save went on and published.
        save(directory / "model-9x")
        shutil.move(directory / "model-9x.index", directory / "model-9.index")
        shutil.move(directory / "model-9x.data-00000-of-00001", directory / "model-9.data-00000-of-00001")
        return True

    watched[1].append(publish)
    run("gc", "run")
    assert {"model-9.data-00000-of-00001", "model-9.index", "model-9.meta"} <= set(names(directory))


def test_other_records(run, directory):
    line = '# ckptstore 1\n# pending "model-9" version="v" shards="00000-of-00001"\n'
    (directory / "best").write_text(line + 'model_checkpoint_path: "b"\n')
    found = run("gc", "run", "--record", "best", "--dry-run", "--json").json
    assert found["pending"] == ["model-9.data-00000-of-00001", "model-9.meta"]
    assert "model-9.meta" not in [file["name"] for file in found["files"]]
    result = run("gc", "run", "--record", "bset")
    assert (result.code, result.out) == (3, "")
    assert "there is no such record" in result.err
    assert run("gc", "run", "--record", "a/b").code == 2


def test_a_record_that_cannot_be_read(run, directory):
    (directory / "checkpoint").write_bytes(b"\xff")
    before = names(directory)
    result = run("gc", "run")
    assert (result.code, result.out) == (4, "")
    assert "ckptstore repair" in result.err
    assert names(directory) == before


@pytest.mark.parametrize(("target", "code"), [("nowhere", 3), ("run/model-1.index", 2), ("run/model-1", 2)])
def test_no_directory(run, directory, target, code):
    result = run("gc", target)
    assert (result.code, result.out) == (code, "")


class Denied(StorageWrapper):
    def intercept(self, primitive, keys, call):
        if primitive == "delete_many":
            raise errors.AccessError("cannot delete", url=keys[0], hint="Check the permissions.")
        return call()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_deleting_is_denied(run, directory, flags):
    with use_wrapper(Denied):
        result = run("gc", "run", *flags)
    assert result.code == 5
    assert "cannot delete" in result.err
    if flags:
        assert [file["removed"] for file in result.json["files"]] == [False, False, False, True]
    else:
        assert "3 files could not be removed" in result.out


def test_one_index_that_cannot_be_read_hinders_no_other(run, directory):
    class Locked(StorageWrapper):
        def intercept(self, primitive, keys, call):
            if primitive == "get" and keys[0].endswith("model-9.index"):
                raise errors.TransientError("cannot read", url=keys[0])
            return call()

    with use_wrapper(Locked):
        result = run("gc", "run")
        assert result.code == 6
        assert "removed 2 files" in result.out
        assert run("gc", "run", "--dry-run").code == 6


def test_unfinished_uploads_of_a_directory_that_holds_nothing_else(run):
    storage = locate("memory://uploads-only").storage
    upload = storage.upload("/uploads-only/run/model-1.data-00000-of-00001")
    assert run("gc", "memory://uploads-only/run", "--dry-run").code == 3
    upload.close()
    shown = run("gc", "memory://uploads-only/run", "--dry-run")
    assert shown.code == 0
    assert "model-1.data-00000-of-00001  unfinished" in shown.out
    assert shown.out.endswith("would remove 1 unfinished upload, 0 B (dry run)\n")
    result = run("gc", "memory://uploads-only/run", "--min-age", "0s")
    assert result.code == 0
    assert result.out.endswith("\ndropped 1 unfinished upload\n")
    assert run("gc", "memory://uploads-only/run", "--min-age", "0s").code == 3


def test_a_run_that_goes_on_afterwards(run, tmp_path):
    saver = ck.Saver(max_to_keep=2)
    for step in range(4):
        saver.save({"w": [step]}, f"{tmp_path}/model", step)
        saver.save({"w": [step]}, f"{tmp_path}/model", step)
        assert run("gc", tmp_path, "--min-age", "0s").code == 0
    saver.save({"w": [9]}, f"{tmp_path}/model", 9)
    assert run("verify", tmp_path).code == 0
    assert run("ls", tmp_path).out.count("complete") == 2


def test_in_a_process_of_its_own(spawn, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "model-2.data-00000-of-00001").write_bytes(b"x")
    process = spawn(
        "-m", "ckptstore", "gc", str(tmp_path), "--min-age", "0s", stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert b"removed 1 file, 1 B" in out


class TestUnfinishedFiles:
    """What a killed save left under a temporary name; no listing shows it."""

    NAME = f"model-3.data-00000-of-00001.tmp-{'a' * 8}-{'b' * 16}"

    @pytest.fixture
    def leftover(self, directory):
        path = directory / self.NAME
        path.write_bytes(bytes(3 << 20))
        os.utime(path, (NOW_S - 2 * 86400,) * 2)
        return path

    def test_ls_shows_it(self, run, leftover):
        line = f"unfinished upload: {self.NAME}, 3.0 MiB, 2 d old: a save is running, or died"
        assert line in run("ls", "run").out
        assert run("ls", "run", "--json").json["unfinished_uploads"] == [
            {"name": self.NAME, "size_bytes": 3 << 20, "age_s": 2 * 86400.0}
        ]

    def test_a_dry_run_shows_it_with_its_size_and_age(self, run, leftover):
        result = run("gc", "run", "--dry-run")
        (row,) = [line for line in result.out.splitlines() if line.startswith(self.NAME)]
        assert row.split()[1:] == ["unfinished", "3.0", "MiB", "2", "d"]
        assert result.out.endswith(
            "would remove 4 files, 1.5 MiB, and 1 unfinished upload, 3.0 MiB (dry run)\n"
        )
        assert leftover.exists()
        (found,) = run("gc", "run", "--dry-run", "--json").json["uploads"]
        assert (found["name"], found["reason"], found["size_bytes"]) == (self.NAME, "unfinished", 3 << 20)

    @pytest.mark.parametrize("answer", [False, True])
    def test_it_is_dropped_only_after_the_question(self, run, leftover, monkeypatch, answer):
        for path in leftover.parent.iterdir():
            if path != leftover:
                path.unlink()
        asked = []

        def confirm(question, **options):
            asked.append(question)
            return answer

        monkeypatch.setattr(gc_module, "is_interactive", lambda: True)
        monkeypatch.setattr("click.confirm", confirm)
        result = run("gc", "run")
        assert result.code == 0
        assert asked == ["Remove 1 unfinished upload, 3.0 MiB, from run?"]
        assert leftover.exists() != answer
        assert ("dropped 1 unfinished upload" in result.out) == answer
