from __future__ import annotations

import os

import pytest

from ckptstore import errors
from ckptstore.storage.local import diagnosis
from ckptstore.storage.local.mounts import Mount
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

MEMORY = """\
CHECK               RESULT    FOUND
write               ok        an object of 35 bytes, 0 ms
clock               ok        as on the storage
create if absent    ok        a second writer is refused
read                ok        the whole and a range of it
list                ok        shows what was just written
compare and swap    ok        a stale writer is refused
conditional delete  ok        another version is spared
upload              ok        invisible until it is whole
delete              ok        nothing is left behind
several writers     ok        kept apart; the newer run wins
durable             degraded  nothing here outlives this process
memory://doctor/run: usable, with 1 limit
"""


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch):
    monkeypatch.setattr("ckptstore.storage.diagnosis._milliseconds", lambda seconds: "0 ms")


def test_golden(run):
    result = run("doctor", "memory://doctor/run")
    assert (result.code, result.out, result.err) == (0, MEMORY, "")


def test_a_local_directory(run, tmp_path, save, monkeypatch):
    save(tmp_path / "run" / "model-1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    monkeypatch.chdir(tmp_path)
    mount = Mount("/data", "ext4", "/dev/sda1")
    monkeypatch.setattr(diagnosis, "mount_of", lambda fd: mount)
    for target in ("run", "run/", "new/run", "."):
        result = run("doctor", target)
        assert (result.code, result.err) == (0, "")
        lines = result.out.splitlines()
        assert lines[0].split() == ["CHECK", "RESULT", "FOUND"]
        assert "file system          ok      ext4, mounted at /data" in lines
        assert lines[-1] == f"{target}: usable, all checks passed"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_to_do_is_told_below_the_table(run, tmp_path, monkeypatch):
    mount = Mount("/bucket-mount", "fuse.gcsfuse", "bucket")
    monkeypatch.setattr(diagnosis, "mount_of", lambda fd: mount)
    result = run("doctor", tmp_path)
    assert result.code == 0
    *_, hint, verdict = result.out.splitlines()
    assert hint == (
        "file system: Writers are not kept apart here, and a save that returned may be lost: pass gs://BUCKET/…"
    )
    # The other is that nobody knows what the mount does with the bytes.
    assert "durable              degraded  not known: fsync succeeds" in result.out
    assert verdict == f"{tmp_path}: usable, with 2 limits"


def test_json(run):
    result = run("doctor", "memory://doctor/run", "--json")
    found = result.json
    assert (result.code, result.err) == (0, "")
    assert (found["schema"], found["url"], found["backend"], found["usable"]) == (
        "ckptstore.doctor/1",
        "memory://doctor/run",
        "memory",
        True,
    )
    assert found["checks"][0] == {
        "check": "write",
        "state": "ok",
        "detail": "an object of 35 bytes, 0 ms",
        "hint": None,
        "problem": None,
    }
    assert [check["check"] for check in found["checks"]] == [
        line[:20].strip() for line in MEMORY.splitlines()[1:-1]
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.AccessError, 5),
        (errors.StorageFullError, 5),
        (errors.TransientError, 6),
        (errors.DeadlineError, 6),
        (errors.NotFoundError, 3),
        (errors.UnsupportedError, 2),
        (errors.ConflictError, 7),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_exit_code_is_that_of_what_failed(run, error, code, flags):
    class Failing(StorageWrapper):
        def intercept(self, name, keys, call):
            if name == "put_if":
                raise error("cannot replace", url=keys[0], hint="Do this.")
            return call()

    with use_wrapper(Failing):
        result = run("doctor", "memory://doctor/run", *flags)
    assert (result.code, result.err) == (code, "")
    if flags:
        (check,) = [each for each in result.json["checks"] if each["state"] == "failed"]
        assert (check["check"], check["hint"], check["problem"]["code"]) == (
            "compare and swap",
            "Do this.",
            error.code,
        )
        assert not result.json["usable"]
    else:
        assert "compare and swap  failed" in result.out
        assert result.out.splitlines()[-1] == "memory://doctor/run: not usable: compare and swap"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["nope://bucket/run"], 2),
        (["s3:/bucket/run"], 2),
        (["memory://x", "--storage-option", "unknown=1"], 2),
        (["s3://"], 2),
        ([], 2),
    ],
)
def test_usage(run, arguments, code):
    result = run("doctor", *arguments)
    assert result.code == code
    assert result.out == "" or "failed" in result.out


def test_a_file(run, tmp_path, save):
    save(tmp_path / "m")
    result = run("doctor", tmp_path / "m.index")
    assert result.code == 2
    assert "a file stands where a directory should be" in result.out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_without_permission(spawn, tmp_path):
    from subprocess import PIPE

    tmp_path.chmod(0o755)
    directory = tmp_path / "run"
    directory.mkdir(mode=0o755)
    code = """if True:
        import os, sys
        from ckptstore.cli.main import main
        main(["doctor", "memory://warm/up"])
        print("---", flush=True)
        os.setgroups([]); os.setegid(65534); os.seteuid(65534)
        sys.exit(main(["doctor", sys.argv[1]]))
    """
    process = spawn("-c", code, str(directory), stdout=PIPE, stderr=PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (5, b"")
    shown = out.decode().split("---\n")[1]
    (row,) = [line for line in shown.splitlines() if line.startswith("write ")]
    assert row.split()[1:6] == ["failed", "cannot", "write:", "Permission", "denied"]
    assert list(directory.iterdir()) == []


def test_the_prefix_of_a_checkpoint_is_not_a_directory(run, tmp_path, save):
    save(tmp_path / "model-1")
    result = run("doctor", tmp_path / "model-1")
    assert result.code == 2
    assert "this is the prefix of a checkpoint, not a directory" in result.err
    assert [path for path in tmp_path.iterdir() if "doctor" in path.name] == []


def test_a_directory_in_the_place_of_the_record(run, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    result = run("doctor", tmp_path)
    assert result.code == 2
    assert "not usable: record" in result.out
    # A directory of checkpoints may have this name.
    assert run("doctor", tmp_path / "checkpoint").code == 0


def test_reading_alone_writes_nothing(run, tmp_path, save):
    save(tmp_path / "run" / "model-1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run").chmod(0o555)
    result = run("doctor", "--read-only", tmp_path / "run")
    (tmp_path / "run").chmod(0o755)
    assert (result.code, result.err) == (0, "")
    assert "list granted, read granted" in result.out
    assert result.out.splitlines()[-1].startswith(f"{tmp_path / 'run'}: readable")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    assert run("doctor", "--read-only", tmp_path / "missing").code == 3
    found = run("doctor", "--read-only", "--json", "memory://doctor/run").json
    assert (found["read_only"], found["readable"]) == (True, False)


def test_secrets_are_not_shown(run):
    result = run(
        "doctor", "s3://bucket/run", "--json",
        *("--storage-option", "key=AKIAIOSFODNN7", "--storage-option", "secret=s3cr3ts3cr3t"),
        *("--storage-option", "endpoint_url=http://user:pa55word@example.invalid"),
    )  # fmt: skip
    assert result.code == 2
    for secret in ("s3cr3t", "pa55word", "AKIAIOSFODNN7"):
        assert secret not in result.out + result.err
