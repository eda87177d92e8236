"""Reads of an object store: exact ranges, resumed, of one version, straight into the caller's memory."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import (
    AccessError,
    NotFoundError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import RULES, Kind
from ckptstore.storage.object_store.transport import ObjectName, ResponseHead, Sink, copy_into
from ckptstore.storage.values import SuffixRange
from ckptstore.types import ByteRange
from tests.unit.storage.object_store.scripted_transport import (
    FINE,
    ScriptedTransport,
    Step,
    after,
    before,
    storage_of,
)

KEY, NAME = "b/run/data", "run/data"


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport()


class _Answering(ScriptedTransport):
    """Answers every GET with the same headers and body."""

    def answer(self, head: ResponseHead, body: bytes) -> None:
        self._answer = head, body

    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        accept: Callable[[ResponseHead], Sink],
        **_: object,
    ) -> None:
        self.calls.append(("get", object_name.name))
        head, body = self._answer
        sink = accept(head)
        self.calls.append(("body", object_name.name))
        copy_into(body, sink)


def test_a_body_that_breaks_off_is_resumed_where_it_did(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"0123456789")
    transport.script("get", before(Kind.CUT), _half(), FINE)
    got = storage.get(KEY)
    assert (got.data, got.version, got.size_bytes) == (b"0123456789", version, 10)
    assert transport.asked("get") == [NAME, NAME, f"{NAME} bytes=5-9"]


def test_a_suffix_is_resumed_by_its_real_place(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, b"0123456789")
    transport.script("get", _half(), FINE)
    assert storage.get(KEY, SuffixRange(4)).data == b"6789"
    assert transport.asked("get") == [f"{NAME} bytes=-4", f"{NAME} bytes=8-9"]


def _half() -> Step:
    return after(Kind.CUT)


def test_a_resumed_read_never_mixes_two_versions(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, b"0123456789")
    step = _half()
    step.effect = lambda: transport.add_object(NAME, b"abcdefghij")
    transport.script("get", step)
    with pytest.raises(NotFoundError, match="replaced or deleted"):
        storage.get(KEY)


def test_a_body_that_always_breaks_off_is_given_up(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, b"0123456789")
    transport.script("get", *[before(Kind.CUT)] * 100)
    with pytest.raises(TransientError, match=f"after {RULES[Kind.CUT].tries} attempts"):
        storage.get(KEY)


def test_a_proxy_that_cuts_every_body_is_outlasted(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    data = random.Random(1).randbytes(2 << 20)
    transport.add_object(NAME, data)
    # Each attempt brings half of what is left, so for long more than 64 KiB.
    transport.script("get", *[_half()] * 12, FINE)
    assert storage.get(KEY).data == data


@pytest.mark.parametrize(
    "head",
    [
        ResponseHead(200, "v1", 1000, None),
        ResponseHead(200, "v1", 11, None),
    ],
)
def test_a_server_that_ignores_ranges_is_not_read_at_all(head: ResponseHead) -> None:
    transport = _Answering()
    storage = storage_of(transport)
    transport.answer(head, b"x" * 1000)
    with pytest.raises(UnsupportedError, match="the server or a proxy ignores it"):
        storage.get(KEY, ByteRange(0, 10))
    assert "body" not in [kind for kind, _ in transport.calls]


def test_an_answer_that_was_compressed_on_the_way_is_not_read() -> None:
    """It looks like one that was cut, and what follows would not fit."""
    transport = _Answering()
    storage = storage_of(transport)
    transport.answer(ResponseHead(206, "v1", None, "bytes 3-4/10", "gzip"), b"3")
    with pytest.raises(UnsupportedError, match="compressed on the way"):
        storage.get(KEY, ByteRange(3, 5))
    assert transport.calls == [("get", NAME)]
    # With its length: somebody stored the object with that word, and these are its bytes.
    transport.answer(ResponseHead(206, "v1", 2, "bytes 3-4/10", "gzip"), b"34")
    assert storage.get(KEY, ByteRange(3, 5)).data == b"34"


@pytest.mark.parametrize(
    ("wanted", "head", "body"),
    [
        (ByteRange(0, 10), ResponseHead(200, "v1", 10, None), b"0123456789"),
        (SuffixRange(48), ResponseHead(200, "v1", 10, None), b"0123456789"),
        (SuffixRange(48), ResponseHead(206, "v1", 10, "bytes 0-9/10"), b"0123456789"),
        (SuffixRange(48), ResponseHead(200, "v1", 0, None), b""),
        (SuffixRange(48), ResponseHead(206, "v1", 0, "bytes 0--1/0"), b""),
        (ByteRange(3, 5), ResponseHead(206, "v1", 2, "bytes 3-4/10"), b"34"),
    ],
)
def test_every_honest_answer_is_taken(
    wanted: ByteRange | SuffixRange, head: ResponseHead, body: bytes
) -> None:
    transport = _Answering()
    storage = storage_of(transport)
    transport.answer(head, body)
    assert storage.get(KEY, wanted).data == body


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (ResponseHead(206, "v1", 2, "bytes 4-5/10"), b"45"),
        (ResponseHead(206, "v1", 2, "bytes 3-5/10"), b"345"),
        (ResponseHead(206, "v1", 2, "bytes 3-4/*"), b"34"),
        (ResponseHead(206, "v1", 2, None), b"34"),
        (ResponseHead(206, "", 2, "bytes 3-4/10"), b"34"),
        (ResponseHead(206, "v1", 2, "bytes 3-4/10"), b"345"),
        (ResponseHead(206, "v1", 2, "bytes 3-4/10"), b"3"),
    ],
    ids=["elsewhere", "too many", "no size", "no place", "no version", "long body", "short body"],
)
def test_an_answer_that_does_not_fit_is_refused(head: ResponseHead, body: bytes) -> None:
    transport = _Answering()
    storage = storage_of(transport)
    transport.answer(head, body)
    with pytest.raises(TransientError):
        storage.get(KEY, ByteRange(3, 5))


def test_an_object_that_is_too_short_is_named_with_both_sizes(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, b"0123456789")
    for wanted in (ByteRange(8, 12), ByteRange(10, 12), ByteRange(20, 30)):
        with pytest.raises(TruncatedFileError) as caught:
            storage.get(KEY, wanted)
        assert (caught.value.expected, caught.value.actual) == (f"at least {wanted.stop} bytes", "10 bytes")


def test_a_suffix_of_an_empty_object_that_is_refused_is_empty(transport: ScriptedTransport) -> None:
    # AWS answers 416 there.
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"")
    got = storage.get(KEY, SuffixRange(48))
    assert (got.data, got.version, got.size_bytes) == (b"", version, 0)


@pytest.mark.parametrize("wanted", [ByteRange(3, 3), ByteRange(4, 2), SuffixRange(0)])
def test_an_empty_range_is_never_sent(transport: ScriptedTransport, wanted: ByteRange | SuffixRange) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, b"0123456789")
    with pytest.raises(UsageError):
        storage.get(KEY, wanted)
    storage.read_into(KEY, [ByteRange(3, 3)], [memoryview(bytearray())])
    assert not transport.calls


def test_neighbours_share_a_request_and_far_ranges_do_not(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, bytes(1 << 20))
    ranges = [ByteRange(0, 10), ByteRange(100, 200), ByteRange(500_000, 500_001), ByteRange(500_001, 500_002)]
    storage.read_into(KEY, ranges, [memoryview(bytearray(r.size_bytes)) for r in ranges], version=version)
    assert sorted(transport.asked("get")) == [f"{NAME} bytes=0-199", f"{NAME} bytes=500000-500001"]


def test_what_lies_between_neighbours_goes_nowhere(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    data = random.Random(2).randbytes(1 << 20)
    version = transport.add_object(NAME, data)
    # Small and large ones, with gaps of every kind between them; cut off in the middle.
    ranges = [ByteRange(*pair) for pair in ((5, 6), (6, 300_000), (340_000, 340_010), (340_010, 800_000))]
    buffers = [bytearray(extent.size_bytes) for extent in ranges]
    transport.script("get", _half(), FINE)
    storage.read_into(KEY, ranges, [memoryview(buffer) for buffer in buffers], version=version)
    assert [bytes(buffer) for buffer in buffers] == [data[extent.start : extent.stop] for extent in ranges]
    first, second = transport.asked("get")
    assert first == f"{NAME} bytes=5-799999"
    assert second.endswith("-799999")


def test_a_long_range_is_one_request_and_is_resumed_where_it_broke(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    data = random.Random(2).randbytes(20 << 20)
    version = transport.add_object(NAME, data)
    memory = bytearray(len(data))
    transport.script("get", _half(), before(Kind.CUT), FINE)
    storage.read_into(KEY, [ByteRange(0, len(data))], [memoryview(memory)], version=version)
    assert memory == data
    assert transport.asked("get") == [
        f"{NAME} bytes=0-{(20 << 20) - 1}",
        f"{NAME} bytes={10 << 20}-{(20 << 20) - 1}",
        f"{NAME} bytes={10 << 20}-{(20 << 20) - 1}",
    ]


def test_large_pieces_come_straight_into_the_callers_memory(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"0123456789" * 100_000)
    memory = np.zeros(900_000, np.uint8)
    small = bytearray(100)
    windows: list[memoryview] = []
    whole = transport.get

    def get(*args: object, accept: Callable[[ResponseHead], Sink], **kwargs: object) -> None:
        class Watched(Sink):
            def __init__(self, head: ResponseHead) -> None:
                self.inner = accept(head)

            def get_buffer(self) -> memoryview:
                windows.append(self.inner.get_buffer())
                return windows[-1]

            def buffer_updated(self, size_bytes: int) -> None:
                self.inner.buffer_updated(size_bytes)

        whole(*args, accept=Watched, **kwargs)  # type: ignore[arg-type]

    transport.get = get  # type: ignore[method-assign]
    # A small piece, a gap, and a large one.
    ranges = [ByteRange(0, 100), ByteRange(50_000, 950_000)]
    buffers = [memoryview(small), memory.data]
    storage.read_into(KEY, ranges, buffers, version=version)
    assert len(transport.asked("get")) == 1
    own = [buffer for buffer in windows if np.shares_memory(np.frombuffer(buffer, np.uint8), memory)]
    assert [len(buffer) for buffer in own] == [900_000]
    assert bytes(memory) == b"0123456789" * 90_000


def test_without_a_version_the_first_answer_pins_the_others(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object(NAME, bytes(1 << 20))
    answers = iter([lambda: None, lambda: transport.add_object(NAME, bytes(1 << 20))])

    whole = transport.get

    def get(*args: object, **kwargs: object) -> None:
        next(answers, lambda: None)()
        whole(*args, **kwargs)  # type: ignore[arg-type]

    transport.get = get  # type: ignore[method-assign]
    ranges = [ByteRange(0, 10), ByteRange(500_000, 500_010)]
    with pytest.raises(NotFoundError):
        storage.read_into(KEY, ranges, [memoryview(bytearray(10)) for _ in ranges])


def test_after_the_first_failure_nothing_more_is_asked(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, bytes(1 << 20))
    ranges = [ByteRange(start, start + 10) for start in range(0, 1 << 20, 1 << 18)]
    transport.script("get", FINE, before(Kind.FORBIDDEN))
    with pytest.raises(AccessError):
        storage.read_into(KEY, ranges, [memoryview(bytearray(10)) for _ in ranges], version=version)
    assert len(transport.asked("get")) == 2


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=20),
    st.integers(1, 50),
)
def test_any_set_of_ranges_arrives_exactly(wanted: list[tuple[int, int]], piece_bytes: int) -> None:
    transport = ScriptedTransport()
    storage = storage_of(transport)
    data = random.Random(4).randbytes(400)
    transport.add_object(NAME, data)
    whole = transport.get

    def in_pieces(*args: object, accept: Callable[[ResponseHead], Sink], **kwargs: object) -> None:
        class Narrow(Sink):
            def __init__(self, head: ResponseHead) -> None:
                self.inner = accept(head)

            def get_buffer(self) -> memoryview:
                return self.inner.get_buffer()[:piece_bytes]

            def buffer_updated(self, size_bytes: int) -> None:
                self.inner.buffer_updated(size_bytes)

        whole(*args, accept=Narrow, **kwargs)  # type: ignore[arg-type]

    transport.get = in_pieces  # type: ignore[method-assign]
    ranges = [ByteRange(start, start + size) for start, size in wanted]
    buffers = [bytearray(b"." * extent.size_bytes) for extent in ranges]
    storage.read_into(KEY, ranges, [memoryview(buffer) for buffer in buffers])
    assert [bytes(buffer) for buffer in buffers] == [data[extent.start : extent.stop] for extent in ranges]


def test_get_unless_is_one_request(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"0123456789")
    assert storage.get_unless(KEY, version) is None
    assert storage.get_unless(KEY, "another") == (b"0123456789", version, 10)
    assert transport.asked("get") == [NAME, NAME]
    assert not transport.asked("head")


def test_get_unless_goes_on_with_the_version_that_it_has_begun(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"0123456789")
    transport.script("get", _half(), FINE)
    assert storage.get_unless(KEY, "another") == (b"0123456789", version, 10)
    assert transport.asked("get") == [NAME, f"{NAME} bytes=5-9"]


def test_a_server_that_ignores_the_condition_has_nothing_new() -> None:
    transport = _Answering()
    storage = storage_of(transport)
    transport.answer(ResponseHead(200, "v1", 3, None), b"abc")
    assert storage.get_unless(KEY, "v1") is None
    assert storage.get_unless(KEY, "v0") == (b"abc", "v1", 3)
