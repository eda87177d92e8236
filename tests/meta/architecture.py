"""The drawings in docs/architecture.md: `make docs` renews them, `test_architecture.py` compares."""

from __future__ import annotations

import textwrap

from tests.meta.guarantees import renew
from tests.meta.layers import PACKAGE_FLOORS, STORAGE_FLOORS, Floors
from tests.meta.source import ROOT

__all__ = ["DRAWINGS", "PAGE", "drawing"]

PAGE = ROOT / "docs" / "architecture.md"
WIDTH = 90


def drawing(floors: Floors) -> str:
    """Return Markdown: the floors as a text drawing, highest first, and what each box imports."""
    existing = floors.boxes()
    rows = [
        (floor.purpose, [box for box in floor.boxes if box in existing], floor.peers)
        for floor in reversed(floors.floors)
    ]
    rows = [row for row in rows if row[1]]
    lines = []
    for number, (purpose, boxes, _) in enumerate(rows):
        left, right = ("┌", "┐") if number == 0 else ("├", "┤")
        lines.append(f"{left}─ {purpose} ".ljust(WIDTH - 1, "─") + right)
        lines += [
            f"│   {line}".ljust(WIDTH - 1) + "│" for line in textwrap.wrap("   ".join(boxes), WIDTH - 8)
        ]
    lines.append("└" + "─" * (WIDTH - 2) + "┘")
    return "\n".join(["```text", *lines, "```", "", _count(floors, len(rows)), "", *_imports(floors)]) + "\n"


def _count(floors: Floors, floor_count: int) -> str:
    arrows = floors.arrows()
    up = sum(not floors.goes_down(source, target) for source, target in arrows)
    return (
        f"{len(floors.boxes())} boxes on {floor_count} floors; {len(arrows)} pairs of boxes where one imports"
        f" the other, imports for type checking included; {up or 'none'} of them upwards."
    )


def _imports(floors: Floors) -> list[str]:
    """A table of what each box imports, without the boxes of the lowest floor, which all of them use."""
    everywhere = set(floors.floors[0].boxes) if floors.floors[0].peers else set()
    targets: dict[str, set[str]] = {}
    for source, target in floors.arrows():
        if target not in everywhere:
            targets.setdefault(source, set()).add(target)
    level = floors.level
    lines = ["| box | imports |", "|---|---|"]
    for floor in reversed(floors.floors):
        for box in floor.boxes:
            if box in targets:
                names = sorted(targets[box], key=lambda name: (-level[name], name))
                lines.append(f"| `{box}` | {', '.join(f'`{name}`' for name in names)} |")
    return lines


DRAWINGS = {
    "floors of the package": drawing(PACKAGE_FLOORS),
    "floors inside storage": drawing(STORAGE_FLOORS),
}


if __name__ == "__main__":
    for name, text in DRAWINGS.items():
        renew(PAGE, name, text)
