"""What the README says happens: its examples print what stands below them."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from benchmarks.readme import renew_readme
from tests.engines.page import block
from tests.meta.source import ROOT
from tests.own_warnings import own_warnings

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks() -> list[tuple[str, str]]:
    """Language and content of the fenced blocks, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A directory in which the Python examples ran, one after the other; and what each printed."""
    directory = tmp_path_factory.mktemp("readme")
    space: dict[str, object] = {"__name__": "readme"}
    printed = []
    with contextlib.chdir(directory), own_warnings("error"):
        for language, content in _blocks():
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(compile(content, "README.md", "exec"), space)
                printed.append(output.getvalue())
    return directory, printed


def test_python_examples_print_what_stands_below_them(scene):
    blocks = _blocks()
    promised = [
        content
        for (before, _), (language, content) in itertools.pairwise(blocks)
        if before == "python" and language == "text"
    ]
    assert len(promised) >= 2
    assert scene[1] == promised


def test_first_example_leaves_the_files_that_its_comments_name(scene):
    first = next(content for language, content in _blocks() if language == "python")
    directory, _ = scene
    assert "my-model-1000 is gone" in first
    assert not list(directory.glob("my-model-1000*"))
    assert [path.name for path in directory.glob("*.meta")] == ["my-model-2000.meta"]
    assert sorted(path.stem for path in directory.glob("*.index")) == [
        f"my-model-{n}000" for n in (2, 3, 4, 5)
    ]


def test_the_example_on_an_object_store_is_the_beginning_of_the_first_one_with_other_paths():
    first = next(content for language, content in _blocks() if language == "python")
    other = next(content for language, content in _blocks() if language == "py")
    lines = first.replace('"my-model', '"s3://checkpoints/run/my-model').splitlines()
    assert "s3://checkpoints/run/my-model" in other
    *beginning, last = other.splitlines()
    assert [line for line in beginning if line not in lines] == []
    assert last == 'print(ckptstore.latest_checkpoint("s3://checkpoints/run"))'


def test_the_lines_for_each_framework_are_those_of_its_page():
    """Which the lane `frameworks` runs."""
    found = re.findall(r"^<!-- (\w+): (\w+) -->\n```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert {page for page, _, _ in found} == {"torch", "jax", "keras", "tensorflow", "lightning"}
    for page, name, content in found:
        assert content == block(name, f"frameworks/{page}"), page


def _without_ages(text: str) -> str:
    """Ages are of another width when the machine is slow, so the spaces before them go too."""
    text = re.sub(r" +\d+ (s|min|h|d)  ", "  AGE  ", text)
    return re.sub(r" +AGE  ", "  AGE  ", text)


def test_shell_examples_print_what_stands_below_them(scene):
    sessions = [content for language, content in _blocks() if language == "console"]
    assert sessions
    for session in sessions:
        printed = ""
        for command in re.findall(r"^\$ (.*)$", session, re.MULTILINE):
            program, *arguments = shlex.split(command)
            if program == "rm":
                (scene[0] / arguments[0]).unlink()
                printed += f"$ {command}\n"
                continue
            assert program == "ckptstore"
            done = subprocess.run(
                [sys.executable, "-m", "ckptstore", *arguments],
                check=False,
                cwd=scene[0],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert (done.returncode, done.stderr) == (0, "")
            printed += f"$ {command}\n{done.stdout}"
        assert _without_ages(printed) == _without_ages(session)


def test_extras_that_the_readme_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for group in re.findall(r"'\.\[([\w,]+)\]'", README) for name in group.split(",")}
    assert named
    assert named <= set(project["optional-dependencies"])


def test_requirements_that_the_readme_names_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    line = re.search(r"^pip install \. +# (.*)$", README, re.MULTILINE)
    assert line
    assert line[1].split(", ") == [re.findall(r"^[\w-]+", item)[0] for item in project["dependencies"]]


def test_figures_in_the_readme_are_those_of_the_performance_page_misses_included():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert renew_readme(page, README) == README, "`make bench-page` renews both"
    missed = re.findall(r"\*\*MISSED: (.*?)\*\*", page)
    assert [sentence for sentence in missed if sentence not in README] == []
