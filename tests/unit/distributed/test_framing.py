"""Messages travel whole or not at all, and bytes of somebody else are a typed error."""

from __future__ import annotations

import struct

import pytest

import ckptstore as ck
from ckptstore.distributed.framing import join, read_head, split

WHAT = "the message of rank 2"


@pytest.mark.parametrize("size", [0, 1, 999, 1004, 1005, 1024, 1025, 10_000])
def test_a_message_comes_back(size):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    head, parts = split(data, 1024)
    assert max(map(len, [head, *parts])) <= 1024
    assert join(read_head(head, WHAT), parts, WHAT) == data


def test_a_large_message_leaves_only_its_head_where_the_chief_looks():
    head, parts = split(bytes(1 << 20), 1 << 20)
    assert len(head) < 100
    assert [len(part) for part in parts] == [1 << 20]


def head_of(magic=b"ckM1", parts=0, size=0, crc=0):
    return struct.pack("<4sIQI", magic, parts, size, crc)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ckM1",
        b"\x80\x04\x95pickle me, please, here I am",
        head_of(magic=b"ckM2"),
        head_of(size=5),
        head_of() + b"more",
        head_of(size=1 << 62, parts=1),
        head_of(size=(64 << 20) + 1, parts=65),
        head_of(size=3, parts=4),
        head_of(size=1 << 20, parts=1) + b"inline too",
    ],
)
def test_what_is_no_message_is_a_typed_error(value):
    with pytest.raises(ck.CorruptError, match="rank 2 is not what a rank of this job sends"):
        read_head(value, WHAT)


def test_changed_bytes_are_noticed():
    head, parts = split(bytes(5000), 1024)
    parts[2] = b"x" + parts[2][1:]
    with pytest.raises(ck.CorruptError, match="checksum"):
        join(read_head(head, WHAT), parts, WHAT)
    with pytest.raises(ck.CorruptError, match="do not have the 5000 bytes"):
        join(read_head(head, WHAT), parts[1:], WHAT)
    with pytest.raises(ck.CorruptError, match="do not have the 5000 bytes"):
        join(read_head(head, WHAT), [*parts, b"more"], WHAT)
