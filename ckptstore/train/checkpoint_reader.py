"""``tf.train.load_checkpoint`` and what belongs to it, without TensorFlow."""

from __future__ import annotations

from typing import Any

from ckptstore.bundle.read.open_bundle import BundleReader, open_bundle
from ckptstore.bundle.read.reader_v1 import ReaderV1
from ckptstore.errors import AccessError, NotFoundError, UsageError
from ckptstore.format import dtypes
from ckptstore.format.entry import key_to_name
from ckptstore.reading.options import ReadOptions
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.transfer.progress import Progress
from ckptstore.types import DType, Options, PathText

__all__ = ["CheckpointReader", "list_variables", "load_checkpoint", "load_variable"]


# Where TensorFlow's name in types.proto is not the upper-case name of the type.
_PROTO_NAMES = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF"}


class CheckpointReader:
    """Shaped like ``tf.train.CheckpointReader``.

    Unlike it, this one reads partitioned tensors of every type, also from V1 checkpoints.

    Parameters
    ----------
    prefix : str or PathLike
        Prefix or URL of one checkpoint; see `load_checkpoint` for directories.
    memory_budget, progress
        As for `open_checkpoint`; `progress` shows how far `get_tensor` is.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If there is no such checkpoint.
    CorruptError
        If its index is damaged.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        prefix: PathText,
        *,
        memory_budget: int | None = None,
        progress: Progress = None,
        storage_options: Options = None,
    ) -> None:
        self._options = ReadOptions(memory_budget, progress)
        self._reader = open_bundle(locate(prefix, storage_options), memory_budget=memory_budget)

    @classmethod
    def _over(cls, reader: BundleReader, options: ReadOptions) -> CheckpointReader:
        self = cls.__new__(cls)
        self._options = options
        self._reader = reader
        return self

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Return name → shape of every tensor; slices of partitioned tensors are not names."""
        entry = self._reader.entry
        return {name: list(entry(name).shape) for name in self._reader.names()}

    def get_variable_to_dtype_map(self) -> dict[str, DType]:
        """Return name → element type of every tensor."""
        entry, url = self._reader.entry, self._reader.url
        return {
            name: dtypes.by_enum(entry(name).dtype_enum, source=url, tensor=name)
            for name in self._reader.names()
        }

    def has_tensor(self, name: str) -> bool:
        """Return whether the index has an entry of that name; also true for the raw key of a slice."""
        return self._reader.has(name)

    def get_tensor(self, name: str) -> Any:
        """Return the value of a tensor.

        Returns
        -------
        ndarray, numpy scalar or bytes
            A numpy scalar for a tensor without dimensions, ``bytes`` if it is a string; strings as an
            object array of bytes. Quantized types as plain integers; variants as an object array of the
            serialized protos.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor.
        ChecksumError, TruncatedFileError, IncompleteBundleError, FormatError
            If the checkpoint is damaged.
        """
        if self._options.progress is None:
            array = self._reader.read(name)
        else:
            tensor = self._reader.stored(name)
            with self._options.transfer(self._reader.location.url) as transfer:
                transfer.expect(sum(entry.size_bytes for entry in tensor.entries))
                array = self._reader.read_stored([(tensor, None)], transfer=transfer)[0]
        if array.ndim == 0 and self._reader.stored(name).dtype != dtypes.VARIANT:
            return array[()]
        return array

    def debug_string(self) -> bytes:
        """Return one line for each entry, ``name (DT_FLOAT) [2,2]``, in the order of the index.

        As TensorFlow's: of a partitioned tensor its slices are listed, by their raw keys, and not the
        tensor itself. For V1 checkpoints the tensors are listed, with the number of their slices.
        """
        reader = self._reader
        lines = []
        if isinstance(reader, ReaderV1):
            for name in reader.names():
                entry = reader.entry(name)
                slices = f", {len(entry.slices)} slices" if len(entry.slices) > 1 else ""
                lines.append(_line(name, entry.dtype_enum, entry.shape, reader.url) + slices)
        else:
            for key in reader.raw_keys():
                name = key_to_name(key)
                entry = reader.entry(name)
                lines.append(_line(name, entry.dtype_enum, entry.shape, reader.url))
        return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def _line(name: str, dtype_enum: int, shape: tuple[int, ...], url: str) -> str:
    dtype = dtypes.by_enum(dtype_enum, source=url, tensor=name)
    proto_name = _PROTO_NAMES.get(dtype.name, f"DT_{dtype.name.upper()}")
    return f"{name} ({proto_name}) [{','.join(map(str, shape))}]"


def load_checkpoint(
    dir_or_prefix: PathText,
    *,
    memory_budget: int | None = None,
    progress: Progress = None,
    storage_options: Options = None,
) -> CheckpointReader:
    """Open a checkpoint, or the latest one of a directory.

    Parameters
    ----------
    dir_or_prefix : str or PathLike
        A prefix or URL; if no checkpoint has it, a directory.
    memory_budget, progress
        As for `open_checkpoint`; `progress` shows how far `CheckpointReader.get_tensor` is.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If it is neither a prefix nor a directory with a checkpoint.
    CorruptError
        If the index is damaged.
    """
    options = ReadOptions(memory_budget, progress)
    location = locate(dir_or_prefix, storage_options)
    try:
        bundle = open_bundle(location, memory_budget=memory_budget)
        return CheckpointReader._over(bundle, options)  # noqa: SLF001 (__init__ opens a prefix)
    except NotFoundError as error:
        # The storage does not distinguish a directory from a name; most callers pass a prefix, which costs
        # one request.
        if not _may_be_directory(location):
            raise
        from ckptstore.train.checkpoint_management import latest_checkpoint

        latest = latest_checkpoint(dir_or_prefix, storage_options=storage_options)
        if latest is None:
            raise NotFoundError(
                f"Couldn't find 'checkpoint' file or checkpoints in given directory {location.url}",
                url=location.url,
                hint="Pass the prefix of a checkpoint, or a directory that has some.",
            ) from error
    return CheckpointReader(
        latest, memory_budget=memory_budget, progress=progress, storage_options=storage_options
    )


def _may_be_directory(location: Location) -> bool:
    try:
        return next(iter(location.storage.list(f"{location.key}/")), None) is not None
    except UsageError:
        return False  # it is a file
    except AccessError:
        return True  # its record may be readable all the same


def load_variable(dir_or_prefix: PathText, name: str, *, storage_options: Options = None) -> Any:
    """Return one tensor of a checkpoint, as `CheckpointReader.get_tensor` does.

    Parameters
    ----------
    dir_or_prefix : str or PathLike
        As for `load_checkpoint`.
    name : str
        A trailing ``:0`` is dropped.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    TensorNotFoundError
        If there is no such tensor.
    NotFoundError, CorruptError
        As for `load_checkpoint` and `CheckpointReader.get_tensor`.
    """
    reader = load_checkpoint(dir_or_prefix, storage_options=storage_options)
    return reader.get_tensor(name.removesuffix(":0"))


def list_variables(
    dir_or_prefix: PathText, *, storage_options: Options = None
) -> list[tuple[str, list[int]]]:
    """Return ``(name, shape)`` of every tensor of a checkpoint, ascending by name.

    Parameters
    ----------
    dir_or_prefix : str or PathLike
        As for `load_checkpoint`.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError, CorruptError
        As for `load_checkpoint`.
    """
    reader = load_checkpoint(dir_or_prefix, storage_options=storage_options)
    return sorted(reader.get_variable_to_shape_map().items())
