"""Writing single bundles by hand: one data file at a time, and merging several into one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from types import TracebackType

import numpy.typing as npt

from ckptstore.bundle.write.merge import MergeInput, merge_indexes
from ckptstore.directory.bare_bundle import BareBundle
from ckptstore.directory.bare_write import collect_replaced
from ckptstore.directory.collect import remove_checkpoint_files
from ckptstore.directory.published_index import (
    LARGEST_COUNT,
    choose_count,
    name_is_taken,
    read_published_index,
)
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError, CkptStoreWarning, ConflictError, FormatError, UsageError
from ckptstore.format.entry import HEADER_KEY, decode_entry, decode_header, key_to_name
from ckptstore.format.naming import data_name, part_name
from ckptstore.format.table import Table
from ckptstore.storage.base import Location
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Committed
from ckptstore.types import DType, Options, PathText

__all__ = ["BundleWriter", "merge_bundles", "part_prefix"]


class BundleWriter:
    """Write one bundle with one data file, tensor after tensor, in the order of the calls.

    The files are byte-identical to those that TensorFlow writes for the same tensors in the same order.
    Nothing is visible before `finish`: leaving the ``with`` block finishes, a raising block leaves no file.

    Parameters
    ----------
    prefix : str or PathLike
        Prefix or URL; missing directories are made. A bundle that is there is replaced at once, and its data
        file stays for those who are reading it, until it is collected.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UsageError
        If the prefix is not a usable name.

    Threads
    -------
    One thread at a time.

    Examples
    --------
    >>> with BundleWriter("memory://docs/model") as writer:
    ...     writer.add("w", [[1.0, 2.0]])
    """

    def __init__(self, prefix: PathText, *, storage_options: Options = None) -> None:
        self._bundle = BareBundle(locate(prefix, storage_options))

    def add(self, name: str, array: npt.ArrayLike, *, dtype: DType | str | None = None) -> None:
        """Append one tensor.

        Parameters
        ----------
        name : str
            Not empty, and new to this bundle.
        array : array-like
            Any shape. It may be changed again when this returns.
        dtype : DType or str, optional
            TensorFlow's type, where numpy's is not enough, e.g. ``"qint8"``. Text and bytes are
            ``"string"``.

        Raises
        ------
        UsageError
            If the values cannot be stored, or the name was added before.
        """
        self._bundle.begun().add(name, array, dtype=dtype)

    def add_slice(
        self,
        name: str,
        shape: Sequence[int],
        spec: str | Sequence[tuple[int, int]],
        array: npt.ArrayLike,
        *,
        dtype: DType | str | None = None,
    ) -> None:
        """Append one box of a partitioned tensor.

        Parameters
        ----------
        name : str
        shape : sequence of int
            Of the whole tensor.
        spec : str or sequence of (start, length)
            Which box; length -1 = the full extent; or TensorFlow's text, e.g. ``"0,3:-"``.
        array : array-like
            Of the shape of the box.
        dtype : DType or str, optional
            As for `add`.

        Raises
        ------
        UsageError
            If box, shape and array do not fit, or this very slice was added before.
        """
        self._bundle.begun().add(name, array, dtype=dtype, shape=shape, spec=spec)

    def finish(self) -> None:
        """Publish the bundle: durable and complete when this returns. A second call does nothing.

        Raises
        ------
        ConflictError
            If another writer published the same prefix in between; nothing of this one stays.
        UsageError
            After `abort`.
        """
        self._bundle.finish()

    def abort(self) -> None:
        """Drop what was added; no effect after `finish`."""
        self._bundle.abort()

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bundle.__exit__(kind, error, trace)


def part_prefix(output_prefix: PathText, number: int, count: int) -> str:
    """Return the prefix under which part `number` of a bundle is written, until `merge_bundles` joins them.

    TensorFlow uses the same names on object stores. A part is not a checkpoint, whatever happens: no function
    that looks for checkpoints finds it, and ``ckptstore gc`` removes parts whose merge never came.

    Parameters
    ----------
    output_prefix : str or PathLike
        Of the merged bundle.
    number : int
        From 0.
    count : int
        How many parts there are.

    Raises
    ------
    UsageError
        If `number` is not below `count`.
    """
    if not 0 <= number < count:
        raise UsageError(
            "there is no such part", expected=f"a number from 0 to {count - 1}", actual=str(number)
        )
    return part_name(os.fspath(output_prefix), number, count)


def merge_bundles(
    prefixes: Sequence[PathText], output_prefix: PathText, *, storage_options: Options = None
) -> None:
    """Merge bundles into one with as many data files, as TensorFlow's MergeV2Checkpoints does.

    The inputs are removed once the merged bundle is published; until then they stay whole. One that cannot be
    removed is a warning. `part_prefix` gives them names under which nobody takes them for checkpoints.

    Parameters
    ----------
    prefixes : sequence of str or PathLike
        The inputs, in the order that decides the numbers of the data files and the order of slices.
    output_prefix : str or PathLike
        None of the inputs.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UsageError
        If a tensor comes twice, unless as slices, or the inputs differ in endianness or version.
    NotFoundError, IncompleteBundleError
        If an input or one of its data files is missing; nothing was touched.
    ConflictError
        If another writer publishes the output at the same time.
    """
    inputs = [locate(prefix, storage_options) for prefix in prefixes]
    output = locate(output_prefix, storage_options)
    check_prefix_name(output)
    if any(place.key == output.key and place.storage is output.storage for place in inputs):
        raise UsageError(
            "the output cannot be one of the inputs", url=output.url, hint="Choose another output prefix."
        )
    indexes = [_read_index(place) for place in inputs]
    merged = merge_indexes(indexes)
    directory, name = output.parent, output.name
    published = read_published_index(directory, name)
    # The sum of the inputs' counts, as in TensorFlow; an input that was overwritten has a count far above its
    # number of files, and the sum may leave no name that TensorFlow can delete.
    shards = len(merged.shards)
    count = merged.num_shards if merged.num_shards <= LARGEST_COUNT else max(shards, 1)
    if published is not None or name_is_taken(directory, name, shards, count):
        count = choose_count(max(shards, 1), published.counts if published is not None else set())
    with ShardSet(directory, name, canonical_count=count) as files:
        for number, (source, shard) in enumerate(merged.shards):
            name_there = data_name("", shard, indexes[source].header.num_shards)
            if not files.copy(number, count, inputs[source].suffixed(name_there)):
                raise ConflictError("a data file of the output is there already", url=output.url)
        files.index = merged.index_bytes(count)
        if not isinstance(files.publish(published), Committed):
            raise ConflictError("another writer published the output at the same time", url=output.url)
    collect_replaced(files, published)
    for place in inputs:
        try:
            remove_checkpoint_files(place.parent, place.name, None)
        except CkptStoreError as error:
            warnings.warn(
                f"the bundles are merged, but {place.url} could not be removed: {error}",
                CkptStoreWarning,
                stacklevel=2,
            )


def _read_index(place: Location) -> MergeInput:
    location = place.suffixed(".index")
    got = location.storage.get(location.key)
    items = Table.from_bytes(got.data, source=location.url).items()
    header = None
    entries = []
    for key, value in items:
        if key == HEADER_KEY:
            header = decode_header(value, source=location.url)
        else:
            entries.append((key, decode_entry(value, source=location.url, tensor=key_to_name(key))))
    if header is None:
        raise FormatError("the index has no header entry", url=location.url, hint="Write this bundle again.")
    return MergeInput(entries, header, place.url)
