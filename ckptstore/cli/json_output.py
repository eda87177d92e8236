"""One JSON object per run on standard output; everything else as JSON lines on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from ckptstore.cli.output import Output
from ckptstore.view.diagnosis_report import DiagnosisFacts, diagnosis_object
from ckptstore.view.directory_listing import DirectoryFacts, directory_object
from ckptstore.view.garbage_report import collection_object
from ckptstore.view.inspection import Inspection, TensorFacts, inspection_object, tensor_object
from ckptstore.view.json_values import value_object
from ckptstore.view.problems import Problem, problem_object
from ckptstore.view.prune_report import prune_object
from ckptstore.view.repair_report import repair_object
from ckptstore.view.verification_report import CheckedFacts, VerificationFacts, verification_object

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage, GarbageReport
    from ckptstore.directory.prune import PrunePlan, PruneReport
    from ckptstore.directory.repair import RepairReport
    from ckptstore.errors import CkptStoreError
    from ckptstore.transfer.progress import Progress

__all__ = ["JsonOutput"]


class JsonOutput(Output):
    """For scripts.

    Every object has ``schema``: its kind and the version of its form. Fields are added under the same
    version, never renamed or removed. The text is ASCII; a byte of a name that is not UTF-8 is a lone
    surrogate, as in Python.
    """

    def inspection(self, inspection: Inspection) -> None:
        _write("inspect", inspection_object(inspection))

    def tensor_names(self, inspection: Inspection) -> None:
        self.inspection(inspection)

    def values(self, inspection: Inspection, values: Iterable[tuple[TensorFacts, Any]]) -> None:
        # Written as a whole at the end: half an object would be worse than none.
        found = inspection_object(inspection)
        found["tensors"] = [
            tensor_object(facts) | ({} if facts.problem else {"value": value_object(value)})
            for facts, value in values
        ]
        _write("inspect", found)

    def directory(self, facts: DirectoryFacts) -> None:
        _write("ls", directory_object(facts))

    def checked(self, facts: CheckedFacts) -> None:
        pass

    def verification(self, facts: VerificationFacts) -> None:
        _write("verify", verification_object(facts))

    def garbage(self, garbage: Garbage) -> None:
        pass

    def collection(self, report: GarbageReport, *, dry_run: bool) -> None:
        _write("gc", collection_object(report, dry_run=dry_run))

    def repair(self, report: RepairReport, *, dry_run: bool) -> None:
        _write("repair", repair_object(report, dry_run=dry_run))

    def diagnosis(self, facts: DiagnosisFacts) -> None:
        _write("doctor", diagnosis_object(facts))

    def pin(self, url: str, *, is_pinned: bool, is_changed: bool) -> None:
        _write("pin", {"url": url, "pinned": is_pinned, "changed": is_changed})

    def prune_plan(self, plan: PrunePlan) -> None:
        pass

    def pruned(self, report: PruneReport, *, dry_run: bool) -> None:
        _write("prune", prune_object(report, dry_run=dry_run))

    def note(self, text: str) -> None:
        _write("note", {"message": text}, sys.stderr)

    def warning(self, text: str) -> None:
        _write("warning", {"message": text}, sys.stderr)

    def error(self, error: CkptStoreError) -> None:
        _write("error", problem_object(Problem.of_error(error)), sys.stderr)

    def progress(self) -> Progress:
        return None


def _write(kind: str, found: dict[str, Any], stream: TextIO | None = None) -> None:
    text = json.dumps({"schema": f"ckptstore.{kind}/1", **found}, allow_nan=False)
    print(text, file=stream or sys.stdout)
