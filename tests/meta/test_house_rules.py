"""Who commits, deletes, prints, exits, sleeps and reads the environment: house rules 4 and 5."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.meta.source import ROOT, Module, dotted, imports, modules, report

# Rule 4. What changes a storage → the modules, beside storage and its test kit, that may use it.
PUBLISHERS = {"directory.publish", "directory.record_update"}
COLLECTOR = {"directory.collect"}
CHANGES = {
    "put_new": PUBLISHERS,
    "put_if": PUBLISHERS,
    "delete_if": COLLECTOR,
    "delete_many": COLLECTOR,
    "delete_once": COLLECTOR,
    # Nothing visible goes: a run that takes over drops what a dead writer left half-written.
    "abort_stale_uploads": COLLECTOR,
    # Data is invisible until an index names it, so writing it does not commit anything.
    # A file of safetensors is no part of a checkpoint.
    "upload": {"directory.shard_set", "safetensors.exporting"},
}
# Messages between the ranks of a job: objects that no checkpoint consists of.
MESSAGES = {"distributed.through_store"}
CHANGES["put_new"] = CHANGES["put_new"] | MESSAGES
CHANGES["delete_many"] = CHANGES["delete_many"] | MESSAGES
MARKS = {
    "COMMIT POINT": (PUBLISHERS, {"put_new", "put_if"}),
    "DELETES": (COLLECTOR, {"delete_if", "delete_many", "delete_once"}),
}
MARK_REACH = 3  # lines between a mark and the call that it marks

FILE_CALLS = {"open", "io.open"} | {
    f"os.{name}"
    for name in (
        *("open", "remove", "unlink", "rename", "replace", "link", "symlink", "truncate"),
        *("mkdir", "makedirs", "rmdir", "removedirs", "listdir", "scandir", "walk"),
    )
}


def _outside(*rooms: str) -> Iterator[Module]:
    return (module for module in modules().values() if module.room not in rooms)


def _attributes(module: Module, wanted: set[str]) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute) and node.attr in wanted)


def _calls(module: Module) -> Iterator[tuple[str, ast.Call]]:
    return ((dotted(node.func), node) for node in ast.walk(module.tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("method", sorted(CHANGES))
def test_only_the_named_modules_change_a_storage(method):
    allowed = CHANGES[method]
    rows: list[Any] = []
    for module in _outside("storage", "testing"):
        if module.short in allowed:
            continue
        called = {id(node.func) for _, node in _calls(module)}
        # `upload` is also an everyday attribute name; for the others even taking the method is too much.
        rows.extend(
            f"{module.at(node.lineno)}: .{method} belongs to {', '.join(sorted(allowed))}"
            for node in _attributes(module, {method})
            if method != "upload" or id(node) in called
        )
    report(rows)


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_marks_stand_where_the_deed_is_done_and_nowhere_else(mark):
    owners, methods = MARKS[mark]
    rows = []
    for module in modules().values():
        marks = [n for n, line in enumerate(module.text.splitlines(), 1) if f"# {mark}:" in line]
        if module.short not in owners:
            rows += [f"{module.at(line)}: '# {mark}:' outside {', '.join(sorted(owners))}" for line in marks]
            continue
        deeds = [node.lineno for node in _attributes(module, methods)]
        if not marks:
            rows.append(f"{module.at(1)}: no line is marked '# {mark}:'")
        for line in marks:
            if not any(0 <= deed - line <= MARK_REACH for deed in deeds):
                rows.append(f"{module.at(line)}: '# {mark}:' but no {' or '.join(sorted(methods))} follows")
        # A .meta and a shard are put as well, and are no commit; every delete is a delete.
        for deed in deeds if mark == "DELETES" else ():
            if not any(0 <= deed - line <= MARK_REACH for line in marks):
                rows.append(f"{module.at(deed)}: deletes without the mark '# {mark}:'")
    report(rows)


def test_files_are_touched_by_storage_only():
    rows = [
        f"{module.at(node.lineno)}: {name}() outside storage/: go through the seam, for every backend's sake"
        for module in _outside("storage", "testing")
        for name, node in _calls(module)
        if name in FILE_CALLS
    ]
    rows += [
        f"{found.where}: {found.target} outside storage/"
        for found in imports()
        if found.target.split(".")[0] in {"shutil", "tempfile", "mmap"}
        and found.source.room not in ("storage", "testing")
        # Memory without a file.
        and (found.target, found.source.short) != ("mmap", "transfer.blocks")
    ]
    report(rows)


def _prints(module: Module) -> Iterator[tuple[int, str]]:
    yield from ((node.lineno, "print") for name, node in _calls(module) if name == "print")
    yield from (
        (node.lineno, dotted(node))
        for node in _attributes(module, {"stdout", "stderr"})
        if dotted(node.value) in ("sys", "sys.__dict__")
    )


def _exits(module: Module) -> Iterator[tuple[int, str]]:
    names = {"exit", "quit", "sys.exit", "os._exit", "SystemExit"}
    yield from ((node.lineno, name) for name, node in _calls(module) if name in names)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and node.exc is not None and dotted(node.exc) == "SystemExit":
            yield node.lineno, "raise SystemExit"


def _sleeps(module: Module) -> Iterator[tuple[int, str]]:
    yield from ((node.lineno, f".{node.attr}") for node in _attributes(module, {"sleep"}))
    yield from (
        (found.line, f"from {found.target} import sleep")
        for found in imports()
        if found.source is module and found.name == "sleep"
    )


def _reads_environment(module: Module) -> Iterator[tuple[int, str]]:
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    yield from ((node.lineno, dotted(node)) for node in _attributes(module, names))
    yield from (
        (found.line, f"from os import {found.name}")
        for found in imports()
        if found.source is module and found.target == "os" and found.name in names
    )
    for _, node in _calls(module):
        for keyword in node.keywords:
            if keyword.arg in ("envvar", "auto_envvar_prefix"):
                yield node.lineno, f"{keyword.arg}="


@pytest.mark.parametrize(
    ("finds", "owners", "deed"),
    [
        (_prints, {"cli", "inspect_checkpoint"}, "writes to the terminal"),
        (_exits, {"cli", "__main__"}, "exits"),
        (_sleeps, {"storage.retry", "testing"}, "sleeps"),
        (_reads_environment, {"config"}, "reads the environment"),
    ],
    ids=["print", "exit", "sleep", "environment"],
)
def test_one_place_each(finds: Callable[[Module], Iterator[tuple[int, str]]], owners: set[str], deed: str):
    report(
        [
            f"{module.at(line)}: {what} — only {', '.join(sorted(owners))} {deed}"
            for module in modules().values()
            if module.room not in owners and module.short not in owners
            for line, what in finds(module)
        ]
    )


def test_the_finders_find(tmp_path):
    text = (
        "import os, sys, time\nfrom time import sleep\nprint(1)\nsys.stderr.write('x')\nsys.exit(1)\n"
        "raise SystemExit\ntime.sleep(1)\nos.environ['A']\nos.getenv('B')\ncommand(envvar='C')\n"
    )
    module = Module("ckptstore.x", tmp_path / "x.py", text, ast.parse(text))
    assert [line for line, _ in _prints(module)] == [3, 4]
    assert sorted(line for line, _ in _exits(module)) == [5, 6]
    assert [line for line, _ in _sleeps(module)] == [7]
    assert sorted(line for line, _ in _reads_environment(module)) == [8, 9, 10]


def test_nothing_is_left_half_done():
    patterns = {
        r"\b(TODO|FIXME|XXX)\b": "finish it or open an issue",
        r"type: ignore(?!\[)": "say which error is ignored: type: ignore[code]",
        r"mypy: ignore-errors": "a whole file is not exempt",
        r"^\s*except\s*:": "name the class",
    }
    report(
        [
            f"{module.at(number)}: {advice}: {line.strip()}"
            for module in modules().values()
            for number, line in enumerate(module.text.splitlines(), 1)
            for pattern, advice in patterns.items()
            if re.search(pattern, line)
        ]
    )


def test_tests_look_at_no_warnings_but_those_of_ckptstore():
    catching = re.compile(
        r"""simplefilter\(["'](error|always)["']\)|catch_warnings\(record=True|\brecwarn\b"""
    )
    exempt = {"own_warnings.py", "entry_points.py", "test_connections_end.py", Path(__file__).name}
    report(
        [
            f"{path.relative_to(ROOT)}:{number}: other tests' sockets warn, too: use tests.own_warnings"
            for path in sorted((ROOT / "tests").rglob("*.py"))
            if path.name not in exempt
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if catching.search(line)
        ]
    )
