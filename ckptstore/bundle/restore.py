"""Bring the tensors of a bundle into a caller's mapping: check everything first, then fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.names import tensor_not_found
from ckptstore.bundle.reader_base import BundleReader, StoredTensor
from ckptstore.errors import UsageError
from ckptstore.format import dtypes, object_graph
from ckptstore.format.entry import element_count

__all__ = ["keys_by_full_name", "restore_into"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Placement:
    """How one tensor gets to its place.

    Attributes
    ----------
    target : str
        Name in the mapping.
    tensor : StoredTensor
    receiver : ndarray or None
        Memory that the bytes are read into; None = a new array.
    convert : callable or None
        Makes the value for `existing` out of the array that was read; raises `UsageError` if it does not fit.
    existing : ndarray or None
        Is filled after `convert`; None = the array that was read goes into the mapping itself.
    is_cast : bool
        The file's type, in another form.
    """

    target: str
    tensor: StoredTensor
    receiver: Array | None = None
    convert: Callable[[Array], Array] | None = None
    existing: Array | None = None
    is_cast: bool = False

    @property
    def is_new(self) -> bool:
        """Whether the array that is read goes into the mapping itself."""
        return self.receiver is None and self.existing is None


def restore_into(
    reader: BundleReader,
    values: Mapping[str, Any],
    wanted: Mapping[str, str],
    *,
    reshape: bool = False,
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
        placements = _plan(reader, values, wanted, reshape)
    except UsageError as error:
        error.url = error.url or reader.url
        raise
    new = [placement.target for placement in placements if placement.is_new]
    if new and not isinstance(values, MutableMapping):
        raise UsageError(
            "a new array cannot be put into this mapping",
            tensor=new[0],
            expected="a mutable mapping, or an array under every name",
            actual=type(values).__name__,
        )
    # What has to be converted comes first: it can still turn out not to fit.
    converted: list[tuple[Array, Array]] = []
    indirect = [placement for placement in placements if placement.convert is not None]
    for placement, array in zip(indirect, _read(reader, indirect), strict=True):
        assert placement.convert is not None
        assert placement.existing is not None
        converted.append((placement.existing, placement.convert(array)))
    direct = [placement for placement in placements if placement.convert is None]
    arrays = _read(reader, direct)
    for existing, value in converted:
        existing[...] = value
    for placement, array in zip(direct, arrays, strict=True):
        if placement.is_new and isinstance(values, MutableMapping):
            values[placement.target] = array
    return tuple(placement.target for placement in placements if placement.is_cast)


def _read(reader: BundleReader, placements: list[_Placement]) -> list[Array]:
    return reader.read_stored([(placement.tensor, placement.receiver) for placement in placements])


def _plan(
    reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str], reshape: bool
) -> list[_Placement]:
    """Look at every tensor and its place."""
    placements: list[_Placement] = []
    absent: list[str] = []
    misfits: list[UsageError] = []
    for target, source in wanted.items():
        if not reader.has(source):
            absent.append(source)
            continue
        tensor = reader.stored(source)
        if target not in values or values[target] is None:
            placements.append(_Placement(target, tensor))
            continue
        try:
            placements.append(_placement(target, tensor, values[target], reshape))
        except UsageError as error:
            misfits.append(error)
    if absent:
        missing = tensor_not_found(absent[0], reader.names(), reader.url)
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
        if existing.flags.c_contiguous:
            return _Placement(target, tensor, existing.reshape(tensor.shape), is_cast=not is_native)
        shape = existing.shape
        return _Placement(
            target, tensor, None, lambda array: array.reshape(shape), existing, is_cast=not is_native
        )
    convert = _conversion(target, tensor, existing)
    if convert is None:
        raise _misfit(
            "the array does not have the type of the tensor in the checkpoint",
            target,
            tensor,
            tensor.dtype.name,
            existing.dtype,
        )
    return _Placement(target, tensor, None, convert, existing, is_cast=True)


def _conversion(target: str, tensor: StoredTensor, existing: Array) -> Callable[[Array], Array] | None:
    """Return what makes values of another dtype out of the tensor's, without loss, if there is such."""
    dtype, shape = existing.dtype, existing.shape
    if tensor.dtype == dtypes.STRING and dtype.kind in "SUT":
        return lambda array: _fixed_width(target, tensor, array, dtype).reshape(shape)
    if dtype.names == (tensor.dtype.name,) and dtype[0] == tensor.dtype.dtype:
        return lambda array: array.view(dtype).reshape(shape)
    return None


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
