"""The package as syntax trees: what the house-rule tests look at. Nothing here imports ckptstore."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ckptstore"


def report(rows: list[str]) -> None:
    """Fail with one readable line for each broken rule, and no stack."""
    if rows:
        pytest.fail("\n".join(["", *rows]), pytrace=False)


@dataclass(frozen=True)
class Module:
    """One source file: ``ckptstore.format.table`` is in room ``format``, ``ckptstore.errors`` in its own."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else "__init__"

    @property
    def short(self) -> str:
        return self.name.removeprefix(PACKAGE + ".")

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


@dataclass(frozen=True)
class Import:
    """One imported thing: `target` is a module, `name` what was taken out of it (None: the module itself)."""

    source: Module
    line: int
    target: str
    name: str | None
    alias: str
    type_only: bool

    @property
    def where(self) -> str:
        return self.source.at(self.line)

    @property
    def internal(self) -> bool:
        return self.target.split(".")[0] == PACKAGE

    @property
    def room(self) -> str:
        """The room of an internal target."""
        parts = self.target.split(".")
        return parts[1] if len(parts) > 1 else "__init__"


@functools.cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, path, text, ast.parse(text, str(path)))
    return found


@functools.cache
def imports() -> tuple[Import, ...]:
    return tuple(found for module in modules().values() for found in _imports_of(module))


def _imports_of(module: Module) -> Iterator[Import]:
    type_only = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                alias = item.asname or item.name.split(".")[0]
                yield Import(module, node.lineno, item.name, None, alias, id(node) in type_only)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for item in node.names:
                submodule = f"{base}.{item.name}"
                target, name = (submodule, None) if submodule in modules() else (base, item.name)
                yield Import(
                    module, node.lineno, target, name, item.asname or item.name, id(node) in type_only
                )


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def dotted(node: ast.expr) -> str:
    """The text of ``a.b.c``; empty for anything that is not plain names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""
