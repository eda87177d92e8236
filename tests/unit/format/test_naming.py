"""The grammar of file names."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptstore.format.naming import (
    ParsedName,
    Series,
    data_name,
    index_name,
    meta_name,
    numbered,
    parse_file_name,
    series_of,
    split_step,
    v1_shard_name,
)

PREFIXES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=12)


def test_names_are_tensorflows():
    assert index_name("d/model-12") == "d/model-12.index"
    assert data_name("d/model-12", 0, 1) == "d/model-12.data-00000-of-00001"
    assert data_name("m", 7, 123456) == "m.data-00007-of-123456"
    assert meta_name("m") == "m.meta"
    assert meta_name("m", "graph") == "m.graph"
    assert v1_shard_name("m", 1, 3) == "m-00001-of-00003"


@given(PREFIXES, st.integers(0, 10**7), st.integers(1, 10**7))
def test_good_names_are_parsed_back(prefix, shard, more):
    num_shards = shard + more
    assert parse_file_name(index_name(prefix)) == ParsedName("index", prefix)
    assert parse_file_name(meta_name(prefix)) == ParsedName("meta", prefix)
    assert parse_file_name(data_name(prefix, shard, num_shards)) == ParsedName(
        "data", prefix, shard, num_shards
    )
    if not prefix.endswith(".data"):
        assert parse_file_name(v1_shard_name(prefix, shard, num_shards)) == ParsedName(
            "v1-shard", prefix, shard, num_shards
        )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "checkpoint",
        "m.index.tempstate123",
        "m.data-00000-of-00001.tempstate123",
        "m.data-0000-of-0001",
        "m.data-000000-of-000001",
        "m.data-00001-of-00001",
        "m.data-00000-of-00000",
        "m.data-00002-of-00001",
        "m.data--0001-of-00001",
        "m.data-0000a-of-00001",
        "m.data-٠٠٠٠٠-of-٠٠٠٠١",
        "m.data-00000-of-00001 ",
        "m.data-00000-of-00001\n",
        "m.data-00000-of-" + "9" * 5000,
        "d/m.index",
        "m.INDEX",
        "model-12",
    ],
)
def test_bad_names_are_refused(name):
    assert parse_file_name(name) is None


@pytest.mark.parametrize(
    ("prefix", "basename", "step"),
    [
        ("model", "model", None),
        ("model-12", "model", 12),
        ("model--1", "model", -1),
        ("model-00000012", "model", 12),
        ("model--0000001", "model", -1),
        ("model.ckpt-7", "model.ckpt", 7),
        ("a-1-2", "a-1", 2),
        ("a--1--2", "a--1", -2),
        ("-12", "-12", None),
        ("model-", "model-", None),
        ("model-1a", "model-1a", None),
        ("model-x", "model-x", None),
        ("model12", "model12", None),
        ("model-12-3", "model-12", 3),
        ("model-1.5", "model-1.5", None),
        ("model-١", "model-١", None),
        ("model-" + "1" * 21, "model-" + "1" * 21, None),
        ("line\nbreak-3", "line\nbreak", 3),
    ],
)
def test_steps_are_split_from_prefixes(prefix, basename, step):
    assert split_step(prefix) == (basename, step)


@pytest.mark.parametrize(
    ("step", "pad", "expected"),
    [
        (12, False, "m-12"),
        (12, True, "m-00000012"),
        (-1, False, "m--1"),
        (123456789, True, "m-123456789"),
        (0, True, "m-00000000"),
    ],
)
def test_numbered_prefixes(step, pad, expected):
    assert numbered("m", step, pad) == expected
    assert split_step(expected) == ("m", step)


@given(PREFIXES, st.integers(-(2**63), 2**63 - 1), st.booleans())
def test_every_step_survives(basename, step, pad):
    assume(not basename.endswith("-"))  # its last dash would be the sign of the step
    assert split_step(numbered(basename, step, pad)) == (basename, step)


@pytest.mark.parametrize(
    ("prefix", "name", "place"),
    [
        ("model-100", "model", (100,)),
        ("model-00000100", "model", (100,)),
        ("model--3", "model-", (3,)),
        ("model--0", "model-", (0,)),
        ("model", "model", ()),
        ("model.ckpt-100.h5", "model.ckpt-#.h5", (100,)),
        ("ckpt-7.weights.h5", "ckpt-#.weights.h5", (7,)),
        ("cp-0012.ckpt", "cp-#.ckpt", (12,)),
        ("0100", "#", (100,)),
        ("model_100", "model_#", (100,)),
        ("iter_500_loss_0.3", "iter_#_loss#", (500,)),
        ("epoch=3-step=1200", "epoch=#-step=#", (3, 1200)),
        ("epoch=03-val_loss=0.32", "epoch=#-val_loss#", (3,)),
        ("val_loss=0.32-step=1200", "val_loss#-step=#", (1200,)),
        ("epoch=1-loss=1e-05", "epoch=#-loss#", (1,)),
        ("epoch=3-1200", "epoch=#", (3, 1200)),
        ("weights.05-0.32", "weights.##", (5,)),
        ("weights.05--0.32.h5", "weights.##.h5", (5,)),
        ("model-acc0.93-100", "model-acc#", (100,)),
        # What looks like a number and is none of both stays: these are other models.
        ("resnet-18-100", "resnet-18", (100,)),
        ("llama-3.1-8b-100", "llama-3.1-8b", (100,)),
        ("lr=0.1-100", "lr=0.1", (100,)),
        ("resnet50", "resnet50", ()),
        ("resnet-18_best", "resnet-18_best", ()),
        ("best-0.93", "best-0.93", ()),
        ("9" * 2000, "9" * 2000, ()),
    ],
)
def test_the_step_is_found_in_names_of_other_programs(prefix, name, place):
    assert series_of(prefix) == Series(name, place)
