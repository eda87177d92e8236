"""`Upload.send`: large objects in parts, from several threads."""

from __future__ import annotations

import itertools
import threading
from functools import partial

import numpy as np
import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import ChecksumError, NotFoundError, UsageError
from ckptstore.storage.base import Location
from ckptstore.storage.checks import byte_view
from ckptstore.storage.upload import Upload
from ckptstore.testing.contract.base import ContractBase, at_once, committed

__all__ = ["PartContract"]

# Some parts of every backend, the last one short.
_LARGE_BYTES = 40 * 1024 * 1024 + 12_345


def _send(upload: Upload, number: int, data: bytes | bytearray, *, is_last: bool = False) -> None:
    # Pieces of every length, most of which begin where nothing is aligned.
    view = memoryview(data)
    cuts = [cut for cut in (0, 1, 8, 1000, len(data) // 2 + 1) if cut < len(data)]
    pieces = [view[start:stop] for start, stop in itertools.pairwise([*cuts, len(data)])]
    upload.send(number, pieces, crc32c(data), is_last=is_last)


class PartContract(ContractBase):
    """Parts: each as it was brought, whatever came first, or nothing at all."""

    @pytest.fixture
    def shard(self, directory: Location) -> Location:
        return directory.child("model-1.data-00000-of-00001")

    def test_parts_make_one_object_in_whatever_order_they_come(self, shard: Location) -> None:
        """From as many threads as the upload takes; the memory of a part is the caller's when it is sent."""
        whole = np.random.default_rng(7).bytes(_LARGE_BYTES)
        with shard.storage.upload(shard.key, len(whole)) as upload:
            size = upload.part_size_bytes
            parts = [bytearray(whole[start : start + size]) for start in range(0, len(whole), size)]
            last = len(parts) - 1
            assert last > 0

            def send(number: int) -> None:
                _send(upload, number, parts[number], is_last=number == last)
                if number != last:
                    parts[number][:] = bytes(size)

            if upload.parallel > 1:
                send(last)
                for number in range(last - 1, -1, -upload.parallel):
                    numbers = range(number, max(number - upload.parallel, -1), -1)
                    at_once([partial(send, number) for number in numbers])
            else:
                for number in range(len(parts)):
                    send(number)
            assert self.get_raw(shard) is None
            version = committed(upload.commit())
            parts[last][:] = bytes(len(parts[last]))
        assert self.get_raw(shard) == whole
        info = shard.storage.head(shard.key)
        assert (info.size_bytes, info.version) == (len(whole), version)

    def test_the_checksums_are_those_of_the_bytes_that_were_stored(self, shard: Location) -> None:
        """Memory that changes while it is sent is stored with its checksum, or refused."""
        memory = np.zeros(_LARGE_BYTES, np.uint8)
        is_over = threading.Event()

        def change() -> None:
            while not is_over.is_set():
                np.add(memory, 1, out=memory)

        def send() -> list[tuple[int, int]]:
            checksums = []
            with shard.storage.upload(shard.key, len(memory)) as upload:
                size = upload.part_size_bytes
                for number, start in enumerate(range(0, len(memory), size)):
                    part = byte_view(memory)[start : start + size]
                    pieces = [part[: size // 3], part[size // 3 :]]
                    sent = upload.send_shared(number, pieces, is_last=start + size >= len(memory))
                    checksums += list(zip(sent, map(len, pieces), strict=True))
                committed(upload.commit())
            return checksums

        changing = threading.Thread(target=change)
        changing.start()
        checksums: list[tuple[int, int]] = []
        try:
            checksums = send()
        except (UsageError, ChecksumError):
            pass
        finally:
            is_over.set()
            changing.join()
        stored = self.get_raw(shard)
        assert (stored is None) == (not checksums)
        start = 0
        for checksum, size_bytes in checksums:
            assert stored is not None
            assert crc32c(stored[start : start + size_bytes]) == checksum
            start += size_bytes

    @pytest.mark.parametrize("size_bytes", [0, 1, 4097])
    def test_one_part_may_be_all_of_it(self, shard: Location, size_bytes: int) -> None:
        data = (bytes(range(256)) * 17)[:size_bytes]
        with shard.storage.upload(shard.key, size_bytes) as upload:
            _send(upload, 0, data, is_last=True)
            committed(upload.commit())
        assert self.get_raw(shard) == data

    def test_a_part_of_the_wrong_size_is_refused(self, shard: Location) -> None:
        with shard.storage.upload(shard.key) as upload:
            memory = bytes(upload.part_size_bytes + 1)
            for size_bytes, is_last in [
                (0, False),
                (len(memory) - 2, False),
                (len(memory), False),
                (len(memory), True),
            ]:
                with pytest.raises(UsageError):
                    upload.send(0, [memoryview(memory)[:size_bytes]], 0, is_last=is_last)
            # None of them counts.
            _send(upload, 0, b"fits", is_last=True)
            committed(upload.commit())
        assert self.get_raw(shard) == b"fits"

    def test_no_part_is_brought_twice_or_behind_the_last_one(self, shard: Location) -> None:
        with shard.storage.upload(shard.key) as upload:
            _send(upload, 0, b"once", is_last=True)
            for number in (0, 1, -1):
                with pytest.raises(UsageError):
                    _send(upload, number, b"more", is_last=True)
            committed(upload.commit())
        assert self.get_raw(shard) == b"once"

    def test_an_upload_that_lacks_a_part_is_not_committed(self, shard: Location) -> None:
        def leave_out() -> None:
            with shard.storage.upload(shard.key) as upload:
                _send(upload, 1, b"the end", is_last=True)
                upload.commit()

        # Where parts come one after the other the second one alone is refused already.
        with pytest.raises(UsageError):
            leave_out()
        assert self.get_raw(shard) is None
        with pytest.raises(NotFoundError):
            shard.storage.head(shard.key)
        assert shard.storage.abort_stale_uploads(f"{shard.parent.key}/", 0.0) == 0
