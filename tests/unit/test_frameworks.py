"""What is said of values that only a framework understands; no framework is needed for it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ckptstore as ck


def made_by(framework: str, name: str, base: type = object, **attributes: Any) -> Any:
    """Return an object of a class that says it was made in `framework`."""
    return type(name, (base,), {"__module__": f"{framework}.somewhere", **attributes})()


def refuses(error: Exception) -> Any:
    def convert(*_: object, **__: object) -> Any:
        raise error

    return convert


TORCH = {"__array__": refuses(RuntimeError("Can't call numpy() on Tensor that requires grad."))}

# value, what the hint says
TENSORS = {
    "torch, requires grad": (made_by("torch", "Parameter", **TORCH), "ckptstore.torch.save"),
    "torch, bfloat16": (made_by("torch", "Tensor", dtype="torch.bfloat16", **TORCH), "ckptstore.torch.save"),
    "torch, DTensor": (made_by("torch", "DTensor", **TORCH), "ckptstore.torch.save"),
    "torch, meta": (made_by("torch", "Tensor", is_meta=True, **TORCH), "has no values"),
    "torch, sparse": (made_by("torch", "Tensor", layout="torch.sparse_coo", **TORCH), "to_dense"),
    "torch, quantized": (made_by("torch", "Tensor", is_quantized=True, **TORCH), "dequantize"),
    "TensorFlow, in a graph": (
        made_by("tensorflow", "SymbolicTensor", __array__=refuses(NotImplementedError("only eager"))),
        "sess.run",
    ),
    "JAX, of other processes": (
        made_by("jaxlib", "ArrayImpl", is_fully_addressable=False, __array__=refuses(RuntimeError("spans"))),
        "ckptstore.jax.save",
    ),
    "JAX, a key": (
        made_by("jax", "PRNGKeyArray", dtype="key<fry>", __array__=refuses(TypeError("no"))),
        "ckptstore.jax.save, or pass jax.random.key_data",
    ),
    "nnx": (made_by("flax", "Param"), "ckptstore.jax.save: it takes nnx.state"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_of_a_framework_is_named_with_what_to_pass(kind: str) -> None:
    value, instead = TENSORS[kind]
    for wrapped in (value, [value]):
        with pytest.raises(ck.UsageError) as caught:
            ck.Saver().save({"layer/w": wrapped}, "memory://frameworks/model")
        message = str(caught.value)
        assert "layer/w" in message
        assert type(value).__name__ in message
        assert instead in message
    with pytest.raises(ck.UsageError) as caught:
        ck.Checkpoint(layer={"w": value}).save("memory://frameworks/tree")
    assert instead in str(caught.value)


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (made_by("keras", "Sequential", variables=()), "ckptstore.keras.save"),
        (made_by("torch", "Module"), "state_dict"),
        (made_by("tensorflow", "BaseSession"), "ckptstore.tensorflow.Saver"),
    ],
    ids=["keras", "torch", "session"],
)
def test_a_model_in_the_place_of_a_mapping(value: object, instead: str) -> None:
    with pytest.raises(ck.UsageError, match="takes a mapping") as caught:
        ck.Saver().save(value, "memory://frameworks/model")  # type: ignore[arg-type]
    assert instead in str(caught.value)


def test_a_step_that_is_a_variable_of_a_graph() -> None:
    step = made_by("tensorflow", "RefVariable", __array__=refuses(NotImplementedError("only eager")))
    with pytest.raises(ck.UsageError, match=r"sess\.run"):
        ck.Saver().save({"w": np.zeros(1)}, "memory://frameworks/model", step)


def test_a_manager_takes_its_own_checkpoint_only() -> None:
    with pytest.raises(ck.UsageError, match=r"ckptstore\.Checkpoint"):
        ck.CheckpointManager(SimpleNamespace(), "memory://frameworks/managed", 3)  # type: ignore[arg-type]


def test_an_error_of_the_users_own_array_stays_what_it_is() -> None:
    class Lazy:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ck.Saver().save({"w": Lazy()}, "memory://frameworks/model")


def test_no_framework_is_imported() -> None:
    code = (
        "import sys, ckptstore as ck\n"
        "T = type('Tensor', (), {'__module__': 'torch', '__array__': lambda *_: 1 / 0})\n"
        "try:\n"
        "    ck.Saver().save({'w': T()}, 'memory://frameworks/model')\n"
        "except ck.UsageError as error:\n"
        "    assert 'ckptstore.torch.save' in str(error)\n"
        "assert not {'torch', 'jax', 'tensorflow', 'keras', 'flax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
