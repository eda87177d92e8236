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
from tests.interop.histories.session import Session
from tests.interop.histories.steps import (
    Advance,
    DeleteFiles,
    History,
    ManagerSave,
    NewManager,
    NewSaver,
    Remove,
    Restart,
    Save,
    Step,
    draw,
)

HISTORIES = int(os.environ.get("CKPTSTORE_HISTORIES", "150"))
FIRST_SEED = int(os.environ.get("CKPTSTORE_HISTORIES_FIRST_SEED", "0"))
PAGE = Path(__file__).parents[2] / "docs" / "differences-from-tensorflow.md"


SAVER = NewSaver(slot=0, max_to_keep=1, hours=10_000.0, relative=True, pad=False)
MANAGER = NewManager(max_to_keep=3, hours=None, interval=None, restores=True)
MANAGER_SAVE = ManagerSave(trained=1, number=None, check_interval=True)


def save(step: int) -> Save:
    return Save(0, "model", step, record=None, graph=True, state=True)


# Of rules that few random histories need.
EXAMPLES: dict[str, tuple[Step, ...]] = {
    "files_without_an_index_stay": (SAVER, save(1), DeleteFiles(0, "index"), save(2)),
    "as_old_as_the_files": (
        *(SAVER, MANAGER, MANAGER_SAVE, MANAGER_SAVE, save(1)),
        *(Restart(swaps=True), Advance(60.0), MANAGER, MANAGER_SAVE),
    ),
}


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
    if rule in EXAMPLES:
        history = History(is_relative=True, fresh_start=False, steps=EXAMPLES[rule])
        assert differences_of(session, history, Rules()) is None
        assert differences_of(session, history, Rules([rule])) is not None
        return
    assert any(differences_of(session, draw(seed), Rules([rule])) for seed in used[rule]), (
        f"nothing needs {rule!r}" if used[rule] else f"no history meets {rule!r}"
    )


def test_each_rule_has_its_row_on_the_page() -> None:
    first_cells = re.findall(r"^\| (.*?) \| .* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [title for title in ROWS.values() if title not in first_cells] == []


def test_a_difference_is_cut_to_the_steps_that_matter(session: Session) -> None:
    steps = (SAVER, save(1), Advance(60.0), save(2), Remove(0), save(3))
    history = History(is_relative=False, fresh_start=False, steps=steps)
    # Without this rule each save is a difference.
    cut, found = shortest(session, history, ["times_in_the_record"])
    assert cut.steps == (SAVER, save(1))
    assert found.step == 2
    assert "times=()" in explain(cut, found)
