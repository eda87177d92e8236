"""The checkpoints that TensorFlow 2.21 wrote, with what it says is in them; see README.json beside them."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckptstore.bundle.read.open_bundle import BundleReader, open_bundle
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate

ROOT = Path(__file__).parent.parent / "fixtures" / "tensorflow-2.21"


@dataclass(frozen=True)
class Case:
    """One checkpoint; `expected` is its object in expected.json."""

    directory: Path
    expected: dict[str, Any] = field(repr=False)

    @property
    def prefix(self) -> Path:
        return self.directory / self.expected["prefix"]

    @property
    def location(self) -> Location:
        return locate(self.prefix)

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        return self.expected["tensors"]

    @property
    def is_v2(self) -> bool:
        return self.expected["format"] == "V2"

    @property
    def is_plain(self) -> bool:
        """Whether TensorFlow's writer made it as it is (the crafted ones were made by hand)."""
        return self.is_v2 and self.directory.name != "14_crafted"

    def open(self) -> BundleReader:
        return open_bundle(self.location)

    def data(self, shard: int) -> bytes:
        """The bytes of a data file; none if a shard of the count is not there because nothing is in it."""
        path = Path(f"{self.prefix}.data-{shard:05d}-of-{self.expected['num_shards']:05d}")
        return path.read_bytes() if path.exists() else b""

    def index(self) -> bytes:
        return Path(f"{self.prefix}.index").read_bytes()


def _cases() -> list[Case]:
    found: list[Any] = []
    for path in sorted(ROOT.glob("*/expected.json")):
        found.extend(
            Case(path.parent, checkpoint) for checkpoint in json.loads(path.read_text())["checkpoints"]
        )
    return found


CASES = _cases()


def named(cases: list[Case]) -> dict[str, Any]:
    """Arguments for `pytest.mark.parametrize` over cases."""
    return {
        "argnames": "case",
        "argvalues": cases,
        "ids": [f"{case.directory.name}/{case.expected['prefix']}" for case in cases],
    }


def assert_value(array: np.ndarray, tensor: dict[str, Any]) -> None:
    """Compare an array with what expected.json says of the tensor."""
    assert list(array.shape) == tensor["shape"]
    if "strings_b64" in tensor:
        assert array.dtype == object
        assert array.ravel().tolist() == [base64.b64decode(text) for text in tensor["strings_b64"]]
    elif "sha256" in tensor:
        assert array.nbytes == tensor["nbytes"]
        assert hashlib.sha256(array.tobytes()).hexdigest() == tensor["sha256"]
    else:
        # Variants have no value there; their bytes are compared by test_variants_are_the_stored_protos.
        assert tensor["dtype"] == "variant"
