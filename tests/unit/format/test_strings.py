"""The bytes of string and variant tensors."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import ChecksumError, CorruptError, FormatError, UnsupportedError
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import decode_entry, element_count
from ckptstore.format.strings import decode_strings, decode_variants, encode_strings, encode_variants
from ckptstore.format.table import Table

WHERE: dict[str, Any] = {"source": "x.data-00000-of-00001", "tensor": "w"}


def test_no_elements_still_have_a_checksum():
    payload, crc = encode_strings([])
    assert payload.hex() == "d8ea82a2"
    assert decode_strings(payload, 0, masked_crc32c=mask(crc), **WHERE) == []


def test_no_elements_may_also_have_no_bytes():
    assert decode_strings(b"", 0, **WHERE) == []
    assert decode_strings(b"", 0, masked_crc32c=mask(0), **WHERE) == []
    with pytest.raises(ChecksumError):
        decode_strings(b"", 0, masked_crc32c=0, **WHERE)


@pytest.mark.parametrize(
    ("values", "head"),
    [
        ([b"scalar"], "06" + "1c03ee55"),
        ([b"", b"a" * 200, "é".encode(), b"x\0"], "00c8010202" + "a084830b"),
        ([b"z" * 70_000], "f0a204" + "5b22ad2e"),
    ],
)
def test_lengths_and_checksum_are_tensorflows(values, head):
    payload, _ = encode_strings(values)
    assert payload == bytes.fromhex(head) + b"".join(values)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_strings_round_trip(values):
    payload, crc = encode_strings(values)
    assert decode_strings(payload, len(values), masked_crc32c=mask(crc), **WHERE) == values
    assert decode_strings(memoryview(bytearray(payload)), len(values), **WHERE) == values


def test_string_tensors_of_the_fixtures_round_trip(fixtures_dir):
    found = 0
    for path in fixtures_dir.rglob("*.index"):
        if path.parent.name == "14_crafted":
            continue
        for key, value in Table.from_bytes(path.read_bytes(), source="s").items():
            entry = decode_entry(value, source="s", tensor="w") if key else None
            if entry is None or entry.dtype_enum not in (7, 21) or entry.slices:
                continue
            shards = sorted(path.parent.glob(f"{path.stem}.data-{entry.shard_id:05d}-of-*"))
            payload = shards[0].read_bytes()[entry.offset : entry.offset + entry.size_bytes]
            decode, encode = (
                (decode_strings, encode_strings)
                if entry.dtype_enum == 7
                else (decode_variants, encode_variants)
            )
            values = decode(payload, element_count(entry.shape), masked_crc32c=entry.masked_crc32c, **WHERE)
            again, crc = encode(values)
            assert (again, mask(crc)) == (payload, entry.masked_crc32c)
            found += 1
    assert found >= 15


def test_a_big_endian_file_has_big_endian_lengths_and_checksum_in_its_crc():
    values = [b"ab", b"", b"c" * 300]
    lengths = struct.pack(">3I", 2, 0, 300)
    stored = struct.pack(">I", mask(crc32c(lengths)))
    payload = bytes.fromhex("0200ac02") + stored + b"".join(values)
    whole = mask(crc32c(b"".join(values), crc32c(stored, crc32c(lengths))))
    assert decode_strings(payload, 3, big_endian=True, masked_crc32c=whole, **WHERE) == values
    with pytest.raises(ChecksumError):
        decode_strings(payload, 3, masked_crc32c=whole, **WHERE)


def test_damaged_lengths_and_damaged_bytes_are_told_apart():
    payload, crc = encode_strings([b"abc", b"de"])
    with pytest.raises(ChecksumError, match="length checksum does not match") as caught:
        decode_strings(b"\x02\x03" + payload[2:], 2, masked_crc32c=mask(crc), offset=100, **WHERE)
    assert caught.value.offset == 102
    with pytest.raises(ChecksumError, match="Checksum does not match") as caught:
        decode_strings(payload[:-1] + b"x", 2, masked_crc32c=mask(crc), offset=100, **WHERE)
    assert caught.value.offset == 100
    assert caught.value.tensor == "w"
    assert caught.value.expected == f"{crc:#010x}"


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (b"", 1),
        (b"\x01abc", 2**60),
        (b"\x00" * 8, 5),
        (b"\x80" * 20, 1),
        (b"\xff" * 9 + b"\x01" + bytes(4), 1),
        (b"\x80\x01" + bytes(3), 1),
        (encode_strings([b"abc"])[0] + b"x", 1),
        (encode_strings([b"abc"])[0][:-1], 1),
        (encode_strings([b"abc"])[0], 0),
        (b"\x00" * 3, 0),
    ],
)
def test_payloads_that_cannot_be(payload, count):
    with pytest.raises(FormatError) as caught:
        decode_strings(payload, count, **WHERE)
    assert (caught.value.url, caught.value.tensor) == (WHERE["source"], "w")


def test_variants_keep_one_running_checksum():
    protos = [b"first", b"", b"third" * 100]
    payload, crc = encode_variants(protos)
    running = crc32c(b"first", crc32c(struct.pack("<Q", 5)))
    assert payload[:10] == b"\x05first" + struct.pack("<I", mask(running))
    assert decode_variants(payload, 3, masked_crc32c=mask(crc), **WHERE) == protos
    assert encode_variants([]) == (b"", 0)
    assert decode_variants(b"", 0, masked_crc32c=mask(0), **WHERE) == []


def test_a_damaged_variant_is_named():
    payload, crc = encode_variants([b"first", b"second"])
    with pytest.raises(ChecksumError, match="variant element 1") as caught:
        decode_variants(payload.replace(b"second", b"secomd"), 2, offset=7, **WHERE)
    assert caught.value.offset == 7 + 10
    with pytest.raises(ChecksumError):
        decode_variants(payload, 2, masked_crc32c=mask(crc) ^ 1, **WHERE)


@pytest.mark.parametrize(
    "payload", [b"", b"\x05", b"\x05fir", b"\xff" * 12, encode_variants([b"a"])[0] + b"x"]
)
def test_variant_payloads_that_cannot_be(payload):
    with pytest.raises(FormatError):
        decode_variants(payload, 1, **WHERE)
    with pytest.raises(FormatError):
        decode_variants(payload, 2**60, **WHERE)


def test_variants_of_a_big_endian_file_are_unsupported():
    with pytest.raises(UnsupportedError):
        decode_variants(b"", 0, big_endian=True, **WHERE)


@given(st.binary(max_size=40), st.integers(0, 10), st.booleans())
def test_any_bytes_end_in_strings_or_a_typed_error(payload, count, big_endian):
    for decode in (decode_strings, decode_variants):
        error = None
        try:
            decode(payload, count, big_endian=big_endian, **WHERE)
        except (CorruptError, UnsupportedError) as caught:
            error = caught
        assert error is None or error.tensor == "w"


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=5), st.data())
def test_every_flipped_bit_is_found(values, data):
    for encode, decode in ((encode_strings, decode_strings), (encode_variants, decode_variants)):
        payload, crc = encode(values)
        damaged = bytearray(payload)
        damaged[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(CorruptError):
            decode(bytes(damaged), len(values), masked_crc32c=mask(crc), **WHERE)
