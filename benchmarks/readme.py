"""The table of figures in README.md, taken from docs/performance.md, so that both come from one run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["readme_table", "renew_readme"]

_PLACE = re.compile(r"(<!-- performance: [^\n]*-->\n)(.*?)(<!-- end of performance -->)", re.DOTALL)


class _Figure(NamedTuple):
    """One line of the table.

    Attributes
    ----------
    what : str
        What a reader of the README calls it.
    title : str
        Title of the row on the page.
    ours : str
        Label of our line in that row.
    others : tuple of str
        Labels of the other lines that are shown.
    """

    what: str
    title: str
    ours: str
    others: tuple[str, ...]


_FIGURES = (
    _Figure(
        "W: save to MinIO",
        "W, MinIO, save",
        "ckptstore",
        (
            *("plain sockets", "TensorStore zarr3", "torch DCP, s3torchconnector", "TensorFlow + boto3"),
            "safetensors + boto3",
        ),
    ),
    _Figure(
        "W: restore from MinIO into new arrays",
        "W, MinIO, restore into new arrays",
        "ckptstore",
        (
            *("plain sockets", "TensorStore zarr3", "TensorFlow + boto3", "torch DCP, s3torchconnector"),
            "safetensors + boto3",
        ),
    ),
    _Figure(
        "one tensor of 4 MiB from MinIO, client connected",
        "one 4 MiB tensor of W, MinIO, cold",
        "ckptstore",
        ("TensorStore zarr3", "safetensors + boto3", "torch DCP, s3torchconnector"),
    ),
    _Figure(
        "the same, first contact in a process",
        "one 4 MiB tensor of W, MinIO, first contact",
        "ckptstore",
        ("obstore", "TensorStore zarr3", "torch DCP, s3torchconnector", "safetensors + boto3"),
    ),
    _Figure(
        "W: save to disk, synced",
        "W, local, durable save",
        "ckptstore",
        (
            *("limit: buffered, CRC32C, fsync", "TensorFlow, then synced", "TensorFlow", "safetensors"),
            "torch DCP",
        ),
    ),
    _Figure(
        "W: save to disk, not synced",
        'W, local, save with durability="cache"',
        "ckptstore, durability=cache",
        ("limit: buffered, CRC32C", "TensorFlow", "safetensors"),
    ),
    _Figure(
        "W: restore from disk, memory-mapped",
        "W, local, restore, page cache warm, memory-mapped",
        "ckptstore",
        ("TensorFlow", "safetensors (torch)"),
    ),
    _Figure(
        "W: restore from disk into new arrays",
        "W, local, restore, page cache warm, new arrays",
        "ckptstore",
        ("TensorFlow", "safetensors", "torch DCP"),
    ),
    _Figure("K: save to disk", "K, local, save", "ckptstore", ("safetensors", "TensorFlow")),
    _Figure(
        "K: restore from disk", "K, local, restore, new arrays", "ckptstore", ("safetensors", "TensorFlow")
    ),
    _Figure(
        "W: training blocked by a save in the background",
        "W, async save, time that training is blocked",
        "ckptstore",
        ("limit: one memcpy", "torch DCP", "Orbax"),
    ),
)

# Labels of the page that are too long, or unclear without its other columns.
_SHOWN = {
    "torch DCP, s3torchconnector": "torch DCP",
    "limit: buffered, CRC32C, fsync": "limit",
    "limit: buffered, CRC32C": "limit",
    "limit: one memcpy": "limit (one memcpy)",
    "TensorFlow, then synced": "TensorFlow with fsync",
    "safetensors (torch)": "safetensors (reads nothing yet)",
}


def readme_table(page: str) -> str:
    """Return the part of the README that shows figures.

    Parameters
    ----------
    page : str
        Text of docs/performance.md. Rows and contenders that it does not have are left out.
    """
    return "".join(f"{line}\n" for line in _lines(page))


def renew_readme(page: str, readme: str) -> str:
    """Return the text of the README with the figures of `page`.

    Raises
    ------
    ValueError
        If the README does not have exactly one place for them.
    """
    text, count = _PLACE.subn(lambda found: found[1] + readme_table(page) + found[3], readme)
    if count != 1:
        raise ValueError(f"the README has {count} places for the figures")
    return text


def _lines(page: str) -> Iterator[str]:
    yield "| what | ckptstore | others |"
    yield "|---|---|---|"
    for figure in _FIGURES:
        unit, medians = _medians(page, figure.title)
        if figure.ours in medians:
            others = "; ".join(
                f"{_SHOWN.get(who, who)} {medians[who]}" for who in figure.others if who in medians
            )
            yield f"| {figure.what} | {medians[figure.ours]} {unit} | {others} |"
    verdicts = re.findall(r"^\| (.+) \| (\*\*)?(reached|MISSED): (.+?)(?:\*\*)? \|$", page, re.MULTILINE)
    missed = [(title, sentence) for title, _, verdict, sentence in verdicts if verdict == "MISSED"]
    yield ""
    reached = len(verdicts) - len(missed)
    yield f"{reached} of {len(verdicts)} targets were reached{'. Missed:' if missed else '.'}"
    if missed:
        yield ""
        yield from (f"* {title}: {sentence}" for title, sentence in missed)


def _medians(page: str, title: str) -> tuple[str, dict[str, str]]:
    """Return the unit of a row of the page, and label → median."""
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    if section is None:
        return "", {}
    unit = re.search(r"\| median (\w+) \|", section[1])
    cells = re.findall(
        r"^\| (?:\*\*)?([^|*]+?)(?:\*\*)?(?: ◂)? \| `[^`]*` \| ([\d.,]+) \|", section[1], re.MULTILINE
    )
    return unit[1] if unit else "", dict(cells)
