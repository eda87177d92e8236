"""Random histories of one directory, in TensorFlow and here: the same files, records, lists and answers.

After each step everything is compared, and in the end each program restores what the other one has saved.
What differs is listed in docs/differences-from-tensorflow.md, and each row that a history meets is a rule in
``histories/rules.py``. 150 histories by default; CKPTSTORE_HISTORIES asks for another number, and
CKPTSTORE_HISTORIES_FIRST_SEED for others.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.interop.histories.compare import command, differences_of, explain, shortest
from tests.interop.histories.rules import ROWS, Rules
from tests.interop.histories.steps import draw
from tests.interop.histories.tensorflow_side import Session

HISTORIES = int(os.environ.get("CKPTSTORE_HISTORIES", "150"))
FIRST_SEED = int(os.environ.get("CKPTSTORE_HISTORIES_FIRST_SEED", "0"))
PAGE = Path(__file__).parents[2] / "docs" / "differences-from-tensorflow.md"


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@pytest.fixture(scope="module")
def used() -> defaultdict[str, list[int]]:
    """Rule → seeds of histories in which it changed something."""
    return defaultdict(list)


@pytest.mark.timeout(60 + HISTORIES)
def test_no_difference_that_the_page_does_not_list(
    session: Session, used: defaultdict[str, list[int]]
) -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES):
        history, rules = draw(seed), Rules()
        found = differences_of(session, history, rules)
        if found is not None:
            text = explain(*shortest(session, history))
            pytest.fail(f"seed {seed}, cut:\n{text}\n\n{command(seed)}", pytrace=False)
        for name in rules.used:
            used[name].append(seed)


@pytest.mark.parametrize("rule", ROWS)
def test_without_the_rule_there_is_a_difference(
    session: Session, used: defaultdict[str, list[int]], rule: str
) -> None:
    assert any(differences_of(session, draw(seed), Rules([rule])) for seed in used[rule]), (
        f"nothing needs {rule!r}" if used[rule] else f"no history meets {rule!r}"
    )


def test_each_rule_has_its_row_on_the_page() -> None:
    first_cells = re.findall(r"^\| (.*?) \| .* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [title for title in ROWS.values() if title not in first_cells] == []


def test_a_difference_is_cut_to_the_steps_that_matter(session: Session) -> None:
    # Without this rule the first save is one.
    without = ["times_in_the_record"]
    history = draw(0)
    assert differences_of(session, history, Rules(without)) is not None
    cut, found = shortest(session, history, without)
    assert [type(step).__name__ for step in cut.steps] == ["NewSaver", "Save"]
    assert found.step == 2
    assert "times=()" in explain(cut, found)
