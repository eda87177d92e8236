"""What is released: one version, lower bounds that are tested, locks that `make lock` makes."""

from __future__ import annotations

import re
import tomllib

import pytest

import ckptstore
from tests.meta.source import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def test_the_version_is_that_of_the_newest_heading_of_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (?:Unreleased: )?(\S+)(?: \(\d{4}-\d\d-\d\d\))?$", changelog, re.MULTILINE)
    assert headings[0] == ckptstore.__version__
    assert len(headings) == len(re.findall(r"^## ", changelog, re.MULTILINE)), "a heading has another form"
    assert len(set(headings)) == len(headings)


def test_the_version_stands_in_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "ckptstore/__init__.py"


def _bounds() -> dict[str, str]:
    """Each package that the project or one of its extras asks for, and its lower bound."""
    wanted = [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]
    matches = [re.fullmatch(r"([\w-]+)>=([\w.]+)", one) for one in wanted if not one.startswith("ckptstore[")]
    assert all(matches), "a lower bound and nothing else"
    return {found[1].lower().replace("_", "-"): found[2] for found in matches if found}


def _release(version: str) -> str:
    """The version without zeros at its end: 13 and 13.0.0 are the same release."""
    return re.sub(r"(\.0)+$", "", version)


@pytest.mark.parametrize(("package", "bound"), _bounds().items())
def test_the_lock_of_the_lane_min_deps_holds_the_lower_bound(package, bound):
    lock = (ROOT / "requirements" / "min-deps.txt").read_text(encoding="utf-8")
    versions = re.findall(rf"^{re.escape(package)}==(\S+)(?: ; (.*?))? \\$", lock, re.MULTILINE)
    assert versions, "`make lock` renews it"
    for version, marker in versions:
        # Python 3.13 is newer than some of the bounds, and asks for more.
        if marker != "python_full_version >= '3.13'":
            assert _release(version) == _release(bound), "`make lock` renews it"


def test_the_test_environment_and_the_runtime_have_the_same_versions():
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        return set(re.findall(r"^\S+==\S+", text, re.MULTILINE))

    assert pins("runtime") <= pins("dev")


def test_every_lock_is_made_by_make_lock():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = set(re.findall(r"--output-file requirements/([\w-]+)\.txt", makefile))
    assert made == {path.stem for path in (ROOT / "requirements").glob("*.txt")}


def test_every_file_with_an_exception_from_lint_exists():
    exceptions = PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    assert [path for path in exceptions if not any(ROOT.glob(path))] == []
