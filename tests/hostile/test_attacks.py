"""Bundles made to break a reader: each is refused with a typed error, in little memory and time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import VerifyReport, verify_bundle
from ckptstore.storage.registry import locate
from tests.hostile import corpus_entries, corpus_slices, corpus_tables, corpus_values
from tests.hostile import crafted_files as crafted
from tests.hostile.corpus import ATTACKS, Maker
from tests.hostile.entry_points import Outcomes, read_briefly, read_everything, typed
from tests.hostile.sandbox import Limits, Sandbox

# Importing them fills ATTACKS.
CORPUS = (corpus_entries, corpus_slices, corpus_tables, corpus_values)


def _read_objects(prefix: str) -> None:
    ck.Checkpoint(w=np.zeros(2, np.float32)).read(prefix).expect_partial()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (corpus_values.object_graph_with_cycles, None),
        (corpus_values.object_graph_that_is_one_long_chain, None),
        (corpus_values.object_graph_with_ids_out_of_range, ck.FormatError),
        (corpus_values.object_graph_that_names_no_tensor, ck.FormatError),
        (corpus_values.object_graph_whose_children_are_all_one_node, None),
        (corpus_values.object_graph_of_garbage, ck.FormatError),
    ],
)
def test_object_graph_is_refused_by_whoever_follows_it(
    make: Maker, error: type[ck.CkptStoreError] | None, tmp_path: Path
) -> None:
    prefix = make(tmp_path)
    outcome = typed(_read_objects, prefix)
    assert error is not None or outcome.error is None, outcome
    assert error is None or isinstance(outcome.error, error)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    case = ATTACKS[name]
    prefix = case.make(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    limits = Limits(memory_bytes=size + case.memory_bytes)
    if case.heavy:
        outcomes = sandbox.run(read_briefly, prefix, "x", limits=limits).value
    else:
        outcomes = sandbox.run(read_everything, prefix, True, ("x",), limits=limits).value
    assert isinstance(outcomes, Outcomes)
    if not case.opens:
        error = outcomes.whole["load_checkpoint"].error
        assert case.heavy or type(outcomes.whole["open_checkpoint.specs"].error) is type(error)
    elif case.error is None:
        error = outcomes.whole["load_checkpoint"].error
    else:
        error = outcomes.tensors["get_tensor x"].error
        for way in ("[] x", "read x", "read part x", "load_variable x"):
            assert case.heavy or type(outcomes.tensors[way].error) is type(error)
        assert error is not None
        assert error.tensor == "x"
    assert isinstance(error, case.error or ck.FormatError), error
    assert error.url is not None
    assert error.url.startswith(prefix)
    assert outcomes.whole["Saver.restore"].error is not None
    assert outcomes.report is not None
    assert outcomes.report.ok == case.verifies, outcomes.report


def test_proof_reads_no_byte_twice_however_many_tensors_claim_it(tmp_path: Path, sandbox: Sandbox) -> None:
    # 5 000 entries of 40 bytes, each of which claims the same 16 MB: 80 GB to be read and checked.
    data = bytes(16 << 20)
    value = crafted.entry(1, [4 << 20], data=data)
    prefix = crafted.write_bundle(
        tmp_path, crafted.index({f"x{number}": value for number in range(5_000)}), data
    )
    ran = sandbox.run(prove, prefix, limits=Limits(memory_bytes=50 << 20))
    assert [fault.code for fault in ran.value.faults] == ["format"]


def prove(prefix: str) -> VerifyReport:
    return verify_bundle(locate(prefix))
