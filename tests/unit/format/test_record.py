"""The record: what TensorFlow writes, to the byte, and what readers must take and refuse."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError, UsageError
from ckptstore.format.protos import message_class
from ckptstore.format.record import CheckpointState, format_state, parse_state

SOURCE = "/run/checkpoint"

RECORDS = {
    "manager": ("manager", "checkpoint"),
    "saver": ("saver", "checkpoint"),
    "unicode_世界 (latest_pb)": ("unicode_世界", "latest_pb"),
}


def parse(text: str | bytes) -> CheckpointState:
    return parse_state(text.encode() if isinstance(text, str) else text, source=SOURCE)


@pytest.mark.parametrize("key", sorted(RECORDS))
def test_records_of_tensorflow_are_read_and_written_to_the_byte(fixtures_dir, key):
    directory, name = RECORDS[key]
    data = (fixtures_dir / "10_checkpoint_record" / directory / name).read_bytes()
    expected = json.loads((fixtures_dir / "10_checkpoint_record" / "expected.json").read_text())["states"][
        key
    ]
    state = parse(data)

    def inside(path: str) -> str:
        return path.removeprefix(directory + "/")

    assert state.model_checkpoint_path == inside(expected["model_checkpoint_path"])
    assert list(state.all_model_checkpoint_paths) == list(map(inside, expected["all_model_checkpoint_paths"]))
    assert list(state.all_model_checkpoint_timestamps) == expected["all_model_checkpoint_timestamps"]
    assert state.last_preserved_timestamp == expected["last_preserved_timestamp"]
    assert format_state(state) == data


def test_fields_stand_in_order_one_a_line_and_defaults_are_left_out():
    state = CheckpointState("m-2", ("m-1", "m-2"), (1795344521.863018, 5.0), 0.1)
    assert format_state(state) == (
        b'model_checkpoint_path: "m-2"\n'
        b'all_model_checkpoint_paths: "m-1"\n'
        b'all_model_checkpoint_paths: "m-2"\n'
        b"all_model_checkpoint_timestamps: 1795344521.863018\n"
        b"all_model_checkpoint_timestamps: 5.0\n"
        b"last_preserved_timestamp: 0.1\n"
    )
    assert format_state(CheckpointState("m")) == b'model_checkpoint_path: "m"\n'
    assert format_state(CheckpointState("")) == b""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5.0"),
        (1e16, "1e+16"),
        (0.1, "0.1"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (-0.0, "-0.0"),
        (3, "3.0"),
    ],
)
def test_numbers_look_like_python_repr(value, text):
    assert format_state(CheckpointState("m", (), (), value)).decode().endswith(f"timestamp: {text}\n")


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ('a"b', r"a\"b"),
        ("a'b", r"a\'b"),
        ("a\\b", r"a\\b"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("a\x01b\x1bc\x7f", r"a\001b\033c\177"),
        ("привет 世界 é", "привет 世界 é"),
        ("\u0085\u2028", "\u0085\u2028"),
    ],
)
def test_escapes_are_those_of_protobuf(path, written):
    data = format_state(CheckpointState(path))
    assert data == f'model_checkpoint_path: "{written}"\n'.encode()
    assert parse(data).model_checkpoint_path == path


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(TEXT.filter(bool), st.lists(TEXT), st.lists(st.floats()), st.floats())
def test_the_bytes_are_those_of_protobufs_text_format(path, paths, times, preserved):
    from google.protobuf import text_format

    state = CheckpointState(path, tuple(paths), tuple(times), preserved)
    message = message_class("CheckpointState")(
        model_checkpoint_path=path,
        all_model_checkpoint_paths=paths,
        all_model_checkpoint_timestamps=times,
        last_preserved_timestamp=preserved,
    )
    data = format_state(state)
    assert data == text_format.MessageToString(message, as_utf8=True).encode()
    # NaN differs from itself; the text does not.
    assert format_state(parse(data)) == data


@pytest.mark.parametrize(
    "text",
    [
        "model_checkpoint_path: 'café'",
        'model_checkpoint_path: "caf\\303\\251"',
        'model_checkpoint_path: "caf\\xc3\\xa9"',
        'model_checkpoint_path: "ca" "fé"',
        '# a comment\nmodel_checkpoint_path: "café"  # another\n',
        'model_checkpoint_path: "first"\r\nmodel_checkpoint_path: "café"\r\n',
        'model_checkpoint_path: "café";',
    ],
)
def test_reader_takes_every_spelling(text):
    assert parse(text).model_checkpoint_path == "café"


def test_reader_takes_lists_and_separators():
    state = parse(
        'model_checkpoint_path: "m", all_model_checkpoint_paths: ["a", "b"]; all_model_checkpoint_paths: "c"'
        "\n"
        "all_model_checkpoint_timestamps: [1, 2.5, inf] last_preserved_timestamp: -1e3"
    )
    assert state == CheckpointState("m", ("a", "b", "c"), (1.0, 2.5, math.inf), -1000.0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b'model_checkpoint_path: "caf\xe9"', "not UTF-8"),
        (b"# only a comment\n", "names no model_checkpoint_path"),
        (b'model_checkpoint_path: ""', "names no model_checkpoint_path"),
        (b'all_model_checkpoint_paths: "a"', "names no model_checkpoint_path"),
        (b'model_checkpoint_path: "a', "cannot be parsed"),
        (b'model_checkpoint_path: "a\n"', "cannot be parsed"),
        (b'unknown: 1 model_checkpoint_path: "a"', "cannot be parsed"),
        (b'\xef\xbb\xbfmodel_checkpoint_path: "a"', "cannot be parsed"),
        (b'model_checkpoint_path: "\\377"', "cannot be parsed"),
        (b'model_checkpoint_path: "\\ud800"', "cannot be parsed"),
        (b"model_checkpoint_path: 3", "cannot be parsed"),
        (b"model_checkpoint_path { }", "cannot be parsed"),
        (b'model_checkpoint_path: "a" last_preserved_timestamp: 0x10', "cannot be parsed"),
        (b"\0" * 4096, "cannot be parsed"),
        (b"<" * 100_000, "cannot be parsed"),
    ],
    ids=range(17),
)
def test_reader_says_what_is_wrong(data, says):
    with pytest.raises(FormatError, match=says) as raised:
        parse(data)
    assert raised.value.url == SOURCE
    assert len(str(raised.value)) < 500


@given(st.binary(max_size=200))
def test_garbage_is_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse(data).model_checkpoint_path


def test_a_path_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="UTF-8"):
        format_state(CheckpointState("caf\udce9"))


_PATHS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
_TIMES = st.floats(allow_nan=False)


@given(_PATHS, st.lists(_PATHS, max_size=4), st.lists(_TIMES, max_size=4), _TIMES)
def test_the_fast_way_and_protobuf_read_the_same(latest, paths, times, preserved):
    from google.protobuf import text_format

    data = b"# ckptstore 1\n" + format_state(CheckpointState(latest, tuple(paths), tuple(times), preserved))
    message = message_class("CheckpointState")()
    text_format.Merge(data.decode(), message)
    found = parse(data)
    assert found.model_checkpoint_path == message.model_checkpoint_path
    assert list(found.all_model_checkpoint_paths) == list(message.all_model_checkpoint_paths)
    assert list(found.all_model_checkpoint_timestamps) == list(message.all_model_checkpoint_timestamps)
    assert found.last_preserved_timestamp == message.last_preserved_timestamp


_LINES = st.sampled_from(
    [
        *('model_checkpoint_path: "model-1"', "model_checkpoint_path: 'm'", 'model_checkpoint_path: ""'),
        *('all_model_checkpoint_paths: "a"', 'all_model_checkpoint_paths: "b" # x', "# a line", "", " "),
        *("all_model_checkpoint_timestamps: 1.5", "all_model_checkpoint_timestamps: 1e3", "no field"),
        *("last_preserved_timestamp: 2.25", "last_preserved_timestamp: -0.0", "last_preserved_timestamp: 7"),
        *("last_preserved_timestamp: inf", 'model_checkpoint_path: "a\\tb"', 'unknown: "x"'),
    ]
)
_CUTS = st.lists(st.tuples(st.integers(0, 120), st.sampled_from(["", "\n", '"', " ", "#", "0", "e", ":"])))


@given(st.lists(_LINES, max_size=7), _CUTS, st.booleans())
def test_a_mangled_record_is_read_as_protobuf_reads_it(lines, cuts, ends):
    from google.protobuf import text_format

    text = "\n".join(lines) + "\n" * ends
    for position, put in cuts[:2]:
        text = text[:position] + put + text[position + 1 :]
    message = message_class("CheckpointState")()
    try:
        text_format.Merge(text, message)
        is_good = bool(message.model_checkpoint_path)
    except (text_format.ParseError, ValueError):
        is_good = False
    if not is_good:
        with pytest.raises(FormatError):
            parse(text.encode())
        return
    found = parse(text.encode())
    assert found.model_checkpoint_path == message.model_checkpoint_path
    assert found.all_model_checkpoint_paths == tuple(message.all_model_checkpoint_paths)
    assert found.all_model_checkpoint_timestamps == tuple(message.all_model_checkpoint_timestamps)
    assert repr(found.last_preserved_timestamp) == repr(message.last_preserved_timestamp)


def test_a_plain_record_is_read_without_protobuf(monkeypatch):
    names = [f"model-{step}" for step in range(10_000)]
    state = CheckpointState(names[-1], tuple(names), tuple(map(float, range(10_000))), 12.5)
    data = format_state(state)

    def refuse(name):
        raise AssertionError(name)

    monkeypatch.setattr("ckptstore.format.protos.message_class", refuse)
    assert parse(b"# ckptstore 1\n" + data) == state
