"""Bundles made to break a reader: how each is made, and what must come of it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ckptstore as ck
from tests.hostile import crafted_files as crafted

__all__ = [
    "ATTACKS",
    "FLOAT",
    "HUGE",
    "RESOURCE",
    "STRING",
    "UNUSED",
    "VARIANT",
    "Attack",
    "Maker",
    "attack",
    "one",
]

FLOAT, STRING, RESOURCE, VARIANT = 1, 7, 20, 21
UNUSED = struct.pack("<2f", 1.0, 2.0)
HUGE = 1 << 62


@dataclass(frozen=True)
class Attack:
    """How to make the files, and what must come of reading the tensor ``x``.

    Attributes
    ----------
    make : callable
        Writes a bundle into a directory and returns its prefix.
    error : class or None
        What reading ``x`` raises. None: a lookup need not see what is wrong elsewhere in the index.
    opens : bool
        Whether the index can be opened at all.
    verifies : bool
        Whether the report may be clean: unsupported is not damaged.
    memory_bytes : int
        What may be taken beyond the files' own size.
    heavy : bool
        Whether it takes its time, so that few entry points are tried.
    """

    make: Callable[[Path], str]
    error: type[ck.CkptStoreError] | None
    opens: bool
    verifies: bool
    memory_bytes: int
    heavy: bool


ATTACKS: dict[str, Attack] = {}

Maker = Callable[[Path], str]


def attack(
    error: type[ck.CkptStoreError] | None,
    *,
    opens: bool = True,
    verifies: bool = False,
    memory_bytes: int = 50 << 20,
    heavy: bool = False,
) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        name = make.__name__.replace("_", " ")
        ATTACKS[name] = Attack(make, error, opens, verifies, memory_bytes, heavy)
        return make

    return register


def one(directory: Path, value: bytes, data: bytes = UNUSED, *, head: bytes = crafted.HEADER) -> str:
    """Write a bundle with the tensor ``x`` alone."""
    return crafted.write_bundle(directory, crafted.index({"x": value}, head=head), data)
