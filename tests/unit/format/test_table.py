"""Tables, read: lookup, order, laziness, and files made to hurt."""

from __future__ import annotations

import struct
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import ChecksumError, CorruptError, FormatError, TruncatedFileError, UnsupportedError
from ckptstore.format.block import Block, BlockHandle, BlockRows, read_block
from ckptstore.format.block_builder import with_trailer
from ckptstore.format.coding import encode_fixed32, encode_fixed64, encode_varint
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import HEADER_KEY, check_entry, decode_entry, decode_header, key_to_name
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder
from tests.does_not_raise import does_not_raise
from tests.unit.format.tables import block_count

ITEMS = st.dictionaries(st.binary(max_size=12), st.binary(max_size=40), max_size=60).map(
    lambda found: dict(sorted(found.items()))
)


def build(items) -> bytes:
    builder = TableBuilder()
    for key, value in items.items():
        builder.add(key, value)
    return builder.finish()


def several_blocks() -> dict[bytes, bytes]:
    return {b"name/%05d" % n: bytes([n % 251]) * 3000 for n in range(400)}


def entry(shared: int, unshared: bytes, value: bytes = b"") -> bytes:
    return encode_varint(shared) + encode_varint(len(unshared)) + encode_varint(len(value)) + unshared + value


def block(entries: bytes, restarts: tuple[int, ...] = (0,)) -> bytes:
    return entries + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def handle(offset: int, size: int) -> bytes:
    return encode_varint(offset) + encode_varint(size)


def craft(blocks: list[bytes], index: bytes, *, metaindex: bytes = block(b"")) -> bytes:
    """Return a table with good checksums from blocks that may be anything."""
    out = b"".join(with_trailer(one) for one in blocks)
    meta_at, index_at = len(out), len(out) + len(metaindex) + 5
    out += with_trailer(metaindex) + with_trailer(index)
    footer = handle(meta_at, len(metaindex)) + handle(index_at, len(index))
    return out + footer.ljust(40, b"\x00") + encode_fixed64(0xDB4775248B80FB57)


def read_all(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return every item, read in both ways; they must agree, errors included."""
    table = Table.from_bytes(data, source="bad.index")
    items, message = outcome(lambda: list(table.items()))
    rows, same_message = outcome(lambda: [item for rows in table.rows() for item in items_of(rows)])
    assert (rows, same_message) == (items, message)
    return list(table.items())


def outcome(read):
    """Return what `read` returns, or the kind and text of its error."""
    try:
        return read(), None
    except CorruptError as error:
        return None, (type(error), str(error))


def items_of(rows: BlockRows) -> list[tuple[bytes, bytes]]:
    values = [rows.contents[start:stop] for start, stop in zip(rows.starts, rows.stops, strict=True)]
    return list(zip(rows.keys, values, strict=True))


class TestReading:
    @given(ITEMS, st.binary(max_size=12))
    def test_items_come_back_and_missing_keys_do_not(self, items, other):
        table = Table.from_bytes(build(items), source="s")
        assert dict(table.items()) == items
        assert list(dict(table.items())) == list(items)
        for key, value in items.items():
            assert table.get(key) == value
        assert table.get(other) == items.get(other)

    def test_several_blocks_are_one_sequence(self):
        items = several_blocks()
        data = build(items)
        table = Table.from_bytes(data, source="s")
        assert block_count(data) == 5
        assert dict(table.items()) == items
        for key in (b"", b"name/00087x", b"name/", b"zz"):
            assert table.get(key) is None

    def test_one_lookup_reads_footer_index_block_and_one_data_block(self):
        data = build(several_blocks())
        reads = []

        def read(offset: int, size: int) -> bytes:
            reads.append((offset, size))
            return data[offset : offset + size]

        table = Table(read, len(data), source="s")
        assert [size for _, size in reads[:1]] == [48]
        assert len(reads) == 2
        assert table.get(b"name/00200") == bytes([200]) * 3000
        assert len(reads) == 3
        assert table.get(b"name/00201") == bytes([201]) * 3000
        assert len(reads) == 3
        assert table.get(b"zzz") is None
        assert len(reads) == 3

    def test_a_snappy_table_is_read(self, fixtures_dir):
        data = (fixtures_dir / "14_crafted" / "snappy.index").read_bytes()
        table = Table.from_bytes(data, source="s")
        assert block_count(data) > 1
        keys = [key for key, _ in table.items()]
        assert len(keys) == 401
        assert all(table.get(key) is not None for key in keys)


class TestDamage:
    @pytest.mark.parametrize("size", [0, 1, 47])
    def test_a_file_too_short_for_a_footer(self, size):
        with pytest.raises(TruncatedFileError, match="file is too short to be an sstable") as caught:
            Table.from_bytes(bytes(size), source="x.index")
        assert caught.value.url == "x.index"

    def test_a_file_that_is_no_table_says_what_to_pass(self):
        with pytest.raises(FormatError, match="bad magic number") as caught:
            Table.from_bytes(b"x" * 1000, source="x.data-00000-of-00001")
        assert "prefix" in (caught.value.hint or "")

    def test_a_block_with_another_checksum_names_place_and_both_values(self):
        data = bytearray(build({b"a": b"1"}))
        data[5] ^= 1
        with pytest.raises(ChecksumError, match="block checksum mismatch") as caught:
            Table.from_bytes(bytes(data), source="x.index").get(b"a")
        assert caught.value.offset == 0
        assert (caught.value.expected or "").startswith("0x")
        assert caught.value.expected != caught.value.actual

    def test_a_reader_that_returns_too_little_is_a_truncated_file(self):
        data = build(several_blocks())
        shrunk = False

        def read(offset: int, size: int) -> bytes:
            return data[offset : offset + size][: 100 if shrunk else size]

        table = Table(read, len(data), source="s")
        shrunk = True
        with pytest.raises(TruncatedFileError, match="ended while it was read"):
            table.get(b"name/00100")

    def test_a_window_that_ends_inside_the_block(self):
        data = with_trailer(block(entry(0, b"k", b"v")))
        found = read_block(b"??" + data, BlockHandle(102, len(data) - 5), source="s", base_offset=100)
        assert found.get(b"k") == b"v"
        for window, base in ((data[:-1], 102), (data, 103), (data, 100), (b"", 102)):
            with pytest.raises((TruncatedFileError, ChecksumError)):
                read_block(window, BlockHandle(102, len(data) - 5), source="s", base_offset=base)

    def test_every_flipped_bit_is_an_error_or_padding(self):
        items = {b"": bytes.fromhex("08011a020801"), b"v": bytes.fromhex("08011204120208022808 35593ce535")}
        good = build(items)
        footer = len(good) - 48
        padding = range(footer + 4, footer + 40)
        for at in range(len(good)):
            for bit in range(8):
                bad = bytearray(good)
                bad[at] ^= 1 << bit
                try:
                    found = dict(read_all(bytes(bad)))
                except CorruptError:
                    continue
                assert at in padding, f"byte {at} bit {bit}"
                assert found == items

    def test_every_truncation_is_an_error(self):
        good = build({b"": b"header", b"name": b"value"})
        for size in range(len(good)):
            with pytest.raises(CorruptError):
                read_all(good[:size])


class TestHostile:
    def test_unknown_compression(self):
        raw = block(entry(0, b"k")) + b"\x07"
        stored = raw + encode_fixed32(mask(crc32c(raw)))
        with pytest.raises(FormatError, match="unknown compression") as caught:
            read_block(stored, BlockHandle(0, len(raw) - 1), source="s")
        assert caught.value.actual == "7"

    def test_a_compressed_block_that_claims_a_terabyte(self):
        raw = encode_varint(1 << 40) + b"\x00a" + b"\x01"
        stored = raw + encode_fixed32(mask(crc32c(raw)))
        with pytest.raises(FormatError, match="impossible"):
            read_block(stored, BlockHandle(0, len(raw) - 1), source="s")

    @pytest.mark.parametrize(
        "contents",
        [
            b"",
            b"\x00\x00\x00",
            b"\x01\x00\x00\x00",
            b"\xff\xff\xff\xff",
            b"\x00" * 8 + b"\x03\x00\x00\x00",
            b"\x00" * 8 + b"\xff\xff\xff\x7f",
            entry(0, b"k") + bytes(4),
            block(entry(0, b"k"), (1,)),
            block(entry(0, b"k"), (0, 4)),
            block(entry(0, b"k"), (0, 0xFFFFFFFF)),
        ],
    )
    def test_absurd_restart_arrays(self, contents):
        with pytest.raises(FormatError, match="block"):
            Block(contents, source="s")

    @pytest.mark.parametrize(
        "entries",
        [
            entry(1, b"k"),
            entry(0, b"abc") + entry(4, b"d"),
            entry(0, b"abc") + entry(2**63, b"d"),
            entry(0, b"abc")[:-1],
            encode_varint(0) + encode_varint(2**64 - 1) + encode_varint(0),
            encode_varint(0) + encode_varint(1) + encode_varint(2**64 - 1) + b"k",
            b"\x00",
            b"\x00\x80",
            b"\xff" * 12,
            entry(0, b"b") + entry(0, b"a"),
            entry(0, b"a") + entry(1, b""),
            entry(0, b"") + entry(0, b""),
        ],
    )
    def test_entries_that_do_not_fit_or_do_not_ascend(self, entries):
        with pytest.raises(FormatError):
            list(Block(block(entries), source="s").items())
        with pytest.raises(FormatError):
            read_all(craft([block(entries)], block(entry(0, b"\xff" * 9, handle(0, len(block(entries)))))))

    def test_one_long_key_repeated_by_tiny_entries_does_not_fill_memory(self):
        long_key = b"k" * 200_000
        tail = b"".join(entry(200_000 + n, b"x") for n in range(100_000))
        data = block(entry(0, long_key) + tail)
        started = time.process_time()
        tracemalloc.start()
        try:
            with pytest.raises(FormatError, match="repeat each other"):
                list(Block(data, source="s").items())
            assert tracemalloc.get_traced_memory()[1] < 20 * len(data)
        finally:
            tracemalloc.stop()
        assert time.process_time() - started < 15

    def test_an_index_block_cannot_name_one_block_a_million_times(self):
        data_block = block(entry(0, b"a", b"1"))
        many = b"".join(entry(0, b"%07d" % n, handle(0, len(data_block))) for n in range(100_000))
        started = time.process_time()
        with pytest.raises(FormatError, match="malformed handle"):
            read_all(craft([data_block], block(many)))
        assert time.process_time() - started < 15

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\x00",
            handle(0, 2**62),
            handle(2**63, 13),
            handle(2**64 - 1, 2**64 - 1),
            handle(0, 13) + b"x",
            b"\xff" * 20,
        ],
    )
    def test_index_entries_that_lead_nowhere(self, value):
        with pytest.raises(FormatError):
            read_all(craft([block(entry(0, b"a", b"1"))], block(entry(0, b"b", value))))

    def test_blocks_out_of_order(self):
        first, second = block(entry(0, b"b")), block(entry(0, b"a"))
        size = len(first)
        index = block(entry(0, b"b", handle(0, size)) + entry(0, b"c", handle(size + 5, size)))
        with pytest.raises(FormatError, match="do not ascend"):
            read_all(craft([first, second], index))

    def test_a_block_with_keys_above_its_index_entry(self):
        data_block = block(entry(0, b"b"))
        with pytest.raises(FormatError, match="above its index entry"):
            read_all(craft([data_block], block(entry(0, b"a", handle(0, len(data_block))))))

    @pytest.mark.parametrize(
        "footer",
        [
            b"\xff" * 40,
            b"\x80" * 40,
            handle(0, 2**60) * 2,
            handle(2**64 - 1, 1) * 2,
            b"\x8d\x00\x08\x80\x00\x08",
        ],
    )
    def test_footers_that_lead_nowhere(self, footer):
        good = build({b"a": b"b"})
        with pytest.raises(FormatError):
            read_all(good[:-48] + footer[:40].ljust(40, b"\x00") + good[-8:])

    def test_damage_in_the_metaindex_block_is_damage(self):
        with pytest.raises(FormatError):
            read_all(craft([], block(b""), metaindex=b"\xff" * 8))

    @given(st.binary(max_size=400), st.booleans())
    def test_any_bytes_as_a_table_end_in_items_or_a_typed_error(self, data, with_magic):
        if with_magic:
            data += bytes(40) + encode_fixed64(0xDB4775248B80FB57)
        with does_not_raise(other_than=CorruptError):
            read_all(data)

    @given(st.binary(max_size=120), st.binary(max_size=12))
    def test_any_bytes_as_a_block_end_in_items_or_a_typed_error(self, data, key):
        for contents in (data, block(data), block(data, (0, 5))):
            for use in (lambda b: list(b.items()), lambda b: b.get(key)):
                with does_not_raise(other_than=CorruptError):
                    use(Block(contents, source="s"))
            assert outcome(lambda c=contents: items_of(Block(c, source="s").rows())) == outcome(
                lambda c=contents: list(Block(c, source="s").items())
            )

    @given(st.data())
    def test_a_table_changed_under_good_checksums_ends_in_entries_or_a_typed_error(self, fixtures_dir, data):
        path = data.draw(
            st.sampled_from(
                ["01_single_shard/model.ckpt-44652", "03_partitioned/grid", "06_strings_unicode/str"]
            )
        )
        good = bytearray((fixtures_dir / f"{path}.index").read_bytes())
        # These have one data block, from 0 to the metaindex block, which has 8 bytes.
        size = len(good) - 48 - 13
        assert block_count(bytes(good)) == 1
        size = good.index(bytes.fromhex("000000000100000000c0f2a1b0")) - 5
        for _ in range(data.draw(st.integers(1, 4))):
            good[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
        good[size + 1 : size + 5] = encode_fixed32(mask(crc32c(memoryview(good)[: size + 1])))
        error = None
        try:
            for key, value in Table.from_bytes(bytes(good), source="s").items():
                if key == HEADER_KEY:
                    decode_header(value, source="s")
                else:
                    name = key_to_name(key)
                    check_entry(decode_entry(value, source="s", tensor=name), source="s", tensor=name)
        except (CorruptError, UnsupportedError) as caught:
            error = caught
        assert error is None or error.url == "s"
