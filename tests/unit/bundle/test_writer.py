from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle import writer as writer_module
from ckptstore.bundle.plan import write_item
from ckptstore.bundle.writer import ShardWriter, build_index, renumbered
from ckptstore.errors import UsageError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader, decode_header
from ckptstore.format.table import Table
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
    sink, writer = written({"name": "b", "array": np.int8([1, 2, 3])}, {"name": "a", "array": np.int16([4])})
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


@given(
    st.lists(st.one_of(st.integers(0, 200), st.lists(st.binary(max_size=60), max_size=4)), max_size=12),
    st.integers(1, 64),
    st.integers(1, 100),
    st.integers(1, 90),
)
def test_sizes_and_checksums_hold_whatever_the_batching(arrays, below, batch, chunk):
    kept = (
        writer_module._BATCHED_BELOW_BYTES,
        writer_module._BATCH_SIZE_BYTES,
        writer_module._CHUNK_SIZE_BYTES,
    )
    writer_module._BATCHED_BELOW_BYTES, writer_module._BATCH_SIZE_BYTES = below, batch
    writer_module._CHUNK_SIZE_BYTES = chunk
    try:
        sink, writer = Sink(), None
        writer = ShardWriter(sink)
        raw = []
        for number, value in enumerate(arrays):
            array = (
                np.full(value, number, np.uint8)
                if isinstance(value, int)
                else np.array([*value, None], object)[:-1]
            )
            writer.add(f"t{number}", array)
            raw.append(array.tobytes() if isinstance(value, int) else None)
            assert writer.size_bytes == sum(entry.size_bytes for _, entry in writer.entries)
        before = writer.crc32c
        writer.finish()
    finally:
        (
            writer_module._BATCHED_BELOW_BYTES,
            writer_module._BATCH_SIZE_BYTES,
            writer_module._CHUNK_SIZE_BYTES,
        ) = kept
    assert writer.crc32c == before == crc32c(sink.data)
    assert writer.size_bytes == len(sink.data)
    for (_, entry), bytes_ in zip(writer.entries, raw, strict=True):
        if bytes_ is not None:
            assert sink.data[entry.offset : entry.offset + entry.size_bytes] == bytes_
            assert entry.masked_crc32c == mask(crc32c(bytes_))


def test_small_tensors_share_writes_and_large_ones_come_in_chunks():
    sink, _ = written(*({"name": f"t{n}", "array": np.zeros(256, "f4")} for n in range(3000)))
    assert len(sink.writes) == 1
    sink, _ = written({"name": "big", "array": np.zeros(20 << 20, np.uint8)})
    assert [len(chunk) for chunk in sink.writes] == [8 << 20, 8 << 20, 4 << 20]


def test_the_array_may_change_as_soon_as_it_was_added():
    sink = Sink()
    writer = ShardWriter(sink)
    array = np.arange(4, dtype=np.uint8)
    writer.add("w", array)
    array[:] = 9
    writer.finish()
    assert sink.data == bytes([0, 1, 2, 3])


def test_the_caller_s_layout_does_not_matter():
    array = np.arange(12, dtype=">f8").reshape(3, 4)
    plain, _ = written({"name": "w", "array": np.ascontiguousarray(array[::2, ::-1]).astype("<f8")})
    odd, _ = written({"name": "w", "array": array[::2, ::-1]})
    assert odd.data == plain.data


def test_a_failed_add_writes_nothing_and_the_writer_goes_on():
    sink = Sink()
    writer = ShardWriter(sink)
    writer.add("a", np.int8([1]))
    for bad in ({"name": "a", "array": 1}, {"name": "", "array": 1}, {"name": "o", "array": object()}):
        with pytest.raises(UsageError):
            writer.add(**bad)
    writer.add("b", np.int8([2]))
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
    item = write_item("q", np.int8([1]), dtype="qint8")
    sink = Sink()
    writer = ShardWriter(sink, shard_id=4)
    writer.add_item(item)
    writer.finish()
    assert [(entry.dtype_enum, entry.shard_id) for _, entry in writer.entries] == [(11, 4)]
