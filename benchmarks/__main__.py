"""``python -m benchmarks``: run rows, show results, make the page."""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import table, view
from benchmarks.contenders.registry import CONTENDERS
from benchmarks.harness import Run, Settings
from benchmarks.rows import ROWS
from benchmarks.sets import SetSpec

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


def main() -> int:
    """Run what the command line asks for; 1 if a contender failed or did not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, print, and write JSON")
    add = run.add_argument
    add("--only", help="rows, separated by commas; a part of a name stands for all rows that contain it")
    add("--contenders", help="only these contenders, separated by commas")
    add("--rounds", type=int, help="of each operation (5; quick 2)")
    add("--slow-rounds", type=int, help="of contenders that are marked slow (3; quick 1)")
    add("--large-mib", type=int, help="size of W (1024; quick 256)")
    add("--small-count", type=int, default=20_000, help="tensors of K")
    add("--ranks-mib", type=int, help="size of what four ranks hold (256; quick 64)")
    add("--imports", type=int, help="fresh processes for each import (15; quick 5)")
    add("--seed", type=int, help="for the order; without one, a new one each time")
    add("--quick", action="store_true", help="a smaller W, fewer rounds and fewer contenders")
    add("--dir", type=Path, default=ROOT / ".cache" / "bench", help="where files go: a disk, not tmpfs")
    add("--environments", type=Path, default=ROOT / ".cache", help="where the virtual environments are")
    add("--json", type=Path, help="where the results go (default: results.json in --dir)")
    show = commands.add_parser("show", help="print results")
    show.add_argument("results", type=Path)
    page = commands.add_parser("page", help="write docs/performance.md and its plots from results")
    page.add_argument("results", type=Path)
    page.add_argument("--docs", type=Path, default=ROOT / "docs")
    page.add_argument("--add", action="store_true", help="replace only the groups of rows of this run")
    commands.add_parser("list", help="list rows and contenders")
    options = parser.parse_args()
    if options.command == "list":
        for name, row in ROWS.items():
            print(f"{name:22} {row.title}: {', '.join(row.contenders)}")
        return 0
    if options.command == "run":
        return _run(options)
    results = json.loads(options.results.read_text())
    if options.command == "page":
        from benchmarks.page import add_to_page, write_page

        for path in (add_to_page if options.add else write_page)(results, options.docs):
            print(path.relative_to(options.docs.parent))
        return 0
    table.show(results, _console())
    return 0


def _console() -> Console:
    found = Console()
    # A file or a pipe has no width; the tables need this much.
    return found if found.is_terminal else Console(width=140)


def _run(options: argparse.Namespace) -> int:
    wanted = options.only.split(",") if options.only else [""]
    rows = {
        name: row
        for name, row in ROWS.items()
        if any(part == name or (part not in ROWS and part in name) for part in wanted)
    }
    named = frozenset(options.contenders.split(",")) if options.contenders else frozenset()
    if not rows or named - CONTENDERS.keys():
        print(f"no such row or contender; there are: {', '.join([*ROWS, *CONTENDERS])}", file=sys.stderr)
        return 2

    def choose(value: int | None, full: int, quick: int) -> int:
        return value if value is not None else quick if options.quick else full

    directory: Path = options.dir
    directory.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        rounds=choose(options.rounds, 5, 2),
        slow_rounds=choose(options.slow_rounds, 3, 1),
        large=SetSpec("large", choose(options.large_mib, 1024, 256) * MIB),
        small=SetSpec("small", options.small_count),
        ranks=SetSpec("sharded", choose(options.ranks_mib, 256, 64) * MIB),
        imports=choose(options.imports, 15, 5),
        seed=random.randrange(1 << 30) if options.seed is None else options.seed,
        directory=directory,
        environments=options.environments,
        only_quick=options.quick,
        contenders=named,
    )
    results = Run(settings).all(rows)
    target: Path = options.json or directory / "results.json"
    # What is printed is what was written, read again.
    target.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    table.show(json.loads(target.read_text()), _console())
    return 1 if view.failures_of(results) else 0


if __name__ == "__main__":
    sys.exit(main())
