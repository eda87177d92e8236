"""State dicts of torch as checkpoints: in the foreground, in the background, and as pieces for a Saver."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import UsageError
from ckptstore.saving.handle import SaveHandle
from ckptstore.saving.rank_trees import one_document
from ckptstore.torch.boxes import boxes_of, is_dtensor, local_of
from ckptstore.torch.groups import coordinator_of_group
from ckptstore.torch.habit import TorchHabit
from ckptstore.torch.states import states_of
from ckptstore.torch.tensors import import_torch, to_numpy
from ckptstore.train.kept_savers import kept_saver
from ckptstore.train.saver import Saver
from ckptstore.tree.flatten import Flat, flatten
from ckptstore.tree.skeleton import TREE_TENSOR, ArrayNode, members
from ckptstore.types import Options, PathText, Piece

__all__ = ["pieces", "pieces_of", "save", "save_async"]


def save(
    state_dict: Mapping[str, Any],
    save_path: PathText,
    global_step: Any = None,
    *,
    saver: Saver | None = None,
    coordinator: Coordinator | None = None,
    storage_options: Options = None,
) -> str:
    """Save a state dict, nested as you like, as one checkpoint, and make it the latest.

    Tensors get the names that torch.distributed.checkpoint gives them: keys joined with dots. What is no
    tensor (numbers, texts, None, tuples, types of torch …) and the shape of the tree go into one text beside
    them. Tied tensors are stored once. Nothing is pickled: what cannot be stored so is refused, with its
    place.

    Parameters
    ----------
    state_dict : mapping
        Tensors, DTensors and plain values in dictionaries, lists and tuples. Objects with ``state_dict`` and
        ``load_state_dict``, such as models and optimizers, may stand in it, one level deep.
    save_path : str or PathLike
        Prefix or URL, for example ``s3://bucket/run/model``.
    global_step : int, optional
        Appended to the prefix as ``-<step>``.
    saver : Saver, optional
        By default one with the options of `ckptstore.Saver` is kept for each `save_path` as long as the
        process lives: it keeps the newest five checkpoints, and an older job that saves there is fenced.
    coordinator : Coordinator, optional
        By default that of `saver`. Without a saver, that of torch.distributed if it is initialised with more
        than one process: then every rank must call this. ``ckptstore.coordinator("single")`` saves alone.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    str
        The prefix of the checkpoint.

    Raises
    ------
    UsageError
        If something of the state cannot be stored, two ranks have different values under one key, or the
        shards of a tensor do not make it up. Nothing was written.
    UnsupportedError
        If torch is not installed.
    RanksMissingError
        If a rank does not come; the deadline of the Saver counts from this call.
    CkptStoreError
        As `Saver.save`. Of many ranks all raise the same class.

    Threads
    -------
    One thread at a time for one saver or path.
    """
    found, values = _prepared(state_dict, save_path, saver, coordinator, storage_options)
    prefix = found.save(
        values, save_path, global_step, write_meta_graph=False, storage_options=storage_options
    )
    return str(prefix)


def save_async(
    state_dict: Mapping[str, Any],
    save_path: PathText,
    global_step: Any = None,
    *,
    saver: Saver | None = None,
    coordinator: Coordinator | None = None,
    storage_options: Options = None,
) -> SaveHandle:
    """Save a state dict in the background; returns when the tensors may be changed again.

    What is wrong with the state is raised at once, what goes wrong later by the handle's `result`, by the
    next save, or by ``saver.close()``, whichever comes first. When the interpreter exits, what is in flight
    is finished.

    Parameters
    ----------
    state_dict, save_path, global_step, saver, coordinator, storage_options
        As for `save`.

    Returns
    -------
    SaveHandle
        Ask it for the `result`.

    Raises
    ------
    UsageError, UnsupportedError
        As `save`; nothing was written.
    CkptStoreError
        The unreported failure of an earlier save in the background. Nothing is saved then; the next call
        saves.
    """
    found, values = _prepared(state_dict, save_path, saver, coordinator, storage_options)
    return found.save_async(
        values, save_path, global_step, write_meta_graph=False, storage_options=storage_options
    )


def pieces(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of a state dict as a `ckptstore.Saver` and `OpenCheckpoint.restore` take them.

    The arrays are the memory of the tensors, which a restore fills. Those of another device, and of
    conjugated or negated views, are read-only copies: they can be saved, and not restored into.

    Parameters
    ----------
    state_dict : mapping
        As for `save`, with nothing but tensors in it.

    Returns
    -------
    dict of str to ndarray, Piece or list of Piece
        By name. A DTensor is what this rank holds of it.

    Raises
    ------
    UsageError
        If a tensor cannot be stored, or there is something else than tensors: `save` takes that too.
    UnsupportedError
        If torch is not installed.
    """
    habit = TorchHabit()
    flat = flatten(states_of(state_dict), habit)
    plain = _first_plain(flat.skeleton, ())
    if plain is not None:
        raise UsageError(
            "what is no tensor has no pieces",
            tensor=habit.name_of(plain),
            hint="ckptstore.torch.save stores it too, or leave it out.",
        )
    values = pieces_of(flat)
    return values | {name: values[stored] for name, stored in flat.tied.items()}


def pieces_of(flat: Flat) -> dict[str, Any]:
    """Return what this rank holds of each array, by name; what it holds nothing of is left out."""
    values: dict[str, Any] = {}
    for name, value in flat.arrays.items():
        if not is_dtensor(value):
            values[name] = to_numpy(value, tensor=name) if _is_tensor(value) else value
            continue
        local = local_of(value, tensor=name)
        array = to_numpy(local, tensor=name)
        shape = tuple(value.shape)
        if 0 in shape:
            values[name] = np.empty(shape, array.dtype)
            continue
        boxes = boxes_of(value, local, tensor=name)
        if boxes:
            # A tensor without dimensions is one box, without any index.
            values[name] = [Piece(array[box.inside], shape, box.start) for box in boxes]
    return values


def _is_tensor(value: Any) -> bool:
    return isinstance(value, import_torch().Tensor)


def _first_plain(skeleton: Any, path: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if isinstance(skeleton, ArrayNode):
        return None
    inside = members(skeleton)
    if inside is None:
        return path
    for key, member in inside:
        found = _first_plain(member, (*path, key))
        if found is not None:
            return found
    return None


def _prepared(
    state_dict: Mapping[str, Any],
    save_path: PathText,
    saver: Saver | None,
    coordinator: Coordinator | None,
    storage_options: Options,
) -> tuple[Saver, dict[str, Any]]:
    """Return the Saver, and what this rank passes to it."""
    import_torch()
    if saver is None:
        saver = kept_saver(save_path, coordinator or coordinator_of_group(), storage_options)
    elif coordinator is not None and coordinator is not saver.coordinator:
        raise UsageError(
            "the saver has another coordinator", hint="Pass one of the two: Saver(coordinator=coordinator)."
        )
    habit = TorchHabit()
    values: dict[str, Any] = {}

    def skeleton() -> Any:
        flat = flatten(states_of(state_dict), habit)
        values.update(pieces_of(flat))
        return flat.skeleton

    ranks = saver._ranks  # noqa: SLF001 - the comparison belongs to the save of this Saver
    document = one_document(ranks, skeleton, habit, f"save {os.fspath(save_path)}")
    if document is not None:
        values[TREE_TENSOR] = document
    return saver, values
