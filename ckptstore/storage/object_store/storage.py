"""The nine primitives on an object store: what S3 and GCS have in common.

Guarantees
----------
A write is in place whole or not at all. A conditional write whose answer was lost, or that was answered with
a conflict, is read back: the clients below us repeat requests on their own, so a conflict often means that
the first of our own two requests won. "Not there" is concluded only from a read that the bucket answered.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from operator import attrgetter
from typing import TYPE_CHECKING, NoReturn

from ckptstore.checksums import crc32c
from ckptstore.errors import UsageError
from ckptstore.storage.abilities import (
    DeletesOnce,
    Diagnosable,
    KnowsServerTime,
    ListsUploads,
    MarksUploads,
    ProbesCapabilities,
    SupportsCopies,
)
from ckptstore.storage.base import Storage
from ckptstore.storage.checks import byte_view, check_pin
from ckptstore.storage.finding import Finding
from ckptstore.storage.object_store.attempts import Attempts, RetryPolicy
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.listing import all_pages
from ckptstore.storage.object_store.reads import ObjectReader
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Page,
    Precondition,
    PutRequest,
    PutResult,
    Transport,
)
from ckptstore.storage.values import Capabilities, GetResult, ObjectInfo, PutOutcome, SuffixRange
from ckptstore.types import ByteRange

# What only writers need is imported where it is used: readers start without it.
if TYPE_CHECKING:
    from ckptstore.storage.object_store.deletes import ObjectDeleter
    from ckptstore.storage.object_store.upload import ObjectUpload
    from ckptstore.storage.upload import Upload
    from ckptstore.storage.values import Buffer

__all__ = ["ObjectStorage"]


class ObjectStorage(
    Storage,
    SupportsCopies,
    ListsUploads,
    MarksUploads,
    DeletesOnce,
    KnowsServerTime,
    ProbesCapabilities,
    Diagnosable,
):
    """The objects that one `Transport` reaches; keys are ``bucket/name``.

    Parameters
    ----------
    service : ObjectService, optional
        Takes the place of one made of the two.

    Threads
    -------
    Safe for concurrent use, inside a running event loop, and after a fork.
    """

    def __init__(
        self,
        transport: Transport,
        policy: RetryPolicy | None = None,
        *,
        service: ObjectService | None = None,
    ) -> None:
        self.transport = transport
        self.service = service or ObjectService(transport, policy)
        self._uploads: weakref.WeakSet[ObjectUpload] = weakref.WeakSet()

    @cached_property
    def _deleter(self) -> ObjectDeleter:
        from ckptstore.storage.object_store.deletes import ObjectDeleter

        return ObjectDeleter(self.service)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transport.scheme}://>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a storage holds credentials and is not pickled: pass the URL and the options instead"
        )

    @property
    def parallel_reads(self) -> int:  # type: ignore[override]
        return self.transport.parallel_reads

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What holds in all buckets probed so far; before the first probe, what the service documents."""
        return self.service.capabilities

    def probe(self, key: str) -> Capabilities:
        """Find out what the server of `key` really does: six requests, once for each bucket."""
        from ckptstore.storage.object_store.probe import capabilities_of

        verdicts = self.service.verdicts(self.service.object_name(key))
        return capabilities_of(self.transport.nominal, verdicts)

    def url_of(self, key: str) -> str:
        return self.service.url_of(key)

    @property
    def server(self) -> str:
        try:
            return self.transport.server
        except Fault as fault:
            raise error_of(fault, "cannot find out where the server is", self.url_of("")) from None

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        result = self._reader(key, version).get(byte_range)
        self.service.recent.note(key, result.version)
        return result

    def get_into(self, key: str, byte_range: ByteRange, buffer: memoryview) -> tuple[str, int]:
        version, size_bytes = self._reader(key, None).get_into(byte_range, buffer)
        self.service.recent.note(key, version)
        return version, size_bytes

    def get_unless(
        self, key: str, version: str, byte_range: ByteRange | SuffixRange | None = None
    ) -> GetResult | None:
        result = self._reader(key, None).get_unless(version, byte_range)
        if result is not None:
            self.service.recent.note(key, result.version)
        return result

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self._reader(key, version).read_into(ranges, buffers)

    def _reader(self, key: str, version: str | None) -> ObjectReader:
        return ObjectReader(self.service, self.service.object_name(key), version)

    def head(self, key: str) -> ObjectInfo:
        return self.service.head(key)

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        return self._put(key, data, Precondition(None))

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        return self._put(key, data, Precondition(version))

    def _put(self, key: str, data: Buffer, precondition: Precondition) -> PutOutcome:
        from ckptstore.storage.object_store.conditional_write import new_write_id

        target = self.service.object_name(key)
        view = byte_view(data)
        request = PutRequest(target, new_write_id(), precondition, len(view), crc32c(view))
        return self.service.put(request, (view,))

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        from ckptstore.storage.object_store.conditional_write import new_upload_id

        target = self.service.object_name(target_key)
        found = self.head(source_key)
        check_pin(version, found.version, self.url_of(source_key))
        request = PutRequest(
            target, new_upload_id(target), Precondition(None), found.size_bytes, found.crc32c
        )

        def send(request: PutRequest, attempts: Attempts) -> PutResult:
            try:
                return self.transport.copy(request, found, attempts)
            except Fault as fault:
                if fault.kind is Kind.UNSUPPORTED:
                    raise _CannotCopy from None
                raise

        try:
            return self.service.write(request, send, doubts_repeats=True)
        except _CannotCopy:
            return None

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        from ckptstore.storage.object_store.upload import ObjectUpload

        target = self.service.object_name(key)
        upload = ObjectUpload(self.service, target, size_bytes, when_over=self._uploads.discard)
        self._uploads.add(upload)
        return upload

    def is_upload(self, key: str) -> bool:
        from ckptstore.storage.object_store.conditional_write import is_of_upload

        return is_of_upload(self.head(key).write_id, self.service.object_name(key))

    def delete_if(self, key: str, version: str) -> bool:
        return self._deleter.delete_if(key, version)

    def delete_many(self, keys: Sequence[str]) -> None:
        self._deleter.delete_many(keys)

    def delete_once(self, keys: Sequence[str]) -> None:
        self._deleter.delete_many(keys, is_repeated=False)

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        return self._deleter.abort_stale_uploads(prefix, min_age_s, list(self._uploads))

    def stale_uploads(self, prefix: str, min_age_s: float) -> Sequence[ObjectInfo]:
        return self._deleter.stale_uploads(prefix, min_age_s)

    def diagnose(self, directory_key: str, *, read_only: bool = False) -> Sequence[Finding]:
        from ckptstore.storage.object_store.diagnosis import diagnose_objects

        return list(diagnose_objects(self.service, directory_key, read_only=read_only))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, start = self.service.split(prefix)
        directory = start.rpartition("/")[0]
        if directory:
            self.service.check_name(directory, prefix)
        # MinIO refuses a prefix that ends in a dot segment: "run/." of the checkpoint "run/".
        asked = f"{directory}/".lstrip("/") if start.rpartition("/")[2] in (".", "..") else start
        found = [
            # A name that ends with a slash is an empty directory as web consoles make it.
            info
            for info in self._listed(bucket, asked)
            if not info.key.endswith("/") and info.key.startswith(f"{bucket}/{start}")
        ]
        if not found and directory and self.transport.object_hides_directory:
            self._check_directory(ObjectName(bucket, directory))
        # Some servers list in the order of their disks.
        found.sort(key=attrgetter("key"))
        return iter(found)

    def _listed(self, bucket: str, start: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose name begins with `start` and has no slash after it."""
        url = self.url_of(f"{bucket}/{start}")
        what = "cannot list the directory"

        def ask(token: str | None) -> Page:
            return self.service.run(partial(self.transport.list_page, bucket, start, token), what, url)

        try:
            yield from all_pages(ask)
        except Fault as fault:
            raise error_of(fault, what, url) from None

    def _check_directory(self, directory: ObjectName) -> None:
        """Raise if an object of the directory's own name may be the reason for an empty listing."""
        url = self.url_of(directory.key)
        attempts = self.service.new_attempts()
        try:
            attempts.run(partial(self.transport.head, directory))
        except Fault as fault:
            # The bucket answered the listing, so a 404 is about this name.
            if fault.kind in (Kind.ABSENT, Kind.UNPROVED, Kind.FORBIDDEN):
                return
            raise error_of(fault, "cannot look at the directory", url, attempts) from None
        raise UsageError(
            "an object has the directory's own name, and some servers then list nothing below it",
            url=url,
            hint="Choose another directory.",
        )

    def now_s(self) -> float:
        # From the last answer; versions and ages are only compared after one.
        return time.time() + self.transport.skew_s


class _CannotCopy(Exception):  # noqa: N818 - a message from inside a call, not an error
    pass
