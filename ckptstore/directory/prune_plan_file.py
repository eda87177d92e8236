"""A plan of what to delete, written down for somebody to look at, and carried out later or not at all.

It names the record and each index in the version that was judged: if either is another one by then, nothing
is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.directory.prune import PrunePlan, PruneReport, PruneRequest, prune
from ckptstore.directory.retention import Entry
from ckptstore.errors import ConflictError, UsageError

__all__ = ["apply_plan", "plan_text"]

_SCHEMA = "ckptstore.prune-plan/1"


@dataclass(frozen=True, slots=True)
class _AllBut:
    """Keeps what a plan does not name."""

    names: frozenset[str]

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of the others."""
        return {entry.prefix for entry in entries if entry.prefix not in self.names}


def plan_text(plan: PrunePlan) -> str:
    """Return `plan` as JSON."""
    victims = [
        {"prefix": item.prefix, "index_version": item.published.version}
        for item in plan.victims
        if item.published is not None
    ]
    found = {
        "schema": _SCHEMA,
        "directory": plan.url,
        "record": plan.record_url,
        "record_version": plan.record_version,
        "delete": victims,
    }
    return json.dumps(found, indent=2) + "\n"


def apply_plan(request: PruneRequest, text: str) -> PruneReport:
    """Delete what the plan in `text` names.

    Parameters
    ----------
    request : PruneRequest
        With the directory and the record; its rules do not count.

    Raises
    ------
    UsageError
        If `text` is not a plan, or one of another record.
    ConflictError
        If the record or one of the checkpoints is not what it was; nothing was deleted.
    CkptStoreError
        As `prune`.
    """
    version, record_url, indexes = _parse(text)
    if record_url != request.record.url:
        raise UsageError(
            "the plan is one of another record", expected=request.record.url, actual=repr(record_url)
        )
    request.rules = [("not in the plan", _AllBut(frozenset(indexes)))]
    request.record_version = version
    # The plan names each of them.
    request.with_unlisted = True
    plan = request.plan()
    found = {item.prefix: item.published.version for item in plan.victims if item.published is not None}
    for prefix, index_version in indexes.items():
        if found.get(prefix) != index_version:
            raise ConflictError(
                "a checkpoint has changed since the plan was made, or may not be deleted;"
                " nothing was deleted",
                url=request.directory.child(prefix).url,
                hint="Make a new plan.",
            )
    return prune(request, plan)


def _parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Return the version and the URL of the record, and prefix → version of its index."""
    try:
        found: Any = json.loads(text)
        if found["schema"] == _SCHEMA:
            words = [found["record_version"], found["record"]]
            indexes = {each["prefix"]: each["index_version"] for each in found["delete"]}
            if all(isinstance(word, str) for word in (*words, *indexes, *indexes.values())):
                return words[0], words[1], indexes
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UsageError("this is not a plan of ckptstore prune", expected=_SCHEMA, hint="--plan-out writes one.")
