"""The tables of guarantees in the pages: `make docs` renews them, `test_guarantees.py` compares."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.generic.storage import GenericStorage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.object_store.probe import Verdicts, capabilities_of
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Capabilities
from tests.meta.source import ROOT


class _Guarantee(NamedTuple):
    """A sentence for the user, and the abilities of a backend that it needs."""

    text: str
    holds: Callable[[Capabilities], bool]


def _everywhere(_: Capabilities) -> bool:
    return True


_GUARANTEES = (
    _Guarantee(
        "**Same bytes.** Index and data files are byte-identical to those that TensorFlow 2.21 writes for "
        "the same tensors",
        _everywhere,
    ),
    _Guarantee(
        "**All or nothing.** A reader finds the complete old or the complete new checkpoint, wherever the "
        "writer died. This includes saving a prefix again",
        lambda has: has.create_if_absent and has.compare_and_swap,
    ),
    _Guarantee(
        "**Latest is restorable.** `latest_checkpoint` returns a complete checkpoint, with or without a "
        "usable record (the `checkpoint` file). A directory that cannot be read, or in which "
        'nothing can be restored, is an error, never "no checkpoint"',
        _everywhere,
    ),
    _Guarantee(
        "**One winner.** If two runs save under one name, the newer run continues and the older run gets "
        "`FencedError`. The record loses no checkpoint of either",
        lambda has: not has.single_writer,
    ),
    _Guarantee(
        "**Retention deletes only its own.** It deletes after the commit, by exact name, and only the "
        "version that it decided on, never a newer one from another run",
        lambda has: has.conditional_delete,
    ),
    _Guarantee(
        "**Verified restore.** The checksum of every tensor that is read as a whole is verified. An error "
        "names tensor, file and bytes",
        _everywhere,
    ),
    _Guarantee(
        "**Hostile files are harmless.** Any bytes lead to a typed error. They run no code and allocate "
        "no more memory than the size of the files explains",
        _everywhere,
    ),
    _Guarantee(
        "**Durable.** A checkpoint survives a power failure once its save has returned",
        lambda has: has.durable_when_acknowledged,
    ),
    _Guarantee(
        "**Proved upload.** The store confirms the checksum of what it received before the checkpoint is "
        "published",
        lambda has: has.checksum_proved_by_store,
    ),
    _Guarantee(
        "**Several hosts.** The guarantees for several processes hold for processes on several machines",
        lambda has: has.several_hosts and not has.single_writer,
    ),
)

_ABILITIES: tuple[tuple[str, Callable[[Capabilities], bool]], ...] = (
    ("create only if absent", lambda has: has.create_if_absent),
    ("replace only this version (compare-and-swap)", lambda has: has.compare_and_swap),
    ("delete only this version", lambda has: has.conditional_delete),
    ("acknowledged data survives a power failure", lambda has: has.durable_when_acknowledged),
    ("the store confirms the CRC32C of what it received", lambda has: has.checksum_proved_by_store),
    ("several machines see the same files", lambda has: has.several_hosts),
)


def guarantees_table(columns: Mapping[str, Capabilities]) -> str:
    """Return what holds where for checkpoints, as a Markdown table.

    Parameters
    ----------
    columns : mapping of str to Capabilities
        Title of the column → what is true there.
    """
    return _table("guarantee", columns, [(one.text, one.holds) for one in _GUARANTEES])


def abilities_table(columns: Mapping[str, Capabilities]) -> str:
    """Return what the storages do with single objects, which the guarantees follow from, as a Markdown table.

    Parameters
    ----------
    columns : mapping of str to Capabilities
        Title of the column → what is true there.
    """
    return _table("ability", columns, _ABILITIES)


def _table(
    corner: str,
    columns: Mapping[str, Capabilities],
    questions: Iterable[tuple[str, Callable[[Capabilities], bool]]],
) -> str:
    rows = [
        [corner, *columns],
        ["---", *(":---:" for _ in columns)],
        *([text, *("yes" if holds(has) else "no" for has in columns.values())] for text, holds in questions),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


# What the probe finds on these servers; `tests/contract/test_guarantees.py` checks it with real ones.
MINIO = capabilities_of(S3Transport.nominal, Verdicts("yes", "yes", "404", cond_delete=False, crc32c=True))
WITH_CONDITIONAL_DELETES = capabilities_of(
    S3Transport.nominal, Verdicts("yes", "yes", "404", cond_delete=True, crc32c=True)
)
WITHOUT_CONDITIONS = capabilities_of(
    S3Transport.nominal, Verdicts("ignored", "ignored", "created", cond_delete=False, crc32c=True)
)

_IN_README = {
    "local disk": LocalStorage.capabilities,
    "`s3://`": S3Transport.nominal,
    "`gs://`": GcsTransport.nominal,
    "`memory://`": MemoryStorage.capabilities,
}
_ALL = {
    "local disk": LocalStorage.capabilities,
    "`memory://`": MemoryStorage.capabilities,
    "S3: MinIO": MINIO,
    "S3 with conditional deletes": WITH_CONDITIONAL_DELETES,
    "GCS": GcsTransport.nominal,
    "a server that ignores conditions": WITHOUT_CONDITIONS,
    # Its capabilities do not depend on the protocol, and nothing is connected before the first request.
    "other fsspec file systems": GenericStorage("memory").capabilities,
}

TABLES = {
    (ROOT / "README.md", "guarantees"): guarantees_table(_IN_README),
    (ROOT / "docs" / "guarantees.md", "guarantees"): guarantees_table(_ALL),
    (ROOT / "docs" / "guarantees.md", "abilities"): abilities_table(_ALL),
}


def place(name: str) -> re.Pattern[str]:
    """Return the pattern of the table of that name in a page: what stands around it, and itself."""
    return re.compile(rf"(<!-- {name}: [^\n]*-->\n)(.*?)(<!-- end of {name} -->)", re.DOTALL)


def renew(page: Path, name: str, table: str) -> None:
    """Put `table` into `page`.

    Raises
    ------
    ValueError
        If the page has not exactly one place for it.
    """
    text, count = place(name).subn(
        lambda found: found[1] + table + found[3], page.read_text(encoding="utf-8")
    )
    if count != 1:
        raise ValueError(f"{page.name} has {count} places for the table {name!r}")
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for (page, name), table in TABLES.items():
        renew(page, name, table)
