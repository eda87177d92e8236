"""A resumable upload to a server of the test's own making: nothing is sent twice that may be there."""

from __future__ import annotations

import re
from functools import partial

import pytest

from ckptstore.checksums import crc32c
from ckptstore.storage.gcs.resumable import ResumableSession
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import PutResult
from ckptstore.storage.wire.exchange import HttpRequest, HttpResponse

UNIT = 4  # this server keeps whole multiples of 4 bytes of an unfinished object
RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


class Server:
    """Keeps bytes as the service documents; each of `faults` comes after so many bytes of a request."""

    def __init__(self) -> None:
        self.kept = b""
        self.is_finished = False
        self.faults: list[tuple[int, Fault]] = []
        self.limit = 1 << 60
        self.seen: list[str] = []
        self.answers: dict[int, HttpResponse] = {}

    def exchange(self, request: HttpRequest, attempts: Attempts) -> HttpResponse:
        if request.method == "DELETE":
            self.seen.append("DELETE")
            return self.answers.get(len(self.seen), HttpResponse(499, {}, b""))
        content_range = request.headers["Content-Range"]
        self.seen.append(content_range)
        if len(self.seen) in self.answers:
            return self.answers[len(self.seen)]
        found = RANGE.fullmatch(content_range)
        assert found is not None
        body = b"".join(bytes(piece) for piece in request.body)
        fault = None
        if body:
            assert int(found[2]) - int(found[1]) + 1 == len(body)
            assert int(found[1]) == len(self.kept), "sent what was there already, or left a gap"
            if self.faults:
                size_bytes, fault = self.faults.pop(0)
                body = body[:size_bytes]
            body = body[: self.limit]
            is_end = found[3] != "*" and len(self.kept) + len(body) == int(found[3])
            if not is_end:
                body = body[: (len(self.kept) + len(body)) // UNIT * UNIT - len(self.kept)]
            self.kept += body
        if found[3] != "*" and len(self.kept) == int(found[3]):
            self.is_finished = True
        if fault is not None:
            raise fault
        if self.is_finished:
            return HttpResponse(200, {}, b"done")
        return HttpResponse(308, {"Range": f"bytes=0-{len(self.kept) - 1}"} if self.kept else {}, b"")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def session(server: Server) -> ResumableSession:
    return ResumableSession(
        "http://host/upload?upload_id=s3cret", server.exchange, lambda answer: PutResult("7", 1)
    )


def run_attempts(call, tries: int = 5):
    """Make the call as the retry layer does, without its pauses."""
    attempts = Attempts(RetryPolicy(pause_scale=0.0), RetryBudget())
    for _ in range(tries - 1):
        attempts.begin()
        try:
            return call(attempts)
        except Fault as fault:
            if fault.kind is not Kind.CUT:
                raise
    attempts.begin()
    return call(attempts)


def send_all(session: ResumableSession, data: bytes, chunk: int) -> PutResult:
    view = memoryview(data)
    whole = (len(data) - 1) // chunk * chunk if data else 0
    for number, offset in enumerate(range(0, whole, chunk)):
        piece = view[offset : offset + chunk]
        run_attempts(partial(session.send, number, offset, (piece,), crc32c(piece)))
    return run_attempts(lambda attempts: session.complete((view[whole:],), len(data), crc32c(data), attempts))


DATA = bytes(range(37))


def test_chunks_come_in_order_and_the_last_one_names_the_total(
    server: Server, session: ResumableSession
) -> None:
    assert send_all(session, DATA, 16) == PutResult("7", 1)
    assert server.seen == ["bytes 0-15/*", "bytes 16-31/*", "bytes 32-36/37"]
    assert server.kept == DATA


@pytest.mark.parametrize("kept", range(17))
@pytest.mark.parametrize("number", [0, 1])
def test_after_a_fault_only_what_is_missing_is_sent(
    server: Server, session: ResumableSession, number: int, kept: int
) -> None:
    cut = Fault(Kind.CUT, "gone")
    server.faults = [(1 << 60, cut)] * number + [(kept, cut)]
    if number:
        # The first chunk arrives whole, its answer is lost.
        server.faults[0] = (16, cut)
    send_all(session, DATA, 16)
    assert server.kept == DATA
    assert server.seen.count("bytes */*") == number + 1


@pytest.mark.parametrize("kept", range(6))
def test_a_lost_answer_to_the_last_chunk_is_asked_for(
    server: Server, session: ResumableSession, kept: int
) -> None:
    run_attempts(lambda attempts: session.send(0, 0, (memoryview(DATA[:32]),), 0, attempts))
    server.faults = [(kept, Fault(Kind.CUT, "gone"))]
    assert run_attempts(
        lambda attempts: session.complete((memoryview(DATA[32:]),), 37, crc32c(DATA), attempts)
    ) == PutResult("7", 1)
    assert server.kept == DATA
    assert server.seen[2] == "bytes */37"


def test_a_server_that_keeps_little_at_a_time_gets_the_rest_without_being_asked(
    server: Server, session: ResumableSession
) -> None:
    server.limit = 8
    send_all(session, DATA, 16)
    assert server.kept == DATA
    assert server.seen[:2] == ["bytes 0-15/*", "bytes 8-15/*"]


def test_an_empty_last_chunk_ends_the_session(server: Server, session: ResumableSession) -> None:
    run_attempts(lambda attempts: session.send(0, 0, (memoryview(DATA[:32]),), 0, attempts))
    run_attempts(lambda attempts: session.complete((), 32, 0, attempts))
    assert server.seen == ["bytes 0-31/*", "bytes */32"]
    assert server.is_finished


def test_an_empty_object_is_one_request(server: Server, session: ResumableSession) -> None:
    run_attempts(lambda attempts: session.complete((), 0, 0, attempts))
    assert server.seen == ["bytes */0"]
    assert server.is_finished


def test_the_checksum_goes_with_the_end() -> None:
    seen = []

    def exchange(request: HttpRequest, attempts: Attempts) -> HttpResponse:
        seen.append(request.headers.get("X-Goog-Hash"))
        return HttpResponse(200, {}, b"")

    session = ResumableSession("http://host/", exchange, lambda answer: PutResult("7"))
    run_attempts(
        lambda attempts: session.complete((memoryview(b"0123456789"),), 10, crc32c(b"0123456789"), attempts)
    )
    assert seen == ["crc32c=KAwGng=="]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (HttpResponse(404, {}, b""), Kind.UPLOAD_GONE),
        (HttpResponse(410, {}, b""), Kind.UPLOAD_GONE),
        (HttpResponse(499, {}, b""), Kind.UPLOAD_GONE),
        (HttpResponse(412, {}, b""), Kind.PRECONDITION),
        (HttpResponse(503, {}, b""), Kind.THROTTLED),
        (HttpResponse(403, {}, b""), Kind.FORBIDDEN),
        (HttpResponse(308, {}, b""), Kind.GARBLED),
        (HttpResponse(308, {"Range": "bytes=5-9"}, b""), Kind.GARBLED),
        (HttpResponse(308, {"Range": "bytes=0-99"}, b""), Kind.UPLOAD_GONE),
        # Only a server that took the chunk for the end of the object.
        (HttpResponse(200, {}, b""), Kind.UPLOAD_GONE),
    ],
)
def test_other_answers_to_a_chunk(
    server: Server, session: ResumableSession, answer: HttpResponse, kind: Kind
) -> None:
    server.answers[1] = answer
    with pytest.raises(Fault) as caught:
        run_attempts(lambda attempts: session.send(0, 0, (memoryview(DATA[:16]),), 0, attempts))
    assert caught.value.kind is kind


def test_bytes_that_were_acknowledged_and_are_gone_end_it(server: Server, session: ResumableSession) -> None:
    run_attempts(lambda attempts: session.send(0, 0, (memoryview(DATA[:16]),), 0, attempts))
    server.answers[2] = HttpResponse(308, {"Range": "bytes=0-7"}, b"")
    with pytest.raises(Fault) as caught:
        run_attempts(lambda attempts: session.send(1, 16, (memoryview(DATA[16:32]),), 0, attempts))
    assert caught.value.kind is Kind.UPLOAD_GONE


@pytest.mark.parametrize("status", [499, 204, 200, 404, 410, 412])
def test_a_session_that_is_over_anyway_is_ended(
    server: Server, session: ResumableSession, status: int
) -> None:
    server.answers[1] = HttpResponse(status, {}, b"")
    run_attempts(session.abort)
    assert server.seen == ["DELETE"]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_session_that_could_not_be_ended_is_said_so(
    server: Server, session: ResumableSession, status: int
) -> None:
    server.answers[1] = HttpResponse(status, {}, b"")
    with pytest.raises(Fault):
        run_attempts(session.abort, tries=1)


def test_its_url_is_not_shown(session: ResumableSession) -> None:
    assert "s3cret" not in repr(session)
    assert session.upload_id == ""
