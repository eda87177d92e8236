"""The blocks of docs/distributed.md: how the ranks of each engine find each other, and what they save."""

from __future__ import annotations

import re

from tests.meta.source import ROOT

__all__ = ["block"]


def block(name: str) -> str:
    """Return the code under the marker ``<!-- name -->``."""
    page = (ROOT / "docs" / "distributed.md").read_text()
    (found,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```\n", page, re.DOTALL)
    return str(found)
