"""Which calls of TensorFlow's tool are written down, and in which form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "tensorflow"

# tensor_name, all_tensors, all_tensor_names, count_exclude_pattern
Arguments = tuple[str, bool, bool, str]

_CALLS: dict[str, Arguments] = {
    "index": ("", False, False, ""),
    "names": ("", False, True, ""),
    "values": ("", True, False, ""),
    "both flags and a tensor": ("nope", True, True, ""),
    "excluded": ("", False, False, "a|e"),
    "missing": ("nope", False, False, ""),
}


@dataclass(frozen=True)
class Case:
    prefix: str
    tensors: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


# "both flags" prints the same as "values": once is enough.
_BOTH = ("both flags and a tensor",)

CASES = {
    "single": Case("01_single_shard/model.ckpt-44652", ("dense", "global_step")),
    "sharded": Case("02_sharded_devices/sh", ("zeta",), _BOTH),
    "partitioned": Case("03_partitioned/part", ("embed/gate/delta_5",), _BOTH),
    "partitioned-grid": Case("03_partitioned/grid", ("eps/lstm/chi",), _BOTH),
    "object-based": Case("04_object_based/slots", (), _BOTH),
    "v1": Case("05_v1_format/v1.ckpt-7", ("head", "kernel/embed/kernel"), _BOTH),
    "v1-sharded": Case("05_v1_format/v1sh.ckpt-8-?????-of-00003", ("head",), _BOTH),
    "v1-slices": Case("05_v1_format/v1slices", ("n世界",), (*_BOTH, "values")),
    "strings": Case(
        "06_strings_unicode/str", ("scalar", "scalar_empty", "none", "☃/zeta_6"), (*_BOTH, "values")
    ),
    "dtypes": Case("07_all_dtypes/dt", ("bfloat16/m", "qint8/s"), _BOTH),
    "variants": Case("07_all_dtypes/variant", ("list", "lists", "plain"), _BOTH),
    "empty": Case("08_empty_scalar/e", ("wide", "s0"), _BOTH),
    "only-empty": Case("08_empty_scalar/only_empty", (), _BOTH),
    "merged": Case("13_merged/m", (), _BOTH),
    "big-endian": Case("14_crafted/be", (), _BOTH),
}


def calls_for(case: Case) -> list[tuple[str, Arguments]]:
    calls = [(title, arguments) for title, arguments in _CALLS.items() if title not in case.without]
    calls += [(f"tensor {name}", (name, False, False, "")) for name in case.tensors]
    return calls


def format_sections(sections: dict[str, str]) -> str:
    return "".join(f"=== {title}\n{text}" for title, text in sections.items())


def parse_sections(text: str) -> dict[str, str]:
    _, *pieces = re.split(r"^=== (.*)\n", text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def golden(name: str) -> dict[str, str]:
    # Byte for byte: a name may hold a carriage return.
    return parse_sections((GOLDEN / f"{name}.txt").read_bytes().decode("utf-8"))
