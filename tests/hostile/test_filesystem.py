"""Trouble with the file system itself: wrong things in wrong places, no rights, endless files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.registry import locate
from tests.hostile import crafted_files as crafted
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import Outcome, Outcomes, quiet, read_briefly, read_everything, run_cli, typed
from tests.hostile.sandbox import NOBODY, Limits, Sandbox
from tests.hostile.saved_checkpoints import VALUES, checkpoints_in, restored, save, try_to_save

GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


Place = Callable[[Path], None]


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


THINGS: dict[str, tuple[Place, type[ck.CkptStoreError]]] = {
    "directory": (Path.mkdir, ck.UsageError),
    "pipe": (os.mkfifo, ck.UsageError),
    "dangling link": (lambda path: path.symlink_to("nowhere"), ck.NotFoundError),
    "loop of links": (_loop, ck.UsageError),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), ck.UsageError),
    "empty device": (lambda path: path.symlink_to("/dev/null"), ck.UsageError),
    "process memory": (lambda path: path.symlink_to("/proc/self/mem"), ck.CkptStoreError),
}


@pytest.mark.parametrize("thing", THINGS)
def test_wrong_thing_in_the_place_of_the_index(thing: str, tmp_path: Path, sandbox: Sandbox) -> None:
    save(tmp_path, 1, 2)
    make, error = THINGS[thing]
    index = tmp_path / "model-2.index"
    index.unlink()
    make(index)
    found: Outcomes = sandbox.run(
        read_everything, str(tmp_path / "model-2"), True, limits=Limits(time_s=5)
    ).value
    assert isinstance(found.whole["load_checkpoint"].error, error)
    assert isinstance(found.whole["Saver.restore"].error, error)
    assert isinstance(found.whole["open_checkpoint.specs"].error, error)
    with quiet():
        assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-1")


@pytest.mark.parametrize("thing", THINGS)
def test_wrong_thing_in_the_place_of_the_data(thing: str, tmp_path: Path, sandbox: Sandbox) -> None:
    save(tmp_path, 1, 2)
    make, error = THINGS[thing]
    data = tmp_path / "model-2.data-00000-of-00001"
    data.unlink()
    make(data)
    if error is ck.NotFoundError:
        error = ck.IncompleteBundleError
    found: Outcomes = sandbox.run(
        read_everything, str(tmp_path / "model-2"), True, limits=Limits(time_s=5)
    ).value
    for name in ("get_tensor w", "[] w", "read w", "read part w", "load_variable w"):
        failure = found.tensors[name].error
        assert isinstance(failure, error)
        assert failure.url == str(data)
    assert isinstance(found.whole["Saver.restore"].error, error)
    assert found.whole["load_checkpoint"].error is None
    with quiet():
        assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-1")


# What the system calls a regular file can be replaced by one.
IRREGULAR = [name for name in THINGS if name != "process memory"]


@pytest.mark.parametrize("thing", IRREGULAR)
def test_wrong_thing_in_the_place_of_the_graph(thing: str, tmp_path: Path, sandbox: Sandbox) -> None:
    make, error = THINGS[thing]
    meta = tmp_path / "model.meta"
    make(meta)
    outcome = sandbox.run(typed_import, str(meta), limits=Limits(time_s=5)).value
    assert isinstance(outcome.error, error)
    before = tree_of(tmp_path)
    outcome = sandbox.run(try_to_save_here, str(tmp_path / "model"), limits=Limits(time_s=5)).value
    assert isinstance(outcome.error, ck.UsageError), outcome
    assert tree_of(tmp_path) == before


def typed_import(path: str) -> Outcome:
    with quiet():
        outcome = typed(ck.import_meta_graph, path)
    return Outcome(error=outcome.error)


def try_to_save_here(prefix: str) -> Outcome:
    with quiet():
        return typed(ck.Saver().save, VALUES, prefix)


@pytest.mark.parametrize("thing", IRREGULAR)
@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001", ".ckptstore.lock"])
def test_save_over_a_wrong_thing_is_an_error_and_leaves_it(
    kind: str, thing: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    save(tmp_path, 1)
    make, _ = THINGS[thing]
    wrong = tmp_path / (kind if kind.startswith(".") else f"model-2.{kind}")
    wrong.unlink(missing_ok=True)
    make(wrong)
    before, all_before = checkpoints_in(tmp_path), tree_of(tmp_path)
    outcome = sandbox.run(try_to_save, str(tmp_path), 2, limits=Limits(time_s=10)).value
    after, all_after = checkpoints_in(tmp_path), tree_of(tmp_path)
    assert all_after[wrong.name] == all_before[wrong.name]
    if outcome.error is None:
        # Data goes under another name; a pipe can be locked like any file.
        assert kind != "index"
        assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-2")
    else:
        assert isinstance(outcome.error, ck.UsageError)
        if kind != ".ckptstore.lock":
            # It is unknown whether what is in the place of the index belongs to the graph beside it.
            after.pop("model-2.meta", None)
            assert after == before
    with quiet():
        assert restored(tmp_path / "model-1")


def test_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    inside = tmp_path / "file" / "model"
    with quiet():
        for call in (
            functools.partial(ck.load_checkpoint, inside),
            functools.partial(ck.open_checkpoint, inside),
            functools.partial(ck.latest_checkpoint, inside),
            functools.partial(ck.latest_checkpoint, tmp_path / "file"),
            functools.partial(ck.import_meta_graph, f"{inside}.meta"),
            functools.partial(ck.checkpoint_exists, inside),
            functools.partial(ck.Saver().save, VALUES, inside),
            functools.partial(ck.Saver().save, VALUES, inside / "deeper"),
        ):
            outcome = typed(call)
            assert isinstance(outcome.error, ck.UsageError), (call, outcome)
    assert tree_of(tmp_path).keys() == {"file"}


@pytest.mark.parametrize("hidden", ["model-2.index", "model-2.data-00000-of-00001", "checkpoint", "."])
def test_what_may_not_be_read_is_an_access_error_and_never_none(
    hidden: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = _open_to_all(tmp_path) / "run"
    save(directory, 1, 2)
    mode = (directory / hidden).stat().st_mode
    (directory / hidden).chmod(0)
    try:
        answers = sandbox.run(look, str(directory), limits=Limits(user=NOBODY)).value
    finally:
        (directory / hidden).chmod(mode)
    if hidden.startswith("model-2.data"):
        # That it is there and long enough can be seen from outside.
        assert answers["latest"].content == str(directory / "model-2")
    else:
        assert isinstance(answers["latest"].error, ck.AccessError), answers["latest"]
        assert str(answers["latest"].error.url).startswith(str(directory / hidden).rstrip("."))
    assert isinstance(answers["state"].error, ck.AccessError) == (hidden in ("checkpoint", "."))
    if hidden != "checkpoint":
        assert isinstance(answers["restore"].error, ck.AccessError)
        assert isinstance(answers["verify"].error, ck.AccessError)
    assert answers["ls"] in (0, 5)
    assert answers["inspect"] in (0, 5)


def look(directory: str) -> dict[str, Any]:
    prefix = f"{directory}/model-2"
    with quiet():
        return {
            "latest": typed(ck.latest_checkpoint, directory),
            "state": typed(lambda: ck.get_checkpoint_state(directory) is None),
            "restore": typed(ck.Saver().restore, {}, prefix),
            "verify": typed(verify_bundle, locate(prefix)),
            "ls": run_cli("ls", directory)[0],
            "inspect": run_cli("inspect", prefix)[0],
        }


def _open_to_all(tmp_path: Path) -> Path:
    """Let another user come as far as `tmp_path`; pytest keeps its directories closed."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    return tmp_path


def test_listing_denied_does_not_hide_the_checkpoint_that_the_record_names(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = _open_to_all(tmp_path) / "run"
    save(directory, 1)
    directory.chmod(0o711)
    try:
        answers = sandbox.run(look, str(directory), limits=Limits(user=NOBODY)).value
        assert answers["latest"].content == str(directory / "model-1")
        (directory / "checkpoint").unlink()
        answers = sandbox.run(look, str(directory), limits=Limits(user=NOBODY)).value
        assert isinstance(answers["latest"].error, ck.AccessError)
    finally:
        directory.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o111, 0o000])
def test_save_into_a_directory_that_is_not_ours_is_an_access_error(
    mode: int, tmp_path: Path, sandbox: Sandbox
) -> None:
    directory = _open_to_all(tmp_path) / "run"
    save(directory, 1)
    before = tree_of(tmp_path)
    directory.chmod(mode)
    try:
        outcome = sandbox.run(try_to_save, str(directory), 2, limits=Limits(user=NOBODY)).value
    finally:
        directory.chmod(0o755)
    assert isinstance(outcome.error, ck.AccessError), outcome
    assert outcome.error.hint
    assert tree_of(tmp_path) == before


def _sparse(path: Path, size: int, tail: bytes = b"", head: bytes = b"") -> None:
    path.write_bytes(head)
    os.truncate(path, size - len(tail))
    with path.open("ab") as file:
        file.write(tail)


def test_sparse_index_of_three_gigabytes_is_not_read_whole(tmp_path: Path, sandbox: Sandbox) -> None:
    _sparse(tmp_path / "model.index", 3 * GIGABYTE)
    found: Outcomes = sandbox.run(read_briefly, str(tmp_path / "model"), "x", limits=Limits(50 << 20)).value
    assert isinstance(found.whole["load_checkpoint"].error, ck.FormatError)


def test_table_with_a_hole_of_three_gigabytes_is_not_read_whole(tmp_path: Path, sandbox: Sandbox) -> None:
    first = crafted.block(
        crafted.block_item(0, b"", crafted.HEADER)
        + crafted.block_item(0, b"x", crafted.entry(1, [2], data=bytes(8)))
    )
    empty = crafted.block(b"")
    at = 3 * GIGABYTE
    index_block = crafted.block(crafted.block_item(0, b"y", crafted.handle(0, len(first))))
    tail = crafted.stored(empty) + crafted.stored(index_block)
    footer = crafted.footer(
        crafted.handle(at, len(empty)), crafted.handle(at + len(empty) + 5, len(index_block))
    )
    _sparse(tmp_path / "model.index", at + len(tail) + 48, tail + footer, crafted.stored(first))
    (tmp_path / "model.data-00000-of-00001").write_bytes(bytes(8))
    found: Outcomes = sandbox.run(read_briefly, str(tmp_path / "model"), "x", limits=Limits(50 << 20)).value
    assert found.tensors["get_tensor x"].error is None
    assert not found.errors or all(isinstance(error, ck.CorruptError) for error in found.errors)


def test_sparse_data_file_of_three_gigabytes_costs_only_what_is_asked_for(
    tmp_path: Path, sandbox: Sandbox
) -> None:
    index = crafted.index({"x": crafted.entry(1, [2], data=bytes(8), offset=2 * GIGABYTE)})
    prefix = crafted.write_bundle(tmp_path, index)
    os.truncate(f"{prefix}.data-00000-of-00001", 3 * GIGABYTE)
    found: Outcomes = sandbox.run(read_briefly, prefix, "x", limits=Limits(50 << 20)).value
    assert not found.errors


def test_sparse_record_of_three_gigabytes_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    save(tmp_path, 1)
    _sparse(tmp_path / "checkpoint", 3 * GIGABYTE)
    found = sandbox.run(latest_or_error, str(tmp_path), limits=Limits(300 << 20)).value
    assert found.content == str(tmp_path / "model-1"), found


def latest_or_error(directory: str) -> Outcome:
    with quiet():
        return typed(ck.latest_checkpoint, directory)


def test_sparse_meta_of_three_gigabytes_is_refused(tmp_path: Path, sandbox: Sandbox) -> None:
    _sparse(tmp_path / "model.meta", 3 * GIGABYTE)
    outcome = sandbox.run(typed_import, str(tmp_path / "model.meta"), limits=Limits(50 << 20)).value
    assert isinstance(outcome.error, ck.FormatError), outcome
