"""What type checkers say of code that uses ckptstore: good code passes, a mistake is an error on its line."""

from __future__ import annotations

import re

import pytest

from tests.meta.source import ROOT
from tests.typing.checkers import CHECKERS

RIGHT = """\
from typing import Any, assert_type

import numpy as np

import ckptstore
from ckptstore import Graph, GraphBuilder, Operation, SaverDef, Tensor

values = {"w": np.zeros((3, 2), np.float32)}
with ckptstore.Saver(["w"], max_to_keep=3, progress="log", queue="skip") as saver:
    assert_type(saver.save(values, "model", global_step=1), str | None)
    handle = saver.save_async(values, "model", 2)
    assert_type(handle.result(timeout_s=1.0), str | None)  # None: skipped
    assert_type(handle.committed, bool)
    saver.restore({}, ckptstore.latest_checkpoint("."))
    assert_type(saver.as_saver_def(), SaverDef)
    assert_type(saver.last_checkpoints, list[str])

with ckptstore.open_checkpoint("model-1") as ckpt:
    assert_type(ckpt.specs()["w"].shape, tuple[int, ...])
    total: float = ckpt["w"].sum() + ckpt.read("w", np.s_[:2]).sum()
    report = ckpt.restore(into=values, missing="ignore")
    assert_type(report.missing, tuple[str, ...])

reader = ckptstore.load_checkpoint(".")
assert_type(reader.get_variable_to_shape_map(), dict[str, list[int]])
assert_type(reader.get_variable_to_dtype_map()["w"], ckptstore.DType)

graph = ckptstore.import_meta_graph("model-1.meta").graph
if graph is not None:
    assert_type(graph, Graph)
    tensor = graph.get_tensor_by_name("w:0")
    assert_type(tensor, Tensor)
    assert_type(tensor.op, Operation)
    assert_type(tensor.op.inputs, tuple[Tensor, ...])
    assert_type(tensor.shape, tuple[int | None, ...] | None)
    assert_type(graph.saver_def, SaverDef | None)
    assert_type(graph.get_collection("variables"), list[Any])

builder = GraphBuilder()
builder.operation("y", "Neg", [builder.placeholder("x", "float32", (None, 3))])
assert_type(builder.build(), Graph)

rules = [ckptstore.Latest(2), ckptstore.EveryNSteps(100), ckptstore.Best(1, "loss", mode="max")]
chosen = ckptstore.Saver(retention=rules)
chosen.save(values, "model", 3, metrics={"loss": 0.1})
ckptstore.pin("model-3")

state = ckptstore.Checkpoint(net={"w": np.ones(2)})
manager = ckptstore.CheckpointManager(state, "run", max_to_keep=3)
assert_type(manager.save(), str | None)
try:
    state.restore("run/ckpt-1").assert_consumed()
except ckptstore.TensorNotFoundError as error:
    assert_type(error.hint, str | None)
except (ckptstore.CorruptError, ckptstore.NotFoundError):
    pass

ckptstore.inspect_checkpoint.print_tensors_in_checkpoint_file("model-1", "", all_tensors=True)
assert_type(ckptstore.__version__, str)
"""

# Each line that must be an error ends with this.
MARK = "# error"

WRONG = """\
import ckptstore
from ckptstore import Saver, Savver  # error

ckptstore.Savver()  # error
saver = Saver(max_to_keap=3)  # error
Saver(durability="tape")  # error
saver.save_path  # error
Saver(retention=["latest"])  # error
ckptstore.Best(1, "loss", mode="least")  # error
saver.save({}, "m", metrics=["loss"])  # error
saver.save({}, 7)  # error
ckptstore.open_checkpoint(None)  # error
ckptstore.open_checkpoint("m").restore({}, missing="explode")  # error
graph = ckptstore.import_meta_graph("m.meta").graph
graph.get_tensor_by_name("w:0")  # error
assert graph is not None
graph.get_tensor_by_name(0)  # error
graph.message  # error
ckptstore.latest_checkpoint(".").upper()  # error
"""


def _readme() -> str:
    """Return the Python examples of the README, which follow on each other."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module", params=CHECKERS)
def messages(request, tmp_path_factory):
    """What one checker says of all files."""
    folder = tmp_path_factory.mktemp("typed")
    for name, text in {"right": RIGHT, "wrong": WRONG, "readme": _readme()}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return CHECKERS[request.param](folder)


def test_right_code_passes(messages):
    assert messages.get("right.py", {}) == {}


def test_the_examples_of_the_readme_pass(messages):
    assert "import ckptstore" in _readme()
    assert messages.get("readme.py", {}) == {}


def test_every_mistake_is_an_error_on_its_line(messages):
    marked = {number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith(MARK)}
    assert set(messages["wrong.py"]) == marked


def test_a_name_that_is_not_public_is_named_in_the_message(messages):
    assert "Savver" in messages["wrong.py"][2]


def test_nothing_is_reported_elsewhere(messages):
    assert messages.keys() <= {"right.py", "wrong.py", "readme.py"}
