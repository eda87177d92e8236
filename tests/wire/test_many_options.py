"""Sets of storage options come and go; what one costs goes with its last user."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate

_SETS = 12


@pytest.fixture(params=["minio", "gcs_server"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def url(server):
    bucket = server.make_bucket()
    return f"{'gs' if hasattr(server, 'processes') else 's3'}://{bucket}/run"


def _options(server, number):
    if hasattr(server, "processes"):
        return server.options | {"project": f"p{number}"}
    return server.options | {"config_kwargs": {"connect_timeout": 5 + number}}


def _loops():
    return [thread for thread in threading.enumerate() if thread.name == "ckptstore-requests"]


def _descriptors():
    return len(os.listdir("/proc/self/fd"))


def _settle(loops, descriptors):
    """Wait until no more than these are left, or for a minute."""
    deadline_s = time.monotonic() + 60
    while (len(_loops()) > loops or _descriptors() > descriptors) and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.01)


def test_threads_and_descriptors_of_sets_that_nobody_uses_go(server, url):
    ck.latest_checkpoint(url, storage_options=_options(server, 0))
    gc.collect()
    loops, descriptors = len(_loops()) + 2, _descriptors() + 30
    for number in range(1, _SETS + 1):
        assert ck.latest_checkpoint(url, storage_options=_options(server, number)) is None
    _settle(loops, descriptors)
    assert len(_loops()) <= loops
    assert _descriptors() <= descriptors


def test_a_storage_that_is_in_use_stays_the_same_one(server, url):
    first = _options(server, 100)
    saver = ck.Saver(max_to_keep=2, storage_options=first)
    saver.save({"w": 1.0}, f"{url}/model", 1)
    storage = locate(url, first).storage
    for number in range(101, 106):
        ck.latest_checkpoint(url, storage_options=_options(server, number))
    gc.collect()
    assert locate(url, first).storage is storage
    for step in (2, 3):
        saver.save({"w": 1.0}, f"{url}/model", step)
    assert [path.rpartition("/")[2] for path in saver.last_checkpoints] == ["model-2", "model-3"]


def test_what_was_dropped_is_opened_again(server, url):
    options = _options(server, 200)
    ck.Saver().save({"w": 1.0}, f"{url}/model", 1, storage_options=options)
    for number in range(201, 206):
        ck.latest_checkpoint(url, storage_options=_options(server, number))
    gc.collect()
    assert ck.latest_checkpoint(url, storage_options=options) == f"{url}/model-1"
