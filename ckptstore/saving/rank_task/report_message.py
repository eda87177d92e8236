"""The report of a save as the chief tells it to the other ranks."""

from __future__ import annotations

from typing import Any

from ckptstore.saving.report import RankReport, SaveReport

__all__ = ["decode_report", "encode_report"]


def encode_report(report: SaveReport) -> dict[str, Any]:
    """Return `report` for the head of a message; `decode_report` reads it."""
    return {
        "seconds": report.seconds,
        "ranks": [[one.host_name, one.bytes, one.staged_s, one.written_s] for one in report.ranks],
    }


def decode_report(told: Any) -> SaveReport | None:
    """Return what `encode_report` made, or None if `told` is something else."""
    try:
        return SaveReport(
            [
                RankReport(rank, str(host), int(size), float(staged_s), float(written_s))
                for rank, (host, size, staged_s, written_s) in enumerate(told["ranks"])
            ],
            float(told["seconds"]),
        )
    except (TypeError, KeyError, ValueError):
        # Asked of the store: the chief has not said it.
        return None
