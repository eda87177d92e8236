from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.write import shard_writer as writer_module
from ckptstore.bundle.write.index import build_index, renumbered
from ckptstore.bundle.write.plan import write_item
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.errors import UsageError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader, decode_header
from ckptstore.format.strings import encode_strings
from ckptstore.format.table import Table
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import Slice
from tests.unit.bundle.helpers import Sink, add_all

# The worked example of the format's fact sheet: float32 tensor "v" = [1, 2], as TensorFlow 2.21 writes it.
EXAMPLE_INDEX = bytes.fromhex(
    "00000608011a020801"
    "00010f7608011204120208022808"
    "35593ce535"
    "0000000001000000"
    "0030559358"
    "0000000001000000"
    "00c0f2a1b0"
    "0001027700240000000001000000"
    "009460b2cd"
    "2908360e" + "00" * 36 + "57fb808b247547db"
)


def written(*pieces) -> tuple[Sink, ShardWriter]:
    sink = Sink()
    writer = ShardWriter(sink)
    add_all(writer, list(pieces))
    return sink, writer


def test_the_worked_example_comes_out_to_the_byte():
    sink, writer = written({"name": "v", "array": np.array([1, 2], "f4")})
    assert sink.data == bytes.fromhex("0000803f00000040")
    assert build_index(writer.entries, 1) == EXAMPLE_INDEX
    assert len(EXAMPLE_INDEX) == 121


def test_tensors_lie_back_to_back_in_the_order_of_the_calls():
    b, a = np.array([1, 2, 3], np.int8), np.array([4], np.int16)
    sink, writer = written({"name": "b", "array": b}, {"name": "a", "array": a})
    assert sink.data == b"\x01\x02\x03\x04\x00"
    assert [(key, entry.offset, entry.size_bytes) for key, entry in writer.entries] == [
        (b"b", 0, 3),
        (b"a", 3, 2),
    ]
    assert writer.size_bytes == 5


def test_no_bytes_have_the_checksum_of_no_bytes():
    _, writer = written({"name": "e", "array": np.zeros((0, 3), "f4")})
    ((_, entry),) = writer.entries
    assert (entry.masked_crc32c, entry.size_bytes) == (0xA282EAD8, 0)


def test_an_empty_string_tensor_stores_its_checksum():
    sink, _ = written({"name": "e", "array": np.empty(0, object)})
    assert sink.data == bytes.fromhex("d8ea82a2")


def _array(value: int | list[bytes], number: int) -> np.ndarray:
    if isinstance(value, int):
        return np.full(value, number, np.uint8)
    return np.array([*value, None], object)[:-1]


@given(
    st.lists(st.one_of(st.integers(0, 200), st.lists(st.binary(max_size=60), max_size=4)), max_size=12),
    st.integers(1, 64),
    st.integers(1, 100),
    st.integers(1, 90),
    st.integers(1, 3),
    st.booleans(),
)
def test_sizes_and_checksums_hold_however_it_is_cut(arrays, below, batch, part, parallel, is_planned):
    with (
        mock.patch.object(writer_module, "_BATCHED_BELOW_BYTES", below),
        mock.patch.object(writer_module, "_BATCH_SIZE_BYTES", batch),
    ):
        items = [write_item(f"t{number}", _array(value, number)) for number, value in enumerate(arrays)]
        sink = Sink(part, parallel)
        if is_planned:
            writer = ShardWriter(sink, size_bytes=sum(item.size_bytes for item in items))
            writer.write(items)
        else:
            writer = ShardWriter(sink)
            for item in items:
                writer.add_item(item)
        assert writer.size_bytes == sum(item.size_bytes for item in items)
        writer.finish()
        writer.close()
    assert writer.crc32c == crc32c(sink.data)
    assert writer.size_bytes == len(sink.data)
    offset = 0
    for (_, entry), item, value in zip(writer.entries, items, arrays, strict=True):
        stored = sink.data[entry.offset : entry.offset + entry.size_bytes]
        assert (entry.offset, entry.size_bytes) == (offset, item.size_bytes)
        offset += item.size_bytes
        if isinstance(value, int):
            assert stored == item.array.tobytes()
            assert entry.masked_crc32c == mask(crc32c(stored))
        else:
            payload, crc = encode_strings(value)
            assert (stored, entry.masked_crc32c) == (payload, mask(crc))


def test_small_tensors_share_a_piece_and_large_ones_are_not_copied():
    sink, _ = written(*({"name": f"t{n}", "array": np.zeros(256, "f4")} for n in range(3000)))
    assert sink.pieces == {0: 1}
    sink = Sink()
    writer = ShardWriter(sink, size_bytes=20 << 20, transfer=(transfer := Transfer("save", "x")))
    writer.write([write_item("big", np.zeros(20 << 20, np.uint8))])
    writer.finish()
    assert [len(sink.parts[number]) for number in range(3)] == [8 << 20, 8 << 20, 4 << 20]
    assert transfer.budget.high_water_bytes == 0


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("size_bytes", [1000, 300_000, 3 << 20])
def test_an_array_that_was_added_may_change_at_once(size_bytes, parallel):
    sink = Sink(1 << 20, parallel)
    writer = ShardWriter(sink)
    array = np.empty(size_bytes, np.uint8)
    for value in range(4):
        array[:] = value
        writer.add(f"t{value}", array)
    array[:] = 99
    writer.finish()
    writer.close()
    assert sink.data == b"".join(bytes([value]) * size_bytes for value in range(4))


@pytest.mark.parametrize(
    "odd",
    [
        np.arange(600_000, dtype=">i4").reshape(300, 2000),
        np.arange(600_000, dtype="<i4").reshape(2000, 300).T,
        np.arange(1_200_000, dtype="<i4").reshape(600, 2000)[::-2],
        np.asfortranarray(np.arange(600_000, dtype=">i4").reshape(2, 3, 100_000)),
    ],
    ids=["byte order", "transposed", "strided", "both"],
)
def test_what_is_converted_stays_within_its_chunks(odd, monkeypatch):
    monkeypatch.setattr(writer_module, "_CHUNK_SIZE_BYTES", 64 * 1024)
    transfer = Transfer("save", "x", memory_budget=200 * 1024)
    sink = Sink(100_000, 2)
    writer = ShardWriter(sink, transfer=transfer, size_bytes=2_400_000)
    writer.write([write_item("odd", odd)])
    writer.finish()
    writer.close()
    ((_, entry),) = writer.entries
    assert sink.data == odd.astype("<i4").tobytes()
    assert entry.masked_crc32c == mask(crc32c(sink.data))
    assert 0 < transfer.budget.high_water_bytes <= 200 * 1024
    assert transfer.budget.used_bytes == 0


def test_a_budget_below_one_part_still_gets_everything_through():
    transfer = Transfer("save", "x", memory_budget=1000)
    sink = Sink(100_000, 2)
    items = [write_item(f"t{n}", np.full(300, n % 250, np.uint8)) for n in range(3000)]
    items.append(write_item("s", np.array([b"x" * 400_000], object)))
    writer = ShardWriter(sink, transfer=transfer, size_bytes=sum(item.size_bytes for item in items))
    writer.write(items)
    writer.finish()
    writer.close()
    assert len(sink.data) == writer.size_bytes
    assert transfer.budget.used_bytes == 0


def test_the_caller_s_layout_does_not_matter():
    array = np.arange(12, dtype=">f8").reshape(3, 4)
    plain, _ = written({"name": "w", "array": np.ascontiguousarray(array[::2, ::-1]).astype("<f8")})
    odd, _ = written({"name": "w", "array": array[::2, ::-1]})
    assert odd.data == plain.data


def test_a_failed_add_writes_nothing_and_the_writer_goes_on():
    sink = Sink()
    writer = ShardWriter(sink)
    writer.add("a", np.array([1], np.int8))
    for name, array in (("a", 1), ("", 1), ("o", object())):
        with pytest.raises(UsageError):
            writer.add(name, array)  # type: ignore[arg-type]
    writer.add("b", np.array([2], np.int8))
    writer.finish()
    assert sink.data == b"\x01\x02"


def test_slices_make_an_entry_each_and_one_that_lists_them_in_save_order():
    _, writer = written(
        {"name": "w", "array": np.zeros((2, 3), "f4"), "shape": (4, 3), "spec": "2,2:-"},
        {"name": "w", "array": np.zeros((2, 3), "f4"), "shape": (4, 3), "spec": "0,2:0,3"},
    )
    entries = dict(writer.entries)
    assert entries[b"w"] == BundleEntry(
        1, (4, 3), 0, 0, 0, 0, (Slice(((2, 2), (0, -1))), Slice(((0, 2), (0, 3))))
    )
    # num(0) | "w" | num(2) | signed(2) signed(2) signed(0) signed(-1)
    assert entries[bytes.fromhex("0077000101028282807f")].shape == (2, 3)
    assert entries[bytes.fromhex("00770001010280828083")].offset == 24


def test_slices_of_one_tensor_meet_from_several_shards():
    shards = []
    for number in (0, 1, 2):
        sink = Sink()
        writer = ShardWriter(sink, shard_id=number)
        if number:
            writer.add("w", np.zeros(2), shape=(4,), spec=[(4 - 2 * number, 2)])
        else:
            writer.add("a", 1.0)
        writer.finish()
        shards += writer.entries
    items = dict(Table.from_bytes(build_index(shards, 3), source="x").items())
    # float64, shape [4], shard 1 (the first that mentions it), slices 2,2 then 0,2
    assert items[b"w"].hex() == "0802120412020804" + "1801" + "3a060a0408021002" + "3a040a021002"


def test_the_same_name_in_two_shards_is_refused():
    _, one = written({"name": "a", "array": 1})
    _, two = written({"name": "a", "array": 1})
    with pytest.raises(UsageError, match="Adding duplicate key: a"):
        build_index([*one.entries, *renumbered(two.entries, 1)], 2)


def test_slices_that_do_not_agree_over_shards_are_refused():
    _, one = written({"name": "a", "array": np.zeros(2), "shape": (4,), "spec": "0,2"})
    _, two = written({"name": "a", "array": np.zeros(2), "shape": (5,), "spec": "2,2"})
    with pytest.raises(UsageError, match="do not agree"):
        build_index([*one.entries, *renumbered(two.entries, 1)], 2)


def test_entries_can_be_given_another_shard_number():
    _, writer = written({"name": "a", "array": 1})
    assert [entry.shard_id for _, entry in renumbered(writer.entries, 7)] == [7]


def test_an_index_of_nothing_has_its_header():
    table = Table.from_bytes(build_index([], 3), source="x")
    ((key, value),) = table.items()
    assert key == b""
    assert decode_header(value, source="x") == BundleHeader(3)


def test_a_header_of_a_merged_bundle_keeps_endianness_and_version():
    data = build_index([], 5, header=BundleHeader(2, True, 7, 1, (3,)))
    found = decode_header(Table.from_bytes(data, source="x").get(b"") or b"", source="x")
    assert found == BundleHeader(5, True, 7, 1, (3,))


def test_keys_ascend_as_unsigned_bytes():
    _, writer = written(*({"name": name, "array": 1} for name in ("é", "z", "Z", "\x01", "世")))
    keys = [key for key, _ in Table.from_bytes(build_index(writer.entries, 1), source="x").items()]
    assert keys == sorted(keys)


def test_an_item_made_before_is_written_as_it_is():
    item = write_item("q", np.array([1], np.int8), dtype="qint8")
    sink = Sink()
    writer = ShardWriter(sink, shard_id=4)
    writer.add_item(item)
    writer.finish()
    assert [(entry.dtype_enum, entry.shard_id) for _, entry in writer.entries] == [(11, 4)]
