"""The result of ``ckptstore doctor``: what works, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.view.problems import Problem, problem_object
from ckptstore.view.text import escaped, plural
from ckptstore.view.text_table import Column, Row, TextTable, Tone

if TYPE_CHECKING:
    from ckptstore.storage.finding import Finding

__all__ = ["DiagnosisFacts", "diagnosis_lines", "diagnosis_object", "diagnosis_table"]

_TONES: dict[str, Tone] = {"ok": "plain", "degraded": "bad", "failed": "bad"}


@dataclass(frozen=True, slots=True)
class DiagnosisFacts:
    """The checks of one directory."""

    url: str
    backend: str
    findings: Sequence[Finding]
    read_only: bool = False

    @property
    def is_readable(self) -> bool:
        """Whether reading by itself was tried, and works."""
        states = {finding.check: finding.state for finding in self.findings}
        return "permissions" in states and states["read"] == "ok"

    @property
    def failures(self) -> list[Finding]:
        """What does not work."""
        return [finding for finding in self.findings if finding.state == "failed"]

    @property
    def degraded(self) -> list[Finding]:
        """What works, but with fewer guarantees than elsewhere."""
        return [finding for finding in self.findings if finding.state == "degraded"]


def diagnosis_table(facts: DiagnosisFacts) -> TextTable:
    """Return one row per check."""
    columns = (Column("CHECK"), Column("RESULT"), Column("FOUND", flexible=True, prose=True))
    rows = [
        Row((finding.check, finding.state, escaped(finding.detail)), _TONES[finding.state])
        for finding in facts.findings
    ]
    return TextTable(columns, rows)


def diagnosis_lines(facts: DiagnosisFacts) -> Iterator[tuple[str, Tone]]:
    """Yield what to do, and whether saving and restoring work."""
    for finding in facts.findings:
        # The text of an error ends with its hint.
        if finding.hint is not None and finding.state != "ok":
            yield f"{finding.check}: {escaped(finding.hint)}", "plain"
    usable = "readable" if facts.read_only else "usable"
    if facts.failures:
        checks = ", ".join(finding.check for finding in facts.failures)
        verdict = f"readable, not writable: {checks}" if facts.is_readable else f"not usable: {checks}"
        yield f"{escaped(facts.url)}: {verdict}", "bad"
    elif facts.degraded:
        limits = plural(len(facts.degraded), "limit")
        yield f"{escaped(facts.url)}: {usable}, with {limits}", "plain"
    else:
        yield f"{escaped(facts.url)}: {usable}, all checks passed", "good"


def diagnosis_object(facts: DiagnosisFacts) -> dict[str, Any]:
    """Return the output of ``ckptstore doctor --json``, without ``schema``."""
    return {
        "url": facts.url,
        "backend": facts.backend,
        "usable": not facts.failures,
        "readable": facts.is_readable,
        "read_only": facts.read_only,
        "checks": [
            {
                "check": finding.check,
                "state": finding.state,
                "detail": finding.detail,
                "hint": finding.hint if finding.error is None else finding.error.hint,
                "problem": None if finding.error is None else problem_object(Problem.of_error(finding.error)),
            }
            for finding in facts.findings
        ],
    }
