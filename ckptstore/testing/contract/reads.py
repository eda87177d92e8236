"""`get`, `read_into` and `head`."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ckptstore.errors import NotFoundError, TruncatedFileError, UsageError
from ckptstore.storage.base import Location
from ckptstore.storage.values import SuffixRange
from ckptstore.testing.contract.base import ContractBase, replace_object
from ckptstore.types import ByteRange

__all__ = ["ReadContract"]

_DIGITS = b"0123456789"


def _ways_to_read(location: Location) -> list[Callable[[str | None], object]]:
    storage, key = location.storage, location.key
    return [
        lambda version: storage.get(key, version=version),
        lambda version: storage.get(key, ByteRange(0, 4), version=version),
        lambda version: storage.get(key, SuffixRange(4), version=version),
        lambda version: storage.read_into(
            key, [ByteRange(0, 4)], [memoryview(bytearray(4))], version=version
        ),
    ]


class ReadContract(ContractBase):
    """Reading: exact bytes, of one version, or an error that says what is missing."""

    @pytest.fixture
    def digits(self, directory: Location) -> Location:
        location = directory.child("digits")
        self.put_raw(location, _DIGITS)
        return location

    def test_get_returns_all_bytes_and_the_size(self, digits: Location) -> None:
        got = digits.storage.get(digits.key)
        assert got.data == _DIGITS
        assert got.size_bytes == 10
        assert got.version

    def test_get_of_an_empty_object_returns_no_bytes(self, directory: Location) -> None:
        location = directory.child("empty")
        self.put_raw(location, b"")
        got = location.storage.get(location.key)
        assert (got.data, got.size_bytes) == (b"", 0)

    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 7), (9, 10), (0, 10)])
    def test_get_of_a_range_returns_its_bytes_and_the_whole_size(
        self, digits: Location, start: int, stop: int
    ) -> None:
        got = digits.storage.get(digits.key, ByteRange(start, stop))
        assert got.data == _DIGITS[start:stop]
        assert got.size_bytes == 10
        assert got.version == digits.storage.head(digits.key).version

    @pytest.mark.parametrize(
        ("size_bytes", "expected"), [(1, b"9"), (4, b"6789"), (10, _DIGITS), (48, _DIGITS)]
    )
    def test_a_suffix_range_gives_the_end_or_all_of_a_shorter_object(
        self, digits: Location, size_bytes: int, expected: bytes
    ) -> None:
        got = digits.storage.get(digits.key, SuffixRange(size_bytes))
        assert got.data == expected
        assert got.size_bytes == 10

    def test_a_suffix_of_an_empty_object_is_empty(self, directory: Location) -> None:
        location = directory.child("empty")
        self.put_raw(location, b"")
        assert location.storage.get(location.key, SuffixRange(48)).data == b""

    @pytest.mark.parametrize(("start", "stop"), [(5, 11), (10, 11), (100, 200)])
    def test_a_range_that_ends_behind_the_object_is_a_truncated_file(
        self, digits: Location, start: int, stop: int
    ) -> None:
        with pytest.raises(TruncatedFileError) as caught:
            digits.storage.get(digits.key, ByteRange(start, stop))
        assert caught.value.url == digits.storage.url_of(digits.key)
        assert str(stop) in (caught.value.expected or "")
        assert "10" in (caught.value.actual or "")

    @pytest.mark.parametrize(
        "byte_range", [ByteRange(3, 3), ByteRange(4, 2), ByteRange(-1, 2), SuffixRange(0)]
    )
    def test_an_empty_or_inverted_range_is_never_asked_for(
        self, digits: Location, byte_range: ByteRange | SuffixRange
    ) -> None:
        # Servers answer "bytes=3-2" with an error or with the whole object.
        with pytest.raises(UsageError):
            digits.storage.get(digits.key, byte_range)

    def test_what_is_not_there_is_not_found_and_named(self, directory: Location) -> None:
        # Once in a directory that is there, once in one that is not.
        self.put_raw(directory.child("other"), b"x")
        for location in (directory.child("absent"), directory.child("no").child("where")):
            for read in _ways_to_read(location):
                with pytest.raises(NotFoundError) as caught:
                    read(None)
                assert caught.value.url == location.storage.url_of(location.key)
            with pytest.raises(NotFoundError):
                location.storage.head(location.key)

    def test_a_pinned_version_is_read(self, digits: Location) -> None:
        version = digits.storage.head(digits.key).version
        for read in _ways_to_read(digits):
            read(version)

    def test_a_pinned_version_that_was_replaced_is_not_found(self, digits: Location) -> None:
        version = digits.storage.head(digits.key).version
        self.put_raw(digits, b"abcdefghij")
        for read in _ways_to_read(digits):
            with pytest.raises(NotFoundError):
                read(version)

    def test_a_change_by_somebody_else_is_another_version(self, digits: Location) -> None:
        before = digits.storage.get(digits.key)
        assert digits.storage.get(digits.key).version == before.version
        self.put_raw(digits, b"9876543210")
        after = digits.storage.get(digits.key)
        assert after.data == b"9876543210"
        assert after.version != before.version

    def test_head_says_what_get_says(self, digits: Location) -> None:
        info = digits.storage.head(digits.key)
        got = digits.storage.get(digits.key)
        assert (info.key, info.size_bytes, info.version) == (digits.key, got.size_bytes, got.version)
        # After 2001 and before 2100, in seconds.
        assert 1e9 < info.mtime_s < 4.1e9

    def test_read_into_fills_buffers_in_any_order_overlapping_and_empty(self, digits: Location) -> None:
        wanted = [(7, 10), (0, 3), (2, 8), (4, 4), (3, 7), (0, 10), (10, 10), (0, 0)]
        buffers = [bytearray(stop - start) for start, stop in wanted]
        digits.storage.read_into(
            digits.key, [ByteRange(*extent) for extent in wanted], [memoryview(buffer) for buffer in buffers]
        )
        assert [bytes(buffer) for buffer in buffers] == [_DIGITS[start:stop] for start, stop in wanted]

    def test_read_into_nothing_reads_nothing(self, digits: Location) -> None:
        digits.storage.read_into(digits.key, [], [])

    def test_read_into_writes_only_into_its_buffers(self, digits: Location) -> None:
        memory = bytearray(b"." * 12)
        view = memoryview(memory)
        digits.storage.read_into(digits.key, [ByteRange(0, 2), ByteRange(2, 5)], [view[1:3], view[6:9]])
        assert memory == b".01...234..."

    def test_read_into_thousands_of_neighbours(self, directory: Location) -> None:
        chance = random.Random(5)
        data = chance.randbytes(100_000)
        location = directory.child("many")
        self.put_raw(location, data)
        cuts = sorted(chance.choices(range(len(data) + 1), k=5000))
        ranges = [ByteRange(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        memory = bytearray(len(data))
        view = memoryview(memory)
        location.storage.read_into(
            location.key, ranges, [view[extent.start : extent.stop] for extent in ranges]
        )
        assert memory == data

    def test_read_into_takes_views_of_other_items_than_bytes(self, digits: Location) -> None:
        memory = bytearray(8)
        digits.storage.read_into(digits.key, [ByteRange(1, 9)], [memoryview(memory).cast("I")])
        assert memory == b"12345678"

    def test_read_into_beyond_the_end_is_a_truncated_file(self, digits: Location) -> None:
        with pytest.raises(TruncatedFileError) as caught:
            digits.storage.read_into(
                digits.key,
                [ByteRange(0, 2), ByteRange(8, 11)],
                [memoryview(bytearray(2)), memoryview(bytearray(3))],
            )
        assert caught.value.url == digits.storage.url_of(digits.key)
        assert caught.value.offset == 8

    @pytest.mark.parametrize(
        ("ranges", "buffers"),
        [
            ([ByteRange(0, 3)], [memoryview(bytearray(2))]),
            ([ByteRange(0, 3)], [memoryview(bytearray(4))]),
            ([ByteRange(0, 3)], []),
            ([ByteRange(0, 3)], [memoryview(b"abc")]),
            ([ByteRange(3, 0)], [memoryview(bytearray(3))]),
            ([ByteRange(0, 3)], [memoryview(bytearray(6))[::2]]),
        ],
        ids=["short", "long", "none", "read-only", "inverted", "strided"],
    )
    def test_read_into_refuses_buffers_that_do_not_fit(
        self, digits: Location, ranges: list[ByteRange], buffers: list[memoryview]
    ) -> None:
        with pytest.raises(UsageError):
            digits.storage.read_into(digits.key, ranges, buffers)

    def test_get_into_fills_a_buffer_and_says_what_is_there(
        self, digits: Location, directory: Location
    ) -> None:
        whole = digits.storage.get(digits.key)
        for wanted in (ByteRange(0, whole.size_bytes), ByteRange(2, 5)):
            memory = bytearray(b"." * wanted.size_bytes)
            found = digits.storage.get_into(digits.key, wanted, memoryview(memory))
            assert found == (whole.version, whole.size_bytes)
            assert memory == whole.data[wanted.start : wanted.stop]
        beyond = ByteRange(2, whole.size_bytes + 1)
        with pytest.raises(TruncatedFileError):
            digits.storage.get_into(digits.key, beyond, memoryview(bytearray(beyond.size_bytes)))
        missing = directory.child("missing")
        with pytest.raises(NotFoundError):
            missing.storage.get_into(missing.key, ByteRange(0, 1), memoryview(bytearray(1)))

    @pytest.mark.parametrize("byte_range", [None, SuffixRange(48)])
    def test_get_unless_returns_nothing_while_the_version_is_there(
        self, digits: Location, byte_range: SuffixRange | None
    ) -> None:
        version = digits.storage.get(digits.key).version
        assert digits.storage.get_unless(digits.key, version, byte_range) is None
        replace_object(digits, b"another")
        got = digits.storage.get_unless(digits.key, version, byte_range)
        assert got == digits.storage.get(digits.key)
        assert got is not None
        assert got.data == b"another"
        assert digits.storage.get_unless(digits.key, got.version, byte_range) is None

    def test_get_unless_of_a_missing_object_is_not_found(self, digits: Location, directory: Location) -> None:
        version = digits.storage.get(digits.key).version
        missing = directory.child("missing")
        with pytest.raises(NotFoundError):
            missing.storage.get_unless(missing.key, version)

    def test_reading_adds_nothing_to_the_directory(self, directory: Location, digits: Location) -> None:
        for read in _ways_to_read(digits):
            read(None)
        digits.storage.head(digits.key)
        assert [info.key for info in digits.storage.list(f"{directory.key}/")] == [digits.key]
