"""What a service module provides: single requests, tried once, with classified failures.

`ObjectStorage` builds the nine primitives out of these; `s3` and `gcs` implement them. Nothing here retries,
sleeps, compares versions or decides what a conflict means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.values import Capabilities, ObjectInfo

__all__ = [
    "WRITE_ID",
    "DataPath",
    "ObjectName",
    "Page",
    "Parts",
    "Precondition",
    "PutRequest",
    "PutResult",
    "ResponseHead",
    "Sink",
    "StaleUpload",
    "Transport",
    "UploadSession",
    "copy_into",
]

WRITE_ID = "ckptstore_write_id"
"""The key of the user metadata that holds the id of the write; an identifier, as services require."""


class ObjectName(NamedTuple):
    """Bucket and name of one object, exactly as the service gets them."""

    bucket: str
    name: str

    @property
    def key(self) -> str:
        """The key in the storage: ``bucket/name``."""
        return f"{self.bucket}/{self.name}"


class Precondition(NamedTuple):
    """What must be there for a write to happen: this version, or nothing (None)."""

    version: str | None


@dataclass(frozen=True, slots=True)
class PutRequest:
    """An object that is to be made, and the condition for it.

    Attributes
    ----------
    write_id : str
        Stored in the object's metadata as `WRITE_ID`.
    precondition : Precondition or None
        None: whatever is there is replaced.
    size_bytes, crc32c : int or None
        Of the whole object; None where unknown.
    """

    target: ObjectName
    write_id: str
    precondition: Precondition | None
    size_bytes: int | None = None
    crc32c: int | None = None


class PutResult(NamedTuple):
    """What the server answers about an object that it stored.

    Attributes
    ----------
    crc32c : int or None
        Of the whole object, as the server calculated it; None if the answer does not contain it.
    is_repeated : bool
        Whether the client may have sent the request more than once.
    """

    version: str
    crc32c: int | None = None
    is_repeated: bool = False


class ResponseHead(NamedTuple):
    """The head of the answer to a GET: status, version, and the headers about lengths.

    Attributes
    ----------
    status : int
        200 or 206; every other status is a fault.
    size_bytes : int or None
        ``Content-Length``, of the body.
    content_range : str or None
        ``Content-Range``, as it came.
    encoding : str or None
        ``Content-Encoding``, as it came.
    """

    status: int
    version: str
    size_bytes: int | None
    content_range: str | None
    encoding: str | None = None

    @staticmethod
    def of_headers(status: int, headers: Mapping[str, str], version_header: str) -> ResponseHead:
        """Return the head of an HTTP answer; `version_header` names the header that has the version."""
        length = headers.get("Content-Length", "")
        return ResponseHead(
            status,
            headers.get(version_header, ""),
            int(length) if length.isdecimal() else None,
            headers.get("Content-Range"),
            headers.get("Content-Encoding"),
        )


class Sink(ABC):
    """Where the body of an answer goes: memory of the caller, piece by piece.

    Calls
    -----
    `get_buffer`, then `buffer_updated`, until the body ends; as in `asyncio.BufferedProtocol`.
    """

    @abstractmethod
    def get_buffer(self) -> memoryview:
        """Return memory for the bytes that come next; never empty."""

    @abstractmethod
    def buffer_updated(self, size_bytes: int) -> None:
        """Record that `size_bytes` bytes were written to the beginning of the buffer. May raise."""


def copy_into(data: bytes | memoryview, sink: Sink) -> None:
    """Copy `data` into `sink`, for clients that receive into memory of their own."""
    view = memoryview(data)
    while view:
        buffer = sink.get_buffer()
        size_bytes = min(len(buffer), len(view))
        buffer[:size_bytes] = view[:size_bytes]
        sink.buffer_updated(size_bytes)
        view = view[size_bytes:]


class DataPath(NamedTuple):
    """How bytes travel to a bucket, or from it.

    Attributes
    ----------
    is_direct : bool
        Over connections of our own; otherwise through the service's client.
    reason : str
        Why not directly, or the protocol.
    is_wanted : bool
        Whether it is what the caller asked for.
    """

    is_direct: bool
    reason: str
    is_wanted: bool = True


class Parts(NamedTuple):
    """How the parts of a large object travel to a bucket.

    Attributes
    ----------
    parallel : int
        How many at the same time; 1: in order.
    reason : str
        Empty where no explanation is needed.
    is_wanted : bool
        Whether it is what the caller asked for.
    """

    parallel: int
    reason: str = ""
    is_wanted: bool = True


class Page(NamedTuple):
    """One page of a listing.

    Attributes
    ----------
    token : str or None
        Asks for the next page; None if this is the last.
    directories : int
        How many there are on it besides the objects.
    """

    objects: Sequence[ObjectInfo]
    token: str | None
    directories: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing on it."""
        return not self.objects and not self.directories


class StaleUpload(NamedTuple):
    """An unfinished upload that the server lists; without a size, `Transport.upload_size` finds it."""

    name: str
    upload_id: str
    age_s: float
    size_bytes: int | None = None


class UploadSession(ABC):
    """One large object under way on the server, invisible until `complete`.

    Attributes
    ----------
    sends_last_part : bool
        True: every part goes through `send`. False: `complete` sends the last one.
    leaves_parts : bool
        Whether `abort` is to be called after `complete`, too: to delete the parts of the object.
    """

    sends_last_part: bool = False
    leaves_parts: bool = False

    @property
    @abstractmethod
    def upload_id(self) -> str:
        """The id under which `Transport.list_uploads` lists it."""

    @abstractmethod
    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        """Send a part, numbered from 0; called again after a fault, with ``attempts.tries`` above 1."""

    @abstractmethod
    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        """Make the object visible if the precondition of `Transport.begin` holds.

        Parameters
        ----------
        last : sequence of memoryview
            The bytes not sent yet; none where `sends_last_part`.
        size_bytes, crc32c : int
            Of the whole object.
        """

    @abstractmethod
    def abort(self, attempts: Attempts) -> None:
        """Throw away what was sent; raises nothing if it is gone already."""


class Transport(ABC):
    """The requests of one service, with one set of credentials. Each method is one attempt.

    Every method takes the `Attempts` of its operation: it waits no longer than ``attempts.remaining_s()`` for
    the next byte and calls ``attempts.record_progress()`` when one moved. It raises `Fault` and nothing else
    of its own.

    Attributes
    ----------
    scheme : str
        ``"s3"`` or ``"gs"``.
    nominal : Capabilities
        What the service documents; the probe says what the server really does.
    batch_size : int
        Keys in one `delete_many`.
    bogus_version : str
        A well-formed version that no object has.
    most_parts : int
        How many one session takes.
    part_size_bytes : int
        Of an object whose size is known, if `most_parts` suffice.
    parallel_parts : int
        How many parts of a session may be sent at the same time, unless `parts` says otherwise; 1: in order.
    parallel_reads : int
        How many reads at the same time are faster than one.
    object_hides_directory : bool
        Whether a server may show an empty listing below a name that is an object itself.
    explains_head : bool
        Whether the answer to a refused `head` contains the reason.
    skew_s : float
        How far the server's clock is ahead of ours, by its last answer.
    deletes_in_two_steps : bool
        Whether the server is known to look at the version first and to delete then: requests that come one
        after the other do not show it.

    Threads
    -------
    Safe for concurrent use, and after a fork: a child opens connections of its own.
    """

    scheme: str
    nominal: Capabilities
    batch_size: int
    bogus_version: str
    most_parts: int
    part_size_bytes: int = 8 * 1024 * 1024
    parallel_parts: int = 1
    parallel_reads: int = 1
    object_hides_directory: bool = False
    explains_head: bool = True
    skew_s: float = 0.0
    deletes_in_two_steps: bool = False

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """Where requests go, for messages and as the identity of the server; never holds a secret."""

    @property
    def server(self) -> str:
        """What tells the server from others with the same URLs; holds no secret.

        The same for all who write `endpoint` differently and mean one server. Overridden where the settings
        say it and the endpoint is known only to a client, which readers do not load.
        """
        return self.endpoint

    def renew(self, options: Mapping[str, Any]) -> None:
        """Use the credentials in `options` from now on; all other options are those of this transport.

        Called only where `lasting_options` says that they are of the kind that is renewed.
        """
        raise NotImplementedError

    @abstractmethod
    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        """Return what the server stores; write id and CRC32C of the whole object where it stores them.

        Raises `Fault` with `Kind.UNPROVED` where a 404 leaves open what is missing.
        """

    @abstractmethod
    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        byte_range: str | None,
        version: str | None,
        unless_version: str | None = None,
        accept: Callable[[ResponseHead], Sink],
    ) -> None:
        """Read an object, or a range of it, into the sink that `accept` returns for the head of the answer.

        Parameters
        ----------
        byte_range : str or None
            The ``Range`` header.
        version : str or None
            Answered with `Kind.PRECONDITION` (or `ABSENT`) if another one is there.
        unless_version : str or None
            Answered with `Kind.UNCHANGED` if this one is there.
        accept : callable
            May raise; the body is then not read, and the exception comes out of this call.
        """

    @abstractmethod
    def put(self, request: PutRequest, pieces: Sequence[memoryview], attempts: Attempts) -> PutResult:
        """Write an object in one request, with its checksum, so that the server refuses other bytes."""

    def copy(self, request: PutRequest, source: ObjectInfo, attempts: Attempts) -> PutResult:
        """Copy an object inside the service, with the condition that it still has its version.

        Parameters
        ----------
        source : ObjectInfo
            What `head` returned for it just now.

        Raises
        ------
        Fault
            `Kind.UNSUPPORTED` where the service does not copy this object; then nothing was written.
        """
        raise Fault(Kind.UNSUPPORTED, "there are no copies inside this service")

    def data_path(self, bucket: str, attempts: Attempts) -> DataPath:
        """Return how bulk bytes travel to and from `bucket`."""
        return DataPath(False, "through the client of the service")

    def read_path(self, bucket: str) -> DataPath | None:
        """Return how small reads travel from `bucket`; None where there is one way only. Asks no server."""
        return None

    def parts(self, object_name: ObjectName, size_bytes: int | None, attempts: Attempts) -> Parts:
        """Return how the parts of an object of this size would travel; may ask the server."""
        return Parts(self.parallel_parts)

    def compose(
        self, request: PutRequest, sources: Sequence[tuple[str, str]], attempts: Attempts
    ) -> ObjectInfo:
        """Make an object of others, given by name and version, on condition that they have these versions."""
        raise Fault(Kind.UNSUPPORTED, "this service does not compose objects")

    @abstractmethod
    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        """Delete an object, with the condition that `version` is there unless it is None."""

    @abstractmethod
    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        """Delete exactly these objects; return the faults of those that are left.

        A missing object counts as deleted. `Kind.UNSUPPORTED` where the caller has to delete one by one.
        """

    @abstractmethod
    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        """Return the objects whose name begins with `prefix` and has no slash after it."""

    @abstractmethod
    def begin(self, request: PutRequest, attempts: Attempts) -> UploadSession:
        """Begin a large object; its size is a hint, and None where its parts will come in order."""

    @abstractmethod
    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        """Return unfinished uploads of names that begin with `prefix`; empty where they cannot be listed."""

    def upload_size(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> int:
        """Return how many bytes of a listed upload have arrived; 0 if it is gone."""
        return 0

    @abstractmethod
    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        """Drop a listed upload; raises nothing if it is gone."""
