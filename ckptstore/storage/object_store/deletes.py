"""Deleting from an object store: exactly these names, in exactly this version; every refusal is reported."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial

from ckptstore.errors import AccessError, CkptStoreError, NotFoundError
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.transport import ObjectName, StaleUpload
from ckptstore.storage.object_store.upload import ObjectUpload
from ckptstore.storage.values import ObjectInfo

__all__ = ["ObjectDeleter"]

# Characters that a request for many deletions cannot carry: it is an XML document.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ObjectDeleter:
    """The deletes of one storage.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, service: ObjectService) -> None:
        self._service = service

    def delete_if(self, key: str, version: str) -> bool:
        """See `Storage.delete_if`."""
        service = self._service
        object_name = service.object_name(key)
        try:
            is_honoured = service.verdicts(object_name).cond_delete
        except AccessError:
            # Probing needs write access; deleting may be allowed without it.
            is_honoured = False
        if not is_honoured and not service.recent.take(key, version):
            # A window remains until the request below; docs/guarantees.md describes it.
            try:
                if service.head(key).version != version:
                    return False
            except NotFoundError:
                return True
        attempts = service.new_attempts()
        condition = version if is_honoured else None
        try:
            attempts.run(partial(service.transport.delete, object_name, version=condition))
        except Fault as fault:
            if fault.kind is Kind.ABSENT:
                return True
            if fault.kind is Kind.PRECONDITION:
                return self._is_gone(key)
            raise error_of(fault, "cannot delete the object", service.url_of(key), attempts) from None
        return True

    def _is_gone(self, key: str) -> bool:
        """Whether a condition failed because nothing is there: the first of two attempts succeeded."""
        try:
            self._service.head(key)
        except NotFoundError:
            return True
        return False

    def delete_many(self, keys: Sequence[str], *, is_repeated: bool = True) -> None:
        """See `Storage.delete_many`; without `is_repeated` see `DeletesOnce.delete_once`."""
        by_bucket: dict[str, list[str]] = {}
        for key in keys:
            object_name = self._service.object_name(key)
            by_bucket.setdefault(object_name.bucket, []).append(object_name.name)
        failed: list[CkptStoreError] = []
        size = self._service.transport.batch_size
        for bucket, repeated in by_bucket.items():
            names = list(dict.fromkeys(repeated))
            for first in range(0, len(names), size):
                failed.extend(self._delete_batch(bucket, names[first : first + size], is_repeated))
        if failed:
            error = failed[0]
            if len(failed) > 1:
                error.add_note(f"In all, {len(failed)} of {len(keys)} objects could not be deleted.")
            raise error

    def _delete_batch(self, bucket: str, names: list[str], is_repeated: bool) -> list[CkptStoreError]:
        """Delete as many objects as one request takes; return the errors of those that are left."""
        service = self._service
        alone = list(names) if len(names) == 1 else [name for name in names if _NOT_XML.search(name)]
        batch = [name for name in names if name not in alone]
        failed: list[CkptStoreError] = []
        if batch:
            attempts = service.new_attempts()
            try:
                request = partial(service.transport.delete_many, bucket, batch)
                faults = attempts.run(request, is_repeated=is_repeated)
            except Fault as fault:
                if fault.kind is not Kind.UNSUPPORTED:
                    url = service.url_of(ObjectName(bucket, batch[0]).key)
                    return [error_of(fault, f"cannot delete {len(batch)} objects", url, attempts)]
                alone = [*alone, *batch]
                faults = {}
            for name, refusal in faults.items():
                if refusal.kind is Kind.FORBIDDEN or (not is_repeated and refusal.kind is not Kind.ABSENT):
                    url = service.url_of(ObjectName(bucket, name).key)
                    failed.append(error_of(refusal, "cannot delete the object", url))
                elif refusal.kind is not Kind.ABSENT:
                    # A failure that may pass: deleted by itself, with retries.
                    alone.append(name)
        deleted = (self._delete(ObjectName(bucket, name), is_repeated) for name in alone)
        return [*failed, *(error for error in deleted if error is not None)]

    def _delete(self, object_name: ObjectName, is_repeated: bool) -> CkptStoreError | None:
        attempts = self._service.new_attempts()
        try:
            request = partial(self._service.transport.delete, object_name, version=None)
            attempts.run(request, is_repeated=is_repeated)
        except Fault as fault:
            if fault.kind is not Kind.ABSENT:
                url = self._service.url_of(object_name.key)
                return error_of(fault, "cannot delete the object", url, attempts)
        return None

    def abort_stale_uploads(self, prefix: str, min_age_s: float, own: Sequence[ObjectUpload]) -> int:
        """See `Storage.abort_stale_uploads`; `own` are the uploads under way in this process."""
        if min_age_s == float("inf"):
            # Here only age shows that an upload is left over, never the death of its writer.
            return 0
        service = self._service
        bucket, _, start = prefix.partition("/")
        directory = start.rpartition("/")[0]
        dropped = 0
        known: set[str] = set()
        for upload in own:
            if upload.upload_id is not None:
                known.add(upload.upload_id)
            target = upload.target
            is_here = target.bucket == bucket and _lies_in(target.name, start, directory)
            if is_here and upload.age_s >= min_age_s:
                upload.drop_as_stale()
                dropped += 1
        for stale in self._listed(prefix, min_age_s):
            if stale.upload_id in known:
                continue
            object_name = ObjectName(bucket, stale.name)
            service.run(
                partial(service.transport.abort_upload, object_name, stale.upload_id),
                "cannot remove the unfinished upload",
                service.url_of(object_name.key),
            )
            dropped += 1
        return dropped

    def stale_uploads(self, prefix: str, min_age_s: float) -> list[ObjectInfo]:
        """See `ListsUploads.stale_uploads`."""
        if min_age_s == float("inf"):
            return []
        service = self._service
        bucket = prefix.partition("/")[0]
        now_s = time.time() + service.transport.skew_s
        found = []
        for stale in self._listed(prefix, min_age_s):
            object_name = ObjectName(bucket, stale.name)
            size_bytes = stale.size_bytes
            if size_bytes is None:
                size_bytes = service.run(
                    partial(service.transport.upload_size, object_name, stale.upload_id),
                    "cannot look at the unfinished upload",
                    service.url_of(object_name.key),
                )
            mtime_s = now_s - max(stale.age_s, 0.0)
            found.append(ObjectInfo(object_name.key, size_bytes, stale.upload_id, mtime_s))
        return found

    def _listed(self, prefix: str, min_age_s: float) -> list[StaleUpload]:
        """Return the unfinished uploads in the directory that are so old."""
        service = self._service
        bucket, _, start = prefix.partition("/")
        directory = start.rpartition("/")[0]
        listed = service.run(
            partial(service.transport.list_uploads, bucket, start),
            "cannot list unfinished uploads",
            service.url_of(prefix),
        )
        return [
            stale
            for stale in listed
            # Dates have whole seconds: the age of an upload begun just now may be negative.
            if max(stale.age_s, 0.0) >= min_age_s and _lies_in(stale.name, start, directory)
        ]


def _lies_in(name: str, start: str, directory: str) -> bool:
    return name.startswith(start) and name.rpartition("/")[0] == directory
