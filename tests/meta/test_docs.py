"""What the pages say is there: links and make targets; and nothing of the machine they were written on."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from ckptstore import BundleWriter
from ckptstore.cli import exit_codes
from ckptstore.format.record_protocol import format_record, parse_record
from ckptstore.storage.gcs.options import GCS_OPTIONS
from ckptstore.storage.registry import _S3_OPTIONS, locate
from ckptstore.storage.s3.client_settings import CONFIG_KWARGS
from ckptstore.storage.s3.settings import ADDITIONAL_KWARGS, CLIENT_KWARGS
from tests.meta import reference
from tests.meta.guarantees import place
from tests.meta.source import ROOT, modules, report

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


def _page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", reference.TABLES)
def test_tables_in_the_page_of_errors_are_those_of_the_code(name):
    found = place(name).findall(_page("errors.md"))
    assert len(found) == 1, f"docs/errors.md has {len(found)} places for the table {name!r}"
    assert found[0][1] == reference.TABLES[name], "`make docs` renews it"


def test_the_page_of_public_names_is_that_of_the_code():
    found = place("api").findall(_page("api.md"))
    assert [shown for _, shown, _ in found] == [reference.api_page()], "`make docs` renews it"


def test_the_page_of_errors_says_for_each_exception_what_to_do():
    advice = _page("errors.md").rpartition("| exception | when it is raised")[2].partition("## Warnings")[0]
    kinds = {kind.__name__ for kind in reference.exceptions()} - {"CkptStoreError"}
    assert set(re.findall(r"^\| `(\w+)` \|", advice, re.MULTILINE)) == kinds


def test_every_exit_code_is_that_of_an_exception_or_of_how_the_program_ended():
    codes = reference.exit_code_meanings()
    assert {exit_codes.exit_code_of(kind("x")) for kind in reference.exceptions()[1:]} <= set(codes)
    assert {exit_codes.OK, exit_codes.INTERNAL, exit_codes.INTERRUPTED, exit_codes.BROKEN_PIPE} <= set(codes)


def _source_texts() -> str:
    """The text constants of the package, those that stand side by side joined, placeholders left out."""
    texts = []
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, parts)))
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("page", "heading"), [("errors.md", "| the message contains"), ("failures.md", "| you see")]
)
def test_messages_that_the_pages_quote_are_in_the_code(page, heading):
    texts = _source_texts()
    quoted = []
    for table in _page(page).split(heading)[1:]:
        for row in table.partition("\n\n")[0].splitlines()[2:]:
            # Of a row without such a quotation (a sign that is no message) nothing can be compared.
            quoted += re.findall(r"`([^`]+)`", row.split(" | ")[0])
    assert len(quoted) >= 10
    report(
        [f"docs/{page}: no message of the package contains: {text}" for text in quoted if text not in texts]
    )


def test_environment_variables_that_are_read_are_on_their_page():
    source = next(module for module in modules().values() if module.short == "config")
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", source.text))
    clients = re.search(r"^_CLIENT_VARIABLES = \((.*?)^\)", source.text, re.MULTILINE | re.DOTALL)
    assert clients
    read |= set(re.findall(r"\"(\w+)\"", clients[1]))
    assert len(read) >= 9
    page = _page("environment.md")
    report(
        [f"docs/environment.md: {name} is read and not described" for name in read if f"`{name}`" not in page]
    )


def test_storage_options_are_on_their_page_and_the_tests_it_names_exist():
    page = _page("storage-options.md")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    known = {*_S3_OPTIONS, *GCS_OPTIONS, *CLIENT_KWARGS, *CONFIG_KWARGS, *ADDITIONAL_KWARGS}
    tests = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tests |= set(re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    report(
        [
            *(
                f"docs/storage-options.md: {name} is not described"
                for name in known
                if f"`{name}`" not in page
            ),
            *(
                f"docs/storage-options.md: no test of {row.split('|')[1].strip()[:60]}"
                for row in rows
                if "| none |" not in row and "`test_" not in row
            ),
            *(
                f"docs/storage-options.md: there is no test {name}"
                for name in set(re.findall(r"`(test_\w+)`", page)) - tests
            ),
        ]
    )


def _examples(name: str) -> list[str]:
    return re.findall(r"^```text\n(.*?)^```", _page(name), re.MULTILINE | re.DOTALL)


def test_the_example_of_a_record_is_one_and_has_every_kind_of_line():
    example = _examples("record.md")[0].encode()
    record = parse_record(example, source="docs/record.md")
    assert format_record(record) == example
    assert record.state is not None
    assert all([record.owners, record.pending, record.superseded, record.kept])


def test_the_page_of_the_record_names_each_key_of_its_lines():
    protocol = next(module for module in modules().values() if module.short == "format.record_protocol")
    written = set(re.findall(r"""values(?:\.get\(|\[)"(\w+)\"""", protocol.text))
    assert {"epoch", "run", "shards", "highest_step", "suffix"} <= written
    report(
        [f"docs/record.md: {key}= is not described" for key in written if f"{key}=" not in _page("record.md")]
    )


def test_the_worked_example_of_the_format_is_what_is_written():
    with BundleWriter("memory://docs/format/v") as writer:
        writer.add("v", np.array([1, 2], np.float32))
    storage = locate("memory://docs/format/v.index").storage
    index = bytes(storage.get(locate("memory://docs/format/v.index").key).data)
    columns = re.findall(r"^ *(\d+)  ((?:[0-9a-f]{2} ?)+)  ", _page("format.md"), re.MULTILINE)
    shown = b"".join(bytes.fromhex(text) for _, text in columns)
    assert shown == index
    offsets = list(itertools.accumulate((len(bytes.fromhex(text)) for _, text in columns), initial=0))
    assert [int(offset) for offset, _ in columns] == offsets[:-1]


def test_files_that_the_pages_name_exist():
    here = {str(path.relative_to(ROOT)) for path in _files()}
    names = here | {name.removeprefix("ckptstore/") for name in here if name.startswith("ckptstore/")}
    rows = []
    for page in _pages():
        if page.parent != ROOT / "docs" and page.parent != ROOT / "docs" / "design":
            continue
        for number, line in enumerate((_text(page) or "").splitlines(), 1):
            for name in re.findall(r"`([\w./]+\.py)(?:::\w+)*`", line):
                near = [known for known in names if known.endswith("/" + name)]
                if name not in names and not near:
                    rows.append(f"{_show(page)}:{number}: there is no file {name}")
    report(rows)


def test_the_hops_of_the_architecture_lead_to_definitions():
    rows = []
    hops = re.findall(
        r"^\| [^|]+ \| ((?:`[\w/]+\.py`(?:, )?)+) \| `([\w.]+)` \|$", _page("architecture.md"), re.M
    )
    assert len(hops) >= 15
    for files, name in hops:
        texts = [(ROOT / "ckptstore" / path).read_text() for path in re.findall(r"`([^`]+)`", files)]
        rows += [
            f"docs/architecture.md: {part} is not defined in {files}"
            for part in name.split(".")
            if not any(re.search(rf"^ *(?:def|class) {part}\b", text, re.MULTILINE) for text in texts)
        ]
    report(rows)


def test_rows_of_tables_are_whole():
    report(
        [
            f"{_show(page)}:{number}: a row of a table is one line, however wide"
            for page in _pages()
            for number, line in enumerate((_text(page) or "").splitlines(), 1)
            if line.startswith("|") and not line.endswith("|")
        ]
    )


def test_lines_of_the_pages_are_not_too_wide():
    pages = [page for page in _pages() if page.is_relative_to(ROOT / "docs") or page.name == "README.md"]
    # Examples, and what is generated: between marks, and performance.md.
    exempt = re.compile(r"```.*?```|<!-- ([\w ]+): [^\n]*-->.*?<!-- end of \1 -->", re.DOTALL)
    report(
        [
            f"{_show(page)}:{number}: {len(line)} characters; wrap it at 120"
            for page in pages
            if page.name != "performance.md"
            for number, line in enumerate(exempt.sub(_blank, _text(page) or "").splitlines(), 1)
            if len(line) > 120 and not line.startswith("|")
        ]
    )


def _blank(block: re.Match[str]) -> str:
    return "\n" * block[0].count("\n")
