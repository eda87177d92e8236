"""The tables in docs/errors.md: `make docs` renews them, `test_docs.py` compares."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from ckptstore import errors
from ckptstore.cli import errors as exit_codes
from tests.meta.guarantees import renew
from tests.meta.source import ROOT

__all__ = ["ERRORS_PAGE", "TABLES", "exceptions", "exit_code_meanings"]

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
    """Return exit code → meaning, from the table in the docstring of ``ckptstore/cli/errors.py``."""
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
        rows.append(f"| {code} | {meaning.replace('``', '`')} | {', '.join(names)} |")
    return "\n".join(rows) + "\n"


TABLES = {"exceptions": _exceptions_table(), "exit codes": _exit_codes_table()}


if __name__ == "__main__":
    for name, table in TABLES.items():
        renew(ERRORS_PAGE, name, table)
