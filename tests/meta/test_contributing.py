"""The tables in CONTRIBUTING.md name every lane of tests and every room of the package, and nothing else."""

from __future__ import annotations

import re

from tests.meta.layers import PACKAGE_FLOORS
from tests.meta.source import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def _table(heading: str) -> list[list[str]]:
    """The cells of the first table with this heading in its first column, row by row."""
    found = re.search(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, f"CONTRIBUTING.md has no table with the first column {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def _in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _tested() -> list[str]:
    """The lanes of `make test`, in its order."""
    wanted = re.search(r"^test: (.*?)  ##", MAKEFILE, re.MULTILINE)
    lanes = re.search(r"^LANES :=(.*)$", MAKEFILE, re.MULTILINE)
    assert wanted
    assert lanes
    return wanted[1].replace("$(LANES)", lanes[1]).split()


def test_every_lane_has_a_row_in_the_order_of_make_test():
    assert [name for row in _table("lane") for name in _in_code(row[0])] == _tested()


def test_the_directories_of_the_lanes_exist():
    named = [name for row in _table("lane") for name in _in_code(row[2])]
    assert [name for name in named if not (ROOT / name).exists()] == []
    directories = {
        f"tests/{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name[0] != "_"
    }
    assert directories - set(named) == {"tests/fixtures/"}


def test_every_room_has_a_row_and_every_row_is_a_room():
    named = [name for row in _table("room") for name in _in_code(row[0])]
    rooms = {
        name if (ROOT / "ckptstore" / name).is_dir() else f"{name}.py" for name in PACKAGE_FLOORS.boxes()
    } - {"__main__.py"}
    assert sorted(name.rstrip("/") for name in named) == sorted(rooms)
