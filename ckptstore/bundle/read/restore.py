"""Bring the tensors of a bundle into a caller's mapping: check everything first, then fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.bulk_lookup import SmallRestore
from ckptstore.bundle.read.reader import BundleReader, StoredTensor
from ckptstore.errors import UsageError
from ckptstore.format import dtypes, object_graph
from ckptstore.format.entry import element_count
from ckptstore.transfer.transfer import Transfer

__all__ = ["keys_by_full_name", "restore_into"]

Array: TypeAlias = npt.NDArray[Any]


class _Placement(NamedTuple):
    """How one tensor gets to its place.

    Attributes
    ----------
    target : str
        Name in the mapping.
    tensor : StoredTensor
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


def restore_into(
    reader: BundleReader,
    values: Mapping[str, Any],
    wanted: Mapping[str, str],
    *,
    reshape: bool = False,
    transfer: Transfer | None = None,
) -> tuple[str, ...]:
    """Restore tensors into `values`.

    Arrays that are there are filled in place, whatever their strides. For keys that are missing, None,
    numpy scalars and Python values a new writable array is put in.

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
        If shape or type of an array differ, or it is read-only; nothing was changed.
    FormatError, UnsupportedError, TruncatedFileError, IncompleteBundleError
        If the index contradicts itself or a data file is missing or too short; nothing was changed.
    ChecksumError
        If the bytes of a tensor are damaged. That can only be seen while they are read: arrays that came
        before it are filled, and the one that failed may hold some of the damaged bytes if it is large
        (`plan.DIRECT_SIZE_BYTES`). No key was added.
    NotFoundError
        If the checkpoint was removed or overwritten meanwhile; as for ChecksumError.
    """
    try:
        small = SmallRestore.find(reader, values, wanted)
        placements = _plan(reader, values, small.others(wanted) if small else wanted, reshape)
        if small and not reader.have_small(small.jobs, [placement.tensor for placement in placements]):
            small = None
            placements = _plan(reader, values, wanted, reshape)
    except UsageError as error:
        error.url = error.url or reader.url
        raise
    new = [target for target, _, receiver, _, existing, _ in placements if receiver is existing is None]
    if small:
        new = _in_order([*small.new(), *new], wanted)
    if new and not isinstance(values, MutableMapping):
        raise UsageError(
            "a new array cannot be put into this mapping",
            tensor=new[0],
            expected="a mutable mapping, or an array under every name",
            actual=type(values).__name__,
        )
    if transfer is not None:
        total_bytes = sum(
            [entry.size_bytes for placement in placements for entry in placement.tensor.entries]
        )
        transfer.restart(total_bytes + (sum(small.jobs.sizes_bytes) if small else 0))
    # Strings of fixed width come first: they can still turn out not to fit.
    converted: list[tuple[Array, Array]] = []
    indirect = [placement for placement in placements if placement.convert is not None]
    for placement, array in zip(indirect, _read(reader, indirect, transfer), strict=True):
        assert placement.convert is not None
        assert placement.existing is not None
        converted.append((placement.existing, placement.convert(array)))
    copied = [placement for placement in placements if placement.existing is not None]
    direct = [placement for placement in placements if placement.existing is None] if copied else placements
    arrays = _read(reader, direct, transfer, small)
    for existing, value in converted:
        existing[...] = value
    for placement in copied:
        if placement.convert is None and placement.existing is not None:
            (array,) = _read(reader, [placement], transfer)
            placement.existing[...] = array.reshape(placement.existing.shape)
    if new and isinstance(values, MutableMapping):
        array_of = {placement.target: array for placement, array in zip(direct, arrays, strict=True)}
        if small:
            array_of.update(small.arrays())
        for target in new:
            values[target] = array_of[target]
    return tuple([placement.target for placement in placements if placement.is_cast])


def _read(
    reader: BundleReader,
    placements: list[_Placement],
    transfer: Transfer | None,
    small: SmallRestore | None = None,
) -> list[Array]:
    if not placements and not small:
        return []
    pairs = [(tensor, receiver) for _, tensor, receiver, _, _, _ in placements]
    return reader.read_stored(pairs, small=small.jobs if small else None, transfer=transfer)


def _in_order(targets: list[str], wanted: Mapping[str, str]) -> list[str]:
    if len(targets) == len(wanted):
        return list(wanted)
    found = set(targets)
    return [target for target in wanted if target in found]


def _plan(
    reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str], reshape: bool
) -> list[_Placement]:
    """Look at every tensor and its place."""
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
    return placements


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 5 else ''})"


def _placement(target: str, tensor: StoredTensor, existing: object, reshape: bool) -> _Placement:
    if not isinstance(existing, np.ndarray):
        _check_value(target, tensor, existing)
        return _Placement(target, tensor)
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
    """Check a value that is no array, and which the restored array replaces, as far as it says anything."""
    is_text = isinstance(existing, str | bytes)
    if not is_text and not isinstance(existing, bool | int | float | complex | np.generic | list | tuple):
        raise _misfit(
            "this value is neither an array nor a number",
            target,
            tensor,
            "a numpy array, a number, text, a list or None",
            type(existing).__name__,
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
            f"this value is no array: {error}", target, tensor, list(tensor.shape), "ragged"
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


def _misfit(what: str, target: str, tensor: StoredTensor, expected: object, actual: object) -> UsageError:
    if target != tensor.name:
        what += f" ({tensor.name!r} there)"
    return UsageError(
        what,
        tensor=target,
        expected=expected,
        actual=actual,
        hint="Nothing was changed. Restore another checkpoint, or give an array that fits.",
    )


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
