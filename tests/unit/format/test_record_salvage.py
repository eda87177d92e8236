"""What is left of a damaged record: whole lines, and never half a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UnsupportedError
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Owner, OwnerName, Pending, Record, Superseded
from ckptstore.format.record_protocol import format_record
from ckptstore.format.record_salvage import salvage_record

STATE = CheckpointState("model-2", ("model-1", "model-2"), (1000.5, 2000.25), 17.0)
OWNER = Owner("model", 7, "5f0c", "9a41", 1795344521.5, "77ab", 12000, 1795351721.5, 3.0, "steps")
RECORD = Record(
    STATE,
    {OWNER.name: OWNER},
    (Pending("model-9", "1:2:3", ((0, 2), (1, 2))),),
    (Superseded("model", ((0, 48213),)),),
    ("model-1",),
)


MODEL = OwnerName("model", "")


def salvage(data: bytes):
    return salvage_record(data, source="r")


def test_a_good_record_is_read_as_it_is():
    found = salvage(format_record(RECORD))
    assert (found.record, found.lost, found.kept) == (RECORD, (), ("model-1",))


def test_a_record_of_tensorflow_has_no_lines_of_ours():
    found = salvage(b'model_checkpoint_path: "m-1"\n# written by hand\n')
    assert (found.record, found.lost) == (Record(CheckpointState("m-1")), ())


def test_cut_anywhere_nothing_is_read_that_was_not_written():
    data = format_record(RECORD)
    for length in range(len(data)):
        found = salvage(data[:length])
        record = found.record
        assert set(record.pending) <= set(RECORD.pending)
        assert set(record.superseded) <= set(RECORD.superseded)
        assert set(record.kept) <= set(RECORD.kept)
        for owner in record.owners.values():
            assert (owner.basename, owner.epoch, owner.run, owner.write_id) == ("model", 7, "5f0c", "77ab")
            assert owner.highest_step in (None, 12000)
            assert owner.next_keep_s in (None, 1795351721.5)
            assert owner.last_preserved_s in (None, 3.0)
        if record.state is not None:
            assert record.state.model_checkpoint_path == "model-2"
            assert STATE.all_model_checkpoint_paths[: len(record.state.all_model_checkpoint_paths)] == (
                record.state.all_model_checkpoint_paths
            )
            assert set(record.state.all_model_checkpoint_timestamps) <= {1000.5, 2000.25}
            assert record.state.last_preserved_timestamp in (0.0, 17.0)


def test_a_cut_owner_line_still_says_who_the_owner_is():
    line = format_record(RECORD).split(b"\n")[1]
    cut = line[: line.index(b" highest_step=12000") + len(b" highest_step=12")]
    found = salvage(b"# ckptstore 1\n" + cut)
    assert found.record.owners == {
        OWNER.name: Owner("model", 7, "5f0c", "9a41", 1795344521.5, "77ab", form="steps")
    }
    assert found.record.state is None


def test_a_last_line_without_an_end_is_trusted_where_it_is_whole_in_itself():
    found = salvage(b'all_model_checkpoint_paths: "m-1"\nmodel_checkpoint_path: "m-1"')
    assert found.record.state == CheckpointState("m-1", ("m-1",))
    found = salvage(b'model_checkpoint_path: "m-1"\nall_model_checkpoint_timestamps: 17953')
    assert found.record.state == CheckpointState("m-1")


def test_a_damaged_line_does_not_take_the_others_with_it():
    lines = format_record(RECORD).split(b"\n")
    for number, kind in ((1, "owner"), (2, "pending"), (3, "superseded"), (4, "kept")):
        damaged = b"\n".join([*lines[:number], lines[number][:-3] + b"\xff\x00\n", *lines[number + 1 :]])
        found = salvage(damaged)
        assert len(found.lost) == 1
        assert found.lost[0].startswith(f"# {kind} ")
        left = [bool(found.record.owners), *map(bool, (found.record.pending, found.record.superseded))]
        assert left == [kind != other for other in ("owner", "pending", "superseded")]


def test_where_a_kept_line_is_lost_all_listed_ones_are_kept():
    found = salvage(format_record(RECORD).replace(b'# kept "model-1"', b'# kept "model-1'))
    assert found.record.kept == ()
    assert set(found.kept) == {"model-1", "model-2"}
    found = salvage(format_record(RECORD).replace(b"epoch=7", b"epoch=x"))
    assert found.kept == ("model-1",)


def test_where_a_pin_is_lost_nothing_that_is_listed_is_deleted():
    pinned = replace(RECORD, kept=(), pins=("model-1",), notes={"model-2": {"loss": 0.5}})
    found = salvage(format_record(pinned).replace(b'# pin "model-1"', b'# pin "model-1'))
    assert (found.record.pins, set(found.kept)) == ((), {"model-1", "model-2"})
    found = salvage(format_record(pinned).replace(b"loss=0.5", b"loss=half"))
    assert (found.record.pins, found.kept, found.record.notes) == (("model-1",), (), {})


def test_of_two_owners_of_one_name_the_higher_epoch_counts():
    one, two = (
        format_record(Record(None, {MODEL: Owner("model", epoch, f"run {epoch}", "h", 1.0, "w")}))
        for epoch in (9, 10)
    )
    for data in (one + two, two + one):
        assert salvage(data).record.owners[MODEL].run == "run 10"


def test_a_record_of_a_newer_ckptstore_is_not_picked_apart():
    with pytest.raises(UnsupportedError, match="newer ckptstore"):
        salvage(b"\xff\xff\n# ckptstore 2\n")


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes):
    found = salvage(data)
    assert len(found.lost) <= data.count(b"\n") + 1


@given(st.data())
def test_any_byte_may_be_wrong(data: st.DataObject):
    good = bytearray(format_record(RECORD))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        salvage(bytes(good))
    except UnsupportedError:
        assert b"# ckptstore 1\n" not in good
