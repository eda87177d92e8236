"""Search for garbage and collect it, and put files there that are garbage."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ckptstore.directory.garbage import Garbage, GarbageReport, collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.directory.published_index import read_published_index
from ckptstore.directory.record_update import read_record
from ckptstore.format.naming import data_name, parse_file_name
from ckptstore.storage.registry import locate
from tests.unit.directory.helpers import names_in


def look(directory: object, *, min_age_s: float = 0.0, records: Sequence[str] = ("checkpoint",)) -> Garbage:
    place = locate(str(directory))
    return find_garbage(place, [place.child(name) for name in records], min_age_s=min_age_s)


def collect(directory: object, **options: object) -> GarbageReport:
    return collect_garbage(locate(str(directory)), look(directory, **options))  # type: ignore[arg-type]


def reasons(garbage: Garbage) -> dict[str, str]:
    return {file.name: file.reason for file in garbage.files}


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def leftovers(directory: Path, *names: str, age_s: float = 0.0) -> list[str]:
    for name in names:
        (directory / name).write_bytes(b"left over")
        age(directory / name, age_s)
    return list(names)


def needed(directory: str) -> set[str]:
    """Return the record and the names that an index or a pending line needs, without asking the collector."""
    place = locate(directory)
    snapshot = read_record(place.child("checkpoint"))
    names = {"checkpoint"} if snapshot.version is not None else set()
    for name in names_in(directory):
        parsed = parse_file_name(name)
        if parsed is not None and parsed.kind == "index":
            published = read_published_index(place, parsed.prefix)
            assert published is not None
            names |= {name, f"{parsed.prefix}.meta"}
            names |= {data_name(parsed.prefix, *shard) for shard in published.shards}
    for line in snapshot.record.pending:
        names |= {data_name(line.prefix, *shard) for shard in line.shards} | {f"{line.prefix}.{line.suffix}"}
    return names
