"""What tables and pages say of results: units, order, marks, sentences. No output of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.stats import Spread, Verdict, fastest, ratios, spread, values_of, verdict

Results = Mapping[str, Any]
Row = Mapping[str, Any]

MIB = 2**20
GIB = 2**30
IMPORT_LIMIT_MS = 60.0
_CPU_FROM_BYTES = 64 * MIB  # below, CPU time per GiB says nothing

MARKS = (
    "Marks: `s` the files are synced to disk when the call returns; `c` all data has checksums that a "
    "restore checks; `a` atomic, so a crash leaves all of the old or all of the new checkpoint, on an "
    "overwrite too. `.` means no, `-` means that the question does not apply."
)


@dataclass(frozen=True)
class Line:
    """One contender in one row, ready to be shown.

    Attributes
    ----------
    value : Spread or None
        In the row's unit; None if it has no figures, and `failure` says why.
    ratio : Spread or None
        To the reference; None for the reference itself.
    cpu_per_gib, peak_mib : float or None
        Medians.
    """

    who: str
    label: str
    kind: str
    marks: str
    is_reference: bool
    value: Spread | None
    ratio: Spread | None
    cpu_per_gib: float | None
    peak_mib: float | None
    rounds: int
    failure: str


def lines_of(results: Results, row: Row) -> list[Line]:
    """Return the lines of a row, the fastest first, those without figures last."""
    reference = reference_of(row)
    base = values(row, reference, row["measure"]) if reference else {}
    _, scale, _ = unit_of(row)
    lines = []
    for entry in row["entries"]:
        who = entry["contender"]
        found = values(row, who, row["measure"])
        common = ratios(found, base) if who != reference else []
        described = results["contenders"][who]
        has_cpu = found and row["set_bytes"] >= _CPU_FROM_BYTES
        lines.append(
            Line(
                who,
                described["label"],
                described["kind"],
                marks(described, row),
                who == reference,
                spread(list(found.values())).scaled(scale) if found else None,
                spread(common) if common else None,
                spread(list(values(row, who, "cpu_per_gib").values())).median if has_cpu else None,
                spread(list(values(row, who, "peak_bytes").values())).median / MIB if found else None,
                len(found),
                entry["failure"] or ("" if found else "no rounds"),
            )
        )
    return sorted(lines, key=lambda line: (line.value is None, line.value.median if line.value else 0.0))


def values(row: Row, who: str, measure: str) -> dict[int, float]:
    """Return round → value of one contender; nothing if it is not in the row."""
    entry = next((entry for entry in row["entries"] if entry["contender"] == who), None)
    if entry is None:
        return {}
    rounds = {int(number): costs for number, costs in entry["rounds"].items()}
    return values_of(rounds, measure, row["set_bytes"])


def reference_of(row: Row) -> str | None:
    """Return whom the ratios of a row are to: the fastest of those it names."""
    entries = {who: values(row, who, row["measure"]) for who in row["reference"]}
    return fastest(entries, row["reference"])


def unit_of(row: Row) -> tuple[str, float, int]:
    """Return the unit of a row's main figure, its factor, and the digits to show."""
    if row["measure"] == "peak_bytes":
        return "MiB", 1 / MIB, 0
    seconds = [costs["seconds"] for entry in row["entries"] for costs in entry["rounds"].values()]
    return ("s", 1.0, 2) if max(seconds, default=1.0) >= 1.0 else ("ms", 1000.0, 1)


def marks(described: Mapping[str, Any], row: Row) -> str:
    """Return three letters: s synced, c checksummed, a atomic; a dot for what is missing."""
    synced = described["synced"] if row["store"] == "local" else None
    given = (("s", synced), ("c", described["checksummed"]), ("a", described["atomic"]))
    return "".join("-" if has is None else letter if has else "." for letter, has in given)


def verdicts_of(results: Results, row: Row) -> Iterator[tuple[bool | None, str]]:
    """Yield for each target whether it is reached (None: not known), and that in words."""
    if row["id"] == "import":
        yield from _import_verdict(row)
    for target in row["targets"]:
        found = verdict(row, target)
        yield found.is_met, _sentence(results, found)


def _sentence(results: Results, found: Verdict) -> str:
    contenders = results["contenders"]
    unit = {"cpu_per_gib": " CPU s/GiB", "peak_bytes": " MiB", "seconds": " s"}[found.measure]
    scale, digits = (1 / MIB, 0) if found.measure == "peak_bytes" else (1.0, 2)
    limit = f"{found.at_most * scale:.{digits}f}"
    if found.value is None:
        return f"not known, because a contender did not run: target ≤ {limit}"
    value = found.value.scaled(scale)
    who = contenders[found.who]["label"]
    what = f" × {contenders[found.reference]['label']}" if found.reference else unit
    return (
        f"{'reached' if found.is_met else 'MISSED'}: {who} {value.median:.{digits}f} "
        f"({value.low:.{digits}f} – {value.high:.{digits}f}){what}, target ≤ {limit}"
    )


def above_numpy_ms(row: Row) -> dict[str, float]:
    """Return what each import takes beyond that of numpy alone, medians in milliseconds."""
    base = values(row, "numpy", "seconds")
    if not base:
        return {}
    middle = spread(list(base.values())).median
    found = {entry["contender"]: values(row, entry["contender"], "seconds") for entry in row["entries"]}
    return {
        who: 1000 * (spread(list(times.values())).median - middle) for who, times in found.items() if times
    }


def _import_verdict(row: Row) -> Iterator[tuple[bool | None, str]]:
    above = above_numpy_ms(row).get("ckptstore")
    if above is None:
        yield None, "not known, because a contender did not run"
        return
    is_met = above <= IMPORT_LIMIT_MS
    word = "reached" if is_met else "MISSED"
    yield is_met, f"{word}: import ckptstore {above:.0f} ms above numpy, target ≤ {IMPORT_LIMIT_MS:.0f}"


def failures_of(results: Results) -> list[str]:
    """Return who failed or did not run, where, and why; each once."""
    lines: dict[str, None] = {}
    for row in results["rows"]:
        for entry in row["entries"]:
            if entry["failure"] or not entry["rounds"]:
                reason = entry["failure"] or "no rounds"
                lines[f"{entry['contender']}, {row['scenario']}, {row['operation']}: {reason}"] = None
    return list(lines)


def headline(results: Results) -> str:
    """Return the machine and the settings."""
    machine, settings = results["machine"], results["settings"]
    parts = (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_bytes'] / GIB:.0f} GiB",
        f"{machine['system']}, {machine['file_system']}, huge pages: {machine['huge_pages']}",
        f"load before the run {machine['load_before']}",
        f"W of {settings['large_bytes'] / MIB:,.0f} MiB, K of {settings['small_count']:,} tensors",
        f"{settings['rounds']} rounds, {settings['slow_rounds']} of slow contenders where W is moved",
        f"{results['seconds'] / 60:.0f} minutes",
        f"seed {settings['seed']}",
    )
    return "; ".join(parts) + "."
