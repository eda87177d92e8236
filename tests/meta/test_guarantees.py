"""The tables of guarantees are those of the code, and deny what a storage cannot give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ckptstore.storage.values import Capabilities
from tests.meta.guarantees import TABLES, abilities_table, guarantees_table, place

WEAK = Capabilities(
    backend="tape",
    create_if_absent=True,
    compare_and_swap=False,
    conditional_delete=False,
    durable_when_acknowledged=True,
    checksum_proved_by_store=False,
    several_hosts=True,
)


def _ids(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("page", "name"), TABLES, ids=_ids)
def test_tables_in_the_pages_are_those_of_the_code(page: Path, name: str) -> None:
    found = place(name).findall(page.read_text(encoding="utf-8"))
    assert len(found) == 1, f"{page.name} has {len(found)} places for the table {name!r}"
    assert found[0][1] == TABLES[page, name], "`make docs` renews it"


def test_guarantees_that_a_storage_cannot_give_are_denied() -> None:
    header, _, *rows = guarantees_table({"tape": WEAK}).splitlines()
    assert header == "| guarantee | tape |"
    answers = dict(re.findall(r"^\| \*\*([^*]+?)\.?\*\*.*\| (yes|no) \|$", "\n".join(rows), re.MULTILINE))
    assert len(answers) == len(rows)
    assert {name for name, answer in answers.items() if answer == "no"} == {
        *("All or nothing", "One winner", "Retention deletes only its own"),
        # Its machines see the same tape, and are not kept apart.
        *("Proved upload", "Several hosts"),
    }


def test_abilities_are_shown_as_the_storage_states_them() -> None:
    header, _, *rows = abilities_table({"tape": WEAK}).splitlines()
    assert header == "| ability | tape |"
    assert [row.rpartition(" | ")[2] for row in rows] == ["yes |", "no |", "no |", "yes |", "no |", "yes |"]
