"""An event without a lock."""

from __future__ import annotations

import threading

from ckptstore.storage.latch import Latch


def test_it_opens_once_for_all() -> None:
    latch = Latch()
    assert not latch.is_set()
    assert not latch.wait(0)
    assert not latch.wait(0.01)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(latch.wait(30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    latch.set()
    latch.set()
    for thread in threads:
        thread.join(30)
    assert answers == [True] * 8
    assert latch.wait()
    assert latch.wait(0)
    assert latch.is_set()
