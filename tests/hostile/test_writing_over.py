"""Hostile bundles under the hands of a writer: merged, and saved over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.registry import locate
from tests.hostile import corpus_entries, corpus_slices, corpus_tables, corpus_values
from tests.hostile.corpus import ATTACKS
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import Outcome, quiet, typed
from tests.hostile.sandbox import Limits, Sandbox
from tests.hostile.saved_checkpoints import VALUES, restored

# Importing them fills ATTACKS.
CORPUS = (corpus_entries, corpus_slices, corpus_tables, corpus_values)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as running:
        yield running


def merge(prefix: str, output: str) -> Outcome:
    with quiet():
        return typed(ck.merge_bundles, [prefix], output)


def save_over(prefix: str, fresh_start: bool) -> Outcome:
    with quiet():
        return typed(ck.Saver(run="r", fresh_start=fresh_start).save, VALUES, prefix)


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_bundle_is_merged_whole_or_left_whole(name: str, tmp_path: Path, sandbox: Sandbox) -> None:
    case = ATTACKS[name]
    prefix = case.make(tmp_path / "in")
    before = tree_of(tmp_path)
    limits = Limits(memory_bytes=case.memory_bytes + (50 << 20))
    outcome = sandbox.run(merge, prefix, str(tmp_path / "out" / "model"), limits=limits).value
    after = {path: what for path, what in tree_of(tmp_path).items() if path != "out"}
    if outcome.error is not None:
        assert after == before
        return
    # The bytes were not looked at: every entry means what it meant.
    assert "in/model.index" not in after
    with quiet():
        merged = ck.open_checkpoint(tmp_path / "out" / "model")
        assert "x" in merged or case.error is None


@pytest.mark.parametrize("name", ATTACKS)
def test_save_over_a_hostile_bundle_replaces_it_when_it_was_told_to(
    name: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    case = ATTACKS[name]
    prefix = case.make(tmp_path)
    before = tree_of(tmp_path)
    limits = Limits(memory_bytes=case.memory_bytes + (50 << 20))
    outcome = sandbox.run(save_over, prefix, False, limits=limits).value
    if outcome.error is not None:
        # It cannot be restored, and may be one that is still being copied here.
        assert isinstance(outcome.error, ck.CorruptError)
        assert tree_of(tmp_path) == before
        outcome = sandbox.run(save_over, prefix, True, limits=limits).value
        assert outcome.error is None, outcome
    assert restored(prefix)
    assert verify_bundle(locate(prefix)).ok
    after = tree_of(tmp_path)
    # A reader may still use what the old index named.
    assert before["model.data-00000-of-00001"] == after["model.data-00000-of-00001"]
