"""Between a tree of objects and the tensors of a bundle: the plan of a save, and filling the tree again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.destinations import Destination, check_destinations
from ckptstore.bundle.read.open_bundle import BundleReader, open_bundle, reopening
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.bundle.read.restore import restore_into
from ckptstore.bundle.write.plan import SavePlan, plan_save, write_item
from ckptstore.errors import FormatError, NotFoundError, TensorNotFoundError
from ckptstore.format.dtypes import STRING
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY, decode, encode
from ckptstore.reading.options import ReadOptions
from ckptstore.storage.base import Location
from ckptstore.trackable.describe import describe
from ckptstore.trackable.match import Match, match_graph, match_names
from ckptstore.trackable.replacement import (
    check_replaceable,
    check_restorable,
    convert_like,
    replace_value,
)
from ckptstore.trackable.status import RestoreStatus
from ckptstore.trackable.tree import Tree, TreeNode
from ckptstore.transfer.transfer import Transfer

__all__ = ["plan_tree", "restore_tree"]


def plan_tree(tree: Tree, full_names: Mapping[str, str] | None = None) -> SavePlan:
    """Return what a save of `tree` writes, its object graph included; as `Checkpoint.plan`."""
    _check_restorable(tree)
    described = describe(tree, full_names)
    items = [
        write_item(attribute.checkpoint_key, node.value)
        for node, stored in zip(tree.nodes, described, strict=True)
        for attribute in stored.attributes
    ]
    return plan_save([*items, write_item(OBJECT_GRAPH_KEY, encode(described))])


def _check_restorable(tree: Tree) -> None:
    """Raise `UsageError` for what could be saved, but not restored into the same tree."""
    arrays = []
    for node_id, node in enumerate(tree.nodes):
        if node.has_value:
            path = partial(tree.path, node_id)
            check_restorable(node, path)
            if isinstance(node.value, np.ndarray):
                # Only the very same memory is sure to hold the same.
                arrays.append(Destination(path, node.value, None))
    check_destinations(arrays)


def restore_tree(
    tree: Tree, location: Location, options: ReadOptions, *, optional: tuple[str, ...] = ()
) -> RestoreStatus:
    """Fill `tree` from the checkpoint at `location`, or from the SavedModel in that directory.

    Parameters
    ----------
    optional : tuple of str
        Children that a checkpoint without an object graph need not have.

    Raises
    ------
    UsageError, NotFoundError, CorruptError
        As `Checkpoint.read`.
    """
    with options.transfer(location.url) as transfer:
        reader, match = reopening(_open(location), lambda reader: _fill(tree, reader, optional, transfer))
    return RestoreStatus(reader.location.url, match.unmatched, match.unused)


def _open(location: Location) -> BundleReader:
    try:
        return open_bundle(location)
    except NotFoundError as error:
        inside = location.child("variables").child("variables")
        try:
            return open_bundle(inside)
        except NotFoundError:
            raise error from None


def _match(tree: Tree, reader: BundleReader, optional: tuple[str, ...]) -> Match:
    if not reader.has(OBJECT_GRAPH_KEY):
        return match_names(tree, reader.names(), optional)
    stored = reader.stored(OBJECT_GRAPH_KEY)
    if stored.dtype != STRING or stored.shape != ():
        raise FormatError(
            "the object graph is not stored as one string",
            url=reader.url,
            tensor=OBJECT_GRAPH_KEY,
            expected="string []",
            actual=f"{stored.dtype.name} {list(stored.shape)}",
        )
    return match_graph(tree, decode(reader.read(OBJECT_GRAPH_KEY).item(), source=reader.url))


def _fill(tree: Tree, reader: BundleReader, optional: tuple[str, ...], transfer: Transfer) -> Match:
    """Find, check and read all values, and put them into the tree."""
    match = _match(tree, reader, optional)
    arrays: dict[str, npt.NDArray[Any]] = {}
    wanted: dict[str, str] = {}
    plain: list[tuple[TreeNode, str, StoredTensor]] = []
    try:
        for node_id, key in match.values.items():
            node, path = tree.nodes[node_id], tree.path(node_id)
            if isinstance(node.value, np.ndarray):
                arrays[path] = node.value
                wanted[path] = key
                continue
            stored = reader.stored(key)
            check_restorable(node, partial(tree.path, node_id))
            check_replaceable(node, stored.dtype, stored.shape, path=path, url=reader.url)
            plain.append((node, path, stored))
        # Before the arrays are filled, because a value may turn out not to be text.
        found = reader.read_stored([(stored, None) for _, _, stored in plain])
        values = [
            convert_like(node, value, path=path, url=reader.url)
            for (node, path, _), value in zip(plain, found, strict=True)
        ]
        restore_into(reader, arrays, wanted, transfer=transfer)
    except TensorNotFoundError as error:
        raise FormatError(
            "the object graph names a tensor that the index does not have",
            url=reader.url,
            tensor=error.tensor,
            hint="Restore another checkpoint.",
        ) from error
    for (node, _, _), value in zip(plain, values, strict=True):
        replace_value(node, value)
    return match
