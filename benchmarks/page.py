"""docs/performance.md, its plots and the figures in README.md, from the results of one run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import view
from benchmarks.plot import plot
from benchmarks.readme import renew_readme
from benchmarks.rows import ROWS
from benchmarks.stats import spread
from benchmarks.view import Results, Row

PLOTS = "performance"

_INTRODUCTION = (
    "`make bench-page` writes this page from one run of `make bench`.",
    "[benchmarks/README.md](../benchmarks/README.md) describes the method.",
    "",
    "* Times are medians, with the lowest and the highest in brackets.",
    "* Ratios are calculated round by round. They compare each contender with the one marked ◂.",
    "* ckptstore always checksums, verifies and commits atomically, and on a local disk it syncs, unless a",
    "  line says otherwise.",
    "* W is a set of large tensors, 1 GiB of float32 in 121 tensors; K is 20 000 tensors of 1 KiB. The",
    "  sizes of this run are below.",
    '* A "limit" is a bare loop of system calls, and "plain sockets" is a bare HTTP client. Neither stores a',
    "  checkpoint.",
)

_GROUPS = (
    ("On MinIO", ("large-minio", "small-minio", "one", "large-https")),
    ("On a local disk", ("large-local", "small-local", "async")),
    ("Many ranks", ("ranks-minio", "ranks-local", "ranks-async", "ranks-few", "ranks-many")),
    ("Importing", ("import",)),
)


def write_page(results: Results, docs: Path) -> list[Path]:
    """Replace the page and its plots below `docs`, and the figures in the README beside `docs`.

    Returns
    -------
    list of Path
        The files that were written.
    """
    for old in (docs / PLOTS).glob("*.svg"):
        old.unlink()
    page = docs / "performance.md"
    text = "\n".join(_page(results)) + "\n"
    written = [page, *_write_plots(results, docs)]
    page.write_text(text, encoding="utf-8")
    return [*written, *_renew_readme(text, docs)]


def add_to_page(results: Results, docs: Path) -> list[Path]:
    """Put groups of rows in their places on the page that is there, with the date and machine of their run.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    ValueError
        If a row of a group is missing, or stands in no group: nothing is written.
    """
    groups = [(title, rows) for title, rows in _grouped(results) if rows]
    for title, rows in groups:
        missing = _ids_of(title) - {row["id"] for row in rows}
        if missing:
            raise ValueError(f"{title}: the run has no {', '.join(sorted(missing))}")
    if sum(len(rows) for _, rows in groups) < len(results["rows"]):
        raise ValueError("the run has rows that stand in no group")
    page = docs / "performance.md"
    text = page.read_text(encoding="utf-8")
    titles = {row["title"] for row in results["rows"]}
    sections = dict(_sections_of(text))
    targets = [
        line for line in sections["Targets"] if not any(line.startswith(f"| {title} |") for title in titles)
    ]
    at = max(number for number, line in enumerate(targets) if line.startswith("|")) + 1
    sections["Targets"] = [*targets[:at], *_target_lines(results), *targets[at:]]
    for title, _ in groups:
        sections[title] = list(_group(results, title))[1:]
    named = {line.rpartition(":")[0]: line for line in sections["Versions"] if line.startswith("* ")}
    named |= {line.rpartition(":")[0]: line for line in _version_lines(results)}
    rest = [line for line in sections["Versions"] if not line.startswith("* ")]
    sections["Versions"] = [*rest, *named.values()]
    order = ["", "Targets", "Failed or did not run", *(title for title, _ in _GROUPS), "Versions"]
    lines = [
        line
        for title in order
        if title in sections
        for line in ((f"## {title}", *sections[title]) if title else sections[title])
    ]
    text = "\n".join(lines) + "\n"
    page.write_text(text, encoding="utf-8")
    return [page, *_write_plots(results, docs), *_renew_readme(text, docs)]


def _renew_readme(text: str, docs: Path) -> Iterator[Path]:
    readme = docs.parent / "README.md"
    if readme.exists():
        readme.write_text(renew_readme(text, readme.read_text(encoding="utf-8")), encoding="utf-8")
        yield readme


def _sections_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield title and lines of each section, first what stands before them."""
    title, lines = "", list[str]()
    for line in text.splitlines():
        if line.startswith("## "):
            yield title, lines
            title, lines = line.removeprefix("## "), []
        else:
            lines.append(line)
    yield title, lines


def _ids_of(title: str) -> set[str]:
    scenarios = dict(_GROUPS)[title]
    return {name for name, row in ROWS.items() if row.scenario in scenarios}


def _grouped(results: Results) -> Iterator[tuple[str, list[Row]]]:
    for title, scenarios in _GROUPS:
        yield title, [row for row in results["rows"] if row["scenario"] in scenarios]


def _group(results: Results, title: str) -> Iterator[str]:
    """Yield a group that is measured in a run of its own."""
    yield f"## {title}"
    yield ""
    yield f"Measured by themselves, on {results['date']}: {view.headline(results)}"
    yield ""
    for line in view.failures_of(results):
        yield f"* Failed or did not run: {line}"
    for row in dict(_grouped(results))[title]:
        yield from _section(results, row)


def _write_plots(results: Results, docs: Path) -> Iterator[Path]:
    place = docs / PLOTS
    place.mkdir(parents=True, exist_ok=True)
    for row in results["rows"]:
        if row["id"] == "import":
            continue
        unit, _, digits = view.unit_of(row)
        path = place / f"{row['id']}.svg"
        path.write_text(plot(row["title"], unit, digits, view.lines_of(results, row)), encoding="utf-8")
        yield path


def _page(results: Results) -> Iterator[str]:
    yield "# Performance"
    yield ""
    yield from _INTRODUCTION
    yield ""
    yield f"Measured on {results['date']}: {view.headline(results)}"
    yield ""
    yield view.MARKS
    yield ""
    yield from _summary(results)
    failures = view.failures_of(results)
    if failures:
        yield "## Failed or did not run"
        yield ""
        yield from (f"* {line}" for line in failures)
        yield ""
    for title, rows in _grouped(results):
        if rows:
            yield f"## {title}"
            yield ""
        for row in rows:
            yield from _section(results, row)
    yield from _versions(results)


def _summary(results: Results) -> Iterator[str]:
    yield "## Targets"
    yield ""
    yield "| what | verdict |"
    yield "|---|---|"
    yield from _target_lines(results)
    yield ""


def _target_lines(results: Results) -> Iterator[str]:
    for row in results["rows"]:
        for is_met, sentence in view.verdicts_of(results, row):
            text = sentence if is_met else f"**{sentence}**"
            yield f"| {row['title']} | {_cell(text)} |"


def _section(results: Results, row: Row) -> Iterator[str]:
    yield f"### {row['title']}"
    yield ""
    if row["id"] == "import":
        yield from _imports(results, row)
        return
    yield f"![{row['title']}]({PLOTS}/{row['id']}.svg)"
    yield ""
    if row["note"]:
        yield row["note"]
        yield ""
    unit, _, digits = view.unit_of(row)
    yield f"| | marks | median {unit} | min – max | ratio | min – max | CPU s/GiB | peak MiB | rounds |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for line in view.lines_of(results, row):
        label = line.label + (" ◂" if line.is_reference else "")
        if line.value is None:
            yield f"| {label} | `{line.marks}` | **failed** | | | | | | 0 |"
            continue
        cells = (
            f"**{label}**" if line.kind == "ours" else label,
            f"`{line.marks}`",
            f"{line.value.median:,.{digits}f}",
            f"{line.value.low:,.{digits}f} – {line.value.high:,.{digits}f}",
            f"{line.ratio.median:.2f}" if line.ratio else "",
            f"{line.ratio.low:.2f} – {line.ratio.high:.2f}" if line.ratio else "",
            "" if line.cpu_per_gib is None else f"{line.cpu_per_gib:.2f}",
            f"{line.peak_mib:,.0f}",
            f"{line.rounds}{' !' if line.failure else ''}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _imports(results: Results, row: Row) -> Iterator[str]:
    yield "| a fresh process imports | median ms | min – max | above numpy, ms |"
    yield "|---|---:|---:|---:|"
    above = view.above_numpy_ms(row)
    for entry in row["entries"]:
        who = entry["contender"]
        found = view.values(row, who, "seconds")
        if not found:
            yield f"| `{results['imports'][who]}` | **failed** | | |"
            continue
        times = spread(list(found.values())).scaled(1000)
        more = f"{above[who]:+.0f}" if who in above and who != "numpy" else ""
        figures = f"{times.median:.0f} | {times.low:.0f} – {times.high:.0f}"
        yield f"| {results['imports'][who]} | {figures} | {more} |"
    yield ""


def _versions(results: Results) -> Iterator[str]:
    yield "## Versions"
    yield ""
    yield f"Python {results['machine']['python']}."
    yield ""
    yield from _version_lines(results)


def _version_lines(results: Results) -> Iterator[str]:
    for described in results["contenders"].values():
        versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
        if versions:
            yield f"* {described['label']}: {versions}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
