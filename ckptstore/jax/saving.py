"""Trees of JAX as checkpoints: what a process holds of each array, and the document of everything else."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.jax.arrays import pieces_of, to_host
from ckptstore.jax.coordinator import shared_coordinator
from ckptstore.jax.habit import KEY_KIND, JaxHabit, import_jax, kind_of_dtype
from ckptstore.saving.handle import SaveHandle
from ckptstore.train.kept_savers import kept_saver
from ckptstore.train.saver import Saver
from ckptstore.tree.document import serialize
from ckptstore.tree.flatten import flatten
from ckptstore.tree.skeleton import TREE_TENSOR
from ckptstore.types import Options, PathText

__all__ = ["pieces", "save", "save_async"]

_HABIT = JaxHabit()


def save(
    tree: Any,
    save_path: PathText,
    global_step: Any = None,
    *,
    saver: Saver | None = None,
    storage_options: Options = None,
) -> str:
    """Save a tree of JAX as one checkpoint, together with the other processes of the program.

    Each distinct box of each array is written once, by the process that has its first replica. Every process
    calls this alike.

    Parameters
    ----------
    tree : pytree
        Of `jax.Array` of any sharding and type, typed random keys, arrays of numpy, numbers, text, bytes and
        None. Containers are those registered with JAX: optax states, ``nnx.State``, ``TrainState`` and so on.
    save_path : str or PathLike
        Prefix or URL.
    global_step : int, optional
        Appended to the prefix as ``-<step>``.
    saver : Saver, optional
        Whose options, retention and coordinator count. None: one that this process keeps for the path; it
        keeps the newest five checkpoints, and has a coordinator if JAX runs several processes.
    storage_options : mapping, optional
        For the backend.

    Returns
    -------
    str
        The prefix, for `restore`.

    Raises
    ------
    UnsupportedError
        If JAX is not installed.
    UsageError
        If a leaf can be saved neither as an array nor as a plain value; the message says where it is.
    CkptStoreError
        As `Saver.save`.

    Threads
    -------
    One thread at a time.
    """
    values = pieces(tree)
    used = _saver(saver, save_path, storage_options)
    prefix = used.save(
        values, save_path, global_step, write_meta_graph=False, storage_options=storage_options
    )
    # There is always the document.
    assert prefix is not None
    return prefix


def save_async(
    tree: Any,
    save_path: PathText,
    global_step: Any = None,
    *,
    saver: Saver | None = None,
    storage_options: Options = None,
) -> SaveHandle:
    """Save a tree of JAX in the background.

    The tree may be used, changed and donated as soon as this returns. Arrays in the memory of the host are
    not copied: they cannot change, and JAX does not reuse the memory of a donated one while it is being
    saved, but copies it. Those of other devices are copied to the host first; arrays of numpy, too.

    Parameters
    ----------
    tree, save_path, global_step, saver, storage_options
        As for `save`.

    Returns
    -------
    SaveHandle
        Ask it for the `result`.

    Raises
    ------
    CkptStoreError
        As `save`, of what is known before the first byte is written; and the unreported failure of an
        earlier `save_async` with this Saver.

    Threads
    -------
    One thread at a time.
    """
    values = {name: _unchanging(value) for name, value in pieces(tree).items()}
    used = _saver(saver, save_path, storage_options)
    return used.save_async(
        values,
        save_path,
        global_step,
        write_meta_graph=False,
        snapshot=False,
        storage_options=storage_options,
    )


def pieces(tree: Any) -> dict[str, Any]:
    """Return what `save` hands to its Saver: this process's part of each array of a tree, by name.

    A name is made of the keys on the way to the array, joined with ``/``. ``_CKPTSTORE_TREE`` holds what is
    not an array, and `restore` needs it.

    Parameters
    ----------
    tree : pytree
        As for `save`.

    Returns
    -------
    dict of str to ndarray or list of Piece
        For `Saver.save`. Arrays of the CPU are not copied. Without those of which other processes have the
        first replicas.

    Raises
    ------
    UnsupportedError, UsageError
        As `save`.

    Threads
    -------
    Any.
    """
    jax = import_jax()
    try:
        jax.tree_util.tree_structure(tree)
    except (ValueError, TypeError) as error:
        # Found here, and not by the first restore.
        raise UsageError(
            "JAX takes no such tree", actual=str(error).partition("\n")[0][:200], hint="Use keys of one type."
        ) from error
    flat = flatten(tree, _HABIT)
    shards: list[tuple[str, Any, Any]] = []
    values: dict[str, Any] = {}
    shapes = {}
    for name, array in flat.arrays.items():
        if not isinstance(array, jax.Array):
            values[name] = array
            continue
        _check_alive(name, array)
        kind = _HABIT.array_kind(array) or ""
        data = jax.random.key_data(array) if kind.startswith(KEY_KIND) else array
        shapes[name] = data.shape
        first = [shard for shard in data.addressable_shards if shard.replica_id == 0]
        if 0 in data.shape:
            # No box of it has an element: each process says that, and one writes it.
            values[name] = np.empty(data.shape, data.dtype)
            continue
        shards += [(name, shard.index, shard.data) for shard in first]
    of_name: dict[str, list[Any]] = {}
    for (name, index, _), array in zip(shards, to_host([data for *_, data in shards], jax), strict=True):
        of_name.setdefault(name, []).append((index, array))
    for name, found in of_name.items():
        value = pieces_of(shapes[name], [(index, _storable(array)) for index, array in found])
        values[name] = value
    values[TREE_TENSOR] = np.array(serialize(flat.skeleton, _HABIT), object)
    return values


def _saver(saver: Saver | None, save_path: PathText, storage_options: Options) -> Saver:
    return kept_saver(save_path, shared_coordinator(), storage_options) if saver is None else saver


def _check_alive(name: str, array: Any) -> None:
    if array.is_deleted():
        raise UsageError(
            "this array was deleted or donated",
            tensor=name,
            hint="Save the arrays that the jitted function returned.",
        )


def _storable(array: Any) -> Any:
    return array.view(np.uint8) if kind_of_dtype(array.dtype) else array


def _unchanging(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.flags.writeable:
        return value.copy()
    return value
