"""A plug-in for torch.distributed.checkpoint (DCP): its `save` and `load` with checkpoints of ckptstore.

DCP plans which rank writes which tensor; the tensors go to `Saver.save`, which commits one checkpoint for all
ranks. There is no file ``.metadata``: the reader makes what DCP wants to know from the index and the tree.
Importing this module imports torch.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, WriteItemType
from torch.futures import Future

from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import CkptStoreError, ConflictError, UsageError
from ckptstore.reading.open_checkpoint import open_checkpoint
from ckptstore.saving.rank_trees import one_document
from ckptstore.torch.coordinator import is_running
from ckptstore.torch.groups import coordinator_of_group
from ckptstore.torch.habit import TorchHabit, logical_of_kind
from ckptstore.torch.loads import skeleton_of
from ckptstore.torch.tensors import (
    STORED_DTYPES,
    fill,
    identity_of,
    is_memory,
    logical_type,
    memory_of,
    to_numpy,
)
from ckptstore.train.kept_savers import kept_saver
from ckptstore.train.saver import Saver
from ckptstore.tree.document import parse, serialize
from ckptstore.tree.flatten import flatten
from ckptstore.tree.match import ABSENT, build
from ckptstore.tree.skeleton import TREE_TENSOR, ArrayNode, array_nodes
from ckptstore.types import Options, PathText, Piece

__all__ = ["LoadPlanner", "SavePlanner", "StorageReader", "StorageWriter"]

_STEP = re.compile(r"-\d+$")


class SavePlanner(dcp.DefaultSavePlanner):  # type: ignore[misc]
    """DCP's default planner, with the tree of `ckptstore.torch.save` in the place of pickled objects.

    Numbers, texts, None, lists, tuples and types of torch come back by `LoadPlanner`, and by
    `ckptstore.torch.load`. What cannot be written so makes `torch.distributed.checkpoint.save` fail on all
    ranks, with a `UsageError` that has its place among the failures; nothing was written. So do arrays of
    numpy, and tensors in tuples. Tied tensors are stored once.

    Threads
    -------
    One save at a time.
    """

    def __init__(self) -> None:
        super().__init__()

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Take a state dict, and check that all of it can be stored."""
        self.flat = flatten(state_dict, TorchHabit())
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        for name in (*self.flat.arrays, *self.flat.tied):
            if not isinstance(self.state_dict.get(name), torch.Tensor):
                raise UsageError(
                    "torch.distributed.checkpoint does not look for arrays where this one is",
                    tensor=name,
                    hint="Put it into a dictionary or list, as a tensor; or use ckptstore.torch.save.",
                )


class LoadPlanner(dcp.DefaultLoadPlanner):  # type: ignore[misc]
    """DCP's default planner for checkpoints that `SavePlanner` or `ckptstore.torch.save` has written.

    Nothing is unpickled. Values are replaced in their dictionaries and lists.

    Threads
    -------
    One load at a time.
    """

    def __init__(self) -> None:
        super().__init__()

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        """Put a value in its place."""
        name = read_item.dest_index.fqn
        *above, last = self.mappings[name]
        container: Any = self.original_state_dict
        for key in above:
            container = container[_own_key(container, key)]
        container[_own_key(container, last)] = parse(value.getvalue(), TorchHabit(), url=name).root


def _own_key(container: Any, key: Any) -> Any:
    """Return the key of which DCP knows the text only."""
    if not isinstance(container, Mapping) or key in container:
        return key
    return next((own for own in container if str(own) == key), key)


class StorageWriter(dcp.StorageWriter):  # type: ignore[misc]
    """Saves what `torch.distributed.checkpoint.save` hands over as one checkpoint of all ranks.

    It is committed, recorded and made the latest as `Saver.save` does it; TensorFlow reads it. Pass
    ``planner=SavePlanner()`` too if there is anything else than tensors in the state: DCP's default planner
    pickles it, and `StorageReader` does not unpickle.

    Parameters
    ----------
    path : str or PathLike, optional
        Prefix or URL with its step, for example ``s3://bucket/run/model-100``. By default DCP's
        ``checkpoint_id``.
    saver : Saver, optional
        By default one with the options of `ckptstore.Saver` is kept for each path without its step. Its
        coordinator must be that of the ranks that save.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UsageError, CkptStoreError
        As `ckptstore.torch.save`. DCP wraps them: see ``failures`` of its ``CheckpointException``.

    Threads
    -------
    One save at a time.
    """

    def __init__(
        self,
        path: PathText | None = None,
        *,
        saver: Saver | None = None,
        storage_options: Options = None,
    ) -> None:
        super().__init__()
        self._path = path
        self._saver = saver
        self._storage_options = storage_options

    def reset(self, checkpoint_id: PathText | None = None) -> None:
        """Take the name of the next checkpoint."""
        if checkpoint_id is not None:
            self._path = checkpoint_id

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Check what DCP is asked to do."""
        del is_coordinator, args
        _named(self._path)
        if not kwargs.get("use_collectives", True):
            raise UsageError(
                "without collectives every rank would save a checkpoint of its own under one name",
                hint="Leave use_collectives out.",
            )

    def prepare_local_plan(self, plan: Any) -> Any:
        """Leave the plan of this rank as it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Tell each rank how many there are."""
        return [dataclasses.replace(plan, storage_data=len(plans)) for plan in plans]

    def write_data(self, plan: Any, planner: Any) -> Future[list[Any]]:
        """Save, together with the other ranks; the checkpoint is committed when this returns."""
        path = _named(self._path)
        saver = self._saver or kept_saver(
            _STEP.sub("", path), _coordinator_of(plan.storage_data), self._storage_options
        )
        coordinator = saver.coordinator
        size = 1 if coordinator is None else coordinator.size
        if size != plan.storage_data:
            raise UsageError(
                "the saver is not that of the ranks that save",
                expected=f"a coordinator of {plan.storage_data} ranks",
                actual=f"{size}",
                hint="Pass StorageWriter(saver=Saver(coordinator=...)) with one of these ranks.",
            )
        values: dict[str, Any] = {}
        has_tree = isinstance(planner, SavePlanner)

        def skeleton() -> Any:
            values.update(_values_of(plan, planner, planner.flat.tied if has_tree else {}))
            return planner.flat.skeleton if has_tree else {}

        ranks = saver._ranks  # noqa: SLF001 - the comparison belongs to the save of this Saver
        # Without a tree to store, the ranks agree that each can store what it has.
        document = one_document(ranks, skeleton, TorchHabit(), f"save {path}")
        if document is not None and has_tree:
            values[TREE_TENSOR] = document
        saver.save(values, path, write_meta_graph=False, storage_options=self._storage_options)
        done: Future[list[Any]] = Future()
        done.set_result([])
        return done

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """Do nothing: all ranks have agreed on the checkpoint already, and it is the latest."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: PathText) -> bool:
        """Return whether this can be the name of a checkpoint."""
        return isinstance(checkpoint_id, str | os.PathLike)


class StorageReader(dcp.StorageReader):  # type: ignore[misc]
    """Reads any checkpoint of ckptstore or TensorFlow for `torch.distributed.checkpoint.load`.

    The layout need not be that of the save. Pass ``planner=LoadPlanner()`` too if there is anything else than
    tensors in the state dict.

    Parameters
    ----------
    path : str or PathLike, optional
        Prefix or URL, as `latest_checkpoint` returns. By default DCP's ``checkpoint_id``.
    memory_budget : int, optional
        As for `open_checkpoint`.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UsageError
        If the state dict wants an object that DCP's default planner would unpickle or has pickled, or a
        tensor has another type.
    CkptStoreError
        As `OpenCheckpoint.restore`. DCP wraps all of them: see ``failures`` of its ``CheckpointException``.

    Threads
    -------
    One load at a time.
    """

    def __init__(
        self,
        path: PathText | None = None,
        *,
        memory_budget: int | None = None,
        storage_options: Options = None,
    ) -> None:
        super().__init__()
        self._path = path
        self._memory_budget = memory_budget
        self._storage_options = storage_options
        self._failure: CkptStoreError | None = None

    def reset(self, checkpoint_id: PathText | None = None) -> None:
        """Take the name of the checkpoint."""
        if checkpoint_id is not None:
            self._path = checkpoint_id

    def read_metadata(self, *args: Any, **more: Any) -> Any:
        """Return what DCP wants to know, made from the index.

        Of what goes wrong here DCP would keep the text only, so that `set_up_storage_reader` raises it.
        """
        del args, more
        self._failure = None
        try:
            return self._opened_metadata()
        except CkptStoreError as error:
            self._failure = error
            return Metadata({})

    def _opened_metadata(self) -> Any:
        self._opened = open_checkpoint(
            _named(self._path), memory_budget=self._memory_budget, storage_options=self._storage_options
        )
        self._specs = self._opened.specs()
        skeleton = skeleton_of(self._opened, TorchHabit())
        names = {name: ArrayNode(name) for name in self._specs if name != TREE_TENSOR}
        self._values: dict[str, Any] = {}
        paths: dict[str, Any] | None = None
        if isinstance(skeleton, dict):
            names |= {TorchHabit().name_of(path): node for path, node in array_nodes(skeleton)}
            # As DCP itself divides a state dict; the tensors are not needed for that.
            planner = dcp.DefaultSavePlanner()
            planner.set_up_planner(build(skeleton, _stand_in))
            paths = planner.mappings
            self._values = {
                name: value for name, value in planner.state_dict.items() if not torch.is_tensor(value)
            }
        elif skeleton is not ABSENT:
            raise UsageError("the tree of the checkpoint is no dictionary", url=self._opened.prefix)
        self._names = {name: node.name for name, node in names.items()}
        found: dict[str, Any] = {name: BytesStorageMetadata() for name in self._values}
        self._mixed = {name for name, value in self._values.items() if flatten([value], TorchHabit()).arrays}
        for name, node in names.items():
            entry = self._entry(node)
            if entry is not None:
                found[name] = entry
        return Metadata(found, planner_data=paths)

    def _entry(self, node: ArrayNode) -> Any:
        spec = self._specs[node.name]
        if spec.dtype.name == "string":
            return BytesStorageMetadata()
        stored = spec.dtype.name if spec.dtype.name in STORED_DTYPES else ""
        dtype = getattr(torch, logical_of_kind(node.kind) or stored or "?", None)
        if dtype is None:
            return None
        size = torch.Size(spec.shape)
        chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
        return TensorStorageMetadata(TensorProperties(dtype=dtype), size, [chunk])

    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Raise what went wrong when the checkpoint was opened."""
        del metadata, is_coordinator, args, kwargs
        if self._failure is not None:
            raise self._failure

    def prepare_local_plan(self, plan: Any) -> Any:
        """Tell the other ranks which version of the checkpoint this one has opened."""
        return dataclasses.replace(plan, storage_data=self._opened.version)

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Check that all ranks read one version."""
        if len({plan.storage_data for plan in plans}) > 1:
            raise ConflictError(
                "the checkpoint was replaced while the ranks opened it", hint="Load it again."
            )
        return plans

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Fill the tensors of this rank in one pass over the files, then the other values."""
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                self._check_object(item.storage_index.fqn, planner)
        into: dict[str, list[Piece]] = {}
        copies: list[tuple[Any, Any]] = []
        targets: list[tuple[Any, Any]] = []
        memories: set[Any] = set()
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                continue
            name = item.storage_index.fqn
            target = planner.resolve_tensor(item)
            targets.append((item, target))
            spec = self._specs[self._names[name]]
            self._check_type(name, target, spec)
            if not target.numel():
                continue
            # Two names of one memory: the later one counts, as for DCP.
            identity = identity_of(target)
            if is_memory(target) and identity not in memories:
                array = memory_of(target, tensor=name)
            else:
                array = np.empty(tuple(target.shape), spec.dtype.as_numpy_dtype)
                copies.append((target, array))
            memories.add(identity)
            piece = Piece(array, spec.shape, tuple(item.storage_offsets))
            into.setdefault(self._names[name], []).append(piece)
        with self._opened:
            self._opened.restore(into, names=list(into))
        for target, array in copies:
            fill(target, array)
        for item, target in targets:
            if not target.is_inference():
                torch.autograd.graph.increment_version(target)
            planner.commit_tensor(item, target)
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                data = serialize(self._values[item.storage_index.fqn], TorchHabit())
                planner.load_bytes(item, io.BytesIO(data))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _check_object(self, name: str, planner: Any) -> None:
        if name in self._mixed:
            raise UsageError(
                "there are arrays inside of this value, where torch.distributed.checkpoint does not look",
                url=self._opened.prefix,
                tensor=name,
                hint="Use ckptstore.torch.load.",
            )
        if name not in self._values:
            raise UsageError(
                "this is a pickled object or a text, which is not unpickled",
                url=self._opened.prefix,
                tensor=name,
                hint="Save with planner=ckptstore.torch.SavePlanner(), or leave it out of the state dict.",
            )
        if not isinstance(planner, LoadPlanner):
            raise UsageError(
                "DCP's default planner would unpickle this value, and it is no pickle",
                url=self._opened.prefix,
                tensor=name,
                hint="Pass planner=ckptstore.torch.LoadPlanner().",
            )

    def _check_type(self, name: str, target: Any, spec: Any) -> None:
        entry = STORED_DTYPES.get(str(target.dtype).removeprefix("torch."))
        if entry != spec.dtype.dtype:
            raise UsageError(
                "a tensor of the state dict has another type than the checkpoint's",
                url=self._opened.prefix,
                tensor=name,
                expected=spec.dtype.name,
                actual=str(target.dtype),
                hint="Convert the model before loading, or load into a copy and convert that.",
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: PathText) -> bool:
        """Return whether this can be the name of a checkpoint."""
        return isinstance(checkpoint_id, str | os.PathLike)


def _stand_in(node: ArrayNode) -> Any:
    del node
    return torch.empty(0)


def _named(path: PathText | None) -> str:
    if path is None:
        raise UsageError(
            "the checkpoint has no name", hint="Pass checkpoint_id= to DCP, or a path to the storage."
        )
    return os.fspath(path)


def _coordinator_of(size: int) -> Coordinator | None:
    """Return the coordinator of that many ranks.

    Raises
    ------
    UsageError
        If they are some of the job only.
    """
    if size == 1:
        return None
    found = coordinator_of_group() if is_running() else None
    if found is None or found.size != size:
        raise UsageError(
            "a part of the ranks saves, and how they talk is not known",
            expected=f"{size} ranks",
            hint="Pass StorageWriter(saver=Saver(coordinator=...)) with one of these ranks.",
        )
    return found


def _values_of(plan: Any, planner: Any, tied: Mapping[str, str]) -> dict[str, Any]:
    """Return what this rank writes, by name: arrays, and lists of pieces."""
    values: dict[str, Any] = {}
    for item in plan.items:
        name = item.index.fqn
        if item.type == WriteItemType.BYTE_IO:
            if not isinstance(planner, SavePlanner):
                values[name] = np.array(planner.resolve_data(item).getvalue(), object)
            continue
        if name in tied:
            continue
        array = to_numpy(planner.resolve_data(item).detach(), tensor=name)
        shape, chunk = tuple(item.tensor_data.size), item.tensor_data.chunk
        logical = logical_type(item.tensor_data.properties.dtype)
        if logical and not isinstance(planner, SavePlanner):
            raise UsageError(
                "TensorFlow has no such type, and DCP's default planner does not say that it was this one",
                tensor=name,
                actual=logical,
                hint="Pass planner=ckptstore.torch.SavePlanner().",
            )
        if 0 in shape:
            values[name] = np.empty(shape, array.dtype)
        elif tuple(chunk.sizes) == shape:
            values[name] = array
        elif array.size:
            values.setdefault(name, []).append(Piece(array, shape, tuple(chunk.offsets)))
    return values
