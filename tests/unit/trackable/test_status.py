"""What a restore answers."""

from __future__ import annotations

import pickle

import pytest

from ckptstore.errors import CkptStoreWarning, UsageError
from ckptstore.trackable.status import NothingRestored, RestoreStatus, UnmatchedError
from tests.own_warnings import own_warnings

URL = "memory://docs/model"


def test_a_complete_restore_passes_everything():
    status = RestoreStatus(URL, [], [])
    assert status.assert_consumed() is status
    assert status.assert_existing_objects_matched() is status
    assert status.expect_partial() is status


def test_unused_values_fail_one_assertion():
    status = RestoreStatus(URL, [], ["other/w"])
    assert status.assert_existing_objects_matched() is status
    with pytest.raises(AssertionError, match="other/w of the checkpoint belong to nothing") as info:
        status.assert_consumed()
    assert isinstance(info.value, UsageError)
    assert info.value.url == URL


def test_unmatched_objects_fail_both_assertions():
    status = RestoreStatus(URL, ["net/w", ""], ["net/weight"])
    for assertion in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match=r"net/w, \(root\) of the tree.*left over.*net/weight"):
            assertion()


def test_many_names_are_cut():
    with pytest.raises(UnmatchedError, match=r"n9 and 90 more of the tree"):
        RestoreStatus(URL, [f"n{number}" for number in range(100)], []).assert_consumed()


def test_a_missing_counter_is_explained():
    with pytest.raises(AssertionError, match=r"write\(\) wrote is for read\(\)"):
        RestoreStatus(URL, ["save_counter"], []).assert_consumed()


def test_the_error_survives_pickling():
    with pytest.raises(UnmatchedError) as info:
        RestoreStatus(URL, ["w"], []).assert_consumed()
    copy = pickle.loads(pickle.dumps(info.value))
    assert (type(copy), str(copy), copy.url) == (UnmatchedError, str(info.value), URL)


def test_nothing_restored_fails_every_assertion():
    status = NothingRestored()
    assert status.expect_partial() is status
    for assertion in (status.assert_consumed, status.assert_existing_objects_matched):
        with pytest.raises(AssertionError, match="nothing is being restored"):
            assertion()


def test_a_dropped_status_warns():
    with pytest.warns(CkptStoreWarning, match=r"model was restored in part: a .*; b .*expect_partial\(\)"):
        RestoreStatus(URL, ["a"], ["b"])


def test_nobody_is_warned_who_looked_or_has_nothing_to_look_at():
    with own_warnings("error"):
        RestoreStatus(URL, [], [])
        RestoreStatus(URL, ["save_counter"], [])
        RestoreStatus(URL, ["a"], ["b"]).expect_partial()
        RestoreStatus(URL, [], ["b"]).assert_existing_objects_matched()
