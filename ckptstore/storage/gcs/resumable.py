"""A resumable upload to Google Cloud Storage: chunk after chunk, after a fault only what the service lacks.

Format
------
"Resumable uploads" of the JSON API. A chunk is a PUT of whole 256 KiB with ``Content-Range: bytes A-B/*``;
the answer is 308 with the bytes that are kept so far, possibly fewer than were sent. ``bytes */*`` asks for
that. The last request names the total, and is answered with the object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckptstore.storage.gcs.errors import fault_of
from ckptstore.storage.gcs.messages import cut, next_byte
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import PutResult, UploadSession
from ckptstore.storage.wire.exchange import HttpRequest, HttpResponse

__all__ = ["ResumableSession"]

_GONE = {404, 410, 499}


class ResumableSession(UploadSession):
    """One session on the server.

    Parameters
    ----------
    url : str
        Of the session. It is enough to write the object, so it appears in no message.
    exchange : callable
        Sends one request as an attempt of an operation.
    stored : callable
        Reads the answer to the last request.

    Threads
    -------
    One thread at a time.
    """

    sends_last_part = False

    def __init__(
        self,
        url: str,
        exchange: Callable[[HttpRequest, Attempts], HttpResponse],
        result: Callable[[HttpResponse], PutResult],
    ) -> None:
        self._url = url
        self._exchange = exchange
        self._stored = result

    def __repr__(self) -> str:
        return "ResumableSession()"

    @property
    def upload_id(self) -> str:
        """Empty: the service does not list sessions."""
        return ""

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        answer = self._deliver(offset, pieces, "*", {}, attempts)
        if answer is not None:
            # Only a server that takes a query of the state for the end of the upload does this.
            raise Fault(Kind.UPLOAD_GONE, "the server ended the upload before its last part")

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        # The service compares it before the object becomes visible; other servers ignore the header, and the
        # caller compares the checksum in the answer.
        headers = {"X-Goog-Hash": f"crc32c={crc32c_text(crc32c)}"}
        offset = size_bytes - sum(map(len, last))
        answer = self._deliver(offset, last, str(size_bytes), headers, attempts)
        if answer is None:
            raise Fault(Kind.GARBLED, "the server has all of the object and does not end the upload")
        return self._stored(answer)

    def _deliver(
        self,
        offset: int,
        pieces: Sequence[memoryview],
        total: str,
        headers: Mapping[str, str],
        attempts: Attempts,
    ) -> HttpResponse | None:
        """Send what the server lacks of `pieces`; return the answer that describes the object, if one did."""
        start, stop = offset, offset + sum(map(len, pieces))
        if attempts.tries > 1:
            # A failed request may have left any part of its bytes. Sent twice they can be stored twice
            # (googleapis/google-cloud-cpp#2980).
            answer = self._ask(f"bytes */{total}", (), {}, attempts)
            if answer.status != 308:
                return answer
            start = self._kept(answer, offset, stop)
        while start < stop or total != "*":
            extent = f"{start}-{stop - 1}" if start < stop else "*"
            missing = cut(pieces, start - offset, stop - offset)
            answer = self._ask(f"bytes {extent}/{total}", missing, headers, attempts)
            if answer.status != 308:
                return answer
            kept = self._kept(answer, offset, stop)
            if kept <= start:
                raise Fault(Kind.GARBLED, "the server kept nothing of what was sent")
            start = kept
        return None

    def _ask(
        self,
        content_range: str,
        body: Sequence[memoryview],
        headers: Mapping[str, str],
        attempts: Attempts,
    ) -> HttpResponse:
        answer = self._exchange(
            HttpRequest("PUT", self._url, {**headers, "Content-Range": content_range}, body),
            attempts,
        )
        if answer.status in (200, 201, 308):
            return answer
        fault = fault_of(answer.status, answer.headers, answer.body)
        if answer.status in _GONE:
            fault.kind = Kind.UPLOAD_GONE
        raise fault

    @staticmethod
    def _kept(answer: HttpResponse, offset: int, stop: int) -> int:
        try:
            kept = next_byte(answer.headers.get("Range"))
        except ValueError as error:
            raise Fault(Kind.GARBLED, str(error)) from None
        if not offset <= kept <= stop:
            raise Fault(Kind.UPLOAD_GONE, f"the server keeps {kept} bytes of {offset} that it acknowledged")
        return kept

    def abort(self, attempts: Attempts) -> None:
        answer = self._exchange(HttpRequest("DELETE", self._url), attempts)
        # 499 is the documented answer. A finished session stays finished: 200, 204 or a 4xx.
        if answer.status >= 500 or answer.status in (408, 429):
            raise fault_of(answer.status, answer.headers, answer.body)
