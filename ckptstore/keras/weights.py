"""What Keras saves of a model, by the names that it has in a file ``.weights.h5``.

Names that Keras gives to layers count per process, so a model that is built a second time has others. Those
in ``.weights.h5`` come from where a layer stands. Keras walks what it calls saveables: models, layers,
optimizers and what these hold in attributes and containers. ``_obj_type``, by which it tells them apart, has
no public name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UnsupportedError, UsageError

__all__ = ["Variables", "import_keras", "to_numpy", "variables_of"]


def import_keras() -> Any:
    """Return Keras.

    Raises
    ------
    UnsupportedError
        If it is not installed, or is Keras 2.
    """
    try:
        import keras
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package keras", hint="Install it: pip install keras."
        ) from error
    if not hasattr(keras, "ops"):
        raise UnsupportedError(
            "this needs Keras 3",
            actual=f"keras {keras.__version__}",
            hint="Install it: pip install 'keras>=3.10'.",
        )
    return keras


class Variables:
    """The variables of one saveable.

    Parameters
    ----------
    path : str
        Where it stands in the model; empty for the model itself.
    saveable : object
        Of Keras.
    values : dict of str to object
        What it saves of itself, by key.
    """

    def __init__(self, path: str, saveable: Any, values: dict[str, Any]) -> None:
        self.saveable = saveable
        self.values = values
        self._prefix = f"{path}/vars/" if path else "vars/"

    @property
    def is_optimizer(self) -> bool:
        """Whether they are of the model's optimizer, or of something in it."""
        return self._prefix.startswith("optimizer/")

    def name(self, key: str) -> str:
        """Return the name of a variable in the checkpoint."""
        return self._prefix + key


def variables_of(model: Any, *, with_empty: bool = False) -> list[Variables]:
    """Return the variables of everything in a model, each once, in Keras's order.

    Parameters
    ----------
    with_empty : bool
        Also what has none, or none yet.

    Raises
    ------
    UsageError
        If it is no model or layer of Keras, or has not been built.
    """
    keras = import_keras()
    if not isinstance(model, keras.layers.Layer):
        raise UsageError("this is no model of Keras", actual=type(model).__qualname__)
    if not model.built:
        raise UsageError(
            "the model has no variables yet",
            actual=f"{model.name}, which is not built",
            hint="Call model.build(input_shape), or the model on a batch, before.",
        )
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    return [one for one in _Walk().saveable(model, "") if one.values or with_empty]


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """Return a variable or tensor of the backend as an array of numpy."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    found: npt.NDArray[Any] = np.asarray(import_keras().ops.convert_to_numpy(value))
    return found


class _Walk:
    def __init__(self) -> None:
        self._seen: set[int] = set()

    def saveable(self, one: Any, path: str) -> Iterator[Variables]:
        if id(one) in self._seen:
            return
        self._seen.add(id(one))
        if hasattr(one, "save_own_variables"):
            values: dict[str, Any] = {}
            one.save_own_variables(values)
            yield Variables(path, one, values)
        for name, member in _members(one):
            below = f"{path}/{name}" if path else name
            if _is_saveable(member):
                yield from self.saveable(member, below)
            elif isinstance(member, list | dict | tuple):
                yield from self._container(member, below, set())

    def _container(self, container: Any, path: str, seen: set[int]) -> Iterator[Variables]:
        if id(container) in seen:
            return
        seen.add(id(container))
        used: dict[str, int] = {}
        for member in list(container.values()) if isinstance(container, dict) else container:
            if _is_saveable(member):
                name = _unique(_snake(type(member).__name__), used)
                yield from self.saveable(member, f"{path}/{name}")
            elif isinstance(member, list | dict | tuple):
                yield from self._container(member, f"{path}/{_unique('container', used)}", seen)


def _is_saveable(value: Any) -> bool:
    return hasattr(type(value), "_obj_type")


def _members(saveable: Any) -> Iterator[tuple[str, Any]]:
    kind = str(saveable._obj_type())  # noqa: SLF001 - see above
    # The layers of these come first, whatever attributes they stand in, too.
    if kind in ("Sequential", "Functional"):
        yield "layers", saveable.layers
    skipped = _names_of_kind(kind)
    for name in sorted(dir(saveable), key=lambda one: f"~{one}" if one.startswith("_") else one):
        if name.startswith("__") or name in skipped:
            continue
        try:
            member = getattr(saveable, name)
        except Exception:  # noqa: BLE001 - a property may raise anything; Keras leaves it out, too
            continue
        yield name, member


@lru_cache(maxsize=64)
def _names_of_kind(kind: str) -> frozenset[str]:
    """Return the names that every saveable of a kind has: Keras's own, which hold nothing to save."""
    keras = import_keras()
    match kind:
        case "Sequential":
            more = [*dir(keras.layers.Layer()), "_functional"]
        case "Functional":
            more = [*dir(keras.layers.Layer()), "operations", "_operations"]
        case "Optimizer":
            more = [name for name in dir(keras.optimizers.Optimizer(1.0)) if name != "variables"]
        case "Metric":
            more = dir(keras.metrics.Metric())
        case "Loss":
            more = dir(keras.losses.Loss())
        case "Operation":
            more = dir(keras.Operation())
        case _:
            more = dir(keras.layers.Layer())
    return frozenset(["_self_unconditional_dependency_names", *more])


def _unique(name: str, used: dict[str, int]) -> str:
    if name not in used:
        used[name] = 0
        return name
    used[name] += 1
    return f"{name}_{used[name]}"


def _snake(name: str) -> str:
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
