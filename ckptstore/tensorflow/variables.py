"""What a Saver saves and restores: the variables of a graph, or those of eager TensorFlow.

In a graph TensorFlow's own Saver says what that is: its ``SaveV2`` operation has the names, the slices of
partitioned variables and the tensors to fetch; the values are fed in the place of what its ``RestoreV2``
would read. So there is no operation that TensorFlow's Saver would not have, and none
that touches a file runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.format.dtypes import from_numpy, storage_dtype
from ckptstore.format.slices import make_slice
from ckptstore.tensorflow.framework import import_tensorflow
from ckptstore.types import Piece

__all__ = ["EagerVariables", "GraphVariables", "Variables"]

Array = npt.NDArray[Any]


class Variables(Protocol):
    """The variables of one Saver."""

    @property
    def names(self) -> list[str]:
        """What the checkpoint calls them."""

    def fetch(self, session: Any) -> dict[str, Any]:
        """Return their values, as a Saver of ckptstore takes them."""

    def wanted(self) -> dict[str, Any]:
        """Return what a Saver of ckptstore fills: pieces; whole tensors are left out."""

    def assign(self, session: Any, values: Mapping[str, Any], *, reshape: bool) -> None:
        """Set them to what was read, all of them or none."""


class _Stored(NamedTuple):
    """A tensor in the checkpoint, or a slice of one.

    Attributes
    ----------
    full_shape, start : tuple of int or None
        Of a slice; None for a whole tensor.
    """

    name: str
    full_shape: tuple[int, ...] | None
    start: tuple[int, ...] | None
    shape: tuple[int, ...] | None

    @property
    def key(self) -> tuple[str, tuple[int, ...] | None]:
        return self.name, self.start


def _stored(name: bytes, spec: bytes) -> _Stored:
    """Return what an operation means by a name and a text such as ``4 2 0,2:-``."""
    text = name.decode()
    if not spec:
        return _Stored(text, None, None, None)
    *sizes, box_text = spec.decode().split(" ")
    full_shape = tuple(map(int, sizes))
    box = make_slice(box_text, full_shape)
    if box is None:
        return _Stored(text, None, None, full_shape)
    extents = box.resolve(full_shape)
    return _Stored(
        text, full_shape, tuple(start for start, _ in extents), tuple(length for _, length in extents)
    )


class GraphVariables:
    """What TensorFlow's Saver saves of a graph.

    Parameters
    ----------
    native : tf.compat.v1.train.Saver
        That is built.
    """

    def __init__(self, native: Any) -> None:
        self.native = native
        self._tensorflow = import_tensorflow()
        saver_def = native.as_saver_def()
        self._graph = self._tensorflow.compat.v1.get_default_graph()
        self._restore_op = saver_def.restore_op_name
        saving = self._behind(self._graph.get_tensor_by_name(saver_def.save_tensor_name).op, "SaveV2")
        restoring = self._behind(self._graph.get_operation_by_name(saver_def.restore_op_name), "RestoreV2")
        if not saving or not restoring:
            raise UnsupportedError(
                "the graph saves in another way than the operations SaveV2 and RestoreV2",
                hint="Make the Saver again with write_version=2.",
            )
        self._fetches = [
            (stored, tensor) for op in saving for stored, tensor in self._pairs(op, op.inputs[3:])
        ]
        self._feeds = [(stored, tensor) for op in restoring for stored, tensor in self._pairs(op, op.outputs)]
        self._shapes = {
            stored.key: tuple(tensor.shape.as_list())
            for stored, tensor in self._fetches
            if tensor.shape.is_fully_defined()
        }

    def _behind(self, op: Any, kind: str) -> list[Any]:
        """Return the operations of a kind that must run before `op`, ascending by name."""
        seen: set[str] = set()
        found = []
        waiting = [op]
        while waiting:
            one = waiting.pop()
            if one.name in seen:
                continue
            seen.add(one.name)
            if one.type == kind:
                found.append(one)
                continue
            waiting += [tensor.op for tensor in one.inputs]
            waiting += one.control_inputs
        return sorted(found, key=lambda one: str(one.name))

    def _pairs(self, op: Any, tensors: Any) -> list[tuple[_Stored, Any]]:
        names = self._tensorflow.get_static_value(op.inputs[1])
        specs = self._tensorflow.get_static_value(op.inputs[2])
        return [
            (_stored(name, spec), tensor) for name, spec, tensor in zip(names, specs, tensors, strict=True)
        ]

    @property
    def names(self) -> list[str]:
        return sorted({stored.name for stored, _ in self._fetches})

    def meta_graph(
        self, *, clear_extraneous_savers: bool = False, strip_default_attrs: bool = False
    ) -> bytes:
        """Return the graph as TensorFlow exports it, with this Saver."""
        exported = self._tensorflow.compat.v1.train.export_meta_graph(
            graph=self._graph,
            saver_def=self.native.as_saver_def(),
            clear_extraneous_savers=clear_extraneous_savers,
            strip_default_attrs=strip_default_attrs,
        )
        return bytes(exported.SerializeToString())

    @property
    def version(self) -> int:
        """Grows with the graph."""
        return int(self._graph.version)

    def fetch(self, session: Any) -> dict[str, Any]:
        errors = self._tensorflow.errors
        try:
            values = self._session(session).run([tensor for _, tensor in self._fetches])
        except errors.FailedPreconditionError as error:
            raise UsageError(
                f"a variable has no value: {str(error.message)[:200]}",
                hint="Run its initializer, or restore, before it is saved.",
            ) from error
        found: dict[str, Any] = {}
        for (stored, _), value in zip(self._fetches, values, strict=True):
            if stored.full_shape is None or stored.start is None:
                found[stored.name] = value
            else:
                found.setdefault(stored.name, []).append(Piece(value, stored.full_shape, stored.start))
        return found

    def wanted(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for stored, tensor in self._feeds:
            if stored.full_shape is not None and stored.start is not None:
                memory = np.empty(stored.shape or (), storage_dtype(from_numpy(tensor.dtype.as_numpy_dtype)))
                found.setdefault(stored.name, []).append(Piece(memory, stored.full_shape, stored.start))
        return found

    def assign(self, session: Any, values: Mapping[str, Any], *, reshape: bool) -> None:
        feeds = {}
        for stored, tensor in self._feeds:
            value = values[stored.name]
            if isinstance(value, list):
                value = next(piece.array for piece in value if piece.start == stored.start)
            feeds[tensor] = _fitting(
                np.asarray(value), stored, tensor.dtype, self._shapes.get(stored.key), reshape=reshape
            )
        self._session(session).run(self._restore_op, feeds)

    def _session(self, session: Any) -> Any:
        if hasattr(session, "raw_session"):
            # A monitored one would run its hooks.
            session = session.raw_session()
        if not hasattr(session, "run") or not hasattr(session, "graph"):
            raise UsageError(
                "'sess' must be a Session", expected="tf.compat.v1.Session", actual=type(session).__name__
            )
        if session.graph is not self._graph:
            raise UsageError("the session has another graph than this Saver was made in")
        return session


class EagerVariables:
    """Variables of eager TensorFlow, by name."""

    def __init__(self, variables: Any) -> None:
        tensorflow = import_tensorflow()
        if isinstance(variables, Mapping):
            found = dict(variables)
        else:
            found = {}
            for variable in variables or ():
                name = str(getattr(variable, "name", "")).partition(":")[0]
                if name in found:
                    raise UsageError(
                        f"At least two variables have the same name: {name}",
                        hint="Pass a dictionary: name in the checkpoint → variable.",
                    )
                found[name] = variable
        for name, variable in found.items():
            if not isinstance(name, str) or not isinstance(variable, tensorflow.Variable):
                raise UsageError(
                    "eager TensorFlow saves variables by name",
                    tensor=str(name),
                    expected="tf.Variable",
                    actual=f"{type(variable).__module__}.{type(variable).__name__}",
                    hint="Pass a dictionary: name in the checkpoint → tf.Variable.",
                )
        self._variables = dict(sorted(found.items()))

    @property
    def names(self) -> list[str]:
        return list(self._variables)

    def fetch(self, session: Any) -> dict[str, Any]:
        _no_session(session)
        return {name: variable.numpy() for name, variable in self._variables.items()}

    def wanted(self) -> dict[str, Any]:
        return {}

    def assign(self, session: Any, values: Mapping[str, Any], *, reshape: bool) -> None:
        _no_session(session)
        fitting = {}
        for name, variable in self._variables.items():
            value = np.asarray(values[name])
            shape = None if variable.shape.rank is None else tuple(variable.shape.as_list())
            if reshape and shape is not None and value.size == _size(shape):
                value = value.reshape(shape)
            fitting[name] = _fitting(value, _Stored(name, None, None, None), variable.dtype, shape)
        for name, value in fitting.items():
            self._variables[name].assign(value)


def _no_session(session: object) -> None:
    if session is not None:
        raise UsageError("eager TensorFlow has no session", expected="None", actual=type(session).__name__)


def _size(shape: tuple[int | None, ...]) -> int | None:
    return None if None in shape else math.prod(one for one in shape if one is not None)


def _fits(value: Array, shape: tuple[int | None, ...]) -> bool:
    return len(shape) == value.ndim and all(
        one in (None, length) for one, length in zip(shape, value.shape, strict=True)
    )


def _fitting(
    value: Array,
    stored: _Stored,
    dtype: Any,
    shape: tuple[int | None, ...] | None,
    *,
    reshape: bool = False,
) -> Array:
    """Return a value in the form that TensorFlow takes; it would convert another type silently."""
    wanted = from_numpy(dtype.as_numpy_dtype)
    if value.dtype != storage_dtype(wanted).newbyteorder("="):
        raise UsageError(
            "the checkpoint has another type", tensor=stored.name, expected=wanted.name, actual=value.dtype
        )
    # TensorFlow would find it when others have been assigned.
    if shape is not None and not _fits(value, shape) and not (reshape and value.size == _size(shape)):
        raise UsageError(
            "the checkpoint has another shape",
            tensor=stored.name,
            expected=list(shape),
            actual=list(value.shape),
            hint="With reshape=True a tensor of as many elements is taken.",
        )
    # Quantized types are records of one field.
    return value if value.dtype.hasobject else value.view(np.dtype(dtype.as_numpy_dtype))
