"""One bundle with one data file, written tensor after tensor: no record, no retention, no owner."""

from __future__ import annotations

from types import TracebackType

from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.directory.bare_write import collect_replaced
from ckptstore.directory.published_index import (
    PublishedIndex,
    choose_count,
    name_is_taken,
    read_published_index,
)
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError, ConflictError, UsageError
from ckptstore.storage.base import Location
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.values import Committed
from ckptstore.transfer.transfer import Transfer

__all__ = ["BareBundle"]


class BareBundle:
    """A bundle under way; nothing is visible before `finish`.

    Leaving the ``with`` block finishes, a raising block leaves no file.

    Parameters
    ----------
    prefix : Location
        A bundle that is there is replaced at once.
    transfer : Transfer, optional
        Whose threads and memory to use; the caller has entered it. By default one without limits.

    Raises
    ------
    UsageError
        If the prefix is not a usable name.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self, prefix: Location, transfer: Transfer | None = None) -> None:
        check_prefix_name(prefix)
        self._prefix = prefix
        self._given = transfer
        self._files: ShardSet | None = None
        self._writer: ShardWriter | None = None
        self._transfer: Transfer | None = None
        self._published: PublishedIndex | None = None
        self._count = 1
        self._over = False
        self._is_published = False

    def begun(self) -> ShardWriter:
        """Return the data file to add tensors to.

        Raises
        ------
        UsageError
            After `finish` or `abort`.
        """
        if self._over:
            raise UsageError(
                "this writer is finished or aborted", url=self._prefix.url, hint="Open another one."
            )
        if self._writer is None:
            directory, name = self._prefix.parent, self._prefix.name
            self._published = read_published_index(directory, name)
            used = self._published is not None or name_is_taken(directory, name, 1, 1)
            taken = self._published.counts if self._published is not None else set()
            self._count = choose_count(1, taken if used else None)
            self._transfer = self._given or Transfer("save", self._prefix.url)
            self._files = ShardSet(directory, name, transfer=self._transfer, canonical_count=1)
            self._writer = self._files.begin(0, self._count)
        return self._writer

    def finish(self) -> None:
        """Publish the bundle: durable and complete when this returns. A second call does nothing.

        Raises
        ------
        ConflictError
            If another writer published the same prefix in between; nothing of this one stays.
        UsageError
            After `abort`.
        """
        if self._is_published:
            return
        self.begun()
        assert self._transfer is not None
        self._over = True
        if self._given is None:
            with self._transfer:
                self._publish()
        else:
            self._publish()
        self._is_published = True

    def _publish(self) -> None:
        assert self._files is not None
        with self._files as files:
            if not files.seal():
                raise self._conflict()
            files.finish(self._count)
            if not isinstance(files.publish(self._published), Committed):
                raise self._conflict()
        collect_replaced(self._files, self._published)

    def abort(self) -> None:
        """Drop what was added; no effect after `finish`."""
        if not self._over:
            self._over = True
            if self._files is not None:
                self._files.drop()

    def _conflict(self) -> ConflictError:
        return ConflictError(
            "another writer published the same prefix at the same time",
            url=self._prefix.url,
            hint="Its bundle is complete. Write under another prefix, or let only one writer use this one.",
        )

    def __enter__(self) -> BareBundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if not self._over:
                self.finish()
            return
        try:
            self.abort()
        except CkptStoreError as second:
            error.add_note(f"What was written could not be removed either: {second}")
