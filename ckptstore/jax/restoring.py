"""Checkpoints as trees of JAX: a new tree like the caller's, every distinct box read once."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.errors import ConflictError, NotFoundError, TensorNotFoundError, UsageError
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY
from ckptstore.jax.arrays import Box, as_keys, assembled, boxes_of, check_type, whole_box
from ckptstore.jax.coordinator import shared_coordinator
from ckptstore.jax.habit import KEY_KIND, JaxHabit, import_jax, key_kind, kind_of_dtype, member_key
from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint
from ckptstore.reading.options import ReadOptions
from ckptstore.reading.rank_restore import restore_values_alike
from ckptstore.storage.registry import locate
from ckptstore.tree.document import parse
from ckptstore.tree.habit import is_numpy
from ckptstore.tree.leaves import leaves_by_name
from ckptstore.tree.skeleton import TREE_TENSOR, ArrayNode, is_plain
from ckptstore.types import Options, PathText, Piece

__all__ = ["restore"]

_HABIT = JaxHabit()

# How often a checkpoint is opened that is replaced meanwhile.
_MAX_OPENINGS: Final = 5

_NUMPY_KINDS: Final = ("numpy", "numpy scalar")

_Make: TypeAlias = Callable[[], Any]
# Shape of the whole, name of the type, and the box.
_Asked: TypeAlias = tuple[tuple[int, ...], str, Box]


def restore(
    tree: Any,
    checkpoint: PathText | OpenCheckpoint,
    *,
    missing: Literal["raise", "ignore"] = "raise",
    unexpected: Literal["raise", "ignore"] = "ignore",
    storage_options: Options = None,
) -> Any:
    """Return a new tree like `tree` with the values of a checkpoint; `tree` itself is not changed.

    Each process reads the boxes of its own devices, every distinct box once, all in one pass over the files.
    Meshes, shardings and numbers of processes may differ from those that saved. Every process calls this
    alike.

    Parameters
    ----------
    tree : pytree
        Says what comes back, and where: `jax.Array` and `jax.ShapeDtypeStruct` with their sharding (without
        one: on the default device), arrays of numpy as new ones, numbers and text as those of the checkpoint.
        ``jax.eval_shape`` makes one without memory. None stays None.
    checkpoint : str, PathLike or OpenCheckpoint
        Prefix or URL, such as `latest_checkpoint` returns; it may come from elsewhere, if names agree.
    missing : {"raise", "ignore"}
        What to do about leaves that the checkpoint lacks; ``"ignore"`` leaves them as they are.
    unexpected : {"raise", "ignore"}
        What to do about values of the checkpoint without a leaf.
    storage_options : mapping, optional
        For the backend.

    Returns
    -------
    pytree
        Of the containers of `tree`.

    Raises
    ------
    UnsupportedError
        If JAX is not installed, or knows no such random keys.
    TensorNotFoundError
        If leaves are missing.
    UsageError
        If the shape or type of an array differs, a leaf is an array and the checkpoint has something else
        there, or values are unexpected. ``tensor`` is the name.
    FormatError
        If the tensor ``_CKPTSTORE_TREE`` is damaged.
    CkptStoreError
        As `OpenCheckpoint.restore`.

    Threads
    -------
    Safe for concurrent use in a program of one process; one thread at a time in one of several.
    """
    for option, choice in (("missing", missing), ("unexpected", unexpected)):
        if choice not in ("raise", "ignore"):
            raise UsageError(f"{option} must be 'raise' or 'ignore'", actual=repr(choice))
    plan = _Plan(import_jax(), tree, ignores_missing=missing == "ignore", refuses_more=unexpected == "raise")
    if isinstance(checkpoint, OpenCheckpoint):
        if storage_options is not None:
            raise UsageError("storage_options go with a prefix; an open checkpoint has its own")
        return plan.read_from(checkpoint)
    if shared_coordinator() is not None:
        return _restore_alike(plan, checkpoint, storage_options)
    for _ in range(_MAX_OPENINGS - 1):
        with open_checkpoint(checkpoint, storage_options=storage_options) as opened:
            try:
                return plan.read_from(opened)
            except TensorNotFoundError:
                raise
            except NotFoundError:
                # It was replaced, or is gone: then opening it says so.
                continue
    with open_checkpoint(checkpoint, storage_options=storage_options) as opened:
        return plan.read_from(opened)


def _restore_alike(plan: _Plan, checkpoint: PathText, storage_options: Options) -> Any:
    """Restore together with the other processes: one version, and all of them or none."""
    coordinator = shared_coordinator()
    assert coordinator is not None
    with open_checkpoint(checkpoint, storage_options=storage_options) as opened:
        document = _document(opened)
        wanted = plan.match(opened, document)
    into: dict[str, Any] = dict(wanted)
    if document is not None:
        # The plain values have to be those of the same save as the arrays.
        into[TREE_TENSOR] = None
    place = locate(checkpoint, storage_options)
    with ReadOptions().transfer(place.url) as transfer:
        restore_values_alike(coordinator, place, into, transfer=transfer)
    if document is not None and into[TREE_TENSOR].tolist() != document:
        raise ConflictError(
            "the checkpoint was replaced while it was being read",
            url=place.url,
            hint="Restore it again, on every process.",
        )
    return plan.finish()


def _document(opened: OpenCheckpoint) -> bytes | None:
    if TREE_TENSOR not in opened:
        return None
    found: object = opened[TREE_TENSOR].tolist()
    return found if isinstance(found, bytes) else b""


class _Plan:
    """One tree that is being restored."""

    def __init__(self, jax: Any, tree: Any, *, ignores_missing: bool, refuses_more: bool) -> None:
        self._jax = jax
        self._ignores_missing = ignores_missing
        self._refuses_more = refuses_more
        found, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves: dict[str, tuple[str, Any]] = {}
        for path, leaf in found:
            name = _HABIT.name_of(tuple(member_key(entry) for entry in path))
            place = jax.tree_util.keystr(path) or "the root"
            if name in self._leaves:
                raise UsageError(
                    "two leaves have the same name",
                    tensor=name,
                    actual=f"{self._leaves[name][0]} and {place}",
                    hint="Rename one of the keys.",
                )
            self._leaves[name] = place, leaf
        self._makes: list[_Make] = []
        self._boxes: dict[str, dict[_Asked, npt.NDArray[Any]]] = {}

    def read_from(self, opened: OpenCheckpoint) -> Any:
        """Return the tree of an open checkpoint."""
        opened.restore(into=self.match(opened, _document(opened)))
        return self.finish()

    def finish(self) -> Any:
        """Return the tree, when everything that `match` asked for is there."""
        leaves = [make() for make in self._makes]
        self._makes, self._boxes = [], {}
        return self._jax.tree_util.tree_unflatten(self._structure, leaves)

    def match(self, opened: OpenCheckpoint, document: bytes | None) -> dict[str, Any]:
        """Compare the tree with a checkpoint; return what has to be read, for `OpenCheckpoint.restore`."""
        nodes: Mapping[str, Any] = {}
        if document is not None:
            nodes = leaves_by_name(parse(document, _HABIT, url=opened.prefix).root, _HABIT)
        self._makes, self._boxes = [], {}
        used = {TREE_TENSOR, OBJECT_GRAPH_KEY}
        for name, (place, leaf) in self._leaves.items():
            node = nodes.get(name, ArrayNode(name))
            is_array = isinstance(node, ArrayNode)
            used.add(name)
            if is_array:
                used.add(node.name)
                if node.name not in opened and self._may_stay(name, place, leaf, opened):
                    self._makes.append(partial(_same, leaf))
                    continue
            self._makes.append(self._make(name, place, leaf, node, opened))
        if self._refuses_more:
            self._refuse_more(opened, nodes, used)
        return {name: _request(asked) for name, asked in self._boxes.items()}

    def _may_stay(self, name: str, place: str, leaf: Any, opened: OpenCheckpoint) -> bool:
        if self._ignores_missing:
            return True
        if is_plain(leaf):
            raise TensorNotFoundError(
                f"the checkpoint has no value for {place}",
                url=opened.prefix,
                tensor=name,
                hint="Pass missing='ignore' to keep that of the tree.",
            )
        # Reading says so, with the names that are close.
        return False

    def _refuse_more(self, opened: OpenCheckpoint, nodes: Mapping[str, Any], used: set[str]) -> None:
        plain = {name for name, node in nodes.items() if node is not None and not isinstance(node, ArrayNode)}
        more = sorted((set(opened) | plain) - used)
        if more:
            raise UsageError(
                f"the checkpoint has {len(more)} values that the tree has not",
                url=opened.prefix,
                actual=", ".join(more[:5]),
                hint="Pass unexpected='ignore' to leave them out.",
            )

    def _ask(self, name: str, shape: Sequence[int], dtype: Any, box: Box) -> npt.NDArray[Any]:
        """Return the array that gets a box of a tensor; the same one whenever that is asked for."""
        asked = self._boxes.setdefault(name, {})
        key = (tuple(shape), np.dtype(dtype).name, box)
        if key not in asked:
            asked[key] = np.empty([length for _, length in box], dtype)
        return asked[key]

    def _make(self, name: str, place: str, leaf: Any, node: Any, opened: OpenCheckpoint) -> _Make:
        """Ask for what a leaf needs, and return what makes the new one of it."""
        if isinstance(leaf, self._jax.Array | self._jax.ShapeDtypeStruct):
            if isinstance(leaf, self._jax.core.Tracer):
                raise UsageError(f"{place} is being traced", tensor=name, hint="Restore outside of jit.")
            if self._jax.dtypes.issubdtype(leaf.dtype, self._jax.dtypes.prng_key):
                return self._make_keys(name, place, leaf, node)
            return self._make_array(name, place, leaf, node)
        if is_numpy(leaf):
            array = self._numpy(name, place, leaf, node)
            # A scalar stays one.
            return (lambda: array) if isinstance(leaf, np.ndarray) else (lambda: array[()])
        if not isinstance(node, ArrayNode):
            if isinstance(leaf, list | tuple | dict) or not is_plain(leaf):
                raise _differ(name, place, "an array, a number, text or bytes", type(leaf).__qualname__)
            return lambda: node
        return self._number(name, place, leaf, node, opened)

    def _numpy(self, name: str, place: str, leaf: Any, node: Any) -> npt.NDArray[Any]:
        """Return what will hold the values of an array on the host."""
        if not isinstance(node, ArrayNode):
            return _as_array(name, place, leaf, node)
        if node.kind.startswith(KEY_KIND):
            raise _differ(name, place, f"an array of {leaf.dtype}", "typed random keys")
        dtype = object if leaf.dtype.kind in "OSU" else leaf.dtype
        return self._stored(name, place, node, leaf.shape, dtype, whole_box(leaf.shape))

    def _stored(
        self, name: str, place: str, node: ArrayNode, shape: Sequence[int], dtype: Any, box: Box
    ) -> npt.NDArray[Any]:
        kind = kind_of_dtype(dtype)
        if kind != (node.kind if node.kind not in _NUMPY_KINDS else ""):
            raise _differ(name, place, f"an array of {np.dtype(dtype)}", node.kind or "another type")
        array = self._ask(node.name, shape, np.uint8 if kind else dtype, box)
        return array.view(dtype) if kind else array

    def _make_array(self, name: str, place: str, leaf: Any, node: Any) -> _Make:
        jax, shape, dtype = self._jax, leaf.shape, leaf.dtype
        # What is committed to no device may be used together with what is: so are counters of optimizers.
        sharding = leaf.sharding if getattr(leaf, "committed", True) else None
        if sharding is None or not isinstance(node, ArrayNode):
            array = self._numpy(name, place, leaf, node)
            return lambda: _placed(jax, array, sharding)
        where = [
            (device, self._stored(name, place, node, shape, dtype, box))
            for device, box in boxes_of(shape, sharding).items()
        ]
        return lambda: assembled(jax, shape, sharding, where, None)

    def _make_keys(self, name: str, place: str, leaf: Any, node: Any) -> _Make:
        jax, shape = self._jax, leaf.shape
        if not isinstance(node, ArrayNode):
            raise _differ(name, place, "typed random keys", type(node).__qualname__)
        example = jax.numpy.empty((0,), leaf.dtype)
        kind = key_kind(example)
        impl = kind.removeprefix(KEY_KIND)
        # Data without a name of its implementation is taken for what the tree says.
        if node.kind.startswith(KEY_KIND) and node.kind != kind:
            raise _differ(name, place, f"random keys of {impl}", node.kind)
        example = jax.random.key_data(example)
        more = tuple(example.shape[1:])
        sharding = leaf.sharding if getattr(leaf, "committed", True) else None
        if sharding is None:
            data = self._ask(node.name, (*shape, *more), example.dtype, whole_box((*shape, *more)))
            return lambda: as_keys(jax, jax.numpy.asarray(data), impl)
        where = [
            (device, self._ask(node.name, (*shape, *more), example.dtype, (*box, *whole_box(more))))
            for device, box in boxes_of(shape, sharding).items()
        ]
        return lambda: assembled(jax, shape, sharding, where, impl)

    def _number(self, name: str, place: str, leaf: Any, node: ArrayNode, opened: OpenCheckpoint) -> _Make:
        """Return what makes a number of an array without dimensions: a counter that was traced once."""
        spec = opened.specs()[node.name]
        if spec.shape or node.kind.startswith(KEY_KIND) or type(leaf) not in (bool, int, float, complex):
            raise _differ(name, place, type(leaf).__qualname__, f"an array of shape {list(spec.shape)}")
        array = self._ask(node.name, (), spec.dtype.dtype, ())

        def make() -> Any:
            found = array.item()
            try:
                number = type(leaf)(found)
            except TypeError:
                number = None
            if number != found:
                raise _differ(name, place, type(leaf).__qualname__, repr(found))
            return number

        return make


def _same(leaf: Any) -> Any:
    return leaf


def _request(asked: dict[_Asked, npt.NDArray[Any]]) -> Any:
    """Return what `OpenCheckpoint.restore` is given for one tensor."""
    if len(asked) == 1:
        [((shape, _, box), array)] = asked.items()
        if box == whole_box(shape):
            return array
    return [Piece(array, shape, [begin for begin, _ in box]) for (shape, _, box), array in asked.items()]


def _placed(jax: Any, array: npt.NDArray[Any], sharding: Any) -> Any:
    made = jax.numpy.asarray(array) if sharding is None else jax.device_put(array, sharding)
    check_type(made, array)
    return made


def _as_array(name: str, place: str, leaf: Any, node: Any) -> npt.NDArray[Any]:
    """Return a number of the checkpoint as the array that stands in the tree."""
    made = None
    fits = not isinstance(node, complex) or leaf.dtype.kind == "c"
    if isinstance(node, numbers.Number) and fits and tuple(leaf.shape) == ():
        with suppress(OverflowError, TypeError, ValueError), np.errstate(all="ignore"):
            made = np.asarray(node).astype(leaf.dtype)
    if made is None or not _keeps(node, made):
        raise _differ(name, place, f"an array of {leaf.dtype}, shape {list(leaf.shape)}", repr(node)[:80])
    return made


def _keeps(node: Any, made: npt.NDArray[Any]) -> bool:
    """Return whether an array still says what a number of the checkpoint said; only digits may be lost."""
    found = made.item()
    if found == node:
        return True
    if isinstance(node, int) or isinstance(found, int):
        return False
    # Neither infinite nor no number unless it was before.
    return bool(np.isfinite(found) == np.isfinite(node) and np.isnan(found) == np.isnan(node))


def _differ(name: str, place: str, expected: str, actual: str) -> UsageError:
    return UsageError(
        f"the tree and the checkpoint differ at {place}",
        tensor=name,
        expected=f"{expected}, as in the tree",
        actual=f"{actual} in the checkpoint",
        hint="Pass a tree like the one that was saved.",
    )
