"""Random and half-right files: hypothesis looks for cases that were not thought of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptstore as ck
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleEntry,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
)
from ckptstore.format.table import Table
from ckptstore.types import Slice
from tests.hostile import crafted_files as crafted
from tests.hostile.entry_points import check_error, content_of_meta, quiet, read_everything, run_cli, typed

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tensorflow-2.21"

SEEDS = {
    "plain": FIXTURES / "01_single_shard" / "model.ckpt-44652",
    "partitioned": FIXTURES / "03_partitioned" / "xdev",
    "objects": FIXTURES / "04_object_based" / "slots",
    "variants": FIXTURES / "07_all_dtypes" / "variant",
    "empty": FIXTURES / "08_empty_scalar" / "e",
    "big-endian": FIXTURES / "14_crafted" / "be",
}

EDGES = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        7,
        8,
        100,
        127,
        128,
        255,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**32,
        2**62,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ]
)
NUMBERS = EDGES | st.integers(0, 2**64 - 1) | st.integers(0, 300)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: one directory for all examples of a test.
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def check_prefix(prefix: Path) -> None:
    """Read everything: typed errors, or content that agrees with what the index says."""
    outcomes = read_everything(str(prefix))
    specs = outcomes.whole["open_checkpoint.specs"]
    listed = typed(lambda: ck.open_checkpoint(prefix).specs()).content or {}
    assert (specs.error is None) == bool(listed or specs.content == {})
    for name, spec in listed.items():
        read = outcomes.tensors[f"read {name}"]
        if read.error is None:
            assert read.content[1] == spec.shape
            assert spec.dtype.name == "string" or read.content[0] == str(spec.dtype.dtype)
    report = outcomes.report
    if report is not None and report.ok and not report.notes:
        # What is proved can be restored.
        assert outcomes.whole["open_checkpoint.restore"].error is None, outcomes.whole[
            "open_checkpoint.restore"
        ]
    if outcomes.whole["open_checkpoint.restore"].error is None:
        assert report is not None
        assert report.ok, report


@given(index=st.binary(max_size=300), data=st.binary(max_size=100), footer=st.booleans())
def test_random_bytes_as_a_bundle(index: bytes, data: bytes, footer: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        if footer:
            index += crafted.footer(crafted.handle(0, 8), crafted.handle(13, max(0, len(index) - 18)))
        check_prefix(Path(crafted.write_bundle(Path(name), index, data)))


@given(
    items=st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=40)), max_size=6),
    data=st.binary(max_size=64),
    sort=st.booleans(),
)
def test_random_items_in_a_table_with_right_checksums(
    items: list[tuple[bytes, bytes]], data: bytes, sort: bool
) -> None:
    if sort:
        items = sorted(dict(items).items())
    index = crafted.index_of_items([(b"", crafted.HEADER), *items])
    with tempfile.TemporaryDirectory() as name:
        check_prefix(Path(crafted.write_bundle(Path(name), index, data)))


@given(contents=st.binary(max_size=200), kind=st.sampled_from([0, 0, 1, 1, 2]))
def test_random_bytes_as_a_block_with_right_checksum(contents: bytes, kind: int) -> None:
    index = crafted.table([(b"\xff", contents)], kind=kind)
    with tempfile.TemporaryDirectory() as name:
        check_prefix(Path(crafted.write_bundle(Path(name), index)))


EXTENTS = st.tuples(NUMBERS.map(lambda n: n % 2**63), NUMBERS.map(lambda n: n % 2**63 if n % 5 else -1))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, list[tuple[int, str, object]]]:
    """Draw a fixture and what to change in some of its entries."""
    seed = draw(st.sampled_from(sorted(SEEDS)))
    changes: list[tuple[int, str, object]] = []
    for _ in range(draw(st.integers(1, 3))):
        field = draw(
            st.sampled_from(
                ["dtype_enum", "shape", "shard_id", "offset", "size_bytes", "masked_crc32c", "slices", "key"]
            )
        )
        value: object
        if field == "shape":
            value = tuple(draw(st.lists(NUMBERS, max_size=5)))
        elif field == "slices":
            value = tuple(
                Slice(tuple(extents)) for extents in draw(st.lists(st.lists(EXTENTS, max_size=3), max_size=3))
            )
        elif field == "key":
            value = draw(st.binary(min_size=1, max_size=20))
        elif field == "dtype_enum":
            value = draw(st.integers(0, 40) | EDGES)
        elif field == "masked_crc32c":
            value = draw(st.integers(0, 2**32 - 1))
        else:
            value = draw(NUMBERS)
        changes.append((draw(st.integers(0, 30)), field, value))
    return seed, changes


def _items_of(seed: str) -> dict[bytes, bytes]:
    return dict(Table.from_bytes(Path(f"{SEEDS[seed]}.index").read_bytes(), source=seed).items())


def _copied_data(seed: str, directory: Path) -> None:
    source = SEEDS[seed]
    for path in source.parent.glob(f"{source.name}.data*"):
        (directory / path.name.replace(source.name, "model", 1)).write_bytes(path.read_bytes())


@given(mutation=mutations())
@settings(max_examples=200)
def test_entries_changed_in_a_sound_index(mutation: tuple[str, list[tuple[int, str, object]]]) -> None:
    seed, changes = mutation
    items = _items_of(seed)
    entries = {key: decode_entry(items[key], source=seed, tensor="x") for key in items if key != HEADER_KEY}
    keys = list(entries)
    for number, field, value in changes:
        key = keys[number % len(keys)]
        if field == "key":
            assert isinstance(value, bytes)
            entries[value] = entries.pop(key, BundleEntry(1, ()))
        elif key in entries:
            entries[key] = entries[key]._replace(**{field: cast("Any", value)})
    items = {HEADER_KEY: items[HEADER_KEY]} | {key: encode_entry(entry) for key, entry in entries.items()}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _copied_data(seed, directory)
        (directory / "model.index").write_bytes(crafted.index_of_items(sorted(items.items())))
        check_prefix(directory / "model")


@given(
    seed=st.sampled_from(sorted(SEEDS)),
    num_shards=NUMBERS,
    big_endian=st.booleans(),
    producer=NUMBERS,
    min_consumer=st.integers(0, 3),
    bad=st.lists(st.integers(0, 3), max_size=3),
)
def test_header_changed_in_a_sound_index(
    seed: str, num_shards: int, big_endian: bool, producer: int, min_consumer: int, bad: list[int]
) -> None:
    items = _items_of(seed)
    header = decode_header(items[HEADER_KEY], source=seed)
    items[HEADER_KEY] = encode_header(
        type(header)(
            num_shards if num_shards % 3 else header.num_shards,
            big_endian,
            producer,
            min_consumer,
            tuple(bad),
        )
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _copied_data(seed, directory)
        (directory / "model.index").write_bytes(crafted.index_of_items(sorted(items.items())))
        outcomes = read_everything(str(directory / "model"))
        assert all(isinstance(error, ck.CkptStoreError) for error in outcomes.errors)


@given(
    seed=st.sampled_from(sorted(SEEDS)),
    at=st.integers(0, 500),
    junk=st.binary(max_size=20),
    cut=st.integers(0, 20),
)
def test_bytes_of_values_replaced_under_right_checksums(seed: str, at: int, junk: bytes, cut: int) -> None:
    items = _items_of(seed)
    whole = b"".join(items.values())
    at %= len(whole)
    for key, value in items.items():
        if at < len(value):
            items[key] = value[:at] + junk + value[at + cut :]
            break
        at -= len(value)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _copied_data(seed, directory)
        (directory / "model.index").write_bytes(crafted.index_of_items(sorted(items.items())))
        check_prefix(directory / "model")


@given(
    data=st.binary(max_size=400), prefix=st.sampled_from([b"", b"\x12\x05", b"graph_def { ", b"saver_def {"])
)
def test_random_bytes_as_a_meta(data: bytes, prefix: bytes) -> None:
    with quiet():
        outcome = typed(content_of_meta, prefix + data)
    assert outcome.error is None or isinstance(outcome.error, ck.FormatError)


@given(
    at=st.integers(0, 30_000),
    junk=st.binary(max_size=12),
    cut=st.integers(0, 12),
    which=st.sampled_from(["ref", "res"]),
)
@settings(max_examples=40)
def test_meta_of_tensorflow_with_bytes_replaced(at: int, junk: bytes, cut: int, which: str) -> None:
    good = (FIXTURES / "09_with_meta" / f"{which}.meta").read_bytes()
    at %= len(good)
    with quiet():
        outcome = typed(content_of_meta, good[:at] + junk + good[at + cut :])
    assert outcome.error is None or isinstance(outcome.error, ck.FormatError)


OWNER = b'# owner "model" epoch=1 run="r" host="h" time=1 write="w"'
PENDING = b'# pending "model-1" version="v" shards="00000-of-00001" suffix="meta"'
RECORD_PIECES = st.sampled_from(
    [
        *(b"model_checkpoint_path: ", b"all_model_checkpoint_paths: ", b"all_model_checkpoint_timestamps: "),
        *(
            b"last_preserved_timestamp: ",
            b'"model-1"',
            b'"../x"',
            b'"/etc/x"',
            b'"\\377"',
            b"1.5",
            b"nan",
            b"-1e999",
        ),
        *(
            b"\n",
            b" ",
            b"# ckptstore 1\n",
            b"# ckptstore 2\n",
            OWNER,
            PENDING,
            b'# superseded "model-1" shards=""',
        ),
        *(b"{", b"[", b"<", b"'", b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf"),
    ]
)


@given(pieces=st.lists(RECORD_PIECES | st.binary(max_size=8), max_size=14))
@settings(max_examples=200)
def test_record_of_random_pieces(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with ck.BundleWriter(directory / "model-1") as writer:
            writer.add("w", [1.0])
        before = {path.name for path in directory.iterdir()}
        (directory / "checkpoint").write_bytes(b"".join(pieces))
        with quiet():
            assert ck.latest_checkpoint(directory) == str(directory / "model-1")
            typed(ck.get_checkpoint_state, directory)
            run_cli("ls", str(directory))
            saver = ck.Saver(run="r", clock=lambda: 5.0)
            outcome = typed(saver.save, {"w": [2.0]}, directory / "model", 2)
        assert outcome.error is None or isinstance(outcome.error, (ck.UnsupportedError, ck.FormatError))
        assert before <= {path.name for path in directory.iterdir()}


@given(
    cls=st.sampled_from(sorted(name for name in vars(ck)["__all__"] if name.endswith("Error"))),
    what=st.text(min_size=1, max_size=50),
    tensor=st.none()
    | st.text(max_size=50)
    | st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape")),
    offset=st.none() | st.integers(0, 2**64),
    expected=st.none() | st.text(max_size=2000),
    actual=st.none() | st.binary(max_size=2000).map(repr),
)
def test_errors_survive_pickling_with_everything(
    cls: str, what: str, tensor: str | None, offset: int | None, expected: str | None, actual: str | None
) -> None:
    error = getattr(ck, cls)(
        what, url="/x", tensor=tensor, offset=offset, expected=expected, actual=actual, hint="Look."
    )
    check_error(error)
