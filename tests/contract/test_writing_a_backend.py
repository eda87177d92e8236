"""The example of docs/writing-a-backend.md keeps the storage contract; its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

from ckptstore.storage import abilities
from ckptstore.storage.base import Storage

_PAGE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"
_TEXT = _PAGE.read_text(encoding="utf-8")

# Its test class is collected from here.
exec(compile("\n".join(re.findall(r"^```python\n(.*?)^```", _TEXT, re.DOTALL | re.MULTILINE)), _PAGE, "exec"))


def test_the_page_names_every_primitive() -> None:
    named = set(re.findall(r"`(\w+)\(", _TEXT))
    assert named >= Storage.__abstractmethods__


def test_the_page_says_what_is_lost_without_each_ability() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", _TEXT, re.MULTILINE))
    assert named == set(abilities.__all__) - {"now_s"}
