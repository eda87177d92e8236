"""What the pages say is there: links and make targets; and nothing of the machine they were written on."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.meta.source import ROOT, report

LEFT_OUT = {
    *(".git", ".venv", ".cache", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__"),
    *("build", "dist", "demo-run"),
}
# Split, so that this file does not name what it forbids.
REGISTRY_HOSTS = [
    f"{name}.{domain}"
    for name, domain in (
        *(("pypi", "org"), ("pythonhosted", "org"), ("proxy.golang", "org"), ("registry.npmjs", "org")),
        *(("static.crates", "io"), ("index.crates", "io"), ("repo1.maven", "org"), ("deb.debian", "org")),
        *(("conda.anaconda", "org"), ("repo.maven" + ".apache", "org")),
    )
]
MACHINE_PATH = re.compile(r"(?<![\w.:/~}-])/(home|Users|work|root|mnt|private/tmp)/[\w.]")


@cache
def _files() -> list[Path]:
    """Tracked files and those that would be; in an unpacked archive, everything but tools' leftovers."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout
        paths = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not LEFT_OUT & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _pages() -> list[Path]:
    return [path for path in _files() if path.suffix == ".md"]


def _show(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _without_code(text: str) -> str:
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages_to_look_at():
    assert {"CONTRIBUTING.md", "CHANGELOG.md"} <= {_show(path) for path in _pages()}


def test_relative_links_resolve():
    rows = []
    for page in _pages():
        for target in re.findall(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)", _without_code(_text(page) or "")):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            name, _, anchor = target.partition("#")
            aim = (page.parent / unquote(name)) if name else page
            if not aim.exists():
                rows.append(f"{_show(page)}: link to {target}: no such file")
            elif anchor and aim.suffix == ".md" and anchor not in _anchors(_text(aim) or ""):
                rows.append(f"{_show(page)}: link to {target}: no such heading")
    report(rows)


def _make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        name for line in re.findall(r"^([\w \-]+):(?!=)", makefile, re.MULTILINE) for name in line.split()
    }
    lanes = re.search(r"^LANES\s*:=\s*(.*)$", makefile, re.MULTILINE)
    assert lanes
    return targets | set(lanes[1].split())


def test_make_targets_named_in_the_pages_exist():
    targets = _make_targets()
    assert {"test", "demo", "lint", "interop", "unit"} <= targets
    rows = []
    for page in _pages():
        text = _text(page) or ""
        code = [
            *re.findall(r"`(make [^`\n]*)`", text),
            *re.findall(r"^\s*\$? ?(make\b[^\n]*)", _fenced(text), re.M),
        ]
        for command in code:
            words = shlex.split(command, comments=True)[1:]
            for word in words:
                if word in ("&&", ";", "|"):
                    break
                if not word.startswith("-") and "=" not in word and word.islower() and word not in targets:
                    rows.append(f"{_show(page)}: `{command.strip()}`: the Makefile has no target {word}")
    report(rows)


def _fenced(text: str) -> str:
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def test_every_lane_has_its_directory():
    makefile = (ROOT / "Makefile").read_text()
    lanes = re.search(r"^LANES\s*:=\s*(.*)$", makefile, re.MULTILINE)
    assert lanes
    report(
        [f"lane {lane}: no tests/{lane}" for lane in lanes[1].split() if not (ROOT / "tests" / lane).is_dir()]
    )


def test_design_notes_are_numbered_and_in_the_index():
    notes = sorted(path for path in (ROOT / "docs" / "design").glob("*.md") if path.name != "README.md")
    index = (ROOT / "docs" / "design" / "README.md").read_text(encoding="utf-8")
    rows = [
        f"{_show(note)}: name it NNN-title.md"
        for note in notes
        if not re.match(r"\d{3}-[a-z0-9-]+\.md$", note.name)
    ]
    rows += [
        f"{_show(note)}: not in docs/design/README.md" for note in notes if f"({note.name})" not in index
    ]
    numbers = [note.name[:3] for note in notes]
    rows += [
        f"docs/design: two notes have the number {n}"
        for n in sorted({n for n in numbers if numbers.count(n) > 1})
    ]
    report(rows)


def test_no_file_names_a_package_registry():
    rows = []
    for path in _files():
        text = (_text(path) or "").lower()
        rows += [f"{_show(path)}: names {host}" for host in REGISTRY_HOSTS if host in text]
    report(rows)


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    rows = []
    for path in _files():
        for number, line in enumerate((_text(path) or "").splitlines(), 1):
            if MACHINE_PATH.search(line) or f"{ROOT}/" in line:
                rows.append(f"{_show(path)}:{number}: {line.strip()[:120]}")
    report(rows)


BENCHMARKS = ("bench", "bench-clients", "bench-tensorflow", "bench-torch", "bench-jax")


@pytest.mark.parametrize("name", ["uv", "dev", "tensorflow", *BENCHMARKS])
def test_locks_are_versions_and_hashes_only(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    rows = [
        f"requirements/{name}.txt:{number}: {line}"
        for number, line in enumerate(text.splitlines(), 1)
        if not re.fullmatch(
            r"[a-z0-9-]+==[\w.+!]+( ; [\w .<>='()!]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line
        )
    ]
    report(rows)
