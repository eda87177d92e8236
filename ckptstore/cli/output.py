"""What commands show: one method per thing, with two implementations."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage, GarbageReport
    from ckptstore.directory.prune import PrunePlan, PruneReport
    from ckptstore.directory.repair import RepairReport
    from ckptstore.errors import CkptStoreError
    from ckptstore.transfer.progress import Progress
    from ckptstore.view.diagnosis_report import DiagnosisFacts
    from ckptstore.view.directory_listing import DirectoryFacts
    from ckptstore.view.inspection import Inspection, TensorFacts
    from ckptstore.view.verification_report import CheckedFacts, VerificationFacts

__all__ = ["Output"]


class Output(abc.ABC):
    """Shows results on standard output, and everything else on standard error."""

    @abc.abstractmethod
    def inspection(self, inspection: Inspection) -> None:
        """Show what a checkpoint holds."""

    @abc.abstractmethod
    def tensor_names(self, inspection: Inspection) -> None:
        """Show name, type and shape of each tensor in the form of TensorFlow's tool."""

    @abc.abstractmethod
    def values(self, inspection: Inspection, values: Iterable[tuple[TensorFacts, Any]]) -> None:
        """Show tensors with their values, each as soon as it is read."""

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
        """Show what is to be removed, before it is removed."""

    @abc.abstractmethod
    def collection(self, report: GarbageReport, *, dry_run: bool) -> None:
        """Show what was removed, and what was kept and why."""

    @abc.abstractmethod
    def repair(self, report: RepairReport, *, dry_run: bool) -> None:
        """Show what a repair changed."""

    @abc.abstractmethod
    def diagnosis(self, facts: DiagnosisFacts) -> None:
        """Show what works in a directory."""

    @abc.abstractmethod
    def pin(self, url: str, *, is_pinned: bool, is_changed: bool) -> None:
        """Show whether a checkpoint is pinned now, and whether it was before."""

    @abc.abstractmethod
    def prune_plan(self, plan: PrunePlan) -> None:
        """Show what is to be deleted and what stays, before anything is deleted."""

    @abc.abstractmethod
    def pruned(self, report: PruneReport, *, dry_run: bool) -> None:
        """Show what was deleted."""

    @abc.abstractmethod
    def note(self, text: str) -> None:
        """Show how the command understood its arguments."""

    @abc.abstractmethod
    def warning(self, text: str) -> None:
        """Show a warning: the command goes on."""

    @abc.abstractmethod
    def error(self, error: CkptStoreError) -> None:
        """Show why the command failed."""

    @abc.abstractmethod
    def progress(self) -> Progress:
        """Return the `progress` option for one transfer of the command."""
