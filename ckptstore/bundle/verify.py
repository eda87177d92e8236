"""Prove that a checkpoint can be restored, or say everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.bundle.findings import Fault, Findings, VerifyReport
from ckptstore.bundle.reader import open_bundle
from ckptstore.bundle.reader_v1 import ReaderV1
from ckptstore.bundle.reader_v2 import ReaderV2
from ckptstore.bundle.verify_v2 import verify_v2
from ckptstore.errors import CorruptError, UnsupportedError
from ckptstore.storage.base import Location
from ckptstore.transfer.progress import Event
from ckptstore.transfer.transfer import Transfer

__all__ = ["Fault", "Progress", "VerifyReport", "verify_bundle"]

Progress = Callable[[int, int], object]
"""Called with the bytes of the data files checked so far, and those to check in all."""


def verify_bundle(
    location: Location,
    *,
    quick: bool = False,
    progress: Progress | None = None,
    memory_budget: int | None = None,
) -> VerifyReport:
    """Check a checkpoint and report every fault, not only the first.

    Parameters
    ----------
    location : Location
        The prefix.
    quick : bool
        Check the index with all its checksums, that every data file is there and long enough, and that the
        slices of partitioned tensors are complete; read no tensor.
    progress : callable, optional
        Told about the bytes of the data files as they are checked, from any thread, one at a time.
    memory_budget : int, optional
        Bytes to hold; a tensor of strings takes its own size beyond that. None: some blocks of 8 MiB.

    Raises
    ------
    NotFoundError
        If there is no checkpoint with this prefix, or it was removed meanwhile.
    AccessError, TransientError
        If the storage does not let it be read.
    """
    findings = Findings(location.url)
    try:
        reader = open_bundle(location)
    except CorruptError as error:
        findings.add(error, location.url)
        return findings.report()
    if isinstance(reader, ReaderV1):
        _verify_v1(reader, findings, quick)
    elif isinstance(reader, ReaderV2) and quick:
        verify_v2(reader, findings, None)
    elif isinstance(reader, ReaderV2):
        report = None if progress is None else _reporting(progress)
        with Transfer("verify", location.url, memory_budget=memory_budget, report=report) as transfer:
            verify_v2(reader, findings, transfer)
    return findings.report()


def _reporting(progress: Progress) -> Callable[[Event], object]:
    def report(event: Event) -> None:
        if event.total_bytes is not None:
            progress(event.done_bytes, event.total_bytes)

    return report


def _verify_v1(reader: ReaderV1, findings: Findings, quick: bool) -> None:
    """Check the meta data and, unless quick, every block and every value; there is nothing else."""
    names = reader.names()
    findings.tensors_checked = len(names)
    for name in names:
        try:
            reader.check(name)
            if not quick:
                reader.read(name)
        except UnsupportedError as error:
            findings.notes.append(str(error))
        except CorruptError as error:
            findings.add(error, reader.url, name)
    if quick:
        return
    for file in reader.files:
        try:
            for _ in file.table.items():
                pass
        except CorruptError as error:
            findings.add(error, file.url)
        findings.bytes_checked += file.size_bytes
