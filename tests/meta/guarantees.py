"""The tables of guarantees in the pages: `make docs` renews them, `test_guarantees.py` compares."""

from __future__ import annotations

import re
from pathlib import Path

from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.generic.storage import GenericStorage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.object_store.probe import Verdicts, capabilities_of
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.view.guarantees import abilities_table, guarantees_table
from tests.meta.source import ROOT

# What the probe finds out of servers; `tests/contract/test_guarantees.py` asks the servers themselves.
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
