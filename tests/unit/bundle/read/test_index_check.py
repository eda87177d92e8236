"""The index as columns gives what its entries give one by one, partitioned tensors and errors included."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.read.reader_v2 import ReaderV2
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.errors import CkptStoreError, FormatError, UnsupportedError
from ckptstore.format.entry import BundleEntry, BundleHeader, encode_entry, encode_header
from ckptstore.format.slices import encode_slice_key
from ckptstore.format.table_builder import TableBuilder
from ckptstore.storage.base import Location
from ckptstore.train.checkpoint_reader import load_checkpoint
from ckptstore.types import Slice
from tests.unit.bundle.helpers import data_file, index_file, put

FLOAT, INT8, STRING, RESOURCE = 1, 6, 7, 20


def outcome(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return what came of it, in a form that compares."""
    try:
        return action(*arguments)
    except CkptStoreError as error:
        return type(error).__name__, str(error)


class Index:
    """An index with many partitioned tensors, each with something of its own that is wrong."""

    def __init__(self, prefix: Location, seed: int) -> None:
        self.prefix = prefix
        self.rng = random.Random(seed)
        self.items: dict[bytes, bytes] = {b"": encode_header(BundleHeader(3))}
        self.names: list[str] = []
        self.offset = 0

    def add(self, key: bytes, dtype: int, shape: tuple[int, ...], size: int) -> None:
        entry = BundleEntry(dtype, shape, self.rng.randrange(3), self.offset, size, 1)
        self.offset += size
        self.items[key] = encode_entry(entry)

    def add_tensor(self, wrong: str) -> None:
        rng, name = self.rng, f"{wrong}/{len(self.names)}"
        self.names.append(name)
        rows, columns = rng.choice([(4, 3), (300, 7), (16, 1)])
        cuts = sorted({0, rows, *rng.sample(range(rows), 3)})
        boxes = [
            Slice(((low, high - low), rng.choice([(0, -1), (0, columns)])))
            for low, high in itertools.pairwise(cuts)
        ]
        if wrong == "unordered":
            rng.shuffle(boxes)
        if wrong == "hole":
            del boxes[1]
        if wrong == "overlap":
            boxes[1] = Slice(((boxes[1].extents[0][0] - 1, 2), (0, -1)))
        dtype = STRING if wrong == "text" else FLOAT
        whole = encode_entry(BundleEntry(dtype, (rows, columns), slices=tuple(boxes)))
        if wrong == "twice":
            whole = encode_entry(BundleEntry(dtype, (rows, columns), slices=(*boxes, boxes[0])))
        if wrong == "malformed":
            whole = whole[:-1]
        if wrong == "other order":
            whole = whole[4 + whole[3] :] + whole[: 4 + whole[3]]
        if wrong == "damaged":
            whole = b"\x0f" + whole
        self.items[name.encode()] = whole
        for number, box in enumerate(boxes):
            shape = box.shape_within((rows, columns))
            size = 4 * shape[0] * shape[1] + (4 if dtype == STRING else 0)
            if number == 1:
                shape = {"shape": (1, *shape)}.get(wrong, shape)
                size += wrong == "size"
            if not (wrong == "no entry" and number == 1):
                self.add(
                    encode_slice_key(name, box),
                    INT8 if (wrong, number) == ("type", 1) else dtype,
                    shape,
                    size,
                )
        if wrong == "nested":
            self.items[encode_slice_key(name, boxes[0])] = encode_entry(
                BundleEntry(FLOAT, boxes[0].shape_within((rows, columns)), slices=(boxes[0],))
            )
        if wrong == "orphan":
            self.add(encode_slice_key(name, Slice(((0, rows), (0, 1)))), FLOAT, (rows, 1), 4 * rows)
        if wrong == "other rank":
            self.add(encode_slice_key(name, Slice(((0, rows),))), FLOAT, (rows,), 4 * rows)

    def add_whole(self, name: str, dtype: int, size: int) -> None:
        self.names.append(name)
        self.add(name.encode("utf-8", "surrogateescape"), dtype, (2,), size)

    def write(self, *, cut: int = 0) -> None:
        builder = TableBuilder()
        for key in sorted(self.items):
            builder.add(key, self.items[key])
        put(index_file(self.prefix), builder.finish())
        for shard in range(3):
            put(data_file(self.prefix, shard, 3), bytes(self.offset - cut * shard))


WRONG = [
    *(
        "nothing",
        "unordered",
        "hole",
        "overlap",
        "twice",
        "text",
        "malformed",
        "other order",
        "damaged",
        "shape",
    ),
    *("size", "type", "no entry", "nested", "orphan", "other rank"),
]


@pytest.fixture(params=range(4))
def index(prefix: Location, request: pytest.FixtureRequest) -> Index:
    made = Index(prefix, request.param)
    for wrong in WRONG * 6:
        made.add_tensor(wrong)
    for number in range(20):
        made.add_whole(
            f"whole/{number}", *made.rng.choice([(FLOAT, 8), (FLOAT, 7), (STRING, 9), (RESOURCE, 8)])
        )
    made.add_whole("\x00looks/like a slice", FLOAT, 8)
    made.add_whole("bytes/\udcff", FLOAT, 8)
    made.write()
    return made


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be found in bulk, so that each entry is looked at by itself."""
    monkeypatch.setattr("ckptstore.bundle.read.index_check.slice_starts", lambda value, pos: None)
    monkeypatch.setattr(ReaderV2, "_index_of_many", lambda self, names: None)


def test_tensors_that_are_sound_are_those_of_single_lookups(index):
    reader = open_bundle(index.prefix)
    expected = {name: outcome(open_bundle(index.prefix).stored, name) for name in index.names}
    sound = [name for name, found in expected.items() if found[0] == name]
    assert len({name.partition("/")[0] for name in sound}) == 10
    names = [*sound, "not there", *sound[:3], ""]
    found = reader.stored_many(names)
    assert found == [expected.get(name) for name in names]
    assert reader.stored_many([*names, b"bytes"] * 2) == [*found, None] * 2  # type: ignore[list-item]


def test_the_first_tensor_with_an_error_is_named_as_in_a_single_lookup(index):
    good = [name for name in index.names if name.startswith("nothing")] * 12
    for name in index.names[: len(WRONG)]:
        expected = outcome(open_bundle(index.prefix).stored, name)
        found = outcome(open_bundle(index.prefix).stored_many, [*good, name])
        assert (found[-1] if isinstance(found, list) else found) == expected


def test_names_and_specs_are_those_of_single_lookups(index, monkeypatch):
    def found() -> Any:
        reader = open_bundle(index.prefix)
        specs = {name: outcome(reader.spec, name) for name in index.names}
        return reader.names(), reader.raw_keys(), specs

    names, keys, specs = found()
    assert set(names) >= set(index.names)
    assert sum(name not in index.names for name in names) == 6 * 2
    assert names == sorted(names)
    assert set(keys) < set(index.items)
    with monkeypatch.context() as patch:
        one_by_one(patch)
        assert found() == (names, keys, specs)


def test_all_specs_at_once_are_those_of_single_ones(prefix):
    made = Index(prefix, 9)
    for wrong in ("nothing", "unordered", "hole", "text", "other order") * 15:
        made.add_tensor(wrong)
    for number in range(20):
        made.add_whole(f"whole/{number}", *made.rng.choice([(FLOAT, 8), (FLOAT, 7), (STRING, 9)]))
    made.write()
    specs = open_bundle(prefix).specs()
    assert list(specs) == sorted(made.names)
    assert specs == {name: open_bundle(prefix).spec(name) for name in specs}
    assert all(type(shard) is int for spec in specs.values() for shard in spec.shards)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("cut", [0, 100])
def test_verification_finds_what_it_finds_one_by_one(index, monkeypatch, quick, cut):
    index.write(cut=cut)
    report = verify_bundle(index.prefix, quick=quick)
    assert len(report.faults) > 6 * 10
    assert len({fault.message for fault in report.faults}) == len(report.faults)
    with monkeypatch.context() as patch:
        one_by_one(patch)
        assert verify_bundle(index.prefix, quick=quick) == report


def test_a_tensor_too_large_for_any_array_is_unsupported_in_bulk_too(prefix, monkeypatch):
    made = Index(prefix, 1)
    part = Slice(((0, 4),))
    made.names = ["x"]
    made.items[b"x"] = encode_entry(BundleEntry(FLOAT, (1 << 61,), slices=(part,)))
    made.add(encode_slice_key("x", part), FLOAT, (4,), 16)
    made.write()
    with pytest.raises(UnsupportedError, match="x"):
        open_bundle(prefix).specs()
    with pytest.raises(UnsupportedError, match="x"):
        open_bundle(prefix).stored_many(["x"] * 100)
    report = verify_bundle(prefix, quick=True)
    assert len(report.notes) == 1
    with monkeypatch.context() as patch:
        one_by_one(patch)
        assert verify_bundle(prefix, quick=True) == report


def test_a_malformed_list_of_slices_is_not_passed_over(prefix):
    made = Index(prefix, 2)
    for wrong in ("nothing", "malformed"):
        made.add_tensor(wrong)
    made.write()
    assert open_bundle(prefix).names() == sorted(made.names)
    with pytest.raises(FormatError):
        load_checkpoint(prefix.url).debug_string()


def test_slices_that_are_missing_are_reported_before_files_that_are_too_short(prefix):
    made = Index(prefix, 3)
    made.add_tensor("hole")
    made.write()
    for shard in range(3):
        data_file(prefix, shard, 3).storage.delete_many([data_file(prefix, shard, 3).key])
        put(data_file(prefix, shard, 3), b"short")
    reader = open_bundle(prefix)
    with pytest.raises(FormatError, match="hole"):
        reader.read_stored([(reader.stored(made.names[0]), None)])
