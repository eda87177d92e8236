"""The result of a verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.view.problems import Problem, problem_line, problem_object
from ckptstore.view.text import count, escaped, human_size, plural
from ckptstore.view.text_table import Tone

__all__ = ["CheckedFacts", "VerificationFacts", "checked_lines", "verification_lines", "verification_object"]

# A truncated file may lack a hundred thousand tensors.
_MAX_ALIKE = 20


@dataclass(frozen=True, slots=True)
class CheckedFacts:
    """One checkpoint after its verification.

    Attributes
    ----------
    prefix : str
        As shown: relative to the directory, or as the user named it.
    bytes_checked : int
        Bytes whose checksum was compared.
    problems : sequence of Problem
        Empty if everything can be restored.
    notes : sequence of str
        Oddities that are not damage.
    is_known : bool
        False if it could not be read (access, network): the problem says why.
    """

    prefix: str
    url: str
    tensors_checked: int
    bytes_checked: int
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class VerificationFacts:
    """All checkpoints that one command verified.

    Attributes
    ----------
    url : str
        The target as the user named it.
    quick : bool
        Index and sizes only.
    """

    url: str
    quick: bool
    checked: Sequence[CheckedFacts]

    @property
    def ok(self) -> bool:
        """Whether everything was checked and has no faults."""
        return not any(facts.problems for facts in self.checked)

    @property
    def faulty(self) -> int:
        """How many checkpoints have faults."""
        return sum(bool(facts.problems) and facts.is_known for facts in self.checked)


def checked_lines(facts: CheckedFacts) -> list[tuple[str, Tone]]:
    """Return one line for the checkpoint, and one per problem."""
    lines: list[tuple[str, Tone]] = []
    name = escaped(facts.prefix)
    checked = f"{plural(facts.tensors_checked, 'tensor')}, {human_size(facts.bytes_checked)} checked"
    if not facts.is_known:
        lines.append((f"UNKNOWN  {name}", "bad"))
    elif facts.problems:
        lines.append((f"FAULTY   {name}  {plural(len(facts.problems), 'fault')} ({checked})", "bad"))
    else:
        lines.append((f"ok       {name}  {checked}", "good"))
    lines += [(f"  {line}", "bad") for line in _fault_lines(facts.problems)]
    lines += [(f"  note: {escaped(note)}", "muted") for note in facts.notes]
    return lines


def _fault_lines(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield the lines of all faults: the first of a kind in a file in full, the others in short."""
    groups: dict[tuple[str, str | None], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.code, problem.url), []).append(problem)
    for (code, _), (first, *others) in groups.items():
        yield f"{code}: {problem_line(first)}"
        for problem in others[:_MAX_ALIKE]:
            yield f"  also {_short(problem)}"
        if len(others) > _MAX_ALIKE:
            yield f"  and {count(len(others) - _MAX_ALIKE)} more like these; --json lists all"


def _short(problem: Problem) -> str:
    if problem.tensor is None or problem.expected is None:
        return problem_line(problem)
    place = "" if problem.start is None else f", bytes {problem.start} to {problem.stop}"
    found = "" if problem.actual is None else f", found {escaped(problem.actual)}"
    return f"tensor '{escaped(problem.tensor)}'{place}: expected {escaped(problem.expected)}{found}"


def verification_lines(facts: VerificationFacts) -> list[tuple[str, Tone]]:
    """Return the last lines: how many have faults, and what was not checked."""
    lines: list[tuple[str, Tone]] = []
    if len(facts.checked) > 1:
        unknown = sum(not item.is_known for item in facts.checked)
        counts = [
            f"{number} {word}" for number, word in ((facts.faulty, "faulty"), (unknown, "unknown")) if number
        ]
        verdict = ", ".join(counts) or "all good"
        lines.append((f"{plural(len(facts.checked), 'checkpoint')}: {verdict}", "bad" if counts else "good"))
    if facts.quick:
        lines.append(("quick: only index and file sizes; without --quick every tensor is checked", "muted"))
    return lines


def verification_object(facts: VerificationFacts) -> dict[str, Any]:
    """Return the output of ``ckptstore verify --json``, without ``schema``."""
    return {
        "target": facts.url,
        "quick": facts.quick,
        "ok": facts.ok,
        "checkpoints": [
            {
                "prefix": item.prefix,
                "url": item.url,
                "ok": not item.problems,
                "tensors_checked": item.tensors_checked,
                "bytes_checked": item.bytes_checked,
                "faults": [problem_object(problem) for problem in item.problems],
                "notes": list(item.notes),
            }
            for item in facts.checked
        ],
    }
