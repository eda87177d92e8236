"""What becomes of the connections of a storage that is dropped: they are closed, not left to be collected."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from ckptstore.errors import AccessError
from ckptstore.storage.object_store.storage import ObjectStorage
from tests.servers.peer import PATIENCE_S, Conversation, running
from tests.wire.test_endless_answers import CLIENT, DIRECT, QUICK, gcs, s3


def refuse(talk: Conversation) -> None:
    while True:
        talk.take()
        talk.answer(b"", "403 Forbidden")


@pytest.mark.parametrize("opened", [s3, gcs], ids=["s3", "gs"])
@pytest.mark.parametrize("plane", [DIRECT, CLIENT], ids=["direct", "client"])
def test_no_socket_is_left_to_the_garbage_collector(
    plane: dict[str, Any], opened: Callable[..., ObjectStorage]
) -> None:
    with running(refuse) as peer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        before = set(threading.enumerate())
        storage = opened(f"http://127.0.0.1:{peer.port}", plane, QUICK)
        with pytest.raises(AccessError):
            storage.get("bucket/x")
        loops = [
            thread for thread in set(threading.enumerate()) - before if thread.name == "ckptstore-requests"
        ]
        del storage
        gc.collect()
        for thread in loops:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        # Plain reads need no client, and so no loop.
        assert bool(loops) is not (plane is DIRECT)
        gc.collect()
        # Other tests leave sockets of their own.
        address = f"raddr=('127.0.0.1', {peer.port})"
        left = [str(one.message) for one in caught if address in str(one.message)]
    assert left == []
