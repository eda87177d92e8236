"""The messages of one save, without a save."""

from __future__ import annotations

import itertools
import threading

import pytest

from ckptstore.distributed.rounds import Chief, Member, Message
from ckptstore.errors import RanksMissingError
from ckptstore.testing import make_local_coordinators


@pytest.mark.parametrize("came_with_s", [6.0, 3.0])
def test_who_came_late_is_named_and_not_those_that_had_no_time_left(came_with_s: float) -> None:
    left = {"s": 10.0}
    coordinators = make_local_coordinators(3)
    members = [Member(each, "save-0-0", 10.0, 120.0) for each in coordinators[1:]]
    members[0].greet(Message({}))
    looks = itertools.count()

    def come() -> None:
        # The chief calls it before each wait; in the first one it has heard the other rank.
        if next(looks) == 1:
            left["s"] = came_with_s
            members[1].greet(Message({}))

    chief = Chief(coordinators[0], "save-0-0", lambda: left["s"], 120.0, come)
    assert sorted(chief.hear(Message({}))) == [0, 1, 2]
    members[1].report(0, Message({}))
    left["s"] = 0.0
    has_written = threading.Event()
    has_written.set()
    with pytest.raises(RanksMissingError) as caught:
        chief.collect(0, has_written)
    if came_with_s == 6.0:
        assert (caught.value.ranks, caught.value.phase) == ((1,), "write")
    else:
        assert (caught.value.ranks, caught.value.phase) == ((2,), "hello")
        assert "only 3.0 s before its end" in str(caught.value)
