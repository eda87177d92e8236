"""Every public way to read a checkpoint, run against one prefix: what each gives, or the error it raises.

An error that is not one of ckptstore's own, or one that says too little or cannot be pickled, fails the test
that asked.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import ckptstore as ck
from ckptstore.bundle.verify.verify import VerifyReport, verify_bundle
from ckptstore.cli.main import main
from ckptstore.storage.registry import locate

__all__ = [
    "READERS",
    "Outcome",
    "Outcomes",
    "check_error",
    "content_of_meta",
    "quiet",
    "read_briefly",
    "read_everything",
    "run_cli",
    "typed",
]

# A message is read by a person: a hostile name of a megabyte does not belong into it, nor does what a
# terminal obeys.
_LONGEST_MESSAGE = 2500
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\n]")

# Done, usage, not found, corrupt, access, transient, conflict. 70 would be a fault of ckptstore itself.
_EXIT_CODES = {0, 2, 3, 4, 5, 6, 7}


@dataclass(frozen=True)
class Outcome:
    """What one call gave: content that can be compared, or the error."""

    content: Any = None
    error: ck.CkptStoreError | None = None


@dataclass
class Outcomes:
    """What all entry points gave for one prefix, by their names."""

    whole: dict[str, Outcome] = field(default_factory=dict)
    tensors: dict[str, Outcome] = field(default_factory=dict)
    report: VerifyReport | None = None

    @property
    def errors(self) -> list[ck.CkptStoreError]:
        """Every error of every entry point."""
        found = [*self.whole.values(), *self.tensors.values()]
        return [outcome.error for outcome in found if outcome.error is not None]

    def same_content(self, other: Outcomes) -> bool:
        """Whether nothing failed and everything gave what it gave for `other`."""
        return (
            not self.errors
            and {name: outcome.content for name, outcome in self.whole.items()}
            == {name: outcome.content for name, outcome in other.whole.items()}
            and {name: outcome.content for name, outcome in self.tensors.items()}
            == {name: outcome.content for name, outcome in other.tensors.items()}
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Allow the warnings of ckptstore alone: a RuntimeWarning of numpy is an unchecked overflow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for category in (ck.CkptStoreWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        yield


def check_error(error: ck.CkptStoreError) -> None:
    """Assert what every error promises: a place or a hint, a message for people, pickling without loss."""
    text = str(error)
    assert error.hint or error.url, f"neither place nor hint: {text}"
    assert error.what, repr(error)
    assert len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters: {text[:300]}…"
    assert not _CONTROL.search(text), f"control characters in {text!r}"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == text
    for name in ("code", "url", "tensor", "offset", "expected", "actual", "hint"):
        assert getattr(again, name) == getattr(error, name), name


def typed(call: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
    """Return what the call returns, or its ckptstore error; any other passes through and fails the test."""
    try:
        return Outcome(content=call(*arguments, **options))
    except ck.CkptStoreError as error:
        check_error(error)
        # What was in memory when it was raised must not count in what the next call takes.
        error.__cause__ = error.__context__ = None
        return Outcome(error=error.with_traceback(None))


def _comparable(value: Any) -> Any:
    array = np.asarray(value)
    data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
    return str(array.dtype), array.shape, hashlib.sha256(data).hexdigest()


def run_cli(*arguments: str) -> tuple[int, str]:
    """Run the command line; return its exit code and output, after checking that neither is a crash."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    assert code in _EXIT_CODES, f"exit code {code} for {arguments}:\n{err.getvalue()}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    for text in (out.getvalue(), err.getvalue()):
        assert not _CONTROL.search(text.replace("\n", "")), ascii(text)
    return code, out.getvalue()


def _load(prefix: str) -> Any:
    reader = ck.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    types = {name: dtype.name for name, dtype in reader.get_variable_to_dtype_map().items()}
    return shapes, types, reader.debug_string(), {name: reader.has_tensor(name) for name in shapes}


def _list(prefix: str) -> Any:
    return ck.list_variables(prefix)


def _specs(prefix: str) -> Any:
    with ck.open_checkpoint(prefix) as checkpoint:
        return {name: repr(spec) for name, spec in checkpoint.specs().items()}


def _restore_report(prefix: str) -> Any:
    with ck.open_checkpoint(prefix) as checkpoint:
        report = checkpoint.restore()
    return {name: _comparable(value) for name, value in report.restored.items()}


def _read_into(prefix: str) -> Any:
    """Read every other element of the last dimension, backwards, of all small tensors at once."""
    requests: list[Any] = []
    with ck.open_checkpoint(prefix) as checkpoint:
        for name, spec in checkpoint.specs().items():
            if math.prod(spec.shape) < 1 << 16 and len(spec.shape) < 32:
                index = (..., slice(None, None, -2)) if spec.shape else ...
                wanted = np.broadcast_to(False, spec.shape)[index]
                requests.append((name, index, np.empty(wanted.shape, spec.dtype.as_numpy_dtype)))
        checkpoint.read_into(requests)
    return {name: _comparable(out) for name, _, out in requests}


def _saver_restore(prefix: str) -> Any:
    values: dict[str, Any] = {}
    try:
        ck.Saver().restore(values, prefix)
    except ck.CkptStoreError:
        assert not values, "a restore that failed put something into the mapping"
        raise
    return {name: _comparable(value) for name, value in values.items()}


def _object_restore(prefix: str) -> Any:
    status = ck.Checkpoint(absent=np.zeros(3, np.float32)).read(prefix).expect_partial()
    return status.unmatched, status.unused


def _print(prefix: str) -> Any:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        ck.inspect_checkpoint.print_tensors_in_checkpoint_file(prefix, None, True)
        ck.inspect_checkpoint.print_tensors_in_checkpoint_file(prefix, "", False)
    return out.getvalue()


def _quick(prefix: str) -> Any:
    return verify_bundle(locate(prefix), quick=True)


def _exists(prefix: str) -> Any:
    return ck.checkpoint_exists(prefix)


READERS: dict[str, Callable[[str], Any]] = {
    "load_checkpoint": _load,
    "list_variables": _list,
    "open_checkpoint.specs": _specs,
    "open_checkpoint.restore": _restore_report,
    "open_checkpoint.read_into": _read_into,
    "Saver.restore": _saver_restore,
    "Checkpoint.read": _object_restore,
    "inspect_checkpoint": _print,
    "verify_bundle quick": _quick,
    "checkpoint_exists": _exists,
}


def _tensors(prefix: str, also: tuple[str, ...]) -> dict[str, Outcome]:
    """Read every tensor by itself, in every way; also those named, whether or not they are listed."""
    opened = typed(ck.load_checkpoint, prefix)
    if opened.error is not None:
        return {}
    reader = opened.content
    names = typed(reader.get_variable_to_shape_map)
    if names.error is not None:
        # A damaged entry must not hide the others.
        names = typed(lambda: list(ck.open_checkpoint(prefix)))
    outcomes: dict[str, Outcome] = {}
    with ck.open_checkpoint(prefix) as checkpoint:
        ways: dict[str, Callable[[str], Any]] = {
            "get_tensor": reader.get_tensor,
            "[]": checkpoint.__getitem__,
            "read": checkpoint.read,
            "read part": functools.partial(_part, checkpoint),
            "load_variable": lambda name: ck.load_variable(prefix, name),
        }
        for name in {*(names.content or ()), *also}:
            for way, read in ways.items():
                outcomes[f"{way} {name}"] = typed(_read, read, name)
    return outcomes


def _read(read: Callable[[str], Any], name: str) -> Any:
    return _comparable(read(name))


def _part(checkpoint: ck.OpenCheckpoint, name: str) -> Any:
    """Read every other element of the last dimension, backwards."""
    whole = checkpoint.read(name)
    return checkpoint.read(name, (..., slice(None, None, -2))) if whole.ndim else whole


def read_everything(prefix: str, cli: bool = False, also: tuple[str, ...] = ()) -> Outcomes:
    """Read `prefix` through every public entry point.

    Parameters
    ----------
    prefix : str
    cli : bool
        Also through the shell's commands.
    also : tuple of str
        Tensors to read even if they are not listed.
    """
    outcomes = Outcomes()
    with quiet():
        for name, reader in READERS.items():
            outcomes.whole[name] = typed(reader, prefix)
        outcomes.tensors = _tensors(prefix, also)
        verified = typed(verify_bundle, locate(prefix))
        outcomes.whole["verify_bundle"] = verified
        outcomes.report = verified.content
        if cli:
            run_cli("inspect", prefix, "--json")
            run_cli("inspect", prefix, "--all-tensors")
            run_cli("verify", prefix)
    return outcomes


def read_briefly(prefix: str, tensor: str) -> Outcomes:
    """Read `prefix` through few entry points, for files that take their time."""
    outcomes = Outcomes()
    with quiet():
        for name in ("load_checkpoint", "Saver.restore"):
            outcomes.whole[name] = typed(READERS[name], prefix)
        outcomes.tensors[f"get_tensor {tensor}"] = typed(ck.load_variable, prefix, tensor)
        outcomes.report = typed(verify_bundle, locate(prefix)).content
    return outcomes


def _brief(value: Any) -> str:
    return (
        f"{len(value)} items" if isinstance(value, (list, tuple)) and len(value) > 20 else repr(value)[:1000]
    )


def _shape_of_value(tensor: Any) -> Any:
    return tensor.name, tensor.dtype, tensor.shape, getattr(tensor.value, "shape", None)


def content_of_meta(data: bytes | str) -> Any:
    """Import a ``.meta`` and ask it everything; return what can be compared."""
    saver = ck.import_meta_graph(data)
    graph = saver.graph
    assert graph is not None
    answers: dict[str, Any] = {}

    def ask(name: str, question: Callable[..., Any], *arguments: Any) -> Any:
        outcome = typed(question, *arguments)
        answers[name] = _brief(outcome.content) if outcome.error is None else type(outcome.error).__name__
        return outcome.content

    operations = ask("operations", graph.get_operations) or []
    for number, operation in enumerate(operations[:300]):
        outputs = ask(f"{number} outputs", getattr, operation, "outputs") or ()
        ask(f"{number} inputs", getattr, operation, "inputs")
        ask(f"{number} control inputs", getattr, operation, "control_inputs")
        for tensor in outputs[:5]:
            ask(f"{number} value", _shape_of_value, tensor)
            ask(f"{number} by name", graph.get_tensor_by_name, tensor.name)
        for attribute in ("dtype", "shape", "value", "T", "_class", "_output_shapes"):
            ask(f"{number} {attribute}", operation.get_attr, attribute)
    for name in ("placeholders", "variables", "constants", "signatures", "functions", "saver_def"):
        ask(name, getattr, graph, name)
    for key in ask("collections", graph.get_all_collection_keys) or ():
        ask(f"collection {key}", graph.get_collection, key)
    ask("graph_def", graph.as_graph_def)
    ask("export", lambda: ck.export_meta_graph(graph=graph))
    ask("export scoped", lambda: ck.import_meta_graph(data, True, "scope").graph)
    ask("saver", saver.as_saver_def)
    return answers
