"""One large file under way on a local disk."""

from __future__ import annotations

from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, UsageError
from ckptstore.storage.base import Committed, PutOutcome, Upload
from ckptstore.storage.checks import byte_view
from ckptstore.storage.local_directory import Directory, translated
from ckptstore.storage.local_files import TempFile

if TYPE_CHECKING:
    from ckptstore.storage.base import Buffer

__all__ = ["LocalUpload"]


class LocalUpload(Upload):
    """A file under a temporary name, locked until `close`.

    `close` without `commit` or `abort` leaves the unfinished file, as the death of the process would. An
    upload that is dropped without any of them is aborted.
    """

    def __init__(self, directory: Directory, name: str, url: str, size_bytes: int | None) -> None:
        self._url = url
        self._directory = directory
        self._temp = TempFile(directory, name, is_upload=True)
        self._is_open = True
        if size_bytes is not None:
            try:
                self._temp.reserve(size_bytes)
            except BaseException:
                self._give_up()
                self._temp.close()
                raise

    def write(self, data: Buffer) -> None:
        self._check_open()
        view = byte_view(data)
        try:
            with translated("cannot write", self._url):
                self._temp.write(view)
        except BaseException:
            # How much of it was written is unknown, so nothing can follow.
            self._give_up()
            raise

    def commit(self) -> PutOutcome:
        self._check_open()
        try:
            with translated("cannot create", self._url):
                self._temp.seal()
                outcome = self._temp.publish()
        except BaseException:
            self._give_up()
            raise
        self._is_open = False
        if not isinstance(outcome, Committed):
            self._give_up()
        return outcome

    def _check_open(self) -> None:
        if not self._is_open or not self._temp.is_ours:
            raise UsageError(
                "this upload is over, or belongs to the parent of this process",
                url=self._url,
                hint="Begin another upload.",
            )

    def _give_up(self) -> None:
        self._is_open = False
        # The first error counts; what cannot be removed now is left for abort_stale_uploads.
        with suppress(OSError):
            self._temp.discard()

    def abort(self) -> None:
        self._is_open = False
        with translated("cannot remove the unfinished file", self._url):
            self._temp.discard()

    def close(self) -> None:
        self._is_open = False
        self._temp.close()
        self._directory.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abort()
        except CkptStoreError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self.close()
