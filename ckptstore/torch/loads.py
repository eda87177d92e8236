"""A checkpoint into a state dict, in place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ckptstore.distributed.agreement import Agreement
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import ConflictError, TensorNotFoundError, UnsupportedError, UsageError
from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint
from ckptstore.reading.report import RestoreReport
from ckptstore.torch.boxes import boxes_of, is_dtensor, local_of
from ckptstore.torch.groups import coordinator_of_group
from ckptstore.torch.habit import TorchHabit, logical_of_kind
from ckptstore.torch.states import check_groups, is_stateful, targets_of
from ckptstore.torch.tensors import (
    as_tensor,
    check,
    fill,
    import_torch,
    is_memory,
    logical_type,
    memory_of,
    stored_dtype,
)
from ckptstore.tree.document import parse
from ckptstore.tree.match import ABSENT, Filling, match
from ckptstore.tree.skeleton import TREE_TENSOR, ArrayNode, array_nodes
from ckptstore.types import Options, PathText, Piece, TensorSpec

__all__ = ["load", "skeleton_of"]


def load(
    state_dict: MutableMapping[str, Any],
    checkpoint: PathText | OpenCheckpoint,
    *,
    missing: Literal["raise", "ignore"] = "raise",
    unexpected: Literal["raise", "ignore"] = "ignore",
    coordinator: Coordinator | None = None,
    storage_options: Options = None,
) -> RestoreReport:
    """Load a checkpoint into a state dict, in place.

    Tensors are filled where they are, whatever their device, strides and shards: a model whose `state_dict`
    this is has the values then. Other values are replaced in their dictionaries and lists. Objects with
    ``load_state_dict`` in the state dict get what was loaded. Nothing is unpickled, and no code is run.

    Parameters
    ----------
    state_dict : mutable mapping
        As for `save`. Where it has None or an empty dictionary, the state of an optimizer before its first
        step for example, it gets what the checkpoint has there, as new whole tensors on the CPU.
    checkpoint : str, PathLike or OpenCheckpoint
        Prefix or URL, such as `latest_checkpoint` returns, of any checkpoint with these names.
    missing : {"raise", "ignore"}
        What to do about what the state dict has and the checkpoint has not.
    unexpected : {"raise", "ignore"}
        What to do about the opposite. Of many ranks each asks for its own.
    coordinator : Coordinator, optional
        By default that of torch.distributed if it is initialised with more than one process: then every rank
        must call this, and all read one version of the checkpoint. ``ckptstore.coordinator("single")`` loads
        alone.
    storage_options : mapping, optional
        Goes to the backend as it is; for a prefix.

    Returns
    -------
    RestoreReport
        ``restored`` has the tensors by name.

    Raises
    ------
    TensorNotFoundError
        If something is missing. Nothing was changed.
    UsageError
        If a shape or type differs, the trees do not go together, or a tensor cannot be filled. Nothing was
        changed.
    UnsupportedError
        If torch is not installed, or another framework or a newer release wrote the tree.
    CorruptError, NotFoundError, AccessError, TransientError
        As for `OpenCheckpoint.restore`: damaged bytes may only show when other tensors are filled already.
        Of many ranks, all raise the same class.
    RanksMissingError
        If a rank does not come within 600 s. If it is lost while it reads, the others may have
        filled their tensors.

    Threads
    -------
    The tensors must not be used meanwhile.
    """
    import_torch()
    for option, choice in (("missing", missing), ("unexpected", unexpected)):
        if choice not in ("raise", "ignore"):
            raise UsageError(f"{option} must be 'raise' or 'ignore'", actual=repr(choice))
    if checkpoint is None:
        raise UsageError(
            "there is no checkpoint to load: it is None",
            hint="latest_checkpoint returns None when there is no checkpoint yet.",
        )
    if isinstance(checkpoint, OpenCheckpoint) and storage_options is not None:
        raise UsageError("storage_options go with a prefix; an open checkpoint has its own")
    if coordinator is None:
        coordinator = coordinator_of_group()
    loading = _Loading(state_dict, checkpoint, missing == "raise", unexpected == "raise", storage_options)
    if coordinator is None or coordinator.size == 1:
        loading.prepare()
        loading.read()
    else:
        _alike(loading, coordinator)
    return loading.finish()


def _alike(loading: _Loading, coordinator: Coordinator) -> None:
    """Load on all ranks or on none; all read one version."""

    def read() -> dict[str, Any]:
        loading.read()
        return {}

    for _ in range(_MOST_OPENINGS):
        with Agreement(coordinator, "load the checkpoint") as agreement:
            answers = agreement.all_or_none(loading.prepare)
            if len({one["version"] for one in answers}) == 1:
                agreement.all_or_none(read)
                return
        prefixes = sorted({one["prefix"] for one in answers})
        if len(prefixes) > 1:
            raise UsageError(
                "the ranks load different checkpoints",
                expected="one checkpoint for all",
                actual=", ".join(prefixes[:10]),
                hint="Ask for the latest on one rank, and tell the others.",
            )
    raise ConflictError(
        "the checkpoint is replaced again and again while the ranks open it",
        hint="Save under other names, or load another checkpoint.",
    )


# How often the ranks open a checkpoint that is replaced under them.
_MOST_OPENINGS = 5


def skeleton_of(checkpoint: OpenCheckpoint, habit: TorchHabit) -> Any:
    """Return the skeleton of the tree that was saved, `ABSENT` if none was.

    Raises
    ------
    FormatError, UnsupportedError
        If the document is damaged, or not of torch.
    """
    if TREE_TENSOR not in checkpoint:
        return ABSENT
    data = checkpoint.read(TREE_TENSOR)
    text = data.item() if data.shape == () else b""
    document = parse(text if isinstance(text, bytes) else b"", habit, url=checkpoint.prefix)
    if document.separator != habit.separator:
        raise UnsupportedError(
            "another framework has written the tree of this checkpoint",
            url=checkpoint.prefix,
            tensor=TREE_TENSOR,
            hint="Use its adapter, or read the tensors by name: ckptstore.torch.read_state_dict.",
        )
    return document.root


@dataclass
class _Target:
    """A tensor of the caller, and what is read for it.

    Attributes
    ----------
    into : ndarray, list of Piece or None
        What is read into; None if this rank holds nothing of it.
    copy : tuple, optional
        A tensor, and the array that is copied to it in the end.
    """

    value: Any
    into: Any
    copy: tuple[Any, Any] | None = None


@dataclass
class _Loading:
    state_dict: MutableMapping[str, Any]
    checkpoint: PathText | OpenCheckpoint
    raise_missing: bool
    raise_unexpected: bool
    storage_options: Options
    habit: TorchHabit = field(default_factory=TorchHabit)

    def prepare(self) -> dict[str, str]:
        """Check everything; nothing is changed, and only the index and the tree are read."""
        self.tree = targets_of(self.state_dict)
        if isinstance(self.checkpoint, OpenCheckpoint):
            self.opened = self.checkpoint
        else:
            self.opened = open_checkpoint(self.checkpoint, storage_options=self.storage_options)
        self.specs = self.opened.specs()
        skeleton = skeleton_of(self.opened, self.habit)
        self.has_document = skeleton is not ABSENT
        nodes = () if skeleton is ABSENT else array_nodes(skeleton)
        self._logical = {node.name: logical_of_kind(node.kind) for _, node in nodes}
        try:
            check_groups(self.state_dict, self.tree, skeleton)
            self.filling = match(self.tree, skeleton, self.habit, self.specs.keys())
            self.targets = self._targets(self.filling)
            self._check_names(self.filling)
        except UsageError as error:
            error.url = error.url or self.opened.prefix
            raise
        return {"version": self.opened.version, "prefix": self.opened.prefix}

    def _targets(self, filling: Filling) -> dict[str, list[_Target]]:
        """Return what is filled, by name; each memory once."""
        found: dict[str, list[_Target]] = {}
        self._filled: dict[Any, str] = {}
        for name, values in filling.filled.items():
            for value in values:
                other = self._filled.get(self._identity(value))
                if other is None:
                    self._filled[self._identity(value)] = name
                    found.setdefault(name, []).append(self._target(name, value))
                elif other != name:
                    raise UsageError(
                        "two tensors of the checkpoint would go into the same memory",
                        tensor=name,
                        actual=f"{other} and {name}",
                        hint="Load into tensors that are not tied, and tie them again.",
                    )
        return found

    def _identity(self, value: Any) -> Any:
        return self.habit.identity(value) or id(value)

    def _target(self, name: str, value: Any) -> _Target:
        spec = self.specs.get(name)
        if spec is None:
            raise TensorNotFoundError.among(
                "the tree of the checkpoint names a tensor that it lacks", name, self.specs, "tensors"
            )
        if isinstance(value, np.ndarray):
            return _Target(value, value)
        local = local_of(value, tensor=name) if is_dtensor(value) else value
        check(local, tensor=name)
        self._check_alike(name, value, spec)
        if is_memory(local):
            array, copy = memory_of(local, tensor=name), None
        else:
            array = np.empty(tuple(local.shape), stored_dtype(local.dtype, tensor=name))
            copy = (local, array)
        if local is value:
            return _Target(value, array, copy)
        boxes = boxes_of(value, local, tensor=name)
        shape = tuple(value.shape)
        return _Target(value, [Piece(array[box.inside], shape, box.start) for box in boxes], copy)

    def _check_alike(self, name: str, value: Any, spec: TensorSpec) -> None:
        stored, logical = spec.dtype, self._logical.get(name)
        wanted = logical_type(value.dtype)
        if spec.dtype != stored_dtype(value.dtype, tensor=name) or (self.has_document and wanted != logical):
            raise UsageError(
                "a tensor of the state dict has another type than the checkpoint's",
                tensor=name,
                expected=logical or stored.name,
                actual=str(value.dtype),
                hint="Convert the model before loading, or load into a copy and convert that.",
            )
        if tuple(value.shape) != spec.shape:
            raise UsageError(
                "a tensor of the state dict has another shape than the checkpoint's",
                tensor=name,
                expected=list(spec.shape),
                actual=list(value.shape),
            )
        strides = zip(value.shape, value.stride(), strict=True)
        if any(size > 1 and stride == 0 for size, stride in strides):
            raise UsageError(
                "an expanded tensor cannot be filled: its elements share memory",
                tensor=name,
                hint="Pass x.clone(), or what it was expanded from.",
            )

    def _check_names(self, filling: Filling) -> None:
        self.missing = tuple(self._really_missing(filling))
        if self.missing and self.raise_missing:
            error = TensorNotFoundError.among(
                "the checkpoint lacks what the state dict has",
                self.missing[0],
                self.specs,
                "tensors",
                url=self.opened.prefix,
            )
            if len(self.missing) > 1:
                error.hint = f"{error.hint} In all, {len(self.missing)} are missing."
            raise error
        used = self.targets.keys() | filling.created.keys() | {TREE_TENSOR}
        left = [name for name in filling.unexpected if name not in used]
        self.unexpected = tuple(dict.fromkeys(left))
        if self.unexpected and self.raise_unexpected:
            raise UsageError(
                f"the checkpoint has {len(self.unexpected)} values that the state dict lacks",
                tensor=self.unexpected[0],
                actual=", ".join(self.unexpected[:10]),
                hint="Put them into the state dict, or pass unexpected='ignore'.",
            )

    def _really_missing(self, filling: Filling) -> Iterable[str]:
        """Yield what is missing, without tensors that are filled under another name: tied ones."""
        for name in filling.missing:
            value = filling.missing_arrays.get(name)
            if value is None or self._identity(value) not in self._filled:
                yield name

    def read(self) -> None:
        """Fill the tensors; the plain values and what is new come with `finish`."""
        into: dict[str, Any] = {}
        for name, targets in self.targets.items():
            given = targets[0].into if len(targets) == 1 else _all_pieces(targets)
            if (given is not None and not isinstance(given, list)) or given:
                into[name] = given
        for name in self.filling.created:
            if name not in self.targets:
                into[name] = None
        self.report = self.opened.restore(into, names=list(into))
        self.arrays = into
        for target in itertools.chain.from_iterable(self.targets.values()):
            if target.copy is not None:
                fill(*target.copy)

    def finish(self) -> RestoreReport:
        """Put everything in its place, and return the report."""
        created: dict[tuple[str, str], Any] = {}

        def array_of(node: ArrayNode) -> Any:
            key = (node.name, node.kind)
            if key not in created:
                created[key] = self._made(node)
            return created[key]

        tree = self.filling.finish(array_of)
        for key, value in tree.items():
            present: Any = self.state_dict.get(key)
            if is_stateful(present):
                present.load_state_dict(value)
            else:
                self.state_dict[key] = value
        torch = import_torch()
        filled = [one.value for targets in self.targets.values() for one in targets]
        for value in filled:
            if isinstance(value, torch.Tensor) and not value.is_inference():
                # Autograd must see that the values changed: numpy has written them.
                torch.autograd.graph.increment_version(value)
        restored = {name: value for (name, _), value in created.items()}
        restored |= {name: targets[0].value for name, targets in self.targets.items()}
        report = self.report
        return replace(report, restored=restored, missing=self.missing, unexpected=self.unexpected)

    def _made(self, node: ArrayNode) -> Any:
        if node.name in self.targets:
            # Tied to one that is there.
            return self.targets[node.name][0].value
        array = self.arrays[node.name]
        if node.kind == "numpy":
            return array
        if node.kind == "numpy scalar":
            return array[()]
        if array.dtype == object:
            raise UnsupportedError("torch has no type for texts", tensor=node.name, actual="string")
        return self.habit.made(as_tensor(array), node.kind)


def _all_pieces(targets: list[_Target]) -> list[Piece]:
    """Return what is read for tensors that were tied when they were saved, and are not here."""
    found: list[Piece] = []
    for target in targets:
        into = target.into
        found += into if isinstance(into, list) else [Piece(into, into.shape, (0,) * into.ndim)]
    return found
