"""The blocks of docs/distributed.md and docs/serving.md: how ranks begin, what they save and follow."""

from __future__ import annotations

import re

from tests.meta.source import ROOT

__all__ = ["block"]


def block(name: str, page: str = "distributed") -> str:
    """Return the code under the marker ``<!-- name -->`` of a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    (found,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```\n", text, re.DOTALL)
    return str(found)
