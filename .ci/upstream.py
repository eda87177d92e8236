"""What `make upstream` installs, and how it differs from the lock."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    """Return what pyproject.toml asks for: the package with every extra, and the tools of the tests."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"]
    return [
        *pyproject["project"]["dependencies"],
        *(one for name, extra in extras.items() if name != "all" for one in extra),
        *pyproject["dependency-groups"]["test"],
    ]


def report() -> list[str]:
    """Return one line for each installed package whose version is not the one in requirements/dev.txt."""
    lock = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    locked: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([\w.+!]+)", lock, re.MULTILINE):
        locked.setdefault(name, set()).add(version)
    rows = []
    for found in sorted(distributions(), key=lambda one: _normal(one.name)):
        name = _normal(found.name)
        if found.version not in locked.get(name, ()):
            before = " or ".join(sorted(locked.get(name, {"not in the lock"})))
            rows.append(f"{name}: {before} → {found.version}")
    return rows or ["Every package has the version of requirements/dev.txt: nothing newer is out."]


if __name__ == "__main__":
    print("\n".join({"requirements": requirements, "report": report}[sys.argv[1]]()))
