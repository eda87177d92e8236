"""The tables in docs/errors.md, and docs/api.md: `make docs` renews them, `test_docs.py` compares."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import ckptstore
import ckptstore.jax
import ckptstore.keras
import ckptstore.safetensors
import ckptstore.tensorflow
import ckptstore.torch
from ckptstore import errors
from ckptstore.cli import exit_codes
from tests.meta.guarantees import renew
from tests.meta.source import ROOT

__all__ = ["API_PAGE", "ERRORS_PAGE", "TABLES", "api_page", "exceptions", "exit_code_meanings"]

ERRORS_PAGE = ROOT / "docs" / "errors.md"


def exceptions() -> list[type[errors.CkptStoreError]]:
    """Return the exception classes, each behind the one it derives from, in the order of the source."""
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.CkptStoreError)
    ]

    def below(parent: type) -> Iterator[type[errors.CkptStoreError]]:
        for kind in found:
            if kind.__bases__[0] is parent:
                yield kind
                yield from below(kind)

    return [errors.CkptStoreError, *below(errors.CkptStoreError)]


def exit_code_meanings() -> dict[int, str]:
    """Return exit code → meaning, from the table in the docstring of ``ckptstore/cli/exit_codes.py``."""
    return {
        int(code): meaning
        for code, meaning in re.findall(r"^(\d+) +(.+)$", exit_codes.__doc__ or "", re.MULTILINE)
    }


def _exceptions_table() -> str:
    rows = ["| exception | `code` | also a | exit code | meaning |", "|---|---|---|---:|---|"]
    for kind in exceptions():
        depth = len([base for base in kind.__mro__ if base in exceptions()]) - 1
        exit_code = exit_codes.exit_code_of(kind("x")) if depth else ""
        meaning = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
        cells = (
            f"{'└ ' if depth > 1 else ''}`{kind.__name__}`",
            f"`{kind.code}`",
            ", ".join(f"`{base.__name__}`" for base in _built_in(kind)),
            str(exit_code),
            meaning.replace("|", "\\|"),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _built_in(kind: type) -> list[type]:
    """Return the most specific built-in classes that `kind` is one of."""
    builtin = [
        base
        for base in kind.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    ]
    return [base for base in builtin if not any(base in other.__mro__[1:] for other in builtin)]


def _exit_codes_table() -> str:
    kinds = exceptions()[1:]
    rows = ["| exit code | meaning | exceptions |", "|---:|---|---|"]
    for code, meaning in exit_code_meanings().items():
        names = [
            f"`{kind.__name__}`"
            for kind in kinds
            if exit_codes.exit_code_of(kind("x")) == code and kind.__bases__[0] is errors.CkptStoreError
        ]
        shown = meaning.replace("``", "`").replace("|", "\\|")
        rows.append(f"| {code} | {shown} | {', '.join(names)} |")
    return "\n".join(rows) + "\n"


_API_GROUPS = (
    ("Saving", ("train.saver", "saving.handle", "saving.report", "transfer.progress")),
    ("Retention", ("directory.retention_rules", "directory.pins")),
    ("tf.train.Checkpoint and its manager", ("train.checkpoint", "train.checkpoint_manager")),
    ("Finding checkpoints, and the record", ("train.checkpoint_management",)),
    ("Reading", ("reading.open_checkpoint", "train.checkpoint_reader", "types")),
    ("Following a directory", ("serving.watch", "serving.step", "serving.live", "cache.cache")),
    ("Single bundles", ("train.bundle_writer",)),
    ("Many ranks", ("distributed.engines", "distributed.coordinator", "distributed.preemption")),
    ("Graphs", ("train.import_meta_graph", "train.meta_graph", "graph")),
)

# Packages of their own: `import ckptstore.torch` first.
_FRAMEWORKS = (
    ckptstore.jax,
    ckptstore.keras,
    ckptstore.safetensors,
    ckptstore.tensorflow,
    ckptstore.torch,
)

# Objects that calls return: nobody makes one.
_GIVEN_OUT = {
    "CachedCheckpoint",
    "OpenCheckpoint",
    "Operation",
    "RestoreReport",
    "SaveHandle",
    "Step",
    "Tensor",
    "LiveHealth",
    "WatchHealth",
    "Watcher",
}


def api_page() -> str:
    """Return the generated part of docs/api.md: public names, signatures, first paragraphs of docstrings."""
    left = {home: names for home, names in vars(ckptstore)["_HOMES"].items() if home != "errors"}
    lines: list[str] = []
    for title, homes in _API_GROUPS:
        lines += [f"## {title}", ""]
        for home in homes:
            for name in sorted(left.pop(home), key=str.lower):
                lines += _described(name, getattr(ckptstore, name))
    for package in _FRAMEWORKS:
        lines += [f"## {package.__name__}", ""]
        # What derives from classes of the framework stands on the page of that: it may not be installed.
        for name in filter(vars(package).__contains__, vars(package)["__all__"]):
            lines += _described(name, vars(package)[name])
    if left:
        raise ValueError(f"no group of the page of names has {', '.join(left)}")
    return "\n".join(lines)


def _described(name: str, value: object) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if name not in _GIVEN_OUT:
        yield from ("```python", _signature(name, value), "```", "")
    yield _summary(value)
    yield ""
    if isinstance(value, type):
        members = [f"* {line}" for line in _members(value)]
        if members:
            yield from members
            yield ""


def _members(kind: type) -> Iterator[str]:
    for name, member in sorted(_public_members(kind).items()):
        summary = _summary(member)
        if isinstance(member, property):
            yield f"`.{name}`: {summary}"
        elif callable(member) or isinstance(member, staticmethod | classmethod):
            function = getattr(member, "__func__", member)
            yield f"`{_in_one_line(name, function)}`: {summary}"


def _public_members(kind: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("ckptstore."):
            found |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.getdoc(value) and _is_ours(value)}


def _is_ours(member: object) -> bool:
    return isinstance(member, property | staticmethod | classmethod) or inspect.isfunction(member)


def _summary(value: object) -> str:
    text = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r"``?([^`]+)``?", r"`\1`", text)


def _parameters(value: object) -> list[str]:
    try:
        signature = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return []
    shown = [found for found in signature.parameters.values() if found.name != "self"]
    texts = [str(found) for found in shown]
    keyword = next((n for n, found in enumerate(shown) if found.kind is found.KEYWORD_ONLY), None)
    if keyword is not None and not any(found.kind is found.VAR_POSITIONAL for found in shown):
        texts.insert(keyword, "*")
    # Annotations are text; a function as a default has no other form than this.
    texts = [re.sub(r": '([^']*)'", r": \1", text) for text in texts]
    return [re.sub(r"<built-in function (\w+)>", r"time.\1", text) for text in texts]


def _in_one_line(name: str, value: object) -> str:
    names = [re.split(r"[:=]", text)[0].strip() for text in _parameters(value)]
    return f"{name}({', '.join(names)})"


def _signature(name: str, value: object) -> str:
    parameters = _parameters(value)
    result = ""
    if not isinstance(value, type):
        annotation = inspect.signature(value).return_annotation  # type: ignore[arg-type]
        result = f" -> {annotation}" if annotation is not inspect.Signature.empty else ""
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= 100:
        return line
    inner = "".join(f"    {text},\n" for text in parameters)
    return f"{name}(\n{inner}){result}"


TABLES = {"exceptions": _exceptions_table(), "exit codes": _exit_codes_table()}
API_PAGE = ROOT / "docs" / "api.md"


if __name__ == "__main__":
    for name, table in TABLES.items():
        renew(ERRORS_PAGE, name, table)
    renew(API_PAGE, "api", api_page())
