"""Results as tables in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import view
from benchmarks.stats import spread
from benchmarks.view import Results, Row

_STYLES = {True: "green", False: "red", None: "yellow"}


def show(results: Results, console: Console) -> None:
    """Print everything."""
    console.print(view.headline(results), highlight=False)
    console.print(f"Ratios are round by round, to the contender marked ◂. {view.MARKS}", highlight=False)
    for row in results["rows"]:
        console.print()
        table = _imports(results, row) if row["id"] == "import" else _table(results, row)
        console.print(table, highlight=False)
        for is_met, sentence in view.verdicts_of(results, row):
            console.print(Text(f"  {sentence}", style=_STYLES[is_met]))
    failures = view.failures_of(results)
    if failures:
        console.print(Text(f"\n{len(failures)} FAILED OR DID NOT RUN", style="bold red"))
        for line in failures:
            console.print(Text(f"  {line}", style="red"))


def _new_table(row: Row) -> Table:
    return Table(
        title=row["title"],
        title_justify="left",
        title_style="bold",
        caption=row["note"] or None,
        caption_justify="left",
    )


def _table(results: Results, row: Row) -> Table:
    unit, _, digits = view.unit_of(row)
    table = _new_table(row)
    table.add_column("")
    table.add_column("marks", no_wrap=True)
    for heading in (f"median {unit}", "min – max", "ratio", "min – max", "CPU s/GiB", "peak MiB", "rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in view.lines_of(results, row):
        label = line.label + (" ◂" if line.is_reference else "")
        if line.value is None:
            table.add_row(label, line.marks, Text("FAILED", style="bold red"), *[""] * 6)
            continue
        table.add_row(
            label,
            line.marks,
            f"{line.value.median:,.{digits}f}",
            f"{line.value.low:,.{digits}f} – {line.value.high:,.{digits}f}",
            f"{line.ratio.median:.2f}" if line.ratio else "",
            f"{line.ratio.low:.2f} – {line.ratio.high:.2f}" if line.ratio else "",
            "" if line.cpu_per_gib is None else f"{line.cpu_per_gib:.2f}",
            f"{line.peak_mib:,.0f}",
            f"{line.rounds}{' !' if line.failure else ''}",
            style="bold" if line.kind == "ours" else None,
        )
    return table


def _imports(results: Results, row: Row) -> Table:
    table = _new_table(row)
    table.add_column("a fresh process imports")
    for heading in ("median ms", "min – max", "above numpy, ms", "processes"):
        table.add_column(heading, justify="right", no_wrap=True)
    above = view.above_numpy_ms(row)
    for entry in row["entries"]:
        who = entry["contender"]
        found = view.values(row, who, "seconds")
        if not found:
            table.add_row(results["imports"][who], Text("FAILED", style="bold red"), "", "", "")
            continue
        times = spread(list(found.values())).scaled(1000)
        more = f"{above[who]:+.0f}" if who in above and who != "numpy" else ""
        table.add_row(
            results["imports"][who],
            f"{times.median:.0f}",
            f"{times.low:.0f} – {times.high:.0f}",
            more,
            str(len(found)),
        )
    return table
