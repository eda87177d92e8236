"""Header and entries of a bundle's index."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import CorruptError, FormatError, UnsupportedError, UsageError
from ckptstore.format import entry as entry_module
from ckptstore.format.coding import encode_bytes_field, encode_varint_field
from ckptstore.format.entry import (
    BundleEntry,
    BundleHeader,
    check_entry,
    decode_entry,
    decode_header,
    element_count,
    encode_entry,
    encode_header,
    key_to_name,
    name_to_key,
)
from ckptstore.format.table import Table
from ckptstore.types import Slice


def decode(data: bytes) -> BundleEntry:
    return decode_entry(data, source="x.index", tensor="w")


def shape_field(*dims: int) -> bytes:
    return encode_bytes_field(2, b"".join(encode_bytes_field(2, encode_varint_field(1, n)) for n in dims))


class TestHeader:
    @pytest.mark.parametrize(
        ("header", "hex_bytes"),
        [
            (BundleHeader(1), "08011a020801"),
            (BundleHeader(300), "08ac021a020801"),
            (BundleHeader(2, big_endian=True), "080210011a020801"),
            (
                BundleHeader(1, producer=2, min_consumer=1, bad_consumers=(7, 300)),
                "08011a0908021001" + "1a0307ac02",
            ),
            (BundleHeader(0, producer=0), "1a00"),
        ],
    )
    def test_bytes(self, header, hex_bytes):
        assert encode_header(header).hex() == hex_bytes
        assert decode_header(bytes.fromhex(hex_bytes), source="s") == header

    def test_a_missing_version_is_accepted(self):
        assert decode_header(b"\x08\x03", source="s") == BundleHeader(3, producer=0)

    def test_a_newer_producer_is_fine_and_unknown_fields_are_skipped(self):
        assert decode_header(bytes.fromhex("08011a020863") + b"\x22\x02hi", source="s").producer == 99

    def test_bad_consumers_may_come_unpacked(self):
        assert decode_header(bytes.fromhex("08011a0418021803"), source="s").bad_consumers == (2, 3)

    def test_a_bundle_for_newer_readers_is_refused_in_tensorflows_words(self):
        with pytest.raises(
            FormatError, match="Checkpoint min consumer version 2 above current version 1"
        ) as caught:
            decode_header(encode_header(BundleHeader(1, min_consumer=2)), source="x.index")
        assert "upgrade" in (caught.value.hint or "")
        assert caught.value.url == "x.index"
        decode_header(encode_header(BundleHeader(1, min_consumer=1)), source="s")

    def test_a_bundle_that_refuses_this_version_is_refused(self):
        with pytest.raises(FormatError, match="disallows consumer version 1"):
            decode_header(encode_header(BundleHeader(1, bad_consumers=(3, 1))), source="s")

    @pytest.mark.parametrize(
        "data",
        [
            b"\x08",
            b"\x0a\x00",
            b"\x10\x02",
            b"\x18\x01",
            b"\x1a\x02\x0a\x00",
            b"\x08" + b"\xff" * 9 + b"\x01",
            b"\x1a\x05",
        ],
    )
    def test_malformed_headers(self, data):
        with pytest.raises(FormatError):
            decode_header(data, source="s")

    @given(st.binary(max_size=40))
    def test_any_bytes_end_in_a_header_or_a_typed_error(self, data):
        error = None
        try:
            decode_header(data, source="s")
        except FormatError as caught:
            error = caught
        assert error is None or error.url == "s"


ENTRIES = st.builds(
    BundleEntry,
    st.integers(0, 300),
    st.lists(st.integers(0, 2000), max_size=5).map(tuple),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**62),
    st.integers(0, 2**40),
    st.integers(0, 2**32 - 1),
    st.just(()),
)


class TestEntry:
    @pytest.mark.parametrize(
        ("entry", "hex_bytes"),
        [
            (BundleEntry(1, (2,), 0, 0, 8, 0x35E53C59), "0801120412020802280835593ce535"),
            (BundleEntry(1, (), 0, 0, 4, 1), "0801120028043501000000"),
            (
                BundleEntry(1, (0, 3), 2, 300, 0, 0xA282EAD8),
                "080112061200120208031802" + "20ac02" + "35d8ea82a2",
            ),
            (
                BundleEntry(1, (40, 3), slices=(Slice(((0, 14), (0, -1))), Slice(((14, 26), (0, 3))))),
                "0801"
                + "1208"
                + "12020828"
                + "12020803"
                + "3a06"
                + "0a02100e"
                + "0a00"
                + "3a0a"
                + "0a04080e101a"
                + "0a021003",
            ),
            (
                BundleEntry(1, (3,), slices=(Slice(((1, 0),)),)),
                "0801" + "1204" + "12020803" + "3a06" + "0a0408011000",
            ),
        ],
    )
    def test_bytes(self, entry, hex_bytes):
        assert encode_entry(entry).hex() == hex_bytes
        assert decode(bytes.fromhex(hex_bytes)) == entry

    @given(ENTRIES)
    def test_round_trip(self, entry):
        assert decode(encode_entry(entry)) == entry

    @given(ENTRIES, st.data())
    def test_the_fast_way_agrees_with_the_general_one(self, entry, data):
        raw = bytearray(encode_entry(entry))
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            fast = entry_module.decode_usual_entry(bytes(raw))
        except FormatError:
            with pytest.raises(FormatError):
                entry_module._decode_any_layout(bytes(raw))
        else:
            if fast is not None:
                assert fast == entry_module._decode_any_layout(bytes(raw))

    def test_every_fixture_goes_the_fast_way_unless_it_is_sliced(self, fixtures_dir):
        for path in fixtures_dir.rglob("*.index"):
            for key, value in Table.from_bytes(path.read_bytes(), source="s").items():
                if key:
                    entry = decode(value)
                    assert encode_entry(entry) == value
                    assert (entry_module.decode_usual_entry(value) is None) == bool(entry.slices)
                    check_entry(entry, source="s", tensor="w")

    def test_fields_in_another_order_and_unknown_ones_are_understood(self):
        data = (
            b"\x35\x01\x00\x00\x00"
            + b"\x28\x08"
            + b"\x42\x03new"
            + shape_field(2)
            + b"\x08\x01"
            + b"\x50\x07"
        )
        assert decode(data) == BundleEntry(1, (2,), 0, 0, 8, 1)

    def test_a_missing_shape_is_a_scalar(self):
        assert decode(b"\x08\x01\x28\x04") == BundleEntry(1, (), 0, 0, 4)

    @pytest.mark.parametrize(
        ("data", "complaint"),
        [
            (b"\x08\x01" + shape_field(-1), "Invalid tensor shape: a dimension is negative"),
            (b"\x08\x01" + encode_bytes_field(2, b"\x18\x01"), "Invalid tensor shape: unknown rank"),
            (b"\x08\x01" + shape_field(*[2**50] * 4), "Invalid tensor shape: too many elements"),
            (b"\x08\x01" + shape_field(2**62, 2, 0), "Invalid tensor shape: too many elements"),
            (b"\x08\x01" + shape_field(*[1] * 255), "Invalid tensor shape: too many dimensions"),
            (shape_field(1) + shape_field(1), "two shapes"),
            (encode_varint_field(4, -1), "out of range"),
            (encode_varint_field(5, -1), "out of range"),
            (encode_varint_field(3, -1), "out of range"),
            (encode_varint_field(1, -1), "out of range"),
            (encode_varint_field(4, 2**63 - 1) + encode_varint_field(5, 1), "out of range"),
            (b"\x08\x01\x12\x00" + encode_varint_field(3, 2**31), "out of range"),
            (b"\x0a\x00", "wrong wire type"),
            (b"\x30\x01", "wrong wire type"),
            (b"\x10\x01", "wrong wire type"),
            (b"\x38\x01", "wrong wire type"),
            (b"\x08", "past the end"),
            (b"\x08\x01\x12\x05\x12", "past the end"),
            (b"\x08\x01\x12\x00\x35\x00", "past the end"),
            (b"\x08\x01\x12\x00\x20\x80", "past the end"),
            (b"\x08\x01\x12\x00\x20" + b"\xff" * 10, "64 bits"),
            (shape_field(3) + bytes.fromhex("3a060a0408021002"), "out of bounds"),
            (shape_field(3) + bytes.fromhex("3a0c0a04080010010a0408001001"), "Mismatching ranks"),
            (shape_field(3) + bytes.fromhex("3a040a020801"), "a start but no length"),
            (b"\x12\x00\x3a\x00", "a scalar has no slices"),
            (
                shape_field(3) + encode_bytes_field(7, encode_bytes_field(1, encode_varint_field(2, -1))),
                "negative",
            ),
            (
                shape_field(3) + encode_bytes_field(7, encode_bytes_field(1, encode_varint_field(1, -1))),
                "negative",
            ),
        ],
    )
    def test_malformed_entries_name_file_and_tensor(self, data, complaint):
        with pytest.raises(FormatError, match=complaint) as caught:
            decode(data)
        assert (caught.value.url, caught.value.tensor) == ("x.index", "w")

    @given(st.binary(max_size=60))
    def test_any_bytes_end_in_an_entry_or_a_typed_error(self, data):
        error = None
        try:
            decode(data)
        except FormatError as caught:
            error = caught
        assert error is None or error.url == "x.index"


class TestCheckEntry:
    def test_the_type_is_returned(self):
        assert check_entry(BundleEntry(11, (3,), 0, 0, 3), source="s", tensor="w").name == "qint8"

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            (BundleEntry(1, (2,), 0, 0, 12), "8 bytes for shape [2] of float32"),
            (BundleEntry(29, (3,), 0, 0, 2), "3 bytes for shape [3] of int4"),
            (BundleEntry(1, (2**60,), 0, 0, 8), f"{2**62} bytes"),
            (BundleEntry(7, (3,), 0, 0, 6), "at least 7 bytes"),
            (BundleEntry(7, (2**60,), 0, 0, 100), f"at least {2**60 + 4} bytes"),
            (BundleEntry(7, (0,), 0, 0, 3), "at least 4 bytes"),
            (BundleEntry(21, (2,), 0, 0, 9), "at least 10 bytes"),
        ],
    )
    def test_a_size_that_cannot_be_is_refused(self, entry, expected):
        with pytest.raises(FormatError, match="Invalid size in bundle entry") as caught:
            check_entry(entry, source="s", tensor="w")
        assert expected in (caught.value.expected or "")
        assert caught.value.actual == str(entry.size_bytes)

    @pytest.mark.parametrize("size", [0, 4])
    def test_no_strings_take_nothing_or_a_checksum(self, size):
        assert check_entry(BundleEntry(7, (0, 5), 0, 0, size), source="s", tensor="w").name == "string"

    @pytest.mark.parametrize("number", [0, 34, 101, 133, 2**31 - 1])
    def test_an_unknown_type_is_refused(self, number):
        with pytest.raises(FormatError, match="type"):
            check_entry(BundleEntry(number, ()), source="s", tensor="w")

    @pytest.mark.parametrize(
        "entry",
        [
            BundleEntry(1, (1,) * 65, 0, 0, 4),
            BundleEntry(8, (0, 2**62)),
            BundleEntry(7, (0, 2**61)),
            BundleEntry(20, ()),
        ],
    )
    def test_what_numpy_cannot_hold_is_unsupported(self, entry):
        with pytest.raises(UnsupportedError):
            check_entry(entry, source="s", tensor="w")

    def test_the_size_of_a_sliced_tensor_means_nothing(self):
        entry = BundleEntry(1, (4,), slices=(Slice(((0, 2),)),))
        assert check_entry(entry, source="s", tensor="w").name == "float32"


@pytest.mark.parametrize(("shape", "count"), [((), 1), ((3, 4), 12), ((0, 2**62), 0), ((2**62, 1), 2**62)])
def test_element_count(shape, count):
    assert element_count(shape) == count


class TestNames:
    @given(st.binary(min_size=1, max_size=20))
    def test_any_key_survives_as_a_name(self, key):
        assert name_to_key(key_to_name(key)) == key

    def test_text_is_utf8(self):
        assert name_to_key("é世") == "é世".encode()

    @pytest.mark.parametrize("name", ["", "\ud800"])
    def test_names_that_have_no_key_are_refused(self, name):
        with pytest.raises(UsageError, match="name"):
            name_to_key(name)


def test_errors_are_corrupt_errors():
    assert issubclass(FormatError, CorruptError)
