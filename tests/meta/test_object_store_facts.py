"""docs/object-stores.md names tests that exist."""

from __future__ import annotations

import re

from tests.meta.source import ROOT, report

PAGE = ROOT / "docs" / "object-stores.md"


def test_every_fact_names_tests_that_exist():
    defined = {
        name
        for path in [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "ckptstore" / "testing").rglob("*.py")]
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    rows = []
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("|") or line.startswith(("| fact", "|---")):
            continue
        named = re.findall(r"`(test_\w+)`", line)
        if not named:
            rows.append(f"{PAGE.name}:{number}: no test is named")
        rows += [f"{PAGE.name}:{number}: there is no test {name}" for name in named if name not in defined]
    report(rows)
