"""`upload` and `abort_stale_uploads`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from ckptstore.errors import CkptStoreError, NotFoundError, UsageError
from ckptstore.storage.base import Location
from ckptstore.storage.checks import byte_view
from ckptstore.storage.values import Lost, PutOutcome
from ckptstore.testing.contract.base import ContractBase, at_once, committed, one_winner

if TYPE_CHECKING:
    from ckptstore.storage.values import Buffer

__all__ = ["UploadContract"]


class UploadContract(ContractBase):
    """Large writes: invisible until they are whole, gone when they fail."""

    @pytest.fixture
    def shard(self, directory: Location) -> Location:
        return directory.child("model-1.data-00000-of-00001")

    def _assert_nothing_there(self, shard: Location) -> None:
        assert self.get_raw(shard) is None
        assert list(shard.storage.list(f"{shard.parent.key}/")) == []
        assert shard.storage.abort_stale_uploads(f"{shard.parent.key}/", 0.0) == 0

    def test_an_upload_is_invisible_until_it_is_committed(self, shard: Location) -> None:
        storage = shard.storage
        with storage.upload(shard.key) as upload:
            upload.write(b"half")
            assert self.get_raw(shard) is None
            assert list(storage.list(f"{shard.parent.key}/")) == []
            with pytest.raises(NotFoundError):
                storage.get(shard.key)
            upload.write(b" and half")
            version = committed(upload.commit())
            assert self.get_raw(shard) == b"half and half"
        assert storage.head(shard.key).version == version
        assert self.get_raw(shard) == b"half and half"

    def test_large_and_small_pieces_of_every_kind_arrive_in_order(self, shard: Location) -> None:
        block = np.arange(5 << 20, dtype=np.uint32).astype(np.uint8)
        pieces: list[Buffer] = [
            block,
            b"small",
            b"",
            bytearray(block.tobytes()),
            memoryview(b"odd\0"),
            block.reshape(-1, 4),
        ]
        with shard.storage.upload(shard.key, size_bytes=17) as upload:
            for piece in pieces:
                upload.write(piece)
            committed(upload.commit())
        assert self.get_raw(shard) == b"".join(byte_view(piece) for piece in pieces)

    def test_an_empty_upload_makes_an_empty_object(self, shard: Location) -> None:
        with shard.storage.upload(shard.key, size_bytes=0) as upload:
            committed(upload.commit())
        assert self.get_raw(shard) == b""

    def test_an_upload_makes_missing_directories(self, directory: Location) -> None:
        shard = directory.child("a").child("b").child("data")
        with shard.storage.upload(shard.key) as upload:
            upload.write(b"deep")
            committed(upload.commit())
        assert self.get_raw(shard) == b"deep"

    def test_the_caller_may_reuse_the_buffer_of_a_write(self, shard: Location) -> None:
        buffer = bytearray(b"kept")
        with shard.storage.upload(shard.key) as upload:
            upload.write(buffer)
            buffer[:] = b"next"
            upload.write(buffer)
            buffer[:] = b"lost"
            committed(upload.commit())
        assert self.get_raw(shard) == b"keptnext"

    def test_abort_leaves_nothing(self, shard: Location) -> None:
        upload = shard.storage.upload(shard.key)
        upload.write(b"unwanted")
        upload.abort()
        upload.close()
        self._assert_nothing_there(shard)

    @pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
    def test_a_block_that_raises_leaves_nothing(self, shard: Location, kind: type[BaseException]) -> None:
        def write() -> None:
            with shard.storage.upload(shard.key) as upload:
                upload.write(b"unwanted")
                raise kind

        with pytest.raises(kind):
            write()
        self._assert_nothing_there(shard)

    def test_a_block_that_forgets_to_commit_leaves_nothing(self, shard: Location) -> None:
        with shard.storage.upload(shard.key) as upload:
            upload.write(b"unwanted")
        self._assert_nothing_there(shard)

    def test_abort_and_close_after_a_commit_change_nothing(self, shard: Location) -> None:
        upload = shard.storage.upload(shard.key)
        upload.write(b"kept")
        committed(upload.commit())
        upload.abort()
        upload.close()
        upload.close()
        assert self.get_raw(shard) == b"kept"

    def test_an_upload_that_is_over_takes_nothing_more(self, shard: Location) -> None:
        upload = shard.storage.upload(shard.key)
        upload.write(b"kept")
        committed(upload.commit())
        for call in (lambda: upload.write(b"more"), upload.commit):
            with pytest.raises(UsageError):
                call()
        upload.close()
        with shard.storage.upload(shard.key + "2") as aborted:
            aborted.abort()
            with pytest.raises(UsageError):
                aborted.commit()
        assert self.get_raw(shard) == b"kept"

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_what_is_there_is_not_replaced(self, shard: Location, when: str) -> None:
        self.need(shard.storage, "create_if_absent")
        if when == "before":
            self.put_raw(shard, b"theirs")
        with shard.storage.upload(shard.key) as upload:
            upload.write(b"ours")
            if when == "meanwhile":
                self.put_raw(shard, b"theirs")
            version = shard.storage.head(shard.key).version
            assert upload.commit() == Lost(version)
        assert self.get_raw(shard) == b"theirs"
        assert shard.storage.abort_stale_uploads(f"{shard.parent.key}/", 0.0) == 0

    def test_of_eight_uploads_at_once_one_wins(self, shard: Location) -> None:
        self.need(shard.storage, "create_if_absent")

        def upload(number: int) -> PutOutcome:
            with shard.storage.upload(shard.key) as upload:
                upload.write(b"writer %d" % number)
                return upload.commit()

        outcomes = at_once([lambda number=number: upload(number) for number in range(8)])  # type: ignore[misc]
        assert self.get_raw(shard) == b"writer %d" % one_winner(outcomes)

    def test_a_stale_upload_is_dropped_and_cannot_be_committed(
        self, directory: Location, shard: Location
    ) -> None:
        with shard.storage.upload(shard.key) as upload:
            upload.write(b"stale")
            assert shard.storage.abort_stale_uploads(f"{directory.key}/other", 0.0) == 0
            assert shard.storage.abort_stale_uploads(f"{directory.key}/model-1", 0.0) == 1
            assert shard.storage.abort_stale_uploads(f"{directory.key}/model-1", 0.0) == 0
            with pytest.raises(CkptStoreError):
                upload.commit()
        self._assert_nothing_there(shard)

    def test_a_young_upload_of_a_living_writer_goes_on(self, shard: Location) -> None:
        with shard.storage.upload(shard.key) as upload:
            upload.write(b"young")
            assert shard.storage.abort_stale_uploads(f"{shard.parent.key}/", 3600.0) == 0
            committed(upload.commit())
        assert self.get_raw(shard) == b"young"

    def test_there_are_no_stale_uploads_in_a_directory_that_is_not_there(self, directory: Location) -> None:
        assert directory.storage.abort_stale_uploads(f"{directory.child('nowhere').key}/", 0.0) == 0
