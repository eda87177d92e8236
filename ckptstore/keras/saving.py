"""Models of Keras as checkpoints, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ckptstore.errors import CkptStoreError, TensorNotFoundError, UsageError
from ckptstore.keras.weights import Variables, to_numpy, variables_of
from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint
from ckptstore.reading.report import RestoreReport
from ckptstore.suggest import did_you_mean
from ckptstore.train.kept_savers import kept_saver
from ckptstore.train.saver import Saver
from ckptstore.tree.document import parse, serialize
from ckptstore.tree.habit import Habit
from ckptstore.tree.skeleton import TREE_TENSOR
from ckptstore.types import Options, PathText, TensorSpec

__all__ = ["load", "load_state", "save", "save_state"]


class _KerasHabit(Habit):
    separator = "/"


_HABIT = _KerasHabit()


def save(
    model: Any,
    save_path: PathText,
    global_step: Any = None,
    *,
    saver: Saver | None = None,
    storage_options: Options = None,
) -> str:
    """Save the variables of a model and of its optimizer as one checkpoint, and make it the latest.

    Names are those in Keras's own file ``.weights.h5``, such as ``layers/dense_1/vars/0`` and
    ``optimizer/vars/3``: they do not depend on what else the process has built.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Built; on any backend.
    save_path : str or PathLike
        Prefix or URL.
    global_step : int, optional
        Appended to the prefix as ``-<step>``.
    saver : Saver, optional
        Whose options and retention count. None: one that this process keeps for the path; it keeps the newest
        five checkpoints.
    storage_options : mapping, optional
        For the backend.

    Returns
    -------
    str
        The prefix, for `load`.

    Raises
    ------
    UnsupportedError
        If Keras is not installed, or is Keras 2.
    UsageError
        If it is no model, or is not built.
    CkptStoreError
        As `Saver.save`.

    Threads
    -------
    One thread at a time.
    """
    used = kept_saver(save_path, None, storage_options) if saver is None else saver
    return save_state(model, save_path, global_step, used, None, None, storage_options)


def save_state(
    model: Any,
    save_path: PathText,
    global_step: Any,
    saver: Saver,
    state: Mapping[str, Any] | None,
    metrics: Mapping[str, float] | None,
    storage_options: Options = None,
) -> str:
    """Save a model, with plain values beside it and what it has reached; returns the prefix."""
    variables = variables_of(model)
    values = {one.name(key): to_numpy(value) for one in variables for key, value in one.values.items()}
    if state is not None:
        values[TREE_TENSOR] = np.array(serialize(dict(state), _HABIT), object)
    if not values:
        raise UsageError("the model has no variables", actual=model.name, hint="Build it before.")
    prefix = saver.save(
        values,
        save_path,
        global_step,
        write_meta_graph=False,
        metrics=metrics,
        storage_options=storage_options,
    )
    return str(prefix)


def load(
    model: Any,
    checkpoint: PathText | OpenCheckpoint,
    *,
    optimizer: bool = True,
    missing: Literal["raise", "ignore"] = "raise",
    storage_options: Options = None,
) -> RestoreReport:
    """Fill the variables of a model, and of its optimizer, from a checkpoint.

    Names and shapes are checked before any variable changes. The model may have been built by another
    process, or as the second of its kind in this one.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Built; on any backend, whichever saved it.
    checkpoint : str, PathLike or OpenCheckpoint
        Prefix or URL, such as `latest_checkpoint` returns.
    optimizer : bool
        False leaves the optimizer alone, for example to go on with another one.
    missing : {"raise", "ignore"}
        What to do about variables that the checkpoint lacks; ``"ignore"`` leaves layers with one alone.
    storage_options : mapping, optional
        For the backend.

    Returns
    -------
    RestoreReport
        Which variables were filled, and which are missing.

    Raises
    ------
    UnsupportedError
        If Keras is not installed, or is Keras 2.
    UsageError
        If it is no model or is not built, a shape or type differs, or the checkpoint has more variables of a
        layer or of the optimizer. Nothing was changed.
    TensorNotFoundError
        If a variable is missing. Nothing was changed.
    CkptStoreError
        As `OpenCheckpoint.restore`. Nothing was changed.

    Threads
    -------
    One thread at a time.
    """
    if missing not in ("raise", "ignore"):
        raise UsageError("missing must be 'raise' or 'ignore'", actual=repr(missing))
    if isinstance(checkpoint, OpenCheckpoint):
        if storage_options is not None:
            raise UsageError("storage_options go with a prefix; an open checkpoint has its own")
        return _load(model, checkpoint, optimizer, missing)
    with open_checkpoint(checkpoint, storage_options=storage_options) as opened:
        return _load(model, opened, optimizer, missing)


def load_state(checkpoint: OpenCheckpoint) -> dict[str, Any]:
    """Return the plain values that `save_state` was given; empty without any."""
    if TREE_TENSOR not in checkpoint:
        return {}
    found: object = checkpoint[TREE_TENSOR].tolist()
    root = parse(found if isinstance(found, bytes) else b"", _HABIT, url=checkpoint.prefix).root
    return root if isinstance(root, dict) else {}


def _load(
    model: Any, opened: OpenCheckpoint, with_optimizer: bool, missing: Literal["raise", "ignore"]
) -> RestoreReport:
    specs = opened.specs()
    absent: list[str] = []
    chosen: list[Variables] = []
    for one in variables_of(model, with_empty=True):
        if one.is_optimizer and not with_optimizer:
            continue
        lacks = [one.name(key) for key in one.values if one.name(key) not in specs]
        if lacks:
            absent += lacks
            continue
        chosen.append(one)
    if absent and missing == "raise":
        raise TensorNotFoundError(
            f"the checkpoint lacks {len(absent)} variables of the model",
            url=opened.prefix,
            tensor=absent[0],
            hint=did_you_mean(absent[0], list(specs)) or "Pass missing='ignore' to leave them as they are.",
        )
    _check_more(chosen, specs, opened.prefix)
    into = {
        one.name(key): _room_for(one.name(key), value, specs[one.name(key)], opened.prefix)
        for one in chosen
        for key, value in one.values.items()
    }
    report = opened.restore(into=into)
    for one in filter(lambda one: one.values, chosen):
        try:
            one.saveable.load_own_variables({key: into[one.name(key)] for key in one.values})
        except CkptStoreError:
            raise
        except Exception as error:
            raise UsageError(
                "Keras does not take these values", url=opened.prefix, tensor=one.name(next(iter(one.values)))
            ) from error
    return replace(report, missing=tuple(absent))


def _room_for(name: str, value: Any, spec: TensorSpec, url: str) -> Any:
    """Return an array for the value of a variable, if the checkpoint's fits."""
    array = to_numpy(value)
    kind, stored = _type_name(array), spec.dtype.name
    # Backends count steps in integers of their own.
    is_same = kind == stored or (array.dtype.kind in "iu" and spec.dtype.dtype.kind in "iu")
    if tuple(spec.shape) != array.shape or not is_same:
        raise UsageError(
            "the variable has another shape or type in the checkpoint",
            url=url,
            tensor=name,
            expected=f"{kind}{list(array.shape)}, as in the model",
            actual=f"{stored}{list(spec.shape)}",
            hint="Nothing was changed. Build the model as it was when the checkpoint was saved.",
        )
    return np.empty(array.shape, spec.dtype.dtype)


def _type_name(array: Any) -> str:
    return "string" if array.dtype.kind in "OSU" else str(array.dtype)


def _check_more(chosen: list[Variables], specs: Mapping[str, TensorSpec], url: str) -> None:
    """Refuse variables of the checkpoint where the model has some of its own, such as of an optimizer."""
    own = {one.name(key) for one in chosen for key in one.values}
    # Those of a layer or an optimizer that is not built, too: it would begin anew in silence.
    places = {one.name("") for one in chosen}
    more = [name for name in specs if name not in own and name[: name.rfind("/") + 1] in places]
    if more:
        if more[0].startswith("optimizer/"):
            hint = "Nothing was changed. Pass optimizer=False if it was saved with another optimizer."
        else:
            hint = "Nothing was changed. Build it before: call the model on a batch, or its own build()."
        raise UsageError(
            f"the checkpoint has {len(more)} more variables there", url=url, tensor=more[0], hint=hint
        )
