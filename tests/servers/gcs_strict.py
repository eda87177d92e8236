"""Strict front for fake-gcs-server: Google Cloud Storage's rules for preconditions and resumable uploads.

Why: fake-gcs-server 1.56.1 honours preconditions on uploads only. On GET, DELETE, PATCH, rewrite, copy,
compose and in batches it ignores them and does the operation. In a resumable session a status query publishes
the truncated object, a chunk sent twice is appended twice, a gap is accepted and a cancelled session lives
on. So conditional deletes, watching by 304, pinned reads and resuming cannot be tested against it alone.

What it adds, for the JSON API, in front of an unchanged server:

* ``if[Meta]GenerationMatch``, ``if[Meta]GenerationNotMatch`` on GET, DELETE, PATCH, PUT, rewrite, copy and
  compose, the ``ifSource...`` forms and compose's ``objectPreconditions``: 412, and 304 where a GET asks for
  "not match";
* resumable sessions as the service documents them: nothing is visible before the last byte, a status query
  only answers, re-sent bytes are dropped, a gap is not stored, all but the last chunk count in whole 256 KiB,
  DELETE cancels (499), checksum and preconditions are judged at the end, a finished session repeats its
  answer;
* the same rules for every request inside ``/batch/storage/v1``; DELETE answers 204.

Run it as the only client of its upstream (then one lock per object makes check and forward one step), on
loopback only::

    fake-gcs-server -scheme http -host 127.0.0.1 -port 9240 -backend memory -public-host 127.0.0.1:9240 \\
        -external-url http://127.0.0.1:9240 -log-level warn &
    python gcs_strict.py 9245 9240          # LISTEN_PORT UPSTREAM_PORT; clients talk to 9245 only

Ready when ``GET /_internal/healthcheck`` through it answers 200; SIGTERM ends it. Needs aiohttp. Whole bodies
are held in memory, sessions are lost when it stops, the XML API and ``moveTo`` are passed on as they are.
"""

import asyncio
import json
import re
import sys
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

OBJECT = re.compile(
    r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)"
    r"(?:/(?:rewriteTo|copyTo)/b/(?P<to_bucket>[^/]+)/o/(?P<to_name>[^/]+)|/(?P<compose>compose))?"
)
UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/(?P<bucket>[^/]+)/o")
BATCH = "/batch/storage/v1"
CHUNK_UNIT_BYTES = 256 * 1024  # the service stores an unfinished session in multiples of this
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
CONDITIONS = (  # query parameter without its prefix, (generation, metageneration)[i], must it be equal
    ("GenerationMatch", 0, True),
    ("GenerationNotMatch", 0, False),
    ("MetagenerationMatch", 1, True),
    ("MetagenerationNotMatch", 1, False),
)
NOT_FORWARDED = {"host", "content-length", "transfer-encoding", "accept-encoding", "connection", "expect"}
NOT_RETURNED = {"content-length", "transfer-encoding", "connection", "date"}


@dataclass
class Call:
    """One request, alone or as a part of a batch; `target` is path and query, percent-encoded as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


@dataclass
class Session:
    """A resumable upload: what was received so far, and the final answer once there is one."""

    bucket: str
    metadata: dict
    conditions: dict[str, str]  # fixed at initiation, judged at the end
    received: bytearray = field(default_factory=bytearray)
    finished: Answer | None = None
    cancelled: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def refusal(status: int, message: str) -> Answer:
    if status == 304:
        return Answer(304)
    reason = {404: "notFound", 412: "conditionNotMet"}.get(status, "invalid")
    error = {
        "code": status,
        "message": message,
        "errors": [{"domain": "global", "reason": reason, "message": message}],
    }
    return Answer(status, {"Content-Type": "application/json"}, json.dumps({"error": error}).encode())


def has_conditions(query: Mapping, prefix="if") -> bool:
    return any(prefix + suffix in query for suffix, _, _ in CONDITIONS)


def object_path(bucket: str, name: str) -> str:
    return f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}"


class StrictFront:
    def __init__(self, listen_port: int, upstream_port: int):
        self.own_url = f"http://127.0.0.1:{listen_port}"
        self.upstream_url = f"http://127.0.0.1:{upstream_port}"
        self.object_locks: dict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.sessions: dict[str, Session] = {}

    async def client_context(self, app):
        connector = aiohttp.TCPConnector(limit=200)
        async with aiohttp.ClientSession(auto_decompress=False, connector=connector) as self.client:
            yield

    async def forward(self, method, target, headers: Mapping[str, str] = {}, body=b"") -> Answer:
        kept = {k: v for k, v in headers.items() if k.lower() not in NOT_FORWARDED}
        url = URL(self.upstream_url + target, encoded=True)
        async with self.client.request(method, url, headers=kept, data=body, allow_redirects=False) as reply:
            dropped = NOT_RETURNED - {"content-length"} if method == "HEAD" else NOT_RETURNED
            returned = {k: v for k, v in reply.headers.items() if k.lower() not in dropped}
            return Answer(reply.status, returned, await reply.read())

    async def generations(self, bucket, name) -> tuple[int, int]:
        """Generation and metageneration of the live object; (0, 0) where there is none."""
        answer = await self.forward("GET", object_path(bucket, name))
        if answer.status != 200:
            return 0, 0
        resource = json.loads(answer.body)
        return int(resource["generation"]), int(resource.get("metageneration", 1))

    @asynccontextmanager
    async def locked(self, *objects: tuple[str, str]):
        async with AsyncExitStack() as stack:
            for key in sorted(
                set(objects)
            ):  # one order for all, so that two operations cannot wait for each other
                await stack.enter_async_context(self.object_locks[key])
            yield

    async def violation(self, bucket, name, conditions: Mapping, prefix="if", reading=False) -> Answer | None:
        """The refusal that `conditions` demand for this object, or None. Call it under the object's lock."""
        if not has_conditions(conditions, prefix):
            return None
        current = await self.generations(bucket, name)
        for suffix, which, must_equal in CONDITIONS:
            value = conditions.get(prefix + suffix)
            if value is None or (int(value) == current[which]) == must_equal:
                continue
            if reading and current[0] == 0:
                return refusal(404, "No such object")
            status = 304 if reading and not must_equal else 412
            return refusal(status, "At least one of the pre-conditions you specified did not hold.")
        return None

    async def object_call(self, call: Call, parts: Mapping[str, str | None]) -> Answer:
        query = call.query
        bucket, name = unquote(parts["bucket"] or ""), unquote(parts["name"] or "")
        reading = call.method in ("GET", "HEAD")
        if reading and not has_conditions(query):
            return await self.forward(
                call.method, call.target, call.headers
            )  # no lock: readers run in parallel
        written, sources = (bucket, name), []
        if parts["to_name"]:
            written = unquote(parts["to_bucket"] or ""), unquote(parts["to_name"] or "")
            sources = [((bucket, name), query, "ifSource")]
        elif parts["compose"]:
            listed = json.loads(call.body).get("sourceObjects", [])
            sources = [((bucket, s["name"]), s.get("objectPreconditions", {}), "if") for s in listed]
        async with self.locked(written, *(source for source, _, _ in sources)):
            if call.method == "DELETE" and (await self.generations(*written))[0] == 0:
                return refusal(404, "No such object")
            refused = await self.violation(*written, query, reading=reading)
            for source, conditions, prefix in sources:
                refused = refused or await self.violation(*source, conditions, prefix)
            if refused:
                return refused
            answer = await self.forward(call.method, call.target, call.headers, call.body)
        if call.method == "DELETE" and answer.status == 200:
            return Answer(204)
        return answer

    async def upload_call(self, call: Call, bucket: str) -> Answer:
        query = call.query
        if query.get("uploadType") == "resumable":
            if "upload_id" in query:
                return await self.session_call(call, query["upload_id"])
            return await self.start_session(call, bucket)
        name = query.get("name")
        if name is None:  # multipart: the name stands in the JSON part
            first_part = re.search(rb"\r?\n\r?\n(\{.*?\})\r?\n--", call.body, re.S)
            assert first_part is not None
            name = json.loads(first_part[1])["name"]
        async with self.locked((bucket, name)):
            refused = await self.violation(bucket, name, query)
            return refused or await self.forward(call.method, call.target, call.headers, call.body)

    async def start_session(self, call: Call, bucket: str) -> Answer:
        known = await self.forward("GET", f"/storage/v1/b/{quote(bucket, safe='')}")
        if known.status != 200:
            return known
        metadata = json.loads(call.body or b"{}")
        metadata.setdefault("name", call.query.get("name"))
        if "X-Upload-Content-Type" in call.headers:
            metadata.setdefault("contentType", call.headers["X-Upload-Content-Type"])
        upload_id = uuid.uuid4().hex
        conditions = {k: v for k, v in call.query.items() if k.startswith("if")}
        self.sessions[upload_id] = Session(bucket, metadata, conditions)
        path = f"/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        where = f"{self.own_url}{path}?uploadType=resumable&upload_id={upload_id}"
        return Answer(200, {"Location": where})

    async def session_call(self, call: Call, upload_id: str) -> Answer:
        """Store a chunk, answer a status query, or cancel."""
        session = self.sessions.get(upload_id)
        if session is None:
            return refusal(404, "No such upload")
        async with session.lock:  # a repeated request waits for the answer of the first
            if session.cancelled:
                return refusal(410, "The upload was cancelled")
            if session.finished:
                return session.finished
            if call.method == "DELETE":
                session.cancelled = True
                return Answer(499)
            whole = f"bytes 0-{len(call.body) - 1}/{len(call.body)}" if call.body else "bytes */0"
            parsed = CONTENT_RANGE.fullmatch(call.headers.get("Content-Range", whole))
            if not parsed:
                return refusal(400, "Bad Content-Range")
            total = None if parsed[3] == "*" else int(parsed[3])
            received = session.received
            if parsed[1] is not None:
                start, end = int(parsed[1]), int(parsed[2]) + 1
                if end - start != len(call.body):
                    return refusal(400, "Content-Range and body differ")
                if start <= len(
                    received
                ):  # else there is a gap: store nothing, the answer says how far it got
                    new = call.body[len(received) - start :]
                    if total is None or end < total:
                        new = new[
                            : (len(received) + len(new)) // CHUNK_UNIT_BYTES * CHUNK_UNIT_BYTES
                            - len(received)
                        ]
                    received += new
            if total is None or len(received) < total:
                return Answer(308, {"Range": f"bytes=0-{len(received) - 1}"} if received else {})
            if len(received) > total:
                return refusal(400, "More bytes than the declared total")
            answer = await self.publish(session)
            if answer.status == 200:
                session.finished, session.received = answer, bytearray()
            else:
                del self.sessions[upload_id]
            return answer

    async def publish(self, session: Session) -> Answer:
        """Hand the complete object over as one multipart upload; upstream checks its crc32c and md5Hash."""
        boundary = uuid.uuid4().hex
        content_type = session.metadata.get("contentType", "application/octet-stream")
        body = b"\r\n".join(
            [
                f"--{boundary}\r\nContent-Type: application/json\r\n".encode(),
                json.dumps(session.metadata).encode(),
                f"--{boundary}\r\nContent-Type: {content_type}\r\n".encode(),
                bytes(session.received),
                f"--{boundary}--\r\n".encode(),
            ]
        )
        name = session.metadata["name"]
        query = "".join(f"&{k}={v}" for k, v in session.conditions.items())
        target = f"/upload/storage/v1/b/{quote(session.bucket, safe='')}/o?uploadType=multipart{query}"
        headers = {"Content-Type": f'multipart/related; boundary="{boundary}"'}
        async with self.locked((session.bucket, name)):
            refused = await self.violation(session.bucket, name, session.conditions)
            return refused or await self.forward("POST", target, headers, body)

    async def answer(self, call: Call) -> Answer:
        if parts := OBJECT.fullmatch(call.path):
            return await self.object_call(call, parts.groupdict())
        if parts := UPLOAD.fullmatch(call.path):
            return await self.upload_call(call, unquote(parts["bucket"]))
        return await self.forward(call.method, call.target, call.headers, call.body)

    async def batch(self, call: Call) -> Answer:
        found = re.search(r'boundary="?([^";]+)', call.headers["Content-Type"])
        assert found is not None
        boundary = found[1]
        replies = []
        for part in call.body.decode().split("--" + boundary)[1:-1]:
            envelope, request = part.strip("\r\n").split("\r\n\r\n", 1)
            request_line, _, rest = request.partition("\r\n")
            header_lines, _, body = rest.partition("\r\n\r\n")
            method, target, _ = request_line.split(" ")
            pairs = (line.partition(": ") for line in header_lines.split("\r\n") if ": " in line)
            headers = CIMultiDict((name, value) for name, _, value in pairs)
            status, _, reply = await self.answer(Call(method, target, headers, body.strip().encode()))
            content_id = re.search(r"Content-ID: <?([^>\r\n]+)", envelope, re.I)
            replies.append(
                f"--{boundary}\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{content_id[1] if content_id else ''}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(reply)}\r\n\r\n"
                f"{reply.decode()}\r\n"
            )
        body = "".join(replies) + f"--{boundary}--\r\n"
        return Answer(200, {"Content-Type": f"multipart/mixed; boundary={boundary}"}, body.encode())

    async def handle(self, request: web.Request) -> web.Response:
        call = Call(request.method, request.raw_path, request.headers, await request.read())
        status, headers, body = await (self.batch(call) if call.path == BATCH else self.answer(call))
        return web.Response(status=status, headers=headers, body=body or None)


def main(listen_port: int, upstream_port: int) -> None:
    front = StrictFront(listen_port, upstream_port)
    app = web.Application(client_max_size=1 << 32)
    app.cleanup_ctx.append(front.client_context)
    app.router.add_route("*", "/{any:.*}", front.handle)
    web.run_app(app, host="127.0.0.1", port=listen_port, print=None, access_log=None, shutdown_timeout=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
