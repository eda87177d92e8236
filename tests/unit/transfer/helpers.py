"""What the tests of transfers wait with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_S = 30.0


def in_background(call: Callable[[], Any]) -> Callable[[], Any]:
    """Start `call` in a thread; what is returned waits for it, and returns or raises what it did."""
    answers: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            answers.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below
            answers.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def wait() -> Any:
        thread.join(TIMEOUT_S)
        assert answers, "it hangs"
        answer, error = answers[0]
        if error is not None:
            raise error
        return answer

    return wait


def eventually(is_so: Callable[[], bool]) -> bool:
    """Return whether `is_so` becomes true in good time."""
    end_s = time.monotonic() + TIMEOUT_S
    while not is_so():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.005)
    return True


def transfer_threads() -> list[threading.Thread]:
    """The threads of the pool that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "ckptstore-transfer"]
