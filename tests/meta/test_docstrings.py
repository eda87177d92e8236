"""Public names are documented in NumPy's style, and the examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import operator
import re

import numpy as np
import pytest

import ckptstore
import ckptstore.jax
import ckptstore.keras
import ckptstore.safetensors
import ckptstore.tensorflow
import ckptstore.torch
from tests.meta.source import modules

DOCUMENTED = [name for name in vars(ckptstore)["__all__"] if name != "__version__"]
DOCUMENTED += [f"jax.{name}" for name in vars(ckptstore.jax)["__all__"]]
DOCUMENTED += [f"keras.{name}" for name in vars(ckptstore.keras)["__all__"]]
# Without what derives from classes of torch: there is no torch here.
DOCUMENTED += [f"torch.{name}" for name in vars(ckptstore.torch)["__all__"] if name in vars(ckptstore.torch)]
DOCUMENTED += [f"tensorflow.{name}" for name in vars(ckptstore.tensorflow)["__all__"]]
DOCUMENTED += [f"safetensors.{name}" for name in vars(ckptstore.safetensors)["__all__"]]
# Made by a function that documents the parameters; users do not call the constructor.
HANDED_OUT = {
    "CheckpointReader": "load_checkpoint",
    "OpenCheckpoint": "open_checkpoint",
    "Graph": "import_meta_graph",
    "SaveHandle": "Saver.save_async",
    "Coordinator": "coordinator",
    "Watcher": "watch",
    "Step": "watch",
}


def _sections(doc: str) -> dict[str, str]:
    """Section title → text, for titles underlined with as many dashes."""
    pieces = re.split(r"^(\w[\w ]*)\n(-{3,})$", doc, flags=re.MULTILINE)
    return {
        title: text
        for title, rule, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
        if len(rule) == len(title)
    }


def _parameters(value: object) -> list[str]:
    """What a caller may give; for a class, to its constructor, unless that is inherited."""
    if inspect.isclass(value):
        if issubclass(value, BaseException) or not {"__init__", "__new__"} & vars(value).keys():
            return []
    elif not inspect.isroutine(value):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def _assert_one_sentence(doc: str | None, where: str) -> str:
    assert doc, f"{where} has no docstring"
    summary = doc.split("\n\n")[0]
    assert summary.rstrip().endswith((".", ":")), f"{where}: begin with a sentence, not with {summary!r}"
    return doc


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_name_is_documented_with_its_parameters(name):
    value = operator.attrgetter(name)(ckptstore)
    doc = _assert_one_sentence(inspect.getdoc(value), name)
    if inspect.isclass(value) and vars(value).get("__init__"):
        doc = f"{doc}\n\n{inspect.getdoc(value.__init__) or ''}"
    parameters = _parameters(value)
    if parameters and name not in HANDED_OUT:
        sections = _sections(doc)
        # A dataclass documents its fields, which are its parameters.
        text = sections.get("Parameters", "") + sections.get("Attributes", "")
        missing = [one for one in parameters if not re.search(rf"(?<![\w.]){one}\b", text)]
        assert not missing, f"{name}: no Parameters section explains {', '.join(missing)}"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_methods_are_documented(name):
    value = operator.attrgetter(name)(ckptstore)
    if not inspect.isclass(value):
        return
    for method, function in inspect.getmembers(value):
        defined_here = (getattr(function, "__module__", None) or "").startswith("ckptstore")
        if not method.startswith("_") and (defined_here or isinstance(function, property)):
            _assert_one_sentence(inspect.getdoc(function), f"{name}.{method}")


def _modules_with_examples() -> list[str]:
    return [name for name, module in modules().items() if re.search(r"^\s*>>> ", module.text, re.MULTILINE)]


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"np": np, "ck": ckptstore}
    result = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
