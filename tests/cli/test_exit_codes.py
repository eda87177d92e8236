"""Scripts rely on these numbers."""

from __future__ import annotations

import numpy as np
import pytest

from ckptstore import errors
from ckptstore.cli.exit_codes import exit_code_of
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.UnsupportedError, 2),
        (errors.NotFoundError, 3),
        (errors.TensorNotFoundError, 3),
        (errors.CorruptError, 4),
        (errors.FormatError, 4),
        (errors.TruncatedFileError, 4),
        (errors.ChecksumError, 4),
        (errors.IncompleteBundleError, 4),
        (errors.AccessError, 5),
        (errors.StorageFullError, 5),
        (errors.TransientError, 6),
        (errors.DeadlineError, 6),
        (errors.AmbiguousOutcomeError, 6),
        (errors.ConflictError, 7),
        (errors.FencedError, 7),
        (errors.SaveCancelledError, 7),
    ],
)
def test_every_class_of_errors_has_its_code(kind, code):
    assert exit_code_of(kind("x")) == code


def test_no_class_was_forgotten():
    public = {getattr(errors, name) for name in errors.__all__}
    kinds = {kind for kind in public if issubclass(kind, errors.CkptStoreError)} - {errors.CkptStoreError}
    assert all(exit_code_of(kind("x")) in (2, 3, 4, 5, 6, 7) for kind in kinds)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["inspect"],
        ["ls"],
        ["verify"],
        ["inspect", "m", "--nonsense"],
        ["inspect", "m", "extra"],
        ["inspect", "m", "--count-exclude-pattern", "["],
        ["inspect", "m", "--printoptions", "precision"],
        ["inspect", "m", "--printoptions", "foo=1"],
        ["inspect", "m", "--printoptions", "precision=x"],
        ["inspect", "m", "--printoptions", "formatter=x"],
        ["inspect", "m", "--storage-option", "novalue"],
        ["inspect", "m", "--storage-option", "=x"],
        ["inspect", "m", "--storage-option", "unknown=1"],
        ["inspect", "nope://bucket/m"],
        ["inspect", "s3:/bucket/m"],
        ["ls", "m"],
        ["ls", "m.index"],
    ],
    ids=" ".join,
)
def test_usage(run, tmp_path, save, monkeypatch, arguments):
    save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err


def test_a_secret_in_a_bad_option_is_not_repeated(run):
    result = run("inspect", "m", "--storage-option", "s3cr3t")
    assert result.code == 2
    assert "s3cr3t" not in result.err


@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("inspect", "none"),
        ("inspect", "none.index"),
        ("inspect", "none/"),
        ("inspect", "none/model-1"),
        ("inspect", "empty"),
        ("inspect", "m.data-00000-of-00009"),
        ("inspect", "torn"),
        ("verify", "none"),
        ("verify", "torn"),
        ("verify", "torn.data-00000-of-00001"),
        ("verify", "graph.meta"),
        ("verify", "empty"),
        ("ls", "none"),
        ("ls", "none/"),
        ("ls", "none/checkpoint"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["", "json"])
def test_not_found(run, tmp_path, save, monkeypatch, command, target, flags):
    save(tmp_path / "m")
    save(tmp_path / "torn")
    (tmp_path / "torn.index").unlink()
    (tmp_path / "graph.meta").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    if target == "m.data-00000-of-00009":
        # The shard is not there; the checkpoint that its name belongs to is.
        assert run(command, target).code == 0
        return
    result = run(command, target, *flags)
    assert (result.code, result.out) == (3, "")
    assert target.split("/")[0].split(".")[0] in result.err


def test_a_typing_error_in_the_prefix_gets_a_hint(run, tmp_path, save, monkeypatch):
    save(tmp_path / "run" / "model-1000")
    monkeypatch.chdir(tmp_path)
    assert "Did you mean run/model-1000?" in run("inspect", "run/model-100").err
    assert "Did you mean run/model-1000?" in run("verify", "run/modle-1000").err


def test_only_data_files_are_told_apart_from_nothing(run, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "model-1.index").unlink()
    assert "this checkpoint has data files but no index" in run("inspect", tmp_path / "model-1").err


def test_an_unknown_tensor_gets_close_names(run, tmp_path, save):
    prefix = save(tmp_path / "m", kernel=np.float32(1), bias=np.float32(1))
    result = run("inspect", prefix, "--tensor-name", "kernl")
    assert (result.code, result.out) == (3, "")
    assert "Did you mean 'kernel'?" in result.err


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("size", [0, 10, 47, 100])
def test_corrupt(run, tmp_path, save, command, size):
    prefix = save(tmp_path / "m")
    index = tmp_path / "m.index"
    index.write_bytes(index.read_bytes()[:size])
    assert run(command, prefix).code == 4


def test_a_directory_in_which_nothing_can_be_restored_is_corrupt_and_not_empty(run, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "model-1.data-00000-of-00001").unlink()
    result = run("inspect", tmp_path)
    assert (result.code, result.out) == (4, "")
    assert "none of them can be restored now" in result.err


FAILURES = [
    (
        errors.AccessError("cannot read: Permission denied", url="x", hint="Check the permissions."),
        5,
        "access",
    ),
    (errors.TransientError("cannot read: Connection reset", url="x"), 6, "transient"),
    (errors.DeadlineError("took too long", url="x"), 6, "deadline"),
    (errors.ConflictError("somebody was faster", url="x"), 7, "conflict"),
]


@pytest.fixture(params=FAILURES, ids=[code for _, _, code in FAILURES])
def failure(request):
    error, exit_code, code = request.param

    class Failing(StorageWrapper):
        def intercept(self, primitive, keys, call):
            raise error

    with use_wrapper(Failing):
        yield exit_code, code


@pytest.mark.parametrize("command", ["inspect", "ls", "verify"])
def test_failures_of_the_storage(run, tmp_path, failure, command):
    exit_code, code = failure
    result = run(command, tmp_path / "m")
    assert (result.code, result.out) == (exit_code, "")
    assert result.err.startswith("ckptstore: error: ")

    result = run(command, tmp_path / "m", "--json")
    assert (result.code, result.out) == (exit_code, "")
    (told,) = result.err_objects
    assert (told["schema"], told["code"]) == ("ckptstore.error/1", code)


def test_one_locked_file_does_not_hide_the_listing(run, tmp_path, save):
    class Locked(StorageWrapper):
        def intercept(self, primitive, keys, call):
            if keys[0].endswith("model-2.index"):
                raise errors.AccessError("cannot read: Permission denied", url=keys[0])
            return call()

    save(tmp_path / "model-1")
    save(tmp_path / "model-2")
    with use_wrapper(Locked):
        result = run("ls", tmp_path)
    assert result.code == 5
    states = [line.split()[2] for line in result.out.splitlines()[1:3]]
    assert states == ["complete", "unreadable"]
    assert "latest: unknown" in result.out
    assert "Permission denied" in result.err


def test_a_json_error_has_all_fields(run, tmp_path, save):
    prefix = save(tmp_path / "m")
    (told,) = run("inspect", prefix, "--tensor-name", "x", "--json").err_objects
    assert told == {
        "schema": "ckptstore.error/1",
        "code": "tensor-not-found",
        "message": told["message"],
        "url": f"{prefix}.index",
        "tensor": "x",
        "start": None,
        "stop": None,
        "expected": None,
        "actual": None,
        "hint": told["hint"],
    }


def test_interrupted(run, tmp_path):
    class Interrupted(StorageWrapper):
        def intercept(self, primitive, keys, call):
            raise KeyboardInterrupt

    with use_wrapper(Interrupted):
        result = run("inspect", tmp_path / "m")
    assert (result.code, result.out, result.err) == (130, "", "ckptstore: interrupted\n")


def test_a_fault_of_our_own_is_not_one_of_the_documented_codes(run, tmp_path):
    class Wrong(StorageWrapper):
        def intercept(self, primitive, keys, call):
            raise ZeroDivisionError

    with use_wrapper(Wrong):
        result = run("inspect", tmp_path / "m")
    assert result.code == 70
    assert "ZeroDivisionError" in result.err
    assert "please report it" in result.err
