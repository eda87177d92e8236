"""The drawings in docs/architecture.md are those of the floors in `layers.py` and of today's imports."""

from __future__ import annotations

import pytest

from tests.meta.architecture import DRAWINGS, PAGE
from tests.meta.guarantees import place


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_in_the_page_are_those_of_the_code(name: str) -> None:
    found = place(name).findall(PAGE.read_text(encoding="utf-8"))
    assert len(found) == 1, f"{PAGE.name} has {len(found)} places for the drawing {name!r}"
    assert found[0][1] == DRAWINGS[name], "`make docs` renews it"
