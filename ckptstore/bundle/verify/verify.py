"""Prove that a checkpoint can be restored, or report everything that is wrong with it."""

from __future__ import annotations

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.reader_v1 import ReaderV1
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.verify.report import BundleFault, Findings, VerifyReport
from ckptstore.bundle.verify.verify_v2 import verify_v2
from ckptstore.errors import CorruptError, UnsupportedError
from ckptstore.storage.base import Location
from ckptstore.transfer.progress import Progress, reporter
from ckptstore.transfer.transfer import Transfer

__all__ = ["BundleFault", "VerifyReport", "verify_bundle"]


def verify_bundle(
    location: Location,
    *,
    quick: bool = False,
    progress: Progress = None,
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
    progress : {"rich", "tqdm", "log"} or callable, optional
        Shows how many bytes of the data files are checked; as for `Saver`. Nothing where no tensor is read,
        and of a V1 checkpoint.
    memory_budget : int, optional
        Bytes to hold; a tensor of strings takes its own size beyond that. None: some blocks of 8 or 16 MiB.

    Raises
    ------
    NotFoundError
        If there is no checkpoint with this prefix, or it was removed meanwhile.
    AccessError, TransientError
        If the storage does not let it be read.
    UsageError
        If `progress` is not one of the ways to show it.
    """
    report = reporter(progress)
    findings = Findings(location.url)
    try:
        reader = open_bundle(location)
    except CorruptError as error:
        findings.add(error, location.url)
        return findings.report()
    findings.index_version = reader.index_version
    if isinstance(reader, ReaderV1):
        _verify_v1(reader, findings, quick)
    elif isinstance(reader, ReaderV2) and quick:
        verify_v2(reader, findings, None)
    elif isinstance(reader, ReaderV2):
        with Transfer("verify", location.url, memory_budget=memory_budget, report=report) as transfer:
            verify_v2(reader, findings, transfer)
    return findings.report()


def _verify_v1(reader: ReaderV1, findings: Findings, quick: bool) -> None:
    """Check the meta data and, unless quick, every block and every value."""
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
