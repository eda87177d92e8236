"""The short modern API: a checkpoint as a lazy mapping from names to arrays.

`bundle.read.open_bundle` opens the files, for this and for every other reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import DeviceTensor
from ckptstore.bundle.read.indexing import BasicIndex
from ckptstore.bundle.read.mapped_tensors import MappedTensors
from ckptstore.bundle.read.open_bundle import BundleReader, Opener, open_bundle, reopening
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.bundle.read.restore import keys_by_full_name, read_boxes_into, restore_into
from ckptstore.errors import CkptStoreError, NotFoundError, UsageError
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY
from ckptstore.reading.options import ReadOptions
from ckptstore.reading.report import (
    RestoreReport,
    Selection,
    checked_names,
    only_changed_if,
    restore_wanted,
)
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.transfer.progress import Progress
from ckptstore.transfer.ring import Ring
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import Options, PathText, TensorSpec
from ckptstore.warn import warn

if TYPE_CHECKING:
    from ckptstore.cache.cache import Cache

__all__ = [
    "OpenCheckpoint",
    "RestoreReport",
    "is_big_endian",
    "open_checkpoint",
    "read_to_device",
    "restore_values",
    "stored_tensors",
    "wanted_of",
]

_T = TypeVar("_T")


class OpenCheckpoint(Mapping[str, npt.NDArray[Any]]):
    """A checkpoint as a mapping from tensor name to array that reads what is asked for.

    ``ckpt[name]`` is a verified, read-only array in native byte order; strings come as an object array of
    bytes. On a local disk it is the memory-mapped file itself where its place and type allow: nothing is
    copied, the first access verifies, later ones cost nothing, and the array stays valid after closing.
    Overwriting the file in place (which no save does) would show in such an array, and cutting it short ends
    the process; ``read`` copies. Two handles are equal only if they are the same.

    It stays with the save that it was opened on, and never mixes two. If its files are removed or replaced,
    reading raises `NotFoundError`: open it again.

    Threads
    -------
    Safe for concurrent use. Closing is optional: there are no open files.
    """

    def __init__(
        self,
        reader: BundleReader,
        options: ReadOptions | None = None,
        *,
        is_pinned: bool = False,
        opener: Opener | None = None,
    ) -> None:
        self._reader = reader
        self._opener = opener
        self._options = options or ReadOptions()
        self._mapped = MappedTensors(reader)
        self._is_closed = False
        # Whether results of this handle were returned, which must stay true, or its version was asked for.
        self._is_used = is_pinned
        self._names: dict[str, int] | None = None
        self._order: list[str] = []

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        reader = self._open()
        # Who has asked for the names may want one tensor after the other.
        array = self._mapped.get(name, None if self._names is None else self._following)
        if array is None:
            tensor = reader.stored(name)
            # The slices of a partitioned tensor come at the same time.
            array = reader.read_stored([(tensor, None)])[0] if tensor.slices else reader.read(name)
            array.flags.writeable = False
        return array

    def _following(self, name: str) -> Iterator[str]:
        position = (self._names or {}).get(name)
        return iter(()) if position is None else itertools.islice(self._order, position + 1, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all_names())

    def __len__(self) -> int:
        return len(self._all_names())

    def __contains__(self, name: object) -> bool:
        return name in self._all_names()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<OpenCheckpoint {self._reader.location.url}{' (closed)' if self._is_closed else ''}>"

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def prefix(self) -> str:
        """The prefix, as it was given."""
        return self._reader.location.url

    @property
    def version(self) -> str:
        """The version of the index, as in `Step.version`."""
        return self._open().index_version

    def close(self) -> None:
        """Let go of the checkpoint; reading from it raises `UsageError` from now on. Arrays stay valid."""
        self._is_closed = True
        self._reader.close()
        self._mapped.clear()

    def specs(self) -> dict[str, TensorSpec]:
        """Return name → shape, type, size and place of every tensor, ascending; reads only the index."""
        return self._open().specs()

    def read(self, name: str, index: BasicIndex = ...) -> Any:
        """Return what ``ckpt[name][index]`` is, reading only what is needed for it.

        Parameters
        ----------
        name : str
        index : basic index
            As numpy's: integers, slices with any step, Ellipsis, newaxis, or a tuple of them; for example
            ``np.s_[0:10]``. Of a partitioned tensor only the slices and data files are touched that hold
            some of it.

        Returns
        -------
        ndarray or scalar
            New and writable; a scalar where numpy would give one.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor; the hint lists close names.
        IndexError
            If `index` is out of range or has too many parts.
        UsageError
            If it is not a basic index: booleans, arrays, lists.
        ChecksumError
            If the bytes are damaged. A tensor, or a slice of a partitioned one, is verified whenever all of
            it is read; there is no checksum for less than that.
        CorruptError, NotFoundError
            If a file is malformed, too short, missing, or was replaced.
        """
        array = self._open().read(name, index)
        parts = index if isinstance(index, tuple) else (index,)
        if array.ndim == 0 and not any(part is ... for part in parts):
            return array[()]
        return array

    def read_into(self, requests: Iterable[tuple[str, BasicIndex, npt.NDArray[Any]]]) -> None:
        """Read parts of many tensors into arrays, all in one pass over the files.

        Neighbouring bytes travel together, whichever tensors they belong to, and each at most once.

        Parameters
        ----------
        requests : iterable of (str, basic index, ndarray)
            Name, index as for `read`, and the array that gets it: of the shape and type of the result, with
            any strides.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor. Nothing was changed.
        IndexError
            If an index is out of range or has too many parts. Nothing was changed.
        UsageError
            If an index is not a basic one, an array does not fit or is read-only, or arrays share memory.
            Nothing was changed.
        FormatError, UnsupportedError, TruncatedFileError, IncompleteBundleError
            If the index contradicts itself, or a data file is missing or too short. Nothing was changed.
        ChecksumError
            If the bytes of a tensor, or of a slice of a partitioned one, are damaged; as for `restore`. Only
            what is read whole is verified.
        NotFoundError
            If the files were removed or replaced.

        Examples
        --------
        >>> import numpy as np
        >>> from ckptstore import BundleWriter
        >>> with BundleWriter("memory://docs/read_into") as writer:
        ...     writer.add("w", [[1.0, 2.0], [3.0, 4.0]])
        >>> row, column = np.empty(2), np.empty(2)
        >>> open_checkpoint("memory://docs/read_into").read_into([("w", 1, row), ("w", np.s_[:, 0], column)])
        >>> row, column
        (array([3., 4.]), array([1., 3.]))
        """
        reader = self._open()
        with self._options.transfer(reader.location.url) as transfer:
            read_boxes_into(reader, requests, transfer=transfer)

    def restore(
        self,
        into: Mapping[str, Any] | None = None,
        *,
        names: Iterable[str] | None = None,
        rename: Mapping[str, str] | None = None,
        missing: Literal["raise", "ignore"] = "raise",
        unexpected: Literal["raise", "ignore"] = "ignore",
        only_changed: bool = False,
    ) -> RestoreReport:
        """Restore many tensors at once, reading each file from front to back, several parts at a time.

        Parameters
        ----------
        into : mapping, optional
            Name → array. The arrays are filled in place, whatever their strides; None, numpy scalars and
            Python numbers or text are replaced by new writable arrays. A `Piece` gets its box of the tensor,
            as each of a sequence of pieces does. Its keys are what is wanted, unless `names` says so. Without
            `into` the arrays are new, and in the report.
        names : iterable of str, optional
            Restore only these tensors, as the checkpoint calls them. Those that `into` does not have are
            put into it.
        rename : mapping, optional
            Name in the checkpoint → name in `into`, as ``var_list`` of a Saver. A tensor that is renamed is
            no longer known by its old name; the others keep theirs.
        missing : {"raise", "ignore"}
            What to do about wanted names that the checkpoint lacks.
        unexpected : {"raise", "ignore"}
            What to do about tensors of the checkpoint that nothing wants.
        only_changed : bool
            Leave an array alone, and do not read its tensor, if it has the checksum that the index names:
            between two steps of a job that trains few of its tensors, little is read. It says nothing about
            who changed the array, and works between any two checkpoints. A change of up to 32 bits in a row
            is always seen; any other one is missed once in four thousand million times. Tensors below 64 KiB,
            strings, and checkpoints of V1 are always read.

        Returns
        -------
        RestoreReport

        Raises
        ------
        TensorNotFoundError
            If a wanted name is missing; the hint lists close ones. Nothing was changed.
        UsageError
            If shape or type of an array differ from the checkpoint's, an array is read-only or masked, arrays
            share memory, or tensors are unexpected. Nothing was changed.
        FormatError, UnsupportedError, TruncatedFileError, IncompleteBundleError
            If the index contradicts itself, or a data file is missing or too short. Nothing was changed.
        ChecksumError
            If a tensor's bytes are damaged, which only shows while they are read: arrays that come before
            it in the files are filled then, and no key was added. Arrays below 256 KiB never receive bytes
            that failed.
        NotFoundError
            If the files were removed or replaced. A handle that was not used for anything else before tries
            again by itself with what is there then.
        """
        for option, choice in (("missing", missing), ("unexpected", unexpected)):
            if choice not in ("raise", "ignore"):
                raise UsageError(f"{option} must be 'raise' or 'ignore'", actual=repr(choice))
        if into is not None and not isinstance(into, Mapping):
            raise UsageError("into must be a mapping from names to arrays", actual=type(into).__name__)
        selection = Selection(
            None if names is None else checked_names(names),
            rename or {},
            raise_missing=missing == "raise",
            raise_unexpected=unexpected == "raise",
            only_changed=only_changed,
        )

        return self._with_whole(lambda reader, transfer: restore_wanted(reader, into, selection, transfer))

    def _with_whole(self, action: Callable[[BundleReader, Transfer], _T], ring: Ring | None = None) -> _T:
        """Do something with all of it; unless something else was done before, again if it is replaced."""
        was_used, reader = self._is_used, self._open()
        with self._options.transfer(reader.location.url, ring) as transfer:
            if was_used:
                return action(reader, transfer)
            self._reader, result = reopening(reader, lambda reader: action(reader, transfer), self._opener)
        if self._reader is not reader:
            self._mapped = MappedTensors(self._reader)
        return result

    def _open(self) -> BundleReader:
        if self._is_closed:
            raise UsageError("the checkpoint is closed", url=self._reader.location.url, hint="Open it again.")
        self._is_used = True
        return self._reader

    def _all_names(self) -> dict[str, int]:
        reader = self._open()
        names = self._names
        if names is None:
            self._order = reader.names()
            names = self._names = dict(zip(self._order, itertools.count(), strict=False))
        return names


def open_checkpoint(
    prefix: PathText,
    *,
    version: str | None = None,
    cache: Cache | PathText | None = None,
    memory_budget: int | None = None,
    progress: Progress = None,
    storage_options: Options = None,
) -> OpenCheckpoint:
    """Open a checkpoint for reading; reads its index, or a part of that if it is large.

    Parameters
    ----------
    prefix : str or PathLike
        Prefix or URL, such as `latest_checkpoint` returns; V2 or V1.
    version : str, optional
        Of the index, as in `Step.version`: another one is not opened, and never taken instead later.
    cache : Cache or path, optional
        Keeps what is read on this host's disk, for all of its processes, and answers while the storage is
        away; a path is that of a cache that was made before. Checkpoints of V1 are read as without it.
    memory_budget : int, optional
        Bytes that reading may hold beyond the arrays that it fills or returns; strings may take more. None:
        some blocks of 8 or 16 MiB, one for each thread.
    progress : {"rich", "tqdm", "log"} or callable, optional
        What shows how far `OpenCheckpoint.restore` is: a bar on a terminal, lines in the log, or a function
        that gets an `Event` now and then.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    NotFoundError
        If there is no such checkpoint, or its index has another version than `version`.
    CorruptError
        If its index is damaged.

    Examples
    --------
    >>> from ckptstore import BundleWriter
    >>> with BundleWriter("memory://docs/open") as writer:
    ...     writer.add("w", [[1.0, 2.0], [3.0, 4.0]])
    >>> with open_checkpoint("memory://docs/open") as ckpt:
    ...     ckpt.read("w", 1)
    array([3., 4.])
    """
    options = ReadOptions(memory_budget, progress)
    opener = None
    if cache is not None:
        # On use: most readers have none, and a host that starts waits for what it imports.
        from ckptstore.cache.cache import as_cache

        opener = as_cache(cache).opener(version)
    reader = open_bundle(locate(prefix, storage_options), memory_budget=memory_budget, opener=opener)
    if version is not None and reader.index_version != version:
        raise NotFoundError(
            "another checkpoint was saved under this name since",
            url=reader.location.url,
            expected=f"version {version} of the index",
            actual=f"version {reader.index_version}",
            hint="Take the next step of the watcher, or the latest checkpoint.",
        )
    return OpenCheckpoint(reader, options, is_pinned=version is not None, opener=opener)


def stored_tensors(checkpoint: OpenCheckpoint, names: Iterable[str]) -> list[StoredTensor]:
    """Return what the index says of these tensors, checked; their bytes are not read.

    Raises
    ------
    TensorNotFoundError
        If there is no such tensor.
    FormatError, UnsupportedError
        If the index contradicts itself, or numpy has no array for a tensor.
    """
    reader = checkpoint._open()  # noqa: SLF001 - of this module
    return [reader.stored(name) for name in names]


def is_big_endian(checkpoint: OpenCheckpoint) -> bool:
    """Return whether the checksums in the index are those of big-endian numbers."""
    return checkpoint._open().header.big_endian  # noqa: SLF001 - of this module


def read_to_device(
    checkpoint: OpenCheckpoint,
    names: Iterable[str] | None,
    place: Callable[[Sequence[StoredTensor]], Sequence[npt.NDArray[Any] | DeviceTensor]],
    ring: Ring,
) -> None:
    """Read whole tensors to where a device has them, in one pass over the files; every byte is verified.

    Parameters
    ----------
    checkpoint : OpenCheckpoint
        One that was used for nothing else is opened again if it is replaced meanwhile.
    names : iterable of str, optional
        None: all but what ckptstore and TensorFlow write for themselves, such as the object graph.
    place : callable
        Gets the tensors, and returns where each goes. It is called again if the checkpoint was opened again.
    ring : Ring
        The blocks that devices copy from, and what bounds the memory of this. It is drained.

    Raises
    ------
    CkptStoreError
        As `OpenCheckpoint.restore`. Tensors of a device that were placed may hold some damaged bytes then.
    """
    wanted = None if names is None else checked_names(names)

    def read(reader: BundleReader, transfer: Transfer) -> None:
        chosen = [name for name in reader.names() if not _is_own(name)] if wanted is None else wanted
        tensors: list[StoredTensor] = []
        for name, tensor in zip(chosen, reader.stored_many(chosen), strict=True):
            if tensor is None:
                raise reader.tensor_not_found(name)
            tensors.append(tensor)
        try:
            places = list(zip(tensors, place(tensors), strict=True))
        except CkptStoreError as error:
            error.url = error.url or reader.url
            raise
        transfer.restart(sum([entry.size_bytes for tensor in tensors for entry in tensor.entries]))
        arrays = [(tensor, to) for tensor, to in places if isinstance(to, np.ndarray)]
        on_devices = [(tensor, to) for tensor, to in places if not isinstance(to, np.ndarray)]
        reader.read_stored(arrays, on_devices=on_devices, transfer=transfer)

    try:
        checkpoint._with_whole(read, ring)  # noqa: SLF001 - of this module
    finally:
        ring.drain()


def _is_own(name: str) -> bool:
    return name == OBJECT_GRAPH_KEY or name.startswith("_CKPTSTORE_")


def restore_values(
    prefix: Location,
    values: MutableMapping[str, Any],
    names: Mapping[str, str] | None = None,
    *,
    reshape: bool = False,
    only_changed: bool = False,
    transfer: Transfer | None = None,
) -> None:
    """Restore a checkpoint into `values`, opening it again if it is replaced meanwhile.

    Parameters
    ----------
    prefix : Location
    values : mutable mapping
        Name → array; see `restore_into`.
    names : mapping, optional
        Name in the checkpoint → name in `values`. Without it every tensor of the checkpoint, and every name
        of `values` must be among them. In an object-based checkpoint a name that is not a key is looked up
        among the variables' own names, as TensorFlow's Saver does; its object graph is not a value.
    reshape : bool
        Fill arrays of another shape with as many elements.
    only_changed : bool
        Leave arrays alone that have the checksum in the index; see `OpenCheckpoint.restore`.
    transfer : Transfer, optional
        What the reads belong to, entered by the caller; by default one without limits.

    Raises
    ------
    CkptStoreError
        As `restore_into`; NotFoundError also if there is no such checkpoint.
    """

    def attempt(reader: BundleReader) -> None:
        wanted = wanted_of(reader, values, names)
        restore_into(
            reader,
            values,
            wanted,
            reshape=reshape,
            transfer=under_way,
            only_changed=only_changed_if(only_changed),
        )

    with ExitStack() as stack:
        under_way = transfer or stack.enter_context(ReadOptions().transfer(prefix.url))
        reopening(open_bundle(prefix), attempt)


def wanted_of(
    reader: BundleReader,
    values: Mapping[str, Any],
    names: Mapping[str, str] | None,
    *,
    only_values: bool = False,
) -> dict[str, str]:
    """Return name in `values` → key in the checkpoint; `only_values` leaves out what `values` lacks."""
    if names is None:
        wanted = {name: name for name in values}
    else:
        wanted = {target: source for source, target in names.items()}
    stored = dict.fromkeys(reader.names())
    if OBJECT_GRAPH_KEY in stored:
        key_of = keys_by_full_name(reader)
        mapped = {name for name in wanted.values() if name not in stored and name in key_of}
        if mapped:
            warn(
                f"{reader.url} is object-based: {len(mapped)} tensors, among them {min(mapped)!r}, are"
                " restored by the names of its variables"
            )
        wanted = {to: key_of[name] if name in mapped else name for to, name in wanted.items()}
        stored.pop(OBJECT_GRAPH_KEY)
    if names is None and not (only_values and values):
        taken = set(wanted.values())
        wanted |= {name: name for name in stored if name not in taken}
    return wanted
