"""From safetensors to a checkpoint: a window of the file at a time, of which the tensors are cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.directory.bare_bundle import BareBundle
from ckptstore.errors import FormatError, UsageError
from ckptstore.safetensors.element_types import refuse, type_in_checkpoint
from ckptstore.safetensors.files import SourceFile, open_files
from ckptstore.safetensors.header import FileTensor
from ckptstore.safetensors.naming import chosen_names
from ckptstore.storage.registry import locate
from ckptstore.transfer.budget import check_memory_budget
from ckptstore.transfer.ranges import GAP_SIZE_BYTES, coalesce, fair_size_bytes, split
from ckptstore.transfer.transfer import Transfer
from ckptstore.transfer.upload import BudgetLease
from ckptstore.types import ByteRange, Options, PathText

__all__ = ["from_safetensors"]

# Of the source at a time: enough requests of 8 MiB to keep its connections busy.
_MOST_WINDOW_BYTES = 64 * 1024 * 1024
_LEAST_WINDOW_BYTES = 256 * 1024
# One window is read while the last ones are sent.
_WINDOWS = 4


def from_safetensors(
    source: PathText | Sequence[PathText],
    save_path: PathText,
    *,
    names: Iterable[str] | None = None,
    rename: Mapping[str, str] | None = None,
    memory_budget: int | None = None,
    storage_options: Options = None,
) -> str:
    """Write the tensors of safetensors files as one checkpoint.

    The file is read by ranges and written at once, so that memory does not grow with it. The metadata of the
    file are not kept.

    Parameters
    ----------
    source : str, PathLike or sequence of them
        A file, several, or the index of Hugging Face, ``model.safetensors.index.json``; paths or URLs.
    save_path : str or PathLike
        Prefix of the checkpoint, path or URL. One that is there is replaced at once.
    names : iterable of str, optional
        Take only these tensors, as the source calls them.
    rename : mapping, optional
        Name in the source → name in the checkpoint; the others keep theirs.
    memory_budget : int, optional
        Bytes to hold beside the headers. None: some windows of 64 MiB.
    storage_options : mapping, optional
        Goes to the backends as it is, of both sides.

    Returns
    -------
    str
        The prefix.

    Raises
    ------
    UnsupportedError
        If TensorFlow lacks the type of some tensors, all of which are listed. Nothing was written.
    FormatError, TruncatedFileError
        If a file is not as the specification says, or holds a truth value that is neither 0 nor 1. Nothing
        was published. The files have no checksums: other damage cannot be seen.
    TensorNotFoundError
        If the source lacks a tensor of `names`, of `rename`, or of the index.
    UsageError
        If two tensors would have one name, or an argument is wrong. Nothing was written.
    ConflictError
        If another writer publishes the same prefix meanwhile.
    NotFoundError, AccessError, TransientError, StorageFullError
        From the storage.

    Threads
    -------
    Safe for concurrent use with other prefixes.

    Examples
    --------
    >>> import numpy as np
    >>> from ckptstore import Saver
    >>> from ckptstore.safetensors import to_safetensors
    >>> prefix = Saver().save({"w": np.ones(3, np.float32)}, "memory://docs/from/model")
    >>> files = to_safetensors(prefix, "memory://docs/from/model.safetensors")
    >>> from_safetensors("memory://docs/from/model.safetensors", "memory://docs/from/again")
    'memory://docs/from/again'
    """
    budget = check_memory_budget(memory_budget)
    target = locate(save_path, storage_options)
    files = open_files(source, storage_options)
    owner: dict[str, SourceFile] = {}
    for file in files:
        for tensor in file.tensors:
            if owner.setdefault(tensor.name, file) is not file:
                raise UsageError(
                    "two files have a tensor of the same name",
                    url=file.place.url,
                    tensor=tensor.name,
                    hint="Take them one after the other, with names=.",
                )
    chosen = chosen_names(owner, names, rename, reserved=None, url=target.url)
    refuse(
        (
            (tensor.name, tensor.code)
            for file in files
            for tensor in file.tensors
            if tensor.name in chosen and type_in_checkpoint(tensor.code) is None
        ),
        where="TensorFlow",
        url=target.url,
    )
    if not chosen:
        raise UsageError("there is no tensor to write", url=target.url)
    with (
        Transfer("save", target.url, memory_budget=budget) as transfer,
        BareBundle(target, transfer) as bundle,
    ):
        wanted = [[one for one in file.tensors if one.name in chosen] for file in files]
        transfer.expect(sum(one.end - one.begin for tensors in wanted for one in tensors))
        writer = bundle.begun()
        for file, tensors in zip(files, wanted, strict=True):
            _Stream(file, writer, transfer, budget).copy(tensors, chosen)
    return target.url


class _Stream:
    """The data of one file, in windows, on their way to a checkpoint."""

    def __init__(self, file: SourceFile, writer: ShardWriter, transfer: Transfer, budget: int | None) -> None:
        self._file = file
        self._writer = writer
        self._transfer = transfer
        self._parallel = max(file.place.storage.parallel_reads, 1)
        share = _MOST_WINDOW_BYTES if budget is None else budget // _WINDOWS
        self._window_bytes = max(min(share, _MOST_WINDOW_BYTES), _LEAST_WINDOW_BYTES)
        self._request_bytes = fair_size_bytes(self._window_bytes, self._parallel)
        self._end = 0
        # What is in memory: bytes of the data from `_start` on.
        self._start = 0
        self._window = memoryview(b"")
        self._lease: BudgetLease | None = None

    def copy(self, tensors: Sequence[FileTensor], names: Mapping[str, str]) -> None:
        """Write `tensors`, which ascend, under other names."""
        filled = [tensor for tensor in tensors if tensor.end > tensor.begin]
        groups = coalesce(
            [tensor.begin for tensor in filled],
            [tensor.end for tensor in filled],
            gap_size_bytes=GAP_SIZE_BYTES,
            most_size_bytes=1 << 62,
        )
        ends = {filled[first].begin: filled[last - 1].end for first, last in groups}
        try:
            for tensor in tensors:
                dtype = type_in_checkpoint(tensor.code)
                assert dtype is not None
                self._end = ends.get(tensor.begin, self._end) if tensor.end > tensor.begin else self._end
                self._writer.add_stream(names[tensor.name], dtype, tensor.shape, self._pieces(tensor))
        finally:
            self._release()

    def _pieces(self, tensor: FileTensor) -> Iterator[tuple[memoryview, BudgetLease]]:
        at = tensor.begin
        while at < tensor.end:
            if not self._start <= at < self._start + len(self._window):
                self._read(at)
            assert self._lease is not None
            piece = self._window[at - self._start : tensor.end - self._start]
            if tensor.code == "BOOL" and int(np.frombuffer(piece, np.uint8).max()) > 1:
                raise FormatError(
                    "a truth value is neither 0 nor 1", url=self._file.place.url, tensor=tensor.name
                )
            yield piece, self._lease
            at += len(piece)

    def _read(self, start: int) -> None:
        """Fetch the window that begins at `start`."""
        self._release()
        stop = min(start + self._window_bytes, self._end)
        self._lease = self._writer.reserve(stop - start)
        memory = np.empty(stop - start, np.uint8).data
        place, base = self._file.place, self._file.data_start
        tasks = [
            partial(
                place.storage.read_into,
                place.key,
                [ByteRange(base + low, base + high)],
                [memory[low - start : high - start]],
                version=self._file.version,
            )
            for low, high in split(start, stop, self._request_bytes)
        ]
        self._transfer.run(tasks, min(self._parallel, len(tasks)))
        self._start, self._window = start, memory

    def _release(self) -> None:
        self._window = memoryview(b"")
        if self._lease is not None:
            self._lease.release()
            self._lease = None
