"""Which tensors of a checkpoint go where, and the report of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt

from ckptstore.bundle.read.box_plan import PieceCounts
from ckptstore.bundle.read.open_bundle import BundleReader
from ckptstore.bundle.read.restore import OnlyChanged, restore_into
from ckptstore.errors import UsageError
from ckptstore.format.crc32c import mask
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import DType

__all__ = ["RestoreReport", "Selection", "checked_names", "only_changed_if", "restore_wanted"]


@dataclass(frozen=True, eq=False)
class RestoreReport:
    """What `OpenCheckpoint.restore` did.

    Attributes
    ----------
    restored : dict of name to ndarray
        What was restored, by the names in `into` (without `into`: after renaming): the arrays or pieces that
        were filled in place, or new writable arrays.
    missing : tuple of str
        Names that were wanted and are not in the checkpoint, as `into` calls them.
    unexpected : tuple of str
        Names of the checkpoint that nothing wanted.
    cast : tuple of str
        Names of those restored whose array holds the file's type in another form: another byte order, text
        of fixed width. Nothing is lost; a type that differs in any other way is an error.
    verified : int
        Stored tensors and slices that were read whole and compared with their checksums.
    unverified : int
        Stored tensors and slices of which only a part was read: there is no checksum for less than all.
    unchanged : tuple of str
        With ``only_changed``: names of those restored whose array had the right checksum already. It was
        neither read nor changed, and is in none of the two counts.
    """

    restored: dict[str, Any]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    verified: int = 0
    unverified: int = 0
    unchanged: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"RestoreReport(restored={sorted(self.restored)!r}, missing={self.missing!r}, "
            f"unexpected={self.unexpected!r}, cast={self.cast!r})"
        )


def checked_names(names: Iterable[str]) -> list[str]:
    """Return each name once; `UsageError` if `names` is one name."""
    if isinstance(names, str):
        raise UsageError("names must be a list of names, not one name", actual=repr(names))
    return list(dict.fromkeys(names))


class Selection(NamedTuple):
    """What to restore; see `OpenCheckpoint.restore`.

    Attributes
    ----------
    names : list of str or None
        Without duplicates.
    """

    names: list[str] | None
    rename: Mapping[str, str]
    raise_missing: bool
    raise_unexpected: bool
    only_changed: bool = False


def only_changed_if(wanted: bool) -> OnlyChanged | None:
    """Return what `restore_into` takes if unchanged arrays are to be left alone."""
    return OnlyChanged(_stored_checksum) if wanted else None


def _stored_checksum(array: npt.NDArray[Any], dtype: DType) -> int:
    # On use: other reads write nothing, not even for a comparison.
    from ckptstore.bundle.write.item_bytes import entry_crc32c
    from ckptstore.bundle.write.plan import WriteItem

    return mask(entry_crc32c(WriteItem("", dtype, array.shape, None, array.shape, array.nbytes, array)))


def restore_wanted(
    reader: BundleReader, into: Mapping[str, Any] | None, selection: Selection, transfer: Transfer
) -> RestoreReport:
    """Carry out `OpenCheckpoint.restore` once with one reader."""
    available = dict.fromkeys(reader.names())
    wanted = _wanted(into, selection, available)
    absent = {target: source for target, source in wanted.items() if source not in available}
    if absent and selection.raise_missing:
        target, source = next(iter(absent.items()))
        error = reader.tensor_not_found(source or target)
        if len(absent) > 1:
            error.hint = f"{error.hint} In all, {len(absent)} names are missing."
        raise error
    present = {target: source for target, source in wanted.items() if target not in absent}
    used = set(present.values())
    left = () if selection.names is not None else tuple(name for name in available if name not in used)
    if left and selection.raise_unexpected:
        raise UsageError(
            f"the checkpoint has {len(left)} unexpected tensors",
            url=reader.url,
            tensor=left[0],
            actual=", ".join(left[:10]),
            hint="Name them in `into`, or pass unexpected='ignore'.",
        )
    destination = {} if into is None else into
    counts = PieceCounts()
    only_changed = only_changed_if(selection.only_changed)
    cast = restore_into(
        reader, destination, present, transfer=transfer, counts=counts, only_changed=only_changed
    )
    restored = {target: destination[target] for target in present}
    unchanged = tuple(only_changed.unchanged) if only_changed else ()
    return RestoreReport(restored, tuple(absent), left, cast, counts.verified, counts.unverified, unchanged)


def _wanted(into: Mapping[str, Any] | None, selection: Selection, available: Iterable[str]) -> dict[str, str]:
    """Return name in `into` → name in the checkpoint; empty for a name that was renamed away."""
    names, rename = selection.names, selection.rename
    source_of = _inverted(rename)
    if names is not None:
        wanted = {rename.get(name, name): name for name in names}
        if len(wanted) < len(names):
            raise UsageError("two tensors would be restored under one name", actual=", ".join(names))
        return wanted
    if into is None:
        targets = {name: rename.get(name, name) for name in available}
        return {to: name for name, to in targets.items() if to not in source_of} | source_of
    # A renamed tensor is no longer known by its old name.
    return {target: source_of.get(target, "" if target in rename else target) for target in into}


def _inverted(rename: Mapping[str, str]) -> dict[str, str]:
    source_of: dict[str, str] = {}
    for source, target in rename.items():
        other = source_of.setdefault(target, source)
        if other != source:
            raise UsageError(
                "two tensors are renamed to the same name", tensor=target, actual=f"{other} and {source}"
            )
    return source_of
