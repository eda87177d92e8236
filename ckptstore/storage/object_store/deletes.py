"""Deleting from an object store: exactly these names, in exactly this version; every refusal is heard of."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckptstore.errors import AccessError, CkptStoreError, NotFoundError
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, StaleUpload

if TYPE_CHECKING:
    from ckptstore.storage.object_store.storage import ObjectStorage
    from ckptstore.storage.object_store.upload import ObjectUpload

__all__ = ["ObjectDeleter"]

# How long a version that was just seen stands for another look before a delete without a condition. Between
# the look at a victim and its delete a save makes two requests, and one of them is a compare-and-swap that
# proves that nobody took over.
_FRESH_S = 2.0
_FRESH_KEYS = 1024

# What a request for many deletions cannot carry: it is an XML document.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ObjectDeleter:
    """The deletes of one storage.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage
        self._locks = ForkSafeLocks()
        self._seen: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def note(self, key: str, version: str) -> None:
        """Hear which version a key has at this moment."""
        with self._locks[0]:
            self._seen[key] = version, time.monotonic()
            self._seen.move_to_end(key)
            if len(self._seen) > _FRESH_KEYS:
                self._seen.popitem(last=False)

    def forget(self, key: str) -> None:
        """Hear that this process writes a key."""
        with self._locks[0]:
            self._seen.pop(key, None)

    def _was_just_seen(self, key: str, version: str) -> bool:
        with self._locks[0]:
            seen, when_s = self._seen.pop(key, ("", 0.0))
        return seen == version and time.monotonic() - when_s <= _FRESH_S

    def delete_if(self, key: str, version: str) -> bool:
        """See `Storage.delete_if`."""
        storage = self._storage
        object_name, url = storage.object_name(key), storage.url_of(key)
        try:
            is_honoured = storage.verdicts(object_name, url).cond_delete
        except AccessError:
            # Who may not write, which is how that is found out, may still delete.
            is_honoured = False
        if not is_honoured and not self._was_just_seen(key, version):
            # A window remains until the request below; docs/guarantees.md says so.
            try:
                if storage.head(key).version != version:
                    return False
            except NotFoundError:
                return True
        attempts = storage.new_attempts()
        condition = version if is_honoured else None
        try:
            attempts.run(lambda attempts: storage.transport.delete(object_name, attempts, version=condition))
        except Fault as fault:
            if fault.kind is Kind.ABSENT:
                return True
            if fault.kind is Kind.PRECONDITION:
                return self._is_gone(key)
            raise error_of(fault, "cannot delete the object", url, attempts) from None
        return True

    def _is_gone(self, key: str) -> bool:
        """Tell whether a condition failed because nothing is there: the first of two attempts won."""
        try:
            self._storage.head(key)
        except NotFoundError:
            return True
        return False

    def delete_many(self, keys: Sequence[str]) -> None:
        """See `Storage.delete_many`."""
        by_bucket: dict[str, list[str]] = {}
        for key in keys:
            object_name = self._storage.object_name(key)
            by_bucket.setdefault(object_name.bucket, []).append(object_name.name)
        failed: list[CkptStoreError] = []
        size = self._storage.transport.batch_size
        for bucket, names in by_bucket.items():
            names = list(dict.fromkeys(names))
            for first in range(0, len(names), size):
                failed.extend(self._delete_batch(bucket, names[first : first + size]))
        if failed:
            error = failed[0]
            if len(failed) > 1:
                error.add_note(f"In all, {len(failed)} of {len(keys)} objects could not be deleted.")
            raise error

    def _delete_batch(self, bucket: str, names: list[str]) -> list[CkptStoreError]:
        """Delete up to a request full; return what could not be."""
        storage = self._storage
        alone = list(names) if len(names) == 1 else [name for name in names if _NOT_XML.search(name)]
        batch = [name for name in names if name not in alone]
        failed: list[CkptStoreError] = []
        if batch:
            attempts = storage.new_attempts()
            try:
                faults = attempts.run(lambda attempts: storage.transport.delete_many(bucket, batch, attempts))
            except Fault as fault:
                if fault.kind is not Kind.UNSUPPORTED:
                    url = storage.url_of(ObjectName(bucket, batch[0]).key)
                    return [error_of(fault, f"cannot delete {len(batch)} objects", url, attempts)]
                alone = [*alone, *batch]
                faults = {}
            for name, refusal in faults.items():
                if refusal.kind is Kind.FORBIDDEN:
                    url = storage.url_of(ObjectName(bucket, name).key)
                    failed.append(error_of(refusal, "cannot delete the object", url))
                elif refusal.kind is not Kind.ABSENT:
                    # What may pass is asked for alone, where it is repeated.
                    alone.append(name)
        failed.extend(error for name in alone if (error := self._delete(ObjectName(bucket, name))))
        return failed

    def _delete(self, object_name: ObjectName) -> CkptStoreError | None:
        attempts = self._storage.new_attempts()
        try:
            attempts.run(lambda attempts: self._storage.transport.delete(object_name, attempts, version=None))
        except Fault as fault:
            if fault.kind is not Kind.ABSENT:
                url = self._storage.url_of(object_name.key)
                return error_of(fault, "cannot delete the object", url, attempts)
        return None

    def abort_stale_uploads(self, prefix: str, min_age_s: float, own: Sequence[ObjectUpload]) -> int:
        """See `Storage.abort_stale_uploads`; `own` are the uploads under way in this process."""
        if min_age_s == float("inf"):
            # Nobody can prove here that another writer is dead.
            return 0
        storage = self._storage
        bucket, _, start = prefix.partition("/")
        directory = start.rpartition("/")[0]
        dropped = 0
        known = set()
        for upload in own:
            if upload.upload_id is not None:
                known.add(upload.upload_id)
            is_here = upload.object_name.bucket == bucket and _lies_in(
                upload.object_name.name, start, directory
            )
            if is_here and upload.age_s >= min_age_s:
                upload.drop_as_stale()
                dropped += 1
        listed: list[StaleUpload] = storage.run(
            lambda attempts: storage.transport.list_uploads(bucket, start, attempts),
            "cannot list unfinished uploads",
            storage.url_of(prefix),
        )
        for stale in listed:
            if (
                stale.upload_id in known
                # A date has whole seconds: of an upload begun just now the age may come out negative.
                or max(stale.age_s, 0.0) < min_age_s
                or not _lies_in(stale.name, start, directory)
            ):
                continue
            object_name = ObjectName(bucket, stale.name)
            storage.run(
                lambda attempts, object_name=object_name, stale=stale: storage.transport.abort_upload(
                    object_name, stale.upload_id, attempts
                ),  # type: ignore[misc]
                "cannot remove the unfinished upload",
                storage.url_of(object_name.key),
            )
            dropped += 1
        return dropped


def _lies_in(name: str, start: str, directory: str) -> bool:
    return name.startswith(start) and name.rpartition("/")[0] == directory
