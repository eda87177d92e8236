"""Attacks by what an entry or the header of an index says."""

from __future__ import annotations

from pathlib import Path

import ckptstore as ck
from ckptstore.format.coding import encode_bytes_field, encode_varint, encode_varint_field
from tests.hostile import crafted_files as crafted
from tests.hostile.corpus import FLOAT, HUGE, RESOURCE, STRING, UNUSED, VARIANT, attack, one


@attack(ck.FormatError)
def string_tensor_with_2_to_the_60_elements(directory: Path) -> str:
    index = crafted.index({"x": crafted.entry(STRING, [1 << 60], size=8)})
    return crafted.write_bundle(directory, index, bytes(8))


@attack(ck.FormatError)
def variant_tensor_with_2_to_the_60_elements(directory: Path) -> str:
    return one(directory, crafted.entry(VARIANT, [1 << 60], size=8), bytes(8))


@attack(ck.FormatError)
def elements_beyond_int64(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [HUGE, HUGE], size=8))


@attack(ck.FormatError)
def a_zero_hides_elements_beyond_int64(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [0, HUGE, HUGE]))


@attack(ck.UnsupportedError, verifies=True)
def empty_array_that_numpy_cannot_make(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [0, 1 << 61]))


@attack(ck.FormatError)
def three_hundred_dimensions(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [1] * 300, size=4))


@attack(ck.UnsupportedError, verifies=True)
def more_dimensions_than_numpy_has(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [1] * 254, data=UNUSED[:4]))


@attack(ck.FormatError)
def negative_dimension(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [-1], size=8))


@attack(ck.FormatError)
def two_negative_dimensions(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [-1, -2], size=8))


@attack(ck.FormatError)
def unknown_rank(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, encode_varint_field(3, 1), data=UNUSED))


@attack(ck.FormatError)
def ten_thousand_empty_dimensions(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, b"\x12\x00" * 10_000))


@attack(ck.FormatError)
def two_shapes(directory: Path) -> str:
    return one(
        directory,
        crafted.entry(FLOAT, [2], data=UNUSED) + encode_bytes_field(2, crafted.shape(HUGE)),
    )


@attack(ck.FormatError)
def size_larger_than_the_shape_needs(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [1], data=UNUSED))


@attack(ck.FormatError)
def size_smaller_than_the_shape_needs(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [1 << 40], data=UNUSED))


@attack(ck.TruncatedFileError)
def tensor_of_a_terabyte_in_a_file_of_8_bytes(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [1 << 38], size=1 << 40))


@attack(ck.TruncatedFileError)
def offset_behind_the_file(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], offset=4, data=UNUSED))


@attack(ck.TruncatedFileError)
def offset_near_the_end_of_int64(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], offset=(1 << 63) - 9, data=UNUSED))


@attack(ck.FormatError)
def offset_and_size_overflow_int64(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], offset=(1 << 63) - 8, data=UNUSED))


@attack(ck.FormatError)
def negative_offset(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], offset=-8, data=UNUSED))


@attack(ck.FormatError)
def negative_size(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], size=-8))


@attack(ck.IncompleteBundleError)
def shard_number_of_31_bits(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], shard=(1 << 31) - 1, data=UNUSED))


@attack(ck.FormatError)
def shard_number_of_63_bits(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], shard=(1 << 63) - 1, data=UNUSED))


@attack(ck.FormatError)
def negative_shard_number(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], shard=-1, data=UNUSED))


@attack(ck.FormatError)
def element_type_that_does_not_exist(directory: Path) -> str:
    return one(directory, crafted.entry(99, [2], data=UNUSED))


@attack(ck.FormatError)
def element_type_of_64_bits(directory: Path) -> str:
    return one(directory, crafted.entry(1 << 63, [2], data=UNUSED))


@attack(ck.FormatError)
def no_element_type(directory: Path) -> str:
    return one(directory, encode_bytes_field(2, crafted.shape(2)) + encode_varint_field(5, 8))


@attack(ck.FormatError)
def reference_type(directory: Path) -> str:
    return one(directory, crafted.entry(101, [2], data=UNUSED))


@attack(ck.UnsupportedError, verifies=True)
def resource_handle(directory: Path) -> str:
    return one(directory, crafted.entry(RESOURCE, [2], data=UNUSED))


@attack(ck.FormatError)
def entry_that_is_no_proto(directory: Path) -> str:
    return one(directory, b"\xff" * 40)


@attack(ck.FormatError)
def proto_field_longer_than_its_message(directory: Path) -> str:
    return one(directory, b"\x08\x01\x12" + encode_varint((1 << 64) - 1) + b"\x12\x02\x08\x02")


@attack(ck.FormatError)
def proto_groups_nested_deeply(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], data=UNUSED) + b"\x4b" * 100_000)


@attack(ck.FormatError)
def varint_of_eleven_bytes(directory: Path) -> str:
    return one(directory, b"\x08" + b"\x80" * 10 + b"\x01" + b"\x12\x00")


@attack(ck.FormatError)
def varint_of_a_megabyte(directory: Path) -> str:
    return one(directory, b"\x08" + b"\x80" * (1 << 20))


@attack(ck.FormatError, heavy=True)
def a_megabyte_of_dimension_fields(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, encode_bytes_field(2, b"\x08\x01" * 500_000), size=8))


@attack(ck.FormatError)
def twenty_tensors_claim_the_same_bytes(directory: Path) -> str:
    data = bytes(4 << 20)
    entries: dict[str | bytes, bytes] = {
        f"x{number}" if number else "x": crafted.entry(FLOAT, [1 << 20], data=data) for number in range(20)
    }
    entries["x"] = crafted.entry(FLOAT, [3], data=bytes(16))
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError, opens=False)
def reader_of_today_is_too_old(directory: Path) -> str:
    return one(directory, b"", head=crafted.header(version=b"\x08\x02\x10\x02"))


@attack(ck.FormatError, opens=False)
def reader_of_today_is_refused(directory: Path) -> str:
    return one(directory, b"", head=crafted.header(version=b"\x08\x01\x1a\x01\x01"))


@attack(ck.FormatError, opens=False, heavy=True)
def a_million_refused_readers(directory: Path) -> str:
    refused = encode_bytes_field(3, b"\x07" * 1_000_000 + b"\x01")
    return one(directory, b"", head=crafted.header(version=refused))


@attack(ck.FormatError, opens=False)
def unknown_byte_order(directory: Path) -> str:
    return one(directory, b"", head=crafted.header(endianness=2))


@attack(ck.FormatError, opens=False)
def negative_number_of_shards(directory: Path) -> str:
    return one(directory, b"", head=crafted.header(-1))


@attack(ck.IncompleteBundleError)
def two_billion_shards(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], data=UNUSED), head=crafted.header((1 << 31) - 1))


@attack(ck.IncompleteBundleError)
def no_shards(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [2], data=UNUSED), head=crafted.header(0))


@attack(ck.FormatError, opens=False)
def header_that_is_no_proto(directory: Path) -> str:
    return one(directory, b"", head=b"\x0f\xff")


@attack(ck.FormatError, opens=False)
def no_header(directory: Path) -> str:
    return crafted.write_bundle(
        directory, crafted.index_of_items([(b"x", crafted.entry(FLOAT, [2], data=UNUSED))])
    )


@attack(ck.FormatError, opens=False)
def empty_table(directory: Path) -> str:
    return crafted.write_bundle(directory, crafted.table([]))


@attack(ck.FormatError)
def name_of_a_hundred_kilobytes(directory: Path) -> str:
    wrong = crafted.entry(99, [2])
    return crafted.write_bundle(directory, crafted.index({"x": wrong, "n" * 100_000: wrong}))


@attack(ck.FormatError)
def names_that_steer_a_terminal(directory: Path) -> str:
    wrong = crafted.entry(99, [2])
    return crafted.write_bundle(directory, crafted.index({"x": wrong, "\x1b[2J\x1b]0;owned\x07\r\n": wrong}))


@attack(ck.FormatError)
def names_that_are_not_utf8(directory: Path) -> str:
    wrong = crafted.entry(99, [2])
    return crafted.write_bundle(
        directory, crafted.index({"x": wrong, b"\xff\xfe\x80": wrong, b"\x00\xff": wrong})
    )
