"""One restore of all ranks of a job: one version of the checkpoint, and on all ranks or on none."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.restore import restore_into
from ckptstore.distributed.agreement import Agreement
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.errors import ConflictError
from ckptstore.reading.open_checkpoint import wanted_of
from ckptstore.reading.report import only_changed_if
from ckptstore.storage.base import Location
from ckptstore.transfer.transfer import Transfer

__all__ = ["restore_values_alike"]

# How often the ranks open a checkpoint that is replaced under them.
_MAX_OPENINGS = 5


def restore_values_alike(
    coordinator: Coordinator,
    prefix: Location,
    values: MutableMapping[str, Any],
    names: Mapping[str, str] | None = None,
    *,
    reshape: bool = False,
    only_changed: bool = False,
    transfer: Transfer | None = None,
) -> None:
    """Restore a checkpoint on all ranks of a job: one version of it, and on all of them or on none.

    Parameters
    ----------
    coordinator : Coordinator
    prefix, values, names, reshape, only_changed, transfer
        As `restore_values`; but without `names` only the tensors that `values` has, unless it is empty.

    Raises
    ------
    CkptStoreError
        As `restore_values`. What is found before an array changes is raised on all ranks, as the same class.
    ConflictError
        If the checkpoint was replaced each time that the ranks opened it. Nothing was changed.
    RanksMissingError
        If a rank does not come within 600 s, less where the engine would end the job before. Nothing was
        changed.
    """
    for attempt in range(_MAX_OPENINGS):
        try:
            with Agreement(coordinator, f"restore {prefix.url}") as agreement:
                _restore_alike(agreement, prefix, values, names, reshape, only_changed, transfer)
                return
        except _ReplacedError as error:
            if attempt == _MAX_OPENINGS - 1:
                raise ConflictError(
                    "the checkpoint is replaced again and again while the ranks open it",
                    url=prefix.url,
                    hint="Save under other names, or restore another checkpoint.",
                ) from error


class _ReplacedError(Exception):
    """The ranks have opened two versions of a checkpoint."""


def _restore_alike(
    agreement: Agreement,
    prefix: Location,
    values: MutableMapping[str, Any],
    names: Mapping[str, str] | None,
    reshape: bool,
    only_changed: bool,
    transfer: Transfer | None,
) -> None:
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True
        versions = agreement.all_or_none(lambda: {"version": reader.index_version})
        if len({one["version"] for one in versions}) > 1:
            raise _ReplacedError

    try:
        reader = open_bundle(prefix)
        wanted = wanted_of(reader, values, names, only_values=True)
        restore_into(
            reader,
            values,
            wanted,
            reshape=reshape,
            transfer=transfer,
            ready=ready,
            only_changed=only_changed_if(only_changed),
        )
    except BaseException as error:
        if is_ready:
            raise
        failure = error

        def fail() -> dict[str, Any]:
            raise failure

        agreement.all_or_none(fail)
        raise
