from __future__ import annotations

import shutil

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.reader_v1 import ReaderV1
from ckptstore.errors import (
    FormatError,
    IncompleteBundleError,
    NotFoundError,
    TensorNotFoundError,
    UsageError,
)
from ckptstore.storage.registry import locate
from tests.unit.bundle.helpers import put, read_many


@pytest.fixture
def v1(fixtures_dir):
    return fixtures_dir / "05_v1_format"


def test_a_single_file_is_its_own_prefix(v1):
    reader = open_bundle(locate(v1 / "v1.ckpt-7"))
    assert isinstance(reader, ReaderV1)
    assert reader.spec("head").shape == (3, 4)
    assert reader.has("head")
    assert not reader.has("nope")
    with pytest.raises(TensorNotFoundError, match="'head'"):
        reader.read("heat")


@pytest.mark.parametrize("name", ["v1sh.ckpt-8-?????-of-00003", "v1sh.ckpt-8"])
def test_shards_are_found_by_tensorflows_text_and_by_their_prefix(v1, name):
    reader = open_bundle(locate(v1 / name))
    assert len(reader.names()) == 10
    assert reader.header.num_shards == 3
    assert {spec.shards for spec in reader.specs().values()} == {(0,), (1,), (2,)}


def test_one_shard_alone_holds_its_own_tensors(v1):
    assert 0 < len(open_bundle(locate(v1 / "v1sh.ckpt-8-00001-of-00003")).names()) < 10


@pytest.mark.parametrize("name", ["v1sh.ckpt-8-?????-of-00003", "v1sh.ckpt-8"])
@pytest.mark.parametrize("lost", [0, 2])
def test_a_missing_shard_is_named(v1, tmp_path, name, lost):
    for number in range(3):
        if number != lost:
            shutil.copy(v1 / f"v1sh.ckpt-8-0000{number}-of-00003", tmp_path)
    with pytest.raises(IncompleteBundleError, match=f"v1sh.ckpt-8-0000{lost}-of-00003"):
        open_bundle(locate(tmp_path / name))


def test_a_pattern_that_matches_nothing_is_not_found(v1):
    with pytest.raises(NotFoundError, match="no checkpoint with this prefix"):
        open_bundle(locate(v1 / "other-?????-of-00003"))


def test_two_sets_of_shards_under_one_prefix_are_ambiguous(v1, tmp_path):
    for number in range(3):
        shutil.copy(v1 / f"v1sh.ckpt-8-0000{number}-of-00003", tmp_path)
    shutil.copy(v1 / "v1.ckpt-7", tmp_path / "v1sh.ckpt-8-00000-of-00001")
    with pytest.raises(UsageError, match=r"v1sh.ckpt-8-\?{5}-of-00001"):
        open_bundle(locate(tmp_path / "v1sh.ckpt-8"))


@pytest.mark.parametrize("index", [..., np.s_[2:5, ::-1], np.s_[-1, 2], np.s_[::5, None]])
def test_partitioned_tensors_are_put_together(v1, index):
    reader = open_bundle(locate(v1 / "v1slices"))
    whole = reader.read("p")
    assert whole.shape == (6, 5)
    assert len(reader.spec("p").slices) == 2
    np.testing.assert_array_equal(reader.read("p", index), whole[index])
    out = np.zeros((6, 5), "f4")
    assert read_many(reader, [("p", out)])[0] is out
    np.testing.assert_array_equal(out, whole)


def test_a_file_that_is_no_checkpoint_is_malformed_and_not_empty(prefix):
    put(prefix, b"not a table, but long enough to hold a footer of forty-eight bytes")
    with pytest.raises(FormatError, match="not an sstable"):
        open_bundle(prefix)


def test_the_index_of_a_v2_checkpoint_under_another_name_is_no_empty_v1_checkpoint(fixtures_dir, prefix):
    put(prefix, (fixtures_dir / "09_with_meta" / "ref.index").read_bytes())
    with pytest.raises(FormatError, match="not a V1 checkpoint"):
        open_bundle(prefix)


def test_raw_keys_are_those_of_the_slices(v1):
    reader = open_bundle(locate(v1 / "v1slices"))
    keys = reader.raw_keys()
    assert len(keys) == len(reader.names()) + 1
    assert all(key.startswith(b"\x00") for key in keys)


def test_pieces_are_filled_and_counted_as_verified(v1):
    """The values stand in blocks of a table, and each block has a checksum."""
    with ck.open_checkpoint(v1 / "v1slices") as checkpoint:
        whole = checkpoint.read("p")
        piece = ck.Piece(np.zeros((5, 1), "f4"), (6, 5), (1, 1))
        report = checkpoint.restore(into={"p": piece})
        backwards = np.zeros((6, 5), "f4")
        checkpoint.read_into([("p", np.s_[::-1], backwards)])
    np.testing.assert_array_equal(piece.array, whole[1:, 1:2])
    np.testing.assert_array_equal(backwards, whole[::-1])
    assert (report.verified, report.unverified) == (1, 0)
