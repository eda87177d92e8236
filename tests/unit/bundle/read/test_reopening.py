"""What happens to a restore when the checkpoint is replaced or removed under it."""

from __future__ import annotations

import numpy as np
import pytest

from ckptstore.bundle.read.open_bundle import open_bundle, reopening
from ckptstore.errors import ChecksumError, IncompleteBundleError, NotFoundError, TensorNotFoundError
from tests.unit.bundle.helpers import data_file, index_file, put, save, saved


def test_it_starts_again_and_takes_everything_from_the_new_save(prefix):
    reader = saved(prefix, {"a": np.zeros(4)}, {"b": np.zeros(4)})
    calls = []

    def action(reader):
        calls.append(reader.index_version)
        a = reader.read("a")
        if len(calls) == 1:
            # The new save has one data file; those of the old one go.
            save(prefix, {"a": np.ones(4), "b": np.ones(4)})
            prefix.storage.delete_many([data_file(prefix, number, 2).key for number in range(2)])
        return a, reader.read("b")

    last, (a, b) = reopening(reader, action)
    assert a.tolist() == b.tolist() == [1.0] * 4
    assert last is not reader
    assert last.index_version == calls[-1] != calls[0]


def test_a_checkpoint_that_was_removed_is_not_found(prefix):
    reader = saved(prefix, {"a": np.zeros(4)})

    def action(reader):
        prefix.storage.delete_many([index_file(prefix).key, data_file(prefix).key])
        return reader.read("a")

    with pytest.raises(NotFoundError, match="no checkpoint with this prefix"):
        reopening(reader, action)


def test_damage_is_reported_at_once(prefix):
    reader = saved(prefix, {"a": np.zeros(4)})
    put(data_file(prefix), b"\x01" * 32)
    calls = []
    with pytest.raises(ChecksumError):
        reopening(reader, lambda reader: (calls.append(1), reader.read("a")))
    assert len(calls) == 1


def test_a_data_file_that_is_missing_while_the_index_stays_is_damage(prefix):
    reader = saved(prefix, {"a": np.zeros(4)})
    prefix.storage.delete_many([data_file(prefix).key])
    calls = []
    with pytest.raises(IncompleteBundleError):
        reopening(reader, lambda reader: (calls.append(1), reader.read("a")))
    assert len(calls) == 1


def test_a_wrong_name_is_not_tried_again(prefix):
    calls = []
    with pytest.raises(TensorNotFoundError):
        reopening(saved(prefix, {"a": 1}), lambda reader: (calls.append(1), reader.read("b")))
    assert len(calls) == 1


def test_it_gives_up_after_five_times(prefix):
    save(prefix, {"a": np.zeros(4)})
    calls = []

    def action(reader):
        calls.append(reader.index_version)
        save(prefix, {"a": np.full(4, len(calls))})
        return reader.read("a")

    with pytest.raises(NotFoundError, match="replaced 5 times"):
        reopening(open_bundle(prefix), action)
    assert len(calls) == len(set(calls)) == 5
