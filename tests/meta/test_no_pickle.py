"""Reading a checkpoint never runs code that the checkpoint brings along."""

from __future__ import annotations

import ast

from tests.meta.source import dotted, imports, modules, report

CODE_CARRIERS = {
    *("pickle", "_pickle", "cPickle", "pickletools", "marshal", "shelve", "copyreg"),
    *("cloudpickle", "dill", "joblib", "jsonpickle"),
}
CODE_RUNNERS = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}


def test_nothing_imports_a_format_that_carries_code():
    report(
        [
            f"{found.where}: imports {found.target}"
            for found in imports()
            if found.target.split(".")[0] in CODE_CARRIERS
        ]
    )


def test_nothing_runs_text_as_code():
    report(
        [
            f"{module.at(node.lineno)}: {dotted(node.func)}()"
            for module in modules().values()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and dotted(node.func) in CODE_RUNNERS
        ]
    )


def test_numpy_is_never_asked_to_unpickle():
    rows = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    rows.append(f"{module.at(node.lineno)}: allow_pickle")
    report(rows)


def test_modules_are_not_imported_by_a_name_from_a_file():
    # A package's front door resolves its fixed table of names; no other module imports by a computed name.
    rows = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and dotted(node.func) in (
                "importlib.import_module",
                "import_module",
            ):
                literal = bool(node.args) and isinstance(node.args[0], ast.Constant)
                if module.path.name != "__init__.py" and not literal:
                    rows.append(f"{module.at(node.lineno)}: imports a module by a computed name")
    report(rows)
