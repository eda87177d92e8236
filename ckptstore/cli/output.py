"""What commands show: one method for each thing, two ways of showing it."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage, GarbageReport
    from ckptstore.directory.repair import RepairReport
    from ckptstore.errors import CkptStoreError
    from ckptstore.transfer.progress import Progress
    from ckptstore.view.diagnosis_report import DiagnosisFacts
    from ckptstore.view.directory_listing import DirectoryFacts
    from ckptstore.view.inspection import Inspection, TensorFacts
    from ckptstore.view.verification_report import CheckedFacts, VerificationFacts

__all__ = ["Output"]


class Output(abc.ABC):
    """Where a command's words go: results to standard output, everything else to standard error."""

    @abc.abstractmethod
    def inspection(self, inspection: Inspection) -> None:
        """Show what a checkpoint holds."""

    @abc.abstractmethod
    def tensor_names(self, inspection: Inspection) -> None:
        """Show name, type and shape of each tensor as TensorFlow's tool does."""

    @abc.abstractmethod
    def values(self, inspection: Inspection, values: Iterable[tuple[TensorFacts, Any]]) -> None:
        """Show tensors with their values, each as it comes."""

    @abc.abstractmethod
    def directory(self, facts: DirectoryFacts) -> None:
        """Show the checkpoints of a directory."""

    @abc.abstractmethod
    def checked(self, facts: CheckedFacts) -> None:
        """Show one checkpoint of a verification, as soon as it is done."""

    @abc.abstractmethod
    def verification(self, facts: VerificationFacts) -> None:
        """Show the verification as a whole."""

    @abc.abstractmethod
    def garbage(self, garbage: Garbage) -> None:
        """Show what is to be removed, before it is."""

    @abc.abstractmethod
    def collection(self, report: GarbageReport, *, dry_run: bool) -> None:
        """Show what was removed, and what was left alone and why."""

    @abc.abstractmethod
    def repair(self, report: RepairReport, *, dry_run: bool) -> None:
        """Show what became of a record."""

    @abc.abstractmethod
    def diagnosis(self, facts: DiagnosisFacts) -> None:
        """Show what works in a place."""

    @abc.abstractmethod
    def note(self, text: str) -> None:
        """Say what the command made of its arguments."""

    @abc.abstractmethod
    def warning(self, text: str) -> None:
        """Say what goes on in a degraded way."""

    @abc.abstractmethod
    def error(self, error: CkptStoreError) -> None:
        """Say why the command failed."""

    @abc.abstractmethod
    def progress(self) -> Progress:
        """Return what shows a person who watches how far one part of the command is."""
