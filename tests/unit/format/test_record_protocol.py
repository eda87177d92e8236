"""Protocol lines in the record: written and read back, and never in TensorFlow's way."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format.record import CheckpointState, parse_state
from ckptstore.format.record_facts import Intent, Owner, OwnerName, Pending, Record, Superseded
from ckptstore.format.record_protocol import format_record, parse_record
from ckptstore.format.record_salvage import salvage_record

STATE = CheckpointState("model-2", ("model-1", "model-2"), (1.0, 2.5))
OWNER = Owner("model", 7, "5f0c", "9a41", 1795344521.863018, "77ab", 12000, 1795351721.5, form="steps")


def test_the_documented_lines() -> None:
    record = Record(
        STATE,
        {OWNER.name: OWNER},
        (Pending("model-9000", "1:2:3", ((0, 2), (1, 2))),),
        (Superseded("model", ((0, 48213),)),),
        ("model-100",),
        (Intent("model-3", "steps", "5f0c", 1, metrics=(("loss", 0.5), ("top 5", math.inf))),),
        pins=("model-7",),
        notes={"model-2": {"loss": 0.12, "val/top-5": -1e-7, "top 5": 1e16}},
    )
    text = format_record(record).decode()
    assert text.split("\n")[:8] == [
        "# ckptstore 1",
        '# owner "model" form="steps" epoch=7 run="5f0c" host="9a41" time=1795344521.863018 write="77ab"'
        " highest_step=12000 next_keep=1795351721.5",
        '# pending "model-9000" version="1:2:3" shards="00000..00001-of-00002" suffix="meta"',
        '# superseded "model" shards="00000-of-48213"',
        '# kept "model-100"',
        '# pin "model-7"',
        '# note "model-2" loss=0.12 val/top-5=-1e-07 "top 5"=1e+16',
        '# intent "model-3" form="steps" run="5f0c" index="00000001" metrics=" loss=0.5 \\"top 5\\"=inf"',
    ]
    read = parse_record(text.encode(), source="r")
    assert read == record
    # They do not take part in the comparison.
    assert [each.metrics for each in read.intents] == [each.metrics for each in record.intents]
    assert parse_state(text.encode(), source="r") == STATE


def test_a_line_without_a_form_is_read_and_one_of_steps_takes_its_place() -> None:
    old = Owner("model", 3, "r", "h", 1.0, "w")
    record = parse_record(format_record(Record(STATE, {old.name: old})), source="r")
    assert record.owners == {OwnerName("model", ""): old}
    assert record.with_owner(OWNER).owners == {OWNER.name: OWNER}
    exact = Owner("model", 4, "r", "h", 1.0, "w", form="exact")
    assert list(record.with_owner(exact).owners) == [old.name, exact.name]


def test_an_unknown_form_is_not_taken_for_another() -> None:
    data = format_record(Record(STATE, {OWNER.name: OWNER})).replace(b'"steps"', b'"glob"')
    with pytest.raises(FormatError, match="protocol line 2"):
        parse_record(data, source="r")


def test_owners_of_single_prefixes_leave_with_the_last_line_that_names_them() -> None:
    single = [
        Owner(name, 1, "r", "h", 1.0, "w", form="exact") for name in ("model-1", "old", "older", "gone")
    ]
    record = Record(
        STATE,
        {owner.name: owner for owner in (OWNER, *single)},
        (Pending("old", "v", ()),),
        (Superseded("older", ()),),
    )
    assert [name.basename for name in record.without_idle_owners().owners] == [
        "model",
        "model-1",
        "old",
        "older",
    ]


def test_the_owner_of_a_single_prefix_stays_where_the_list_has_a_path() -> None:
    single = Owner("model--1", 1, "r", "h", 1.0, "w", form="exact")
    record = Record(CheckpointState("/d/model--1", ("/d/model--1",)), {single.name: single})
    assert record.without_idle_owners() == record


def test_the_newest_owners_that_replaced_a_run_stay_as_a_fence() -> None:
    idle = [Owner(f"m-{number}", 2, "r", "h", float(number), "w", form="exact") for number in range(20)]
    record = Record(STATE, {owner.name: owner for owner in (*idle, OWNER)})
    kept = record.without_idle_owners().owners
    assert [name.basename for name in kept] == [*(f"m-{number}" for number in range(12, 20)), "model"]


names = st.text(min_size=1, max_size=30)
MODEL = 'model_checkpoint_path: "m-1"\n'

single_shards = st.lists(st.tuples(st.integers(0, 99999), st.integers(1, 99999)), max_size=4)
neighbours = st.builds(
    lambda first, length, more: [(first + n, max(1, first + length + more)) for n in range(length)],
    st.integers(0, 5000),
    st.integers(0, 30),
    st.integers(-5, 5),
)
shards = st.lists(single_shards | neighbours, max_size=3).map(lambda runs: tuple(itertools.chain(*runs)))
owners = st.builds(
    Owner,
    names,
    st.integers(1, 10**9),
    names,
    names,
    st.floats(0, 4e9),
    names,
    st.none() | st.integers(-5, 10**15),
    st.none() | st.floats(allow_nan=False),
    st.none() | st.floats(allow_nan=False),
    st.sampled_from(["", "steps", "exact"]),
)


@given(
    st.lists(owners, max_size=3, unique_by=lambda owner: owner.name),
    st.lists(st.builds(Pending, names, names, shards, names), max_size=3).map(tuple),
    st.lists(st.builds(Superseded, names, shards), max_size=3).map(tuple),
    st.lists(names, max_size=3, unique=True).map(tuple),
)
def test_every_name_comes_back(
    owned: list[Owner], pending: tuple[Pending, ...], old: tuple[Superseded, ...], kept: tuple[str, ...]
) -> None:
    record = Record(STATE, {owner.name: owner for owner in owned}, pending, old, kept)
    assert parse_record(format_record(record), source="r") == record


@given(names, st.dictionaries(names, st.floats(), max_size=4))
def test_every_metric_comes_back(prefix: str, metrics: dict[str, float]) -> None:
    intent = Intent(prefix, "exact", "r", 0, metrics=tuple(metrics.items()))
    record = Record(STATE, intents=(intent,), pins=(prefix,), notes={prefix: metrics})
    read = parse_record(format_record(record), source="r")
    # NaN is not equal to itself, but has the same text.
    assert repr((read.notes, read.intents, read.pins)) == repr((record.notes, record.intents, record.pins))


def test_of_two_notes_of_one_checkpoint_the_last_one_counts() -> None:
    lines = '# ckptstore 1\n# note "m-1" a=1 b=2\n# note "m-1" a=3 a=4.5\n# pin "m-1"\n# pin "m-1"\n'
    record = parse_record(f'{lines}model_checkpoint_path: "m-1"\n'.encode(), source="r")
    assert record.notes == {"m-1": {"a": 4.5}}
    assert record.pins == ("m-1",)


def test_neighbouring_shards_are_written_as_a_range() -> None:
    numbers = [0, 1, 2, 4, 6, 7]
    record = Record(superseded=(Superseded("m", (*((n, 9) for n in numbers), (8, 99), (8, 9))),))
    text = '# superseded "m" shards="00000..00002-of-00009 00004-of-00009 00006..00007-of-00009'
    assert f'{text} 00008-of-00099 00008-of-00009"\n' in format_record(record).decode()


def test_lines_that_list_each_shard_are_still_read() -> None:
    words = "00000-of-00003 00001-of-00003 00002-of-00003"
    data = f'# ckptstore 1\n# pending "m-1" version="v" shards="{words}"\n{MODEL}'.encode()
    (pending,) = parse_record(data, source="r").pending
    assert pending.shards == ((0, 3), (1, 3), (2, 3))


def test_a_thousand_hosts_take_one_short_line() -> None:
    shards = tuple((n, 1024) for n in range(1024))
    data = format_record(Record(pending=(Pending("model-9000", "v", shards),)))
    assert b'shards="00000..01023-of-01024"' in data
    assert len(data) < 120


def test_more_shards_than_ranges_may_hold_are_written_one_by_one_and_come_back() -> None:
    shards = tuple((n, 99_999) for n in range(99_999))
    record = Record(STATE, superseded=tuple(Superseded(f"m-{n}", shards) for n in range(3)))
    data = format_record(record)
    assert data.count(b"..") == 2
    assert parse_record(data, source="r") == record


def test_ranges_that_hold_too_many_shards_are_refused_before_they_are_spelled_out() -> None:
    lines = [f'# superseded "m-{n}" shards="00000..99998-of-99999"' for n in range(10_000)]
    data = "\n".join(["# ckptstore 1", *lines, MODEL]).encode()
    tracemalloc.start()
    with pytest.raises(FormatError, match="protocol line 4"):
        parse_record(data, source="r")
    assert len(salvage_record(data, source="r").record.superseded) == 2
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


def test_a_record_by_tensorflow_has_no_owner() -> None:
    data = b'model_checkpoint_path: "m-1"\nall_model_checkpoint_paths: "m-1"\n'
    assert parse_record(data, source="r") == Record(CheckpointState("m-1", ("m-1",)))


def test_comments_of_others_are_ignored() -> None:
    data = b'# written by hand\n# owner nobody\nmodel_checkpoint_path: "m-1"\n'
    assert parse_record(data, source="r").owners == {}


@pytest.mark.parametrize(
    "line",
    [
        '# owner "model" epoch=x run="a" host="b" time=1.0 write="c"',
        '# owner "model"',
        '# pending "m-1" version="v" shards="0-of-1"',
        '# superseded "m-1" shards="00000..00000-of-00001"',
        '# superseded "m-1" shards="00003..00001-of-00009"',
        '# superseded "m-1" shards="00000..00002-of-00002"',
        '# superseded "m-1" shards="00000..-of-00002"',
        '# superseded "m-1" shards="00000..00001..00002-of-00004"',
        '# superseded "m-1" shards="00000..9999999998-of-9999999999"',
        '# superseded "m-1',
        '# superseded "m-1" shards="00000-of-00001" extra',
        "# kept model-1",
        "# pin model-1",
        '# pin "model-1',
        '# note "m-1" loss',
        '# note "m-1" loss=',
        '# note "m-1" =1',
        '# note "m-1" loss="0.1"',
        '# note "m-1" loss=0.1 extra',
        '# note "m-1" loss=1_000',
        '# note "m-1" loss=0x10',
        '# note "m-1" loss=1.',
        '# note "m-1" loss=-nan',
        '# note "m-1" loss=infinity',
        '# note "m-1" loss=１',
        f'# note "m-1" loss={"9" * 401}',
        '# note "m-1" "los=1',
        "# note m-1 loss=1",
        '# intent "m-1" form="steps" run="r" index="00000001" metrics=" loss=x"',
        '# intent "m-1" form="steps" run="r" index="00000001" metrics="loss=1"',
    ],
)
def test_a_broken_protocol_line_is_an_error(line: str) -> None:
    data = f'# ckptstore 1\n{line}\nmodel_checkpoint_path: "m-1"\n'.encode()
    with pytest.raises(FormatError, match="protocol line 2"):
        parse_record(data, source="r")


def test_a_newer_protocol_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="newer ckptstore"):
        parse_record(b'# ckptstore 2\nmodel_checkpoint_path: "m-1"\n', source="r")
