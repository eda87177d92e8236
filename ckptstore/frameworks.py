"""Values of frameworks, known by the names of their classes: what to pass in their place.

No framework is imported to find out: a class says itself in which module it was made.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["foreign_value", "instead_of"]

_PIECE = "Pass the part of this rank, as a ckptstore.Piece, to a Saver with a coordinator"
_JAX_SAVE = "Use ckptstore.jax.save"
_VARIABLES = "Use ckptstore.tensorflow.Saver({name: variable})"

_FRAMEWORKS = ("torch", "tensorflow", "jax", "jaxlib", "keras", "tf_keras", "flax")


def foreign_value(value: object) -> object | None:
    """Return `value`, or the first one in this list, if its class was made by a framework."""
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := foreign_value(one)) is not None), None)
    return value if _frameworks_of(value) else None


def instead_of(value: object) -> str | None:
    """Return what to pass in the place of `value`; None if it is of no known framework.

    Parameters
    ----------
    value : object
        That cannot be saved as it is.
    """
    frameworks = _frameworks_of(value)
    classes = {one.__name__ for one in type(value).__mro__}
    # On the backend torch a model of Keras is a module of torch, too.
    if {"keras", "tf_keras"} & frameworks and hasattr(value, "variables"):
        return "Use ckptstore.keras.save: its names are those of .weights.h5."
    if "torch" in frameworks:
        return _instead_of_torch(value, classes)
    if "tensorflow" in frameworks:
        return _instead_of_tensorflow(value, classes)
    if {"jax", "jaxlib"} & frameworks:
        return _instead_of_jax(value)
    if "flax" in frameworks:
        return f"{_JAX_SAVE}: it takes nnx.state(model), TrainState and all that JAX knows."
    return None


def _instead_of_torch(value: object, classes: Iterable[str]) -> str:
    if "Module" in classes or "Optimizer" in classes:
        return "Use ckptstore.torch.save: it takes state_dict(), or {'name': this object}."
    if getattr(value, "is_meta", False):
        return "A tensor on the device meta has no values: pass one that has."
    if getattr(value, "is_quantized", False):
        return "Pass x.dequantize().numpy(), or x.int_repr().numpy() with scale and zero point."
    if str(getattr(value, "layout", "torch.strided")) != "torch.strided":
        return "Pass its indices and values under names of their own, or x.to_dense()."
    if "DTensor" in classes:
        return "Use ckptstore.torch.save: it stores of each rank what that holds."
    return "Use ckptstore.torch.save, or pass ckptstore.torch.pieces(state_dict) in its place."


def _instead_of_tensorflow(value: object, classes: Iterable[str]) -> str:
    if "BaseSession" in classes:
        return "Use ckptstore.tensorflow.Saver, which takes a session."
    if {"Trackable", "AutoTrackable"} & set(classes) and not hasattr(value, "dtype"):
        # What it tracks is TensorFlow's to say; files of tf.train.Checkpoint are read, not written.
        return f"{_VARIABLES}, which saves and restores the variables of an object."
    if hasattr(value, "assign"):
        return f"{_VARIABLES}, which saves and restores variables."
    return "Pass x.numpy() where TensorFlow is eager, else what a session returns for it: sess.run(x)."


def _instead_of_jax(value: object) -> str:
    if str(getattr(value, "dtype", "")).startswith("key<"):
        return f"{_JAX_SAVE}, or pass jax.random.key_data(key)."
    if getattr(value, "is_fully_addressable", True) is False:
        return f"{_JAX_SAVE}: each process stores what it holds."
    if "Tracer" in {one.__name__ for one in type(value).__mro__}:
        return "Save outside of jit: a value that is being traced has no bytes."
    return f"{_JAX_SAVE}, or pass np.asarray(x)."


def _frameworks_of(value: object) -> set[str]:
    roots = {one.__module__.partition(".")[0] for one in type(value).__mro__}
    return roots.intersection(_FRAMEWORKS)
