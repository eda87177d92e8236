"""Errors and faults, as text for people and as objects for scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.view.text import escaped

if TYPE_CHECKING:
    from ckptstore.bundle.verify.verify import BundleFault
    from ckptstore.errors import CkptStoreError

__all__ = ["Problem", "problem_line", "problem_object"]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error that was raised, or a fault that a verification found.

    Attributes
    ----------
    code : str
        Stable, see `ckptstore.errors`.
    message : str
        The whole text: what failed, where, expected and found, what to do.
    start, stop : int or None
        Which bytes of the file at `url`.
    """

    code: str
    message: str
    url: str | None = None
    tensor: str | None = None
    start: int | None = None
    stop: int | None = None
    expected: str | None = None
    actual: str | None = None
    hint: str | None = None

    @classmethod
    def of_error(cls, error: CkptStoreError) -> Problem:
        """Return `error` as a problem."""
        return cls(
            code=error.code,
            message=str(error),
            url=error.url,
            tensor=error.tensor,
            start=error.offset,
            expected=error.expected,
            actual=error.actual,
            hint=error.hint,
        )

    @classmethod
    def of_fault(cls, fault: BundleFault) -> Problem:
        """Return `fault` as a problem."""
        place = fault.byte_range
        return cls(
            code=fault.code,
            message=fault.message,
            url=fault.file,
            tensor=fault.tensor,
            start=None if place is None else place.start,
            stop=None if place is None else place.stop,
            expected=fault.expected,
            actual=fault.actual,
        )


def problem_line(problem: Problem) -> str:
    """Return the message in one line that is safe to print."""
    return escaped(problem.message)


def problem_object(problem: Problem) -> dict[str, Any]:
    """Return the fields for a script; absent ones are null."""
    return {
        "code": problem.code,
        "message": problem.message,
        "url": problem.url,
        "tensor": problem.tensor,
        "start": problem.start,
        "stop": problem.stop,
        "expected": problem.expected,
        "actual": problem.actual,
        "hint": problem.hint,
    }
