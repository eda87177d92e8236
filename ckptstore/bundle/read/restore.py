"""Restore tensors into a caller's mapping: check everything first, then fill."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE
from ckptstore.bundle.read.box_plan import PieceCounts, TensorPieces, WantedBox, upright
from ckptstore.bundle.read.bulk_lookup import BulkRestore
from ckptstore.bundle.read.destinations import Destination, check_destinations
from ckptstore.bundle.read.indexing import Axis, BasicIndex, parse_index
from ckptstore.bundle.read.reader import BundleReader, StoredTensor, check_destination
from ckptstore.bundle.read.unchanged import (
    Question,
    StoredChecksum,
    answers,
    box_is_unchanged,
    tensor_is_unchanged,
    unchanged_rows,
)
from ckptstore.errors import UsageError
from ckptstore.format import dtypes, object_graph
from ckptstore.format.entry import element_count
from ckptstore.frameworks import instead_of
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import Piece, as_pieces

__all__ = ["OnlyChanged", "keys_by_full_name", "read_boxes_into", "restore_into"]

Array: TypeAlias = npt.NDArray[Any]


class _Placement(NamedTuple):
    """How one tensor gets to its place.

    Attributes
    ----------
    target : str
        Name in the mapping.
    receiver : ndarray or None
        Memory that the bytes are read into; None = a new array.
    convert : callable or None
        Makes the value for `existing` out of the strings that were read; raises `UsageError` if they do not
        fit.
    existing : ndarray or None
        Is filled with a copy, after `convert`, reshaped; None = the array that was read goes into the mapping
        itself.
    is_cast : bool
        The file's type, in another form.
    """

    target: str
    tensor: StoredTensor
    receiver: Array | None = None
    convert: Callable[[Array], Array] | None = None
    existing: Array | None = None
    is_cast: bool = False

    def converted(self, array: Array) -> tuple[Array, Array]:
        """Return the array to fill, and the strings that were read in the form that it takes."""
        assert self.convert is not None
        assert self.existing is not None
        return self.existing, self.convert(array)


def restore_into(
    reader: BundleReader,
    values: Mapping[str, Any],
    wanted: Mapping[str, str],
    *,
    reshape: bool = False,
    transfer: Transfer | None = None,
    counts: PieceCounts | None = None,
    ready: Callable[[], None] | None = None,
    only_changed: OnlyChanged | None = None,
) -> tuple[str, ...]:
    """Restore tensors into `values`.

    Arrays that are there are filled in place, whatever their strides. For keys that are missing, None,
    numpy scalars and Python values a new writable array is put in. A `Piece`, or each of a sequence of them,
    gets its box.

    Parameters
    ----------
    reader : BundleReader
    values : mapping
        Name → array. Has to be mutable unless it has an array under every wanted name.
    wanted : mapping
        Name in `values` → name in the checkpoint.
    reshape : bool
        Fill an array of another shape with as many elements, in C order.
    transfer : Transfer, optional
        What the reads belong to: its budget bounds the memory beyond the arrays. Strings may take more, and a
        partitioned tensor for an array of another shape whose elements lie at no regular distance.
    counts : PieceCounts, optional
        Counts the stored pieces that are read.
    ready : callable, optional
        Called when everything is checked, before anything is read or changed; what it raises ends it.
    only_changed : OnlyChanged, optional
        Leave arrays alone that hold what is stored already.

    Returns
    -------
    tuple of str
        Names in `values` whose array holds the file's type in another form: other byte order, text of fixed
        width, TensorFlow's record form of a quantized type. Any other difference of type is an error.

    Raises
    ------
    TensorNotFoundError
        If the checkpoint lacks a name; nothing was changed.
    UsageError
        If shape or type of an array differ, it is read-only or masked, or two elements, or tensors that
        differ, would go into the same memory; nothing was changed.
    FormatError, UnsupportedError, TruncatedFileError, IncompleteBundleError
        If the index contradicts itself or a data file is missing or too short; nothing was changed.
    ChecksumError
        If the bytes of a tensor are damaged. That can only be seen while they are read: arrays that came
        before it are filled, and the one that failed may hold some of the damaged bytes if it is large
        (`plan.DIRECT_SIZE_BYTES`). No key was added.
    NotFoundError
        If the checkpoint was removed or overwritten meanwhile; as for ChecksumError.
    """
    plan = _plan_restore(reader, values, wanted, reshape)
    if plan.new and not isinstance(values, MutableMapping):
        raise UsageError(
            "a new array cannot be put into this mapping",
            tensor=plan.new[0],
            expected="a mutable mapping, or an array under every name",
            actual=type(values).__name__,
        )
    if ready is not None:
        ready()
    if only_changed is not None and reader.header.big_endian == (sys.byteorder == "big"):
        plan = plan.without_unchanged(only_changed, reader.location.storage.parallel_reads)
    if transfer is not None:
        transfer.restart(plan.size_bytes)
    # Strings of fixed width come first: they can still turn out not to fit.
    indirect = [placement for placement in plan.placements if placement.convert is not None]
    strings = _read(reader, indirect, transfer, counts)
    converted = [placement.converted(array) for placement, array in zip(indirect, strings, strict=True)]
    direct = [placement for placement in plan.placements if placement.existing is None]
    arrays = _read(reader, direct, transfer, counts, plan.bulk, plan.parts)
    for existing, value in converted:
        existing[...] = value
    for placement in plan.placements:
        if placement.existing is not None and placement.convert is None:
            (array,) = _read(reader, [placement], transfer, counts)
            placement.existing[...] = array.reshape(placement.existing.shape)
    if plan.new and isinstance(values, MutableMapping):
        array_of = {placement.target: array for placement, array in zip(direct, arrays, strict=True)}
        if plan.bulk:
            array_of.update(plan.bulk.arrays())
        for target in plan.new:
            values[target] = array_of[target]
    cast = [placement.target for placement in plan.placements if placement.is_cast]
    return tuple(dict.fromkeys([*cast, *(part.target for part in plan.parts if part.is_cast)]))


class OnlyChanged:
    """Asks for a restore that leaves arrays alone which hold what is stored already.

    Parameters
    ----------
    checksum : callable
        See `StoredChecksum`.

    Attributes
    ----------
    unchanged : list of str
        Names in the mapping of the arrays that were left alone, as wholes.
    """

    def __init__(self, checksum: StoredChecksum) -> None:
        self.checksum = checksum
        self.unchanged: list[str] = []


class _WantedPart(NamedTuple):
    """A box that an array of the mapping gets.

    Attributes
    ----------
    target : str
        Name in the mapping.
    is_cast : bool
        As in `_Placement`.
    """

    target: str
    box: WantedBox
    is_cast: bool


class _RestorePlan(NamedTuple):
    """Everything that one restore reads.

    Attributes
    ----------
    bulk : BulkRestore or None
        Small tensors, which are read in bulk.
    parts : list of _WantedPart
        Pieces, and partitioned tensors for arrays that fit as they are.
    placements : list of _Placement
        All others.
    new : list of str
        Names for which a new array goes into the mapping, in the order wanted.
    """

    bulk: BulkRestore | None
    parts: list[_WantedPart]
    placements: list[_Placement]
    new: list[str]

    def without_unchanged(self, asked: OnlyChanged, parallel: int) -> _RestorePlan:
        """Return what is left to be read; name the arrays of which nothing is."""
        left_out: list[str] = []
        questions = [_question(placement, asked) for placement in self.placements]
        questions += [_question_of_part(part, asked) for part in self.parts]
        are_unchanged = answers(questions, parallel)
        placements: list[_Placement] = []
        parts: list[_WantedPart] = []
        for placement, is_unchanged in zip(self.placements, are_unchanged, strict=False):
            if is_unchanged:
                left_out.append(placement.target)
            else:
                placements.append(placement)
        for part, is_unchanged in zip(self.parts, are_unchanged[len(self.placements) :], strict=True):
            if is_unchanged:
                left_out.append(part.target)
            else:
                parts.append(part)
        bulk = self.bulk
        rows = unchanged_rows(bulk.batch, asked.checksum, parallel) if bulk else set()
        if bulk and rows:
            left_out += [target for row, target in enumerate(bulk.targets) if row in rows]
            targets = [target for row, target in enumerate(bulk.targets) if row not in rows]
            bulk = BulkRestore(targets, bulk.batch.without(rows)) if targets else None
        partly = {part.target for part in parts}
        asked.unchanged += [target for target in dict.fromkeys(left_out) if target not in partly]
        return self._replace(bulk=bulk, parts=parts, placements=placements)

    @property
    def size_bytes(self) -> int:
        """Bytes in the data files."""
        entries = [entry for placement in self.placements for entry in placement.tensor.entries]
        return (
            sum([entry.size_bytes for entry in entries])
            + (sum(self.bulk.batch.sizes_bytes) if self.bulk else 0)
            + sum([part.box.size_bytes for part in self.parts])
        )


def _question(placement: _Placement, asked: OnlyChanged) -> Question:
    array = placement.receiver
    if array is None or not array.dtype.isnative:
        return 0, lambda: False
    return array.nbytes, functools.partial(tensor_is_unchanged, placement.tensor, array, asked.checksum)


def _question_of_part(part: _WantedPart, asked: OnlyChanged) -> Question:
    if part.is_cast:
        return 0, lambda: False
    return part.box.target.nbytes, functools.partial(box_is_unchanged, part.box, asked.checksum)


def _plan_restore(
    reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str], reshape: bool
) -> _RestorePlan:
    try:
        in_pieces = {
            target: pieces
            for target in wanted
            if (pieces := as_pieces(values.get(target), tensor=target)) is not None
        }
        others = wanted
        if in_pieces:
            others = {target: source for target, source in wanted.items() if target not in in_pieces}
        bulk = BulkRestore.find(reader, values, others)
        rest = bulk.others(others) if bulk else others
        partitioned = _partitioned(reader, values, rest)
        parts = [*_parts(reader, wanted, in_pieces), *partitioned.values()]
        if partitioned:
            rest = {target: source for target, source in rest.items() if target not in partitioned}
        placements = _place(reader, values, rest, reshape)
        if bulk and not reader.bulk_is_there(bulk.batch, [placement.tensor for placement in placements]):
            # Looked up one by one, the tensors raise the errors in the order wanted.
            bulk, parts = None, _parts(reader, wanted, in_pieces)
            placements = _place(reader, values, others, reshape)
        found = _destinations(bulk, placements)
        check_destinations(found + _destinations_of(parts))
    except UsageError as error:
        error.url = error.url or reader.url
        raise
    new = [target for target, _, receiver, _, existing, _ in placements if receiver is existing is None]
    new = _in_order([*bulk.new(), *new], wanted) if bulk else new
    return _RestorePlan(bulk, parts, placements, new)


def _partitioned(
    reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str]
) -> dict[str, _WantedPart]:
    """Return, by name in `values`, the partitioned tensors for arrays that fit as they are."""
    sources = reader.partitioned_among(list(wanted.values())) if values else set()
    if not sources:
        return {}
    targets = [target for target, source in wanted.items() if source in sources]
    tensors = reader.pieces_many([wanted[target] for target in targets])
    found = {}
    for target, tensor in zip(targets, tensors, strict=True):
        existing = values.get(target)
        if (
            tensor is not None
            and type(existing) is np.ndarray
            and existing.dtype is NATIVE[tensor.dtype.as_datatype_enum]
            and existing.shape == tensor.shape
            and existing.flags.writeable
        ):
            axes = _axes_of((0,) * len(tensor.shape), tensor.shape)
            found[target] = _WantedPart(target, WantedBox(tensor, axes, existing), False)
    return found


def _parts(
    reader: BundleReader,
    wanted: Mapping[str, str],
    in_pieces: Mapping[str, Sequence[Piece]],
) -> list[_WantedPart]:
    """Return what goes into pieces; errors as `_place`."""
    parts: list[_WantedPart] = []
    absent: list[str] = []
    misfits: list[UsageError] = []
    tensors = reader.pieces_many([wanted[target] for target in in_pieces])
    for (target, pieces), tensor in zip(in_pieces.items(), tensors, strict=True):
        if tensor is None:
            absent.append(wanted[target])
            continue
        for piece in pieces:
            try:
                parts.append(_part(target, tensor, piece))
            except UsageError as error:
                misfits.append(error)
                break
    _raise_first(reader, absent, misfits)
    return parts


def _part(target: str, tensor: TensorPieces, piece: Piece) -> _WantedPart:
    array = piece.array
    if piece.shape != tensor.shape:
        raise _misfit(
            "the piece is not one of a tensor with the shape of that in the checkpoint",
            target,
            tensor,
            list(tensor.shape),
            list(piece.shape),
        )
    expected = NATIVE[tensor.dtype.as_datatype_enum]
    native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    if native is not expected and native != expected:
        raise _misfit(
            "the piece does not have the type of the tensor in the checkpoint",
            target,
            tensor,
            tensor.dtype.name,
            array.dtype,
        )
    if not array.flags.writeable:
        raise _misfit("the piece is read-only", target, tensor, "a writable array", "a read-only one")
    axes = _axes_of(piece.start, array.shape)
    return _WantedPart(target, WantedBox(tensor, axes, array), not array.dtype.isnative)


# Many tensors of a model are cut alike.
@functools.lru_cache(maxsize=4096)
def _axes_of(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Axis, ...]:
    return tuple([Axis(first, 1, size) for first, size in zip(start, shape, strict=True)])


def _destinations(bulk: BulkRestore | None, placements: list[_Placement]) -> list[Destination]:
    """Return the arrays that are filled, each with what tells its tensor from others."""
    found = []
    for placement in placements:
        array = placement.receiver if placement.existing is None else placement.existing
        if array is not None:
            tensor = placement.tensor
            pieces = tuple([(entry.size_bytes, entry.masked_crc32c) for entry in tensor.entries])
            found.append(Destination(placement.target, array, (tensor.dtype.name, tensor.shape, pieces)))
    if bulk:
        batch = bulk.batch
        for row, (target, array) in enumerate(zip(bulk.targets, batch.targets, strict=False)):
            if array is not None:
                pieces = ((batch.sizes_bytes[row], batch.masked_crc32cs[row]),)
                content = (batch.dtypes[row].name, batch.shapes[row], pieces)
                found.append(Destination(target, array, content))
    return found


def _destinations_of(parts: Sequence[_WantedPart]) -> list[Destination]:
    """Return the arrays that are filled, each with what tells its part of a tensor from others."""
    found = []
    last: TensorPieces | None = None
    content: tuple[object, ...] = ()
    for target, (tensor, axes, array), _ in parts:
        # The parts of a tensor follow each other.
        if tensor is not last:
            last = tensor
            columns = (tensor.starts, tensor.sizes_bytes, tensor.masked_crc32cs)
            content = (tensor.dtype.name, tensor.shape, *[column.tobytes() for column in columns])
        found.append(Destination(target, array, (content, axes)))
    return found


def _read(
    reader: BundleReader,
    placements: list[_Placement],
    transfer: Transfer | None,
    counts: PieceCounts | None,
    bulk: BulkRestore | None = None,
    parts: Sequence[_WantedPart] = (),
) -> list[Array]:
    if not placements and not bulk and not parts:
        return []
    return reader.read_stored(
        [(tensor, receiver) for _, tensor, receiver, _, _, _ in placements],
        bulk=bulk.batch if bulk else None,
        boxes=[part.box for part in parts],
        transfer=transfer,
        counts=counts,
    )


def _in_order(targets: list[str], wanted: Mapping[str, str]) -> list[str]:
    if len(targets) == len(wanted):
        return list(wanted)
    found = set(targets)
    return [target for target in wanted if target in found]


def _place(
    reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str], reshape: bool
) -> list[_Placement]:
    """Return how every tensor gets to its place; raise for those that are missing or do not fit."""
    placements: list[_Placement] = []
    absent: list[str] = []
    misfits: list[UsageError] = []
    for (target, source), tensor in zip(wanted.items(), reader.stored_many(wanted.values()), strict=True):
        if tensor is None:
            absent.append(source)
            continue
        existing = values.get(target)
        if existing is None:
            placements.append(_Placement(target, tensor))
            continue
        try:
            placements.append(_placement(target, tensor, existing, reshape))
        except UsageError as error:
            misfits.append(error)
    _raise_first(reader, absent, misfits)
    return placements


def _raise_first(reader: BundleReader, absent: list[str], misfits: list[UsageError]) -> None:
    """Raise the error for the first name that is absent, or the first misfit, if there is any."""
    if absent:
        missing = reader.tensor_not_found(absent[0])
        if len(absent) > 1:
            missing.hint = f"{missing.hint} In all, {_listed(absent)} are missing."
        raise missing
    if misfits:
        first = misfits[0]
        if len(misfits) > 1:
            first.hint = f"In all, {_listed([str(misfit.tensor) for misfit in misfits])} do not fit."
        raise first


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 5 else ''})"


def _placement(target: str, tensor: StoredTensor, existing: object, reshape: bool) -> _Placement:
    if not isinstance(existing, np.ndarray):
        _check_value(target, tensor, existing)
        return _Placement(target, tensor)
    if isinstance(existing, np.ma.MaskedArray):
        raise UsageError(
            "a masked array cannot be filled: a checkpoint has no mask",
            tensor=target,
            hint="Nothing was changed. Give its `data`, and set the mask yourself.",
        )
    existing = np.asarray(existing)  # of a subclass only the memory matters
    if existing.shape != tensor.shape and not (reshape and existing.size == element_count(tensor.shape)):
        raise _misfit(
            "the array does not have the shape of the tensor in the checkpoint",
            target,
            tensor,
            list(tensor.shape),
            list(existing.shape),
        )
    if not existing.flags.writeable:
        raise _misfit("the array is read-only", target, tensor, "a writable array", "a read-only one")
    is_same = existing.shape == tensor.shape
    is_native = existing.dtype.isnative
    native = existing.dtype if is_native else existing.dtype.newbyteorder("=")
    if native == tensor.dtype.dtype:
        if is_same:
            return _Placement(target, tensor, existing, is_cast=not is_native)
        return _reshaped(target, tensor, existing, is_cast=not is_native)
    if existing.dtype.names == (tensor.dtype.name,) and existing.dtype[0] == tensor.dtype.dtype:
        field = existing[tensor.dtype.name]
        if is_same:
            return _Placement(target, tensor, field, is_cast=True)
        return _reshaped(target, tensor, field, is_cast=True)
    if tensor.dtype == dtypes.STRING and existing.dtype.kind in "SUT":
        return _Placement(
            target,
            tensor,
            convert=lambda array: _fixed_width(target, tensor, array, existing.dtype).reshape(existing.shape),
            existing=existing,
            is_cast=True,
        )
    raise _misfit(
        "the array does not have the type of the tensor in the checkpoint",
        target,
        tensor,
        tensor.dtype.name,
        existing.dtype,
    )


def _reshaped(target: str, tensor: StoredTensor, existing: Array, *, is_cast: bool) -> _Placement:
    """Return the placement into an array of another shape."""
    if not tensor.slices:
        return _Placement(target, tensor._replace(shape=existing.shape), existing, is_cast=is_cast)
    view = existing.view()
    try:
        view.shape = tensor.shape
    except AttributeError:  # the order of its elements has no strides
        return _Placement(target, tensor, existing=existing, is_cast=is_cast)
    return _Placement(target, tensor, view, is_cast=is_cast)


def _fixed_width(target: str, tensor: StoredTensor, array: Array, dtype: np.dtype[Any]) -> Array:
    """Return strings as an array of fixed-width bytes or text; refuse those that it would cut."""
    elements: list[Any] = array.ravel().tolist()
    if dtype.kind != "S":
        try:
            elements = [element.decode() for element in elements]
        except UnicodeDecodeError as error:
            raise _misfit(
                "a string of the checkpoint is not UTF-8 text",
                target,
                tensor,
                "text",
                f"bytes {error.object[:40]!r}",
            ) from error
    result = np.empty(len(elements), dtype)
    result[:] = elements
    if result.tolist() != elements:
        longest = max(len(element) for element in elements)
        raise _misfit(
            "a string of the checkpoint does not fit into the array",
            target,
            tensor,
            f"{longest} characters",
            dtype,
        )
    return result


def _check_value(target: str, tensor: StoredTensor, existing: object) -> None:
    """Check shape and type of a value that is not an array, which the restored array replaces."""
    is_text = isinstance(existing, str | bytes)
    if not is_text and not isinstance(existing, bool | int | float | complex | np.generic | list | tuple):
        raise _misfit(
            "this value is neither an array nor a number",
            target,
            tensor,
            "a numpy array, a number, text, a list or None",
            type(existing).__name__,
            instead_of(existing),
        )
    try:
        shape = np.shape(cast("npt.ArrayLike", existing))
        if isinstance(existing, np.generic):
            fits = dtypes.from_numpy(existing.dtype) == tensor.dtype or existing.dtype == tensor.dtype.dtype
        elif isinstance(existing, list | tuple):
            fits = (np.asarray(existing).dtype.kind in "SUO") == tensor.dtype.dtype.hasobject or not existing
        else:
            fits = is_text == tensor.dtype.dtype.hasobject
    except ValueError as error:
        raise _misfit(
            f"this value is not an array: {error}", target, tensor, list(tensor.shape), "ragged"
        ) from error
    if shape != tensor.shape:
        raise _misfit(
            "the value does not have the shape of the tensor in the checkpoint",
            target,
            tensor,
            list(tensor.shape),
            list(shape),
        )
    if not fits:
        raise _misfit(
            "the value does not have the type of the tensor in the checkpoint",
            target,
            tensor,
            tensor.dtype.name,
            type(existing).__name__,
        )


def _misfit(
    what: str,
    target: str,
    tensor: StoredTensor | TensorPieces,
    expected: object,
    actual: object,
    hint: str | None = None,
) -> UsageError:
    if target != tensor.name:
        what += f" ({tensor.name!r} there)"
    return UsageError(
        what,
        tensor=target,
        expected=expected,
        actual=actual,
        hint=f"Nothing was changed. {hint or 'Restore another checkpoint, or give an array that fits.'}",
    )


def read_boxes_into(
    reader: BundleReader, requests: Iterable[tuple[str, BasicIndex, Array]], *, transfer: Transfer
) -> None:
    """Implement `OpenCheckpoint.read_into`."""
    wanted = list(requests)
    names = list(dict.fromkeys(name for name, _, _ in wanted))
    tensor_of = dict(zip(names, reader.pieces_many(names), strict=True))
    parts = []
    try:
        for name, index, out in wanted:
            tensor = tensor_of[name]
            if tensor is None:
                raise reader.tensor_not_found(name)
            box = parse_index(index, tensor.shape, tensor=name)
            check_destination(out, box.shape, tensor.dtype, tensor=name)
            # Only dimensions of size 1 come or go: a view, whatever the strides are.
            axes, target = upright(box.axes, np.asarray(out).reshape(box.counts))
            parts.append(_WantedPart(name, WantedBox(tensor, axes, target), False))
        check_destinations(_destinations_of(parts))
    except UsageError as error:
        error.url = error.url or reader.url
        raise
    transfer.restart(sum([part.box.size_bytes for part in parts]))
    _read(reader, [], transfer, None, parts=parts)


def keys_by_full_name(reader: BundleReader) -> dict[str, str]:
    """Return the variables' own names → keys of an object-based checkpoint.

    Raises
    ------
    FormatError, ChecksumError
        If its object graph is damaged.
    """
    graph = object_graph.decode(reader.read(object_graph.OBJECT_GRAPH_KEY).item(), source=reader.url)
    return {
        attribute.full_name: attribute.checkpoint_key
        for node in graph
        for attribute in node.attributes
        if attribute.full_name
    }
