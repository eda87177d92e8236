"""One request over a connection of our own: what is sent, where bytes land, and what each fault is."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import Sink
from ckptstore.storage.scope import Cancellation
from ckptstore.storage.wire import connections
from ckptstore.storage.wire.connections import Server
from ckptstore.storage.wire.exchange import HttpRequest, HttpResponse, exchange
from tests.servers.certificates import make_certificates
from tests.servers.peer import DRIPS, PATIENCE_S, Conversation, Peer, drip, running

MIB = 1 << 20


class Memory(Sink):
    """A sink over one block of memory."""

    def __init__(self, size_bytes: int, step_bytes: int = 1 << 62) -> None:
        self.array = np.zeros(size_bytes, np.uint8)
        self.position = 0
        self.steps: list[int] = []
        self._step_bytes = step_bytes

    def get_buffer(self) -> memoryview:
        return self.array.data[self.position : self.position + self._step_bytes]

    def buffer_updated(self, size_bytes: int) -> None:
        self.position += size_bytes
        self.steps.append(size_bytes)


def new_attempts(cancellation: Cancellation | None = None, **policy: float) -> Attempts:
    made = Attempts(RetryPolicy(pause_scale=0.0, **policy), RetryBudget(), cancellation)
    made.begin()
    return made


def ask(
    server: Server,
    *body: bytes | memoryview,
    method: str = "",
    into: Sink | None = None,
    attempts: Attempts | None = None,
    headers: dict[str, str] | None = None,
) -> HttpResponse:
    method = method or ("PUT" if body else "GET")
    request = HttpRequest(method, "/b/name?x=1", {"Host": "h", **(headers or {})}, body)
    accept = None if into is None else lambda status, found: into
    return exchange(server, request, attempts or new_attempts(), accept)


def to(peer: Peer, context: ssl.SSLContext | None = None) -> Server:
    return Server("127.0.0.1", peer.port, context, 5.0)


def echo(talk: Conversation) -> None:
    while True:
        head, body = talk.take()
        fields = "".join(f"Seen-{name}: {value}\n" for name, value in head.items() if name)
        talk.answer(body, fields=fields)


def test_a_body_in_pieces_of_every_size_arrives_as_it_is() -> None:
    rng = np.random.default_rng(1)
    sizes = [0, 1, 5, 3 * MIB, 7, 100_000, 100_000, 128 * 1024, 0, 2 * MIB + 1, 9]
    pieces = [rng.bytes(size) for size in sizes]
    with running(echo) as peer:
        reply = ask(to(peer), *[memoryview(piece) for piece in pieces])
    whole = b"".join(pieces)
    # The reply shows the beginning of what it has to.
    assert reply.body == whole[: len(reply.body)]
    assert len(reply.body) == MIB
    assert reply.headers["Seen-Content-Length"] == str(len(whole))
    assert reply.headers.get("Seen-Expect") is None
    assert reply.headers.get("Seen-Transfer-Encoding") is None


def test_progress_shows_while_a_body_is_sent() -> None:
    positions: list[int] = []
    attempts = new_attempts()
    sent = attempts.record_sent

    def note(position: int) -> None:
        positions.append(position)
        sent(position)

    attempts.record_sent = note  # type: ignore[method-assign]
    with running(echo) as peer:
        ask(to(peer), memoryview(bytes(8 * MIB)), attempts=attempts)
    assert positions == sorted(set(positions))
    assert positions[-1] == 8 * MIB


@pytest.mark.parametrize("step_bytes", [1, 100, 8192, 8193, 50_000, 1 << 40])
def test_a_body_lands_in_the_windows_it_was_given(step_bytes: int) -> None:
    body = np.random.default_rng(2).bytes(1000 if step_bytes == 1 else 400_000)

    def serve(talk: Conversation) -> None:
        while True:
            talk.take()
            talk.answer(body, "206 Partial Content")

    with running(serve) as peer:
        server = to(peer)
        for _ in range(2):
            memory = Memory(len(body), step_bytes)
            reply = ask(server, into=memory)
            assert (reply.status, reply.body) == (206, b"")
            assert bytes(memory.array) == body
            assert max(memory.steps) <= step_bytes
    assert peer.connections == 1


def test_windows_of_every_size_may_follow_each_other() -> None:
    body = np.random.default_rng(4).bytes(500_000)

    class Uneven(Memory):
        sizes = itertools.cycle((10, 100_000, 8192, 5, 20_000, 8193))

        def get_buffer(self) -> memoryview:
            return super().get_buffer()[: next(self.sizes)]

    def serve(talk: Conversation) -> None:
        talk.take()
        talk.answer(body)

    with running(serve) as peer:
        memory = Uneven(len(body))
        ask(to(peer), into=memory)
    assert bytes(memory.array) == body


def test_a_body_in_chunks_arrives_too() -> None:
    def serve(talk: Conversation) -> None:
        while True:
            talk.take()
            talk.say("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhello\n6\n world\n0\n\n")

    with running(serve) as peer:
        server = to(peer)
        for _ in range(2):
            memory = Memory(11)
            ask(server, into=memory)
            assert bytes(memory.array) == b"hello world"
    assert peer.connections == 1


def test_over_tls_the_same_arrives(tmp_path: Path) -> None:
    authority, theirs = make_certificates(tmp_path)
    ours = ssl.create_default_context(cafile=str(authority))
    body = np.random.default_rng(3).bytes(3 * MIB + 5)
    with running(echo, theirs) as peer:
        server = to(peer, ours)
        for step_bytes in (1 << 40, 5000):
            memory = Memory(len(body), step_bytes)
            ask(server, memoryview(body)[:7], memoryview(body)[7:], into=memory)
            assert bytes(memory.array) == body
    assert server.is_encrypted
    assert peer.connections == 1


@pytest.mark.parametrize("headers", [{}, {"accept-encoding": "identity"}])
def test_nobody_on_the_way_is_allowed_to_compress(headers: dict[str, str]) -> None:
    with running(echo) as peer:
        reply = ask(to(peer), headers=headers)
    assert reply.headers.get_all("Seen-Accept-Encoding") == ["identity"]  # type: ignore[attr-defined]


def test_headers_of_an_answer_are_found_in_any_case() -> None:
    with running(echo) as peer:
        reply = ask(to(peer), headers={"X-One": "1"})
    assert reply.headers.get("seen-x-one") == reply.headers.get("SEEN-X-ONE") == "1"


def test_a_refusal_in_the_middle_of_a_body_is_heard() -> None:
    def serve(talk: Conversation) -> None:
        talk.head()
        talk.body(1000)
        talk.answer(b"full", "507 Insufficient Storage", "Connection: close\n")

    with running(serve) as peer:
        reply = ask(to(peer), memoryview(bytes(64 * MIB)))
    assert (reply.status, reply.body) == (507, b"full")


def test_the_connection_used_last_is_used_first_and_no_more_than_needed_are_made() -> None:
    with running(echo) as peer:
        server = to(peer)
        for _ in range(5):
            ask(server)
        assert peer.connections == 1
        started = threading.Barrier(4)

        def work() -> None:
            started.wait(PATIENCE_S)
            for _ in range(20):
                ask(server, b"x" * 1000)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= peer.connections <= 5
        server.close()


def test_no_more_connections_are_in_use_than_allowed() -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def count(talk: Conversation) -> None:
        nonlocal now, most
        while True:
            talk.take()
            with lock:
                now += 1
                most = max(most, now)
            threading.Event().wait(0.01)
            with lock:
                now -= 1
            talk.answer(b"ok")

    with running(count) as peer:
        server = Server("127.0.0.1", peer.port, None, 5.0, most_connections=2)
        threads = [threading.Thread(target=ask, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= most <= 2
        server.close()


def test_a_connection_that_the_server_closed_meanwhile_is_not_used() -> None:
    def once(talk: Conversation) -> None:
        talk.take()
        talk.answer(b"ok")

    with running(once) as peer:
        server = to(peer)
        for _ in range(3):
            assert ask(server).body == b"ok"
            deadline_s = time.monotonic() + PATIENCE_S
            while not server._kept[0].has_answer() and time.monotonic() < deadline_s:
                time.sleep(0.005)
    assert peer.connections == 3


def test_a_connection_that_was_idle_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(echo) as peer:
        server = to(peer)
        ask(server)
        monkeypatch.setattr(connections, "_LONGEST_IDLE_S", -1.0)
        ask(server)
    assert peer.connections == 2


@pytest.mark.parametrize("fields", ["Connection: close\n", ""])
def test_no_connection_is_kept_whose_end_is_announced_or_unknown(fields: str) -> None:
    def serve(talk: Conversation) -> None:
        talk.take()
        if fields:
            talk.answer(b"ok", fields=fields)
        else:
            talk.say("HTTP/1.1 200 OK\n\nok")

    with running(serve) as peer:
        server = to(peer)
        memory = Memory(2)
        ask(server, into=memory)
        assert bytes(memory.array) == b"ok"
        assert server.idle_connections == 0


def test_no_more_connections_are_kept_than_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MOST_KEPT", 2)
    with running(echo) as peer:
        server = to(peer)
        taken = [server.borrow(new_attempts()) for _ in range(5)]
        for connection in taken:
            server.give_back(connection)
        assert [connection.socket.fileno() == -1 for connection in taken] == [True] * 3 + [False] * 2
        server.close()
        assert all(connection.socket.fileno() == -1 for connection in taken)


def test_a_forked_child_uses_none_of_the_parents_connections() -> None:
    with running(echo) as peer:
        server = to(peer)
        ask(server)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if ask(server, b"x").body == b"x" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(server, b"y").body == b"y"
    assert peer.connections == 2


def fault_of(serve: Callable[[Conversation], object], *body: Any, **more: Any) -> Fault:
    with running(serve) as peer:
        server = to(peer)
        with pytest.raises(Fault) as caught:
            ask(server, *body, **more)
        assert server.idle_connections == 0, "a connection of which nobody knows where it stands was kept"
    return caught.value


def test_nobody_there_means_nothing_was_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = Server("127.0.0.1", taken.getsockname()[1], None, 5.0)
        with pytest.raises(Fault, match=r"cannot connect to 127\.0\.0\.1") as caught:
            ask(server)
    assert caught.value.kind is Kind.NOT_SENT
    with pytest.raises(Fault, match=r"no-such-host\.invalid") as caught:
        ask(Server("no-such-host.invalid", 80, None, 5.0))
    assert caught.value.kind is Kind.NOT_SENT


def test_a_certificate_is_checked_with_its_name(tmp_path: Path) -> None:
    authority, theirs = make_certificates(tmp_path)
    trusting = ssl.create_default_context(cafile=str(authority))
    with running(echo, theirs) as peer:
        for server in (
            Server("127.0.0.1", peer.port, ssl.create_default_context(), 5.0),
            Server("127.0.0.2", peer.port, trusting, 5.0),
        ):
            # 127.0.0.2 leads to the same listener only where it listens on all of them.
            with pytest.raises(Fault) as caught:
                ask(server)
            wanted = Kind.UNTRUSTED if server.host == "127.0.0.1" else Kind.NOT_SENT
            assert caught.value.kind is wanted


def test_a_server_without_tls_is_not_reached_over_it() -> None:
    peer = Peer(lambda talk: talk.say("HTTP/1.1 400 Bad Request\n\n"))
    with pytest.raises(Fault) as caught:
        ask(to(peer, ssl.create_default_context()))
    peer.close()
    assert caught.value.kind is Kind.NOT_SENT


@pytest.mark.parametrize("body", [(), (b"x" * 100,), (bytes(16 * MIB),)])
def test_a_connection_that_ends_without_an_answer_was_cut(body: tuple[bytes, ...]) -> None:
    assert fault_of(lambda talk: talk.head(), *body).kind is Kind.CUT


def test_a_body_that_ends_too_early_is_no_answer_and_what_came_is_counted() -> None:
    def serve(talk: Conversation) -> None:
        talk.take()
        talk.say("HTTP/1.1 206 Partial\nContent-Length: 100000\n\n", b"x" * 60_000)

    memory = Memory(100_000)
    with running(serve) as peer:
        server = to(peer)
        ask(server, into=memory)  # the sink knows how much should have come
        assert server.idle_connections == 0
    assert memory.position == 60_000


@pytest.mark.parametrize("where", ["head", "body", "error", "send"])
def test_silence_is_a_stall_in_bounded_time(where: str) -> None:
    over = threading.Event()

    def serve(talk: Conversation) -> None:
        if where != "send":
            talk.take()
        if where == "body":
            talk.say("HTTP/1.1 206 Partial\nContent-Length: 10\n\nabc")
        elif where == "error":
            talk.say("HTTP/1.1 500 Oh\nContent-Length: 10\n\nabc")
        over.wait(PATIENCE_S)

    attempts = new_attempts(attempt_s=0.2, deadline_s=0.4)
    with running(serve) as peer:
        server = to(peer)
        with pytest.raises(Fault, match=r"0\.2 s") as caught:
            ask(
                server,
                *((bytes(64 * MIB),) if where == "send" else ()),
                into=Memory(10) if where == "body" else None,
                attempts=attempts,
            )
        over.set()
        assert server.idle_connections == 0
    assert caught.value.kind is Kind.STALLED


@pytest.mark.parametrize("where", DRIPS)
def test_a_byte_now_and_then_is_no_progress(where: str) -> None:
    attempts = new_attempts(attempt_s=0.3, deadline_s=0.6)
    with running(partial(drip, where)) as peer:
        server = to(peer)
        with pytest.raises(Fault, match=r"0\.3 s") as caught:
            ask(server, into=Memory(1_000_000), attempts=attempts)
        assert server.idle_connections == 0
    assert caught.value.kind is Kind.STALLED


@pytest.mark.parametrize("where", ["head", "body"])
def test_nor_is_it_over_tls(where: str, tmp_path: Path) -> None:
    authority, theirs = make_certificates(tmp_path)
    # The handshake is a part of it.
    attempts = new_attempts(attempt_s=1.5, deadline_s=3.0)
    with running(partial(drip, where), theirs) as peer:
        server = to(peer, ssl.create_default_context(cafile=str(authority)))
        with pytest.raises(Fault, match=r"1\.5 s") as caught:
            ask(server, into=Memory(1_000_000), attempts=attempts)
        assert server.idle_connections == 0
    assert caught.value.kind is Kind.STALLED


@pytest.mark.parametrize("where", ["head", "body", "send"])
def test_a_cancellation_ends_it_at_once(where: str) -> None:
    cancellation = Cancellation()
    reached, over = threading.Event(), threading.Event()
    ended: list[bool] = []

    def serve(talk: Conversation) -> None:
        talk.head()
        if where == "body":
            talk.say("HTTP/1.1 206 Partial\nContent-Length: 10\n\nabc")
        reached.set()
        ended.append(over.wait(PATIENCE_S))

    def cancel() -> None:
        assert reached.wait(PATIENCE_S)
        cancellation.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with running(serve) as peer:
        try:
            server = to(peer)
            with pytest.raises(Fault) as caught:
                ask(
                    server,
                    *((bytes(64 * MIB),) if where == "send" else ()),
                    into=Memory(10) if where == "body" else None,
                    attempts=new_attempts(cancellation),
                )
        finally:
            over.set()
            canceller.join()
    assert caught.value.kind is Kind.CANCELLED
    assert ended == [True]  # not: the server lost its patience
    assert server.idle_connections == 0
    assert cancellation._running == set()


def test_what_is_no_http_is_garbled_and_not_quoted() -> None:
    def serve(talk: Conversation) -> None:
        talk.take()
        talk.say("220 s3cret ESMTP\n")

    fault = fault_of(serve)
    assert fault.kind is Kind.GARBLED
    assert "s3cret" not in str(fault)


def test_a_header_that_cannot_be_sent_is_not_quoted() -> None:
    fault = fault_of(echo, headers={"Authorization": "Bearer s3cret\n"})
    assert fault.kind is Kind.GARBLED
    assert "s3cret" not in f"{fault} {fault.__cause__} {fault.__context__}"


def test_who_refuses_the_head_of_an_answer_gets_no_body_and_the_connection_is_not_kept() -> None:
    def refuse(status: int, headers: object) -> Sink:
        raise Fault(Kind.UNSUPPORTED, "not this")

    with running(echo) as peer:
        server = to(peer)
        with pytest.raises(Fault, match="not this"):
            exchange(server, HttpRequest("PUT", "/", {"Host": "h"}, (b"body",)), new_attempts(), refuse)
        assert server.idle_connections == 0


def test_a_request_shows_nothing_of_what_it_carries() -> None:
    request = HttpRequest("GET", "/x?Signature=s3cret", {"Authorization": "s3cret"})
    assert "s3cret" not in repr(request)
