"""From a checkpoint to safetensors: the layout is known from the index, then the bytes follow each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.chunks import cut
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.checksums import crc32c
from ckptstore.errors import AmbiguousOutcomeError, ChecksumError, ConflictError, NotFoundError, UsageError
from ckptstore.format.crc32c import mask
from ckptstore.format.dtypes import as_bytes_view, item_size_bytes, storage_dtype
from ckptstore.reading.open_checkpoint import OpenCheckpoint, is_big_endian, open_checkpoint, stored_tensors
from ckptstore.safetensors.element_types import name_in_file, refuse
from ckptstore.safetensors.files import INDEX_ENDING, index_text, shard_name
from ckptstore.safetensors.header import METADATA, FileTensor, build_header
from ckptstore.safetensors.naming import chosen_names
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Ambiguous, Committed, PutOutcome
from ckptstore.transfer.budget import check_memory_budget
from ckptstore.transfer.transfer import Transfer
from ckptstore.transfer.upload import PartSender
from ckptstore.types import Options, PathText

__all__ = ["to_safetensors"]

Array: TypeAlias = npt.NDArray[Any]

# Of the checkpoint at a time, where nothing bounds it.
_MOST_WINDOW_BYTES: Final = 64 * 1024 * 1024
_LEAST_WINDOW_BYTES: Final = 256 * 1024
# What is read, what is being sent, and what reading itself needs.
_WINDOWS = 4

_ENDING = ".safetensors"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class _Item(NamedTuple):
    """A tensor of the checkpoint, and what it is called in the file."""

    tensor: StoredTensor
    name: str
    code: str

    @property
    def item_bytes(self) -> int:
        return item_size_bytes(self.tensor.dtype)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.tensor.shape) * self.item_bytes


def to_safetensors(
    checkpoint: PathText | OpenCheckpoint,
    target: PathText,
    *,
    names: Iterable[str] | None = None,
    rename: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
    memory_budget: int | None = None,
    storage_options: Options = None,
) -> list[str]:
    """Write the tensors of a checkpoint as safetensors, every byte verified on the way.

    Parameters
    ----------
    checkpoint : str, PathLike or OpenCheckpoint
        Prefix or URL, or what `open_checkpoint` returns.
    target : str or PathLike
        Path or URL of the file, ``….safetensors``. Nothing that is there is replaced.
    names : iterable of str, optional
        Write only these tensors, as the checkpoint calls them. None: all but what ckptstore and TensorFlow
        write for themselves.
    rename : mapping, optional
        Name in the checkpoint → name in the file; the others keep theirs.
    metadata : mapping, optional
        Texts for the header; transformers wants ``{"format": "pt"}``.
    max_shard_size : int or str, optional
        Bytes of tensors in one file, or text as ``"5GB"``, which Hugging Face writes so. If there are more,
        several files ``…-00001-of-0000N.safetensors`` are written, and then ``….safetensors.index.json``. A
        larger tensor has a file of its own.
    memory_budget : int, optional
        Bytes to hold. A slice of a partitioned tensor is verified as a whole, so it may take its size.
        None: some windows of 64 MiB.
    storage_options : mapping, optional
        Goes to the backends as it is, of both sides.

    Returns
    -------
    list of str
        The files that were written, the index last.

    Raises
    ------
    UnsupportedError
        If safetensors lacks the type of some tensors, all of which are listed. Nothing was written.
    ConflictError
        If one of the files is there already. Files of this call that were complete before stay; no index
        names them.
    ChecksumError
        If the bytes of a tensor are damaged. The file that it belongs to is not written.
    TensorNotFoundError, UsageError
        If there is no such tensor, two would have one name, or an argument is wrong. Nothing was written.
    AmbiguousOutcomeError
        If the answer to a write was lost.
    CorruptError, NotFoundError, AccessError, TransientError, StorageFullError
        From the checkpoint, and from the storage.

    Threads
    -------
    Safe for concurrent use with other targets.

    Examples
    --------
    >>> import numpy as np
    >>> from ckptstore import Saver
    >>> prefix = Saver().save({"w": np.ones(3)}, "memory://docs/to/model", 1)
    >>> to_safetensors(prefix, "memory://docs/to/model.safetensors")
    ['memory://docs/to/model.safetensors']
    """
    budget = check_memory_budget(memory_budget)
    share = _MOST_WINDOW_BYTES if budget is None else budget // _WINDOWS
    window_bytes = max(min(share, _MOST_WINDOW_BYTES), _LEAST_WINDOW_BYTES)
    most_bytes = _shard_bytes(max_shard_size)
    place = locate(target, storage_options)
    if not place.name.endswith(_ENDING) or place.name == _ENDING:
        raise UsageError("the target must be a file *.safetensors", url=place.url)
    _check_metadata(metadata)
    with ExitStack() as stack:
        opened = checkpoint
        if not isinstance(opened, OpenCheckpoint):
            opened = stack.enter_context(
                open_checkpoint(
                    opened,
                    memory_budget=None if budget is None else window_bytes,
                    storage_options=storage_options,
                )
            )
        shards = _shards(_items(opened, names, rename, place.url), most_bytes)
        stem = place.name.removesuffix(_ENDING)
        files = [place.parent.child(shard_name(stem, number, len(shards))) for number in range(len(shards))]
        index = place.parent.child(f"{place.name}{INDEX_ENDING}")
        for file in files if len(files) == 1 else [*files, index]:
            _check_free(file)
        transfer = stack.enter_context(Transfer("save", place.url, memory_budget=budget))
        transfer.expect(sum(item.size_bytes for shard in shards for item in shard))
        for file, items in zip(files, shards, strict=True):
            _write_file(file, items, metadata, _Reads(opened, window_bytes), transfer)
        if len(files) == 1:
            return [files[0].url]
        names_of = {
            file.name: [item.name for item in shard] for file, shard in zip(files, shards, strict=True)
        }
        text = index_text(names_of, sum(item.size_bytes for shard in shards for item in shard))
        with index.storage.upload(index.key, len(text)) as upload:
            upload.write(text)
            _check_outcome(upload.commit(), index)
        return [file.url for file in (*files, index)]


def _items(
    checkpoint: OpenCheckpoint, names: Iterable[str] | None, rename: Mapping[str, str] | None, url: str
) -> list[_Item]:
    """Return what to write, largest elements first: so each tensor is aligned, as the library does it."""
    chosen = chosen_names(checkpoint, names, rename, reserved=METADATA, url=url)
    specs = checkpoint.specs()
    refuse(
        ((name, specs[name].dtype.name) for name in chosen if name_in_file(specs[name].dtype) is None),
        where="safetensors",
        url=url,
    )
    if not chosen:
        raise UsageError("there is no tensor to write", url=url)
    items = [
        _Item(tensor, to, name_in_file(tensor.dtype) or "")
        for tensor, to in zip(stored_tensors(checkpoint, chosen), chosen.values(), strict=True)
    ]
    return sorted(items, key=lambda item: (-item.item_bytes, item.name))


def _shards(items: Sequence[_Item], most_bytes: int | None) -> list[list[_Item]]:
    shards: list[list[_Item]] = [[]]
    size_bytes = 0
    for item in items:
        if most_bytes is not None and shards[-1] and size_bytes + item.size_bytes > most_bytes:
            shards.append([])
            size_bytes = 0
        shards[-1].append(item)
        size_bytes += item.size_bytes
    return shards


def _write_file(
    file: Location,
    items: Sequence[_Item],
    metadata: Mapping[str, str] | None,
    reads: _Reads,
    transfer: Transfer,
) -> None:
    tensors = []
    begin = 0
    for item in items:
        end = begin + item.size_bytes
        tensors.append(FileTensor(item.name, item.code, item.tensor.shape, begin, end))
        begin = end
    header = build_header(tensors, metadata, url=file.url)
    size_bytes = len(header) + begin
    with file.storage.upload(file.key, size_bytes) as upload:
        sender = PartSender(upload, transfer, size_bytes)
        try:
            lease = sender.reserve(len(header))
            sender.put(memoryview(header), lease=lease)
            lease.release()
            for wanted_bytes, read in reads.windows(items):
                lease = sender.reserve(wanted_bytes)
                try:
                    for array in read():
                        sender.put(as_bytes_view(array).data, lease=lease)
                finally:
                    lease.release()
            sender.finish()
            outcome = upload.commit()
        finally:
            sender.close()
        _check_outcome(outcome, file)


class _Reads:
    """What is read of a checkpoint, one window after the other."""

    def __init__(self, checkpoint: OpenCheckpoint, window_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._window_bytes = window_bytes
        # Its checksums are those of bytes that we do not see.
        self._is_foreign = is_big_endian(checkpoint)

    def windows(self, items: Iterable[_Item]) -> Iterator[tuple[int, Callable[[], list[Array]]]]:
        """Yield the size of each window, and what reads its arrays, in order."""
        batch: list[_Item] = []
        batch_bytes = 0
        for item in items:
            if batch and batch_bytes + item.size_bytes > self._window_bytes:
                yield batch_bytes, partial(self._whole, batch)
                batch, batch_bytes = [], 0
            if item.size_bytes > self._window_bytes and not self._is_foreign:
                yield from self._cut(item)
                continue
            batch.append(item)
            batch_bytes += item.size_bytes
        if batch:
            yield batch_bytes, partial(self._whole, batch)

    def _whole(self, items: Sequence[_Item]) -> list[Array]:
        """Read tensors as wholes, so that they are verified."""
        arrays = [np.empty(item.tensor.shape, _native(item)) for item in items]
        self._checkpoint.read_into(
            (item.tensor.name, ..., array) for item, array in zip(items, arrays, strict=True)
        )
        return [_little(array) for array in arrays]

    def _cut(self, item: _Item) -> Iterator[tuple[int, Callable[[], list[Array]]]]:
        """Cut a tensor above a window, and verify it all the same."""
        tensor = item.tensor
        if tensor.slices:
            # Each slice has a checksum of its own, and a piece may touch many.
            for number in range(len(tensor.slices)):
                yield item.size_bytes // len(tensor.slices), partial(self._verify_slice, tensor, number)
        crc = 0

        def read(where: tuple[slice, ...], is_last: bool) -> list[Array]:
            nonlocal crc
            array = _little(np.ascontiguousarray(self._checkpoint.read(tensor.name, where)))
            crc = crc32c(array, crc)
            if is_last and not tensor.slices and mask(crc) != tensor.entries[0].masked_crc32c:
                raise ChecksumError(
                    "the bytes of a tensor are not those that were saved",
                    url=self._checkpoint.prefix,
                    tensor=tensor.name,
                    expected=f"CRC32C {tensor.entries[0].masked_crc32c:#010x}",
                    actual=f"{mask(crc):#010x}",
                    hint="Run ckptstore verify, and take another checkpoint.",
                )
            return [array]

        for chunk in cut(tensor.shape, item.item_bytes, self._window_bytes):
            size_bytes = chunk.stop - chunk.start
            yield size_bytes, partial(read, chunk.where, chunk.stop == item.size_bytes)

    def _verify_slice(self, tensor: StoredTensor, number: int) -> list[Array]:
        extents = tensor.slices[number].resolve(tensor.shape)
        self._checkpoint.read(tensor.name, tuple(slice(start, start + length) for start, length in extents))
        return []


def _native(item: _Item) -> np.dtype[Any]:
    return storage_dtype(item.tensor.dtype).newbyteorder("=")


def _little(array: Array) -> Array:
    """Return an array as it stands in the file."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _shard_bytes(value: int | str | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)\s*([KMG]I?B)\s*", value.upper())
        value = int(found[1]) * _UNITS[found[2]] if found else -1
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UsageError("max_shard_size must be a number of bytes above 0, or text such as '5GB'")
    return value


def _check_metadata(metadata: object) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, Mapping) or not all(
        isinstance(one, str) for pair in metadata.items() for one in pair
    ):
        raise UsageError("the metadata of safetensors are texts by name")


def _check_free(file: Location) -> None:
    try:
        file.storage.head(file.key)
    except NotFoundError:
        return
    raise _there(file)


def _check_outcome(outcome: PutOutcome, file: Location) -> None:
    if isinstance(outcome, Ambiguous):
        raise AmbiguousOutcomeError(
            "the file may or may not have been written",
            url=file.url,
            actual=outcome.reason,
            hint="Look whether it is there; under another name nothing stands in the way.",
        )
    if not isinstance(outcome, Committed):
        raise _there(file)


def _there(file: Location) -> ConflictError:
    return ConflictError(
        "the file is there already",
        url=file.url,
        hint="Choose another name, or remove it first: nothing is replaced.",
    )
