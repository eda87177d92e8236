from __future__ import annotations

import asyncio
import errno
import threading

import pytest

from ckptstore.errors import TransientError
from ckptstore.storage.object_store.event_loop import LoopThread
from ckptstore.storage.object_store.faults import Fault, Kind, scarcity_hint
from ckptstore.storage.s3.errors import fault_of


def test_without_a_file_descriptor_left_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(selector: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "SelectorEventLoop", refuse)
    with pytest.raises(TransientError, match="Too many open files") as caught:
        LoopThread()
    assert "ulimit -n" in str(caught.value.hint)


def test_without_a_thread_left_there_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(TransientError, match="can't start new thread") as caught:
        LoopThread()
    assert "threads" in str(caught.value.hint)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_client_without_file_descriptors_is_told_to_raise_their_number(number: int) -> None:
    fault = fault_of(OSError(number, "Too many open files"), str)
    assert isinstance(fault, Fault)
    assert fault.kind is Kind.CUT
    assert "ulimit -n" in str(fault.hint)
    assert scarcity_hint(OSError(errno.ECONNRESET, "reset")) is None
