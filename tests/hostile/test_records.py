"""Records made to mislead: what a reader follows, and that neither it nor a save leaves the directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import quiet, run_cli, typed
from tests.hostile.foreign_files import OURS, build, check_only_ours_is_gone, protocol, save_steps, state
from tests.hostile.sandbox import Limits, Sandbox
from tests.own_warnings import own_warnings

ELSEWHERE: dict[str, Callable[[Path], str]] = {
    "parent": lambda root: "../elsewhere/model-90",
    "parent hidden in the middle": lambda root: "model/../../elsewhere/model-90",
    "absolute": lambda root: str(root / "elsewhere" / "model-90"),
    "absolute with doubled slashes": lambda root: f"//{root}/elsewhere//model-90",
    "file URL": lambda root: f"file://{root}/elsewhere/model-90",
    "memory URL": lambda root: "memory://elsewhere/model-90",
    "memory URL of the same text": lambda root: f"memory:/{root}/elsewhere/model-90",
    "S3 URL": lambda root: "s3://bucket/model-90",
    "GCS URL": lambda root: "gs://bucket/model-90",
    "HTTP URL": lambda root: "http://169.254.169.254/latest/model-90",
    "unknown scheme": lambda root: "gopher://host/model-90",
    "chained URL": lambda root: f"simplecache::file://{root}/elsewhere/model-90",
    "squashed URL": lambda root: "s3:/bucket/model-90",
    "file URL with a host": lambda root: "file://host/elsewhere/model-90",
    "home": lambda root: "~/model-90",
    "variable": lambda root: "$HOME/model-90",
    "glob": lambda root: "../else*/model-9?",
    "backslashes": lambda root: "..\\elsewhere\\model-90",
    "dot": lambda root: ".",
    "two dots": lambda root: "..",
    "slash": lambda root: "/",
    "blank": lambda root: " ",
    "slashes": lambda root: "///",
    "slash at the end": lambda root: "model-5/",
    "the record itself": lambda root: "checkpoint",
    "an index file": lambda root: "model-5.index",
    "a data file": lambda root: "model-5.data-00000-of-00001",
    "a directory": lambda root: "sub",
    "a file that is not a checkpoint": lambda root: "notes.txt",
    "a directory with the name of an index": lambda root: "directory",
    "null device": lambda root: "/dev/null",
    "zero device": lambda root: "/dev/zero",
    "standard input": lambda root: "/dev/stdin",
    "proc": lambda root: "/proc/self/mem",
    "NUL": lambda root: "model-5\0",
    "newline": lambda root: "model-5\n",
    "long name": lambda root: "n" * 5000,
    "long path": lambda root: "n/" * 5000,
    "a megabyte of dots": lambda root: "../" * 350_000,
    "V1 shards without end": lambda root: "model-?????-of-99999",
    "V1 pattern of no shards": lambda root: "model-?????-of-00000",
    "escape sequences": lambda root: "\x1b[2Jmodel\x07",
    "half a surrogate pair": lambda root: "model\udcff",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def find(directory: str, brief: bool = False) -> dict[str, Any]:
    """Ask everything that reads a record, or only what finds the latest; return what it says."""
    found: dict[str, Any] = {}
    with own_warnings() as said:
        found["latest"] = typed(ck.latest_checkpoint, directory)
        found["warnings"] = [str(warning.message) for warning in said]
        found["categories"] = {warning.category for warning in said}
    if brief:
        return found
    with quiet():
        found["strict"] = typed(ck.latest_checkpoint, directory, recover=False)
        found["external"] = typed(ck.latest_checkpoint, directory, allow_external_paths=True)
        found["state"] = typed(lambda: ck.get_checkpoint_state(directory) is None)
        found["load"] = typed(lambda: ck.load_checkpoint(directory).get_variable_to_shape_map())
        found["manager"] = typed(_manager, directory)
        run_cli("ls", directory)
        run_cli("ls", directory, "--json")
    return found


def _manager(directory: str) -> Any:
    manager = ck.CheckpointManager(ck.Checkpoint(w=np.zeros(2)), directory, 2, checkpoint_name="model")
    return manager.latest_checkpoint, manager.checkpoints


@pytest.mark.parametrize("name", ELSEWHERE)
def test_path_of_the_record_is_never_followed_out_of_the_directory(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = build(tmp_path)
    (directory / "directory.index").mkdir()
    path = ELSEWHERE[name](tmp_path)
    data = state(path, path, "model-3", "model-5")
    if "\udcff" in path:
        data = data.replace(b"\\udcff", b"\\377")
    (directory / "checkpoint").write_bytes(data)
    found = sandbox.run(find, str(directory)).value
    allowed = {str(directory / "model-5")}
    assert found["latest"].error is None, found["latest"]
    assert found["latest"].content in allowed
    leads_back = name in ("slash at the end", "an index file", "a data file")
    assert found["categories"] == (set() if leads_back else {ck.CkptStoreWarning})
    assert max(map(len, found["warnings"]), default=0) < 5000
    assert not any(character in text for text in found["warnings"] for character in "\x1b\x07\n")
    assert found["strict"].content in (allowed if leads_back else {None})
    assert found["load"].content == {"w": [4]}
    external = locate(found["external"].content).key
    assert external in allowed | {str(tmp_path / "elsewhere" / "model-90")}
    before = tree_of(tmp_path)
    saved = sandbox.run(save_steps, str(directory), 6, 7).value
    check_only_ours_is_gone(tmp_path, before)
    assert saved[-1].error is None, saved
    assert ck.latest_checkpoint(directory) == str(directory / "model-7")


def _flat(count: int) -> bytes:
    return state("model-5", *(f"model-{number}" for number in range(count)))


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t\n",
    "only comments": b"# nothing\n# here\n",
    "only our header": OURS.encode(),
    "not UTF-8": b'model_checkpoint_path: "\xff\xfe"\n',
    "not UTF-8 in octal": b'model_checkpoint_path: "\\377\\376"\n',
    "UTF-16": 'model_checkpoint_path: "model-5"\n'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + state("model-5"),
    "NUL bytes": bytes(500),
    "NUL behind the text": state("model-5") + bytes(500),
    "unknown field": state("model-5") + b'owner: "me"\n',
    "empty path": b'model_checkpoint_path: ""\n',
    "no path": b'all_model_checkpoint_paths: "model-5"\n',
    "number for a path": b"model_checkpoint_path: 5\n",
    "text for a time": state("model-5") + b'all_model_checkpoint_timestamps: "now"\n',
    "time of a thousand digits": state("model-5") + b"last_preserved_timestamp: " + b"9" * 1000 + b"\n",
    "hexadecimal time": state("model-5") + b"last_preserved_timestamp: 0x" + b"f" * 5000 + b"\n",
    "string without an end": b'model_checkpoint_path: "model-5\n',
    "extension": b'[tensorflow.thing]: "x"\n' + state("model-5"),
    "any": b"[type.googleapis.com/x.Y] { a: 1 }\n",
    "message for a path": b'model_checkpoint_path { a: "model-5" }\n',
    "list of paths": b'model_checkpoint_path: ["model-5", "model-3"]\n',
    "bad escape": b'model_checkpoint_path: "\\q\\U00110000"\n',
    "half an escape": b'model_checkpoint_path: "\\',
    "unicode escape of a surrogate": b'model_checkpoint_path: "\\udcff"\n',
    "nested braces": b"{" * 100_000,
    "nested lists": b"all_model_checkpoint_paths: " + b"[" * 100_000,
    "deep messages": b"a { " * 50_000,
    "ten megabytes of noise": np.random.default_rng(1).bytes(10 << 20),
    "ten megabytes of text": b"A" * (10 << 20),
    "three megabytes of lines": b"\n" * (3 << 20),
    "ten megabytes of quotes": b'"' * (10 << 20),
    "three megabytes of comments": b"#\n" * (3 << 19),
    "ten megabytes of one comment": b"#" * (10 << 20),
    "path of a megabyte": state("m" * (1 << 20)),
    "binary proto": b"\x0a\x07model-5",
    "JSON": b'{"model_checkpoint_path": "model-5"}',
    "header of a million digits": b"# ckptstore " + b"9" * 1_000_000 + b"\n" + state("model-5"),
    "header with odd digits": "# ckptstore \u0663\n".encode() + state("model-5"),
    "owner line torn": protocol('owner "model'),
    "owner without an epoch": protocol('owner "model" run="r" host="h" time=1 write="0"'),
    "epoch that is not a number": protocol('owner "model" epoch=x run="r" host="h" time=1 write="0"'),
    "epoch of a million digits": protocol(
        f'owner "model" epoch={"9" * 1_000_000} run="r" host="h" time=1 write="0"'
    ),
    "a megabyte of spaces": protocol("owner " + " " * (1 << 20)),
    "a megabyte of backslashes": protocol('owner "' + "\\" * (1 << 20)),
    "a hundred thousand pairs": protocol('owner "model"' + " a=b" * 100_000 + "!"),
    "pending without a version": protocol('pending "model-3" shards="00000-of-00001"'),
    "pending with odd shards": protocol('pending "model-3" version="1" shards="../x"'),
    "name that is not JSON": protocol('pending "\\q" version="1" shards=""'),
    "deep JSON": protocol("pending " + "[" * 100_000),
    "newer protocol": b"# ckptstore 2\n" + state("model-5"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_record_of_garbage_leads_to_the_newest_checkpoint(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = build(tmp_path)
    data = GARBAGE[name]
    (directory / "checkpoint").write_bytes(data)
    is_long = len(data) > 1 << 20
    limits = Limits(memory_bytes=len(data) * 20 + (50 << 20))
    ran = sandbox.run(find, str(directory), is_long, limits=limits)
    latest = ran.value["latest"]
    assert latest.content == str(directory / "model-5"), latest
    assert max(map(len, ran.value["warnings"]), default=0) < 5000
    if is_long:
        return
    before = tree_of(tmp_path)
    saved = sandbox.run(save_steps, str(directory), 6, 7).value
    check_only_ours_is_gone(tmp_path, before)
    if name == "newer protocol":
        assert all(isinstance(outcome.error, ck.UnsupportedError) for outcome in saved)
    else:
        assert [outcome.error for outcome in saved] == [None] * 2, saved
        assert ck.latest_checkpoint(directory) == str(directory / "model-7")


@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link", "loop", "device"])
def test_record_that_is_no_file_is_an_error_and_no_hang(kind: str, tmp_path: Path, sandbox: Sandbox) -> None:
    directory = build(tmp_path)
    record = directory / "checkpoint"
    record.unlink()
    make = {
        "directory": record.mkdir,
        "pipe": lambda: os.mkfifo(record),
        "dangling link": lambda: record.symlink_to("nowhere"),
        "loop": lambda: record.symlink_to("checkpoint"),
        "device": lambda: record.symlink_to("/dev/zero"),
    }
    make[kind]()
    before = tree_of(tmp_path)
    found = sandbox.run(find, str(directory), limits=Limits(time_s=5)).value
    if kind == "dangling link":
        assert found["latest"].content == str(directory / "model-5")
    else:
        assert isinstance(found["latest"].error, ck.UsageError)
        assert found["latest"].error.url == str(record)
    saved = sandbox.run(save_steps, str(directory), 6, 7, limits=Limits(time_s=5)).value
    assert all(isinstance(outcome.error, ck.UsageError) for outcome in saved), saved
    if kind != "dangling link":
        # There it shows only after the checkpoint was published, which then stays.
        assert tree_of(tmp_path) == before, "a save that failed left something behind"


def test_hundred_thousand_entries_are_read_and_saved_in_linear_time(tmp_path: Path, sandbox: Sandbox) -> None:
    directory = build(tmp_path)
    (directory / "checkpoint").write_bytes(_flat(100_000))
    assert sandbox.run(ck.latest_checkpoint, str(directory)).value == str(directory / "model-5")
    (outcome,) = sandbox.run(save_steps, str(directory), 200_000, limits=Limits(time_s=60)).value
    assert outcome.error is None
    assert len((directory / "checkpoint").read_bytes()) < 2000
