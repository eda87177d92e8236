"""Four ranks as processes on a bad day: killed, frozen, slow, cut off, or at odds with each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from ckptstore.cli.main import main
from tests.ranks.conftest import Place
from tests.ranks.group import SIZE, Group

MakeGroup = Callable[[], Group]

# Of a save that is to fail by it; and of one that is to succeed, on a machine that is busy.
SHORT_S = 8.0
LONG_S = 90.0
GRACE_S = 2.1
# A word that is ten times as late as it should be still proves that nobody waits for ever.
ROOM_S = 30.0

# Where a rank may die or freeze.
MEMBER = ("hello", "write", "done", "outcome")
CHIEF = ("hello", "write", "index", "record", "committed")
POINTS = [("local", 2, point) for point in MEMBER] + [("local", 0, point) for point in CHIEF]
POINTS += [("minio", 2, "write"), ("minio", 2, "done"), ("minio", 0, "index"), ("minio", 0, "committed")]


def save_all(group: Group, place: Place, step: int, **more: Any) -> list[Any]:
    return group.each("save", url=place.url, step=step, options=place.options, **more)


def warm_up(group: Group, place: Place) -> None:
    """The first access to a server takes a process long: that is not to count for a short deadline."""
    group.make_savers(deadline_s=LONG_S)
    elsewhere = Place(f"{place.url}-before", place.options)
    assert_saved(save_all(group, elsewhere, 1), elsewhere, 1)


def assert_saved(found: list[Any], place: Place, step: int) -> None:
    assert [one and one.get("prefix") for one in found] == [f"{place.url}/m-{step}"] * SIZE, found
    place.check(step)
    assert place.latest() == f"{place.url}/m-{step}"


def collect_garbage(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _environment(place).items():
        monkeypatch.setenv(name, value)
    assert main(["gc", place.url, "--min-age", "0s", "--yes"]) == 0


def _environment(place: Place) -> dict[str, str]:
    if place.options is None:
        return {}
    return {
        "AWS_ACCESS_KEY_ID": place.options["key"],
        "AWS_SECRET_ACCESS_KEY": place.options["secret"],
        "AWS_ENDPOINT_URL": place.options["endpoint_url"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def assert_no_strangers(place: Place, steps: list[int]) -> None:
    names = [name for name in place.names() if not name.startswith(".")]
    bases = {name.partition(".")[0] for name in names if name != "checkpoint"}
    assert bases == {f"m-{step}" for step in steps}, names
    for step in steps:
        assert len([name for name in names if name.startswith(f"m-{step}.data-")]) == SIZE, names


@pytest.mark.parametrize(("place", "rank", "point"), POINTS, indirect=["place"])
def test_killed(make_group: MakeGroup, place: Place, monkeypatch: Any, rank: int, point: str) -> None:
    group = make_group()
    group.make_savers(deadline_s=LONG_S)
    assert_saved(save_all(group, place, 1), place, 1)
    group.make_savers(deadline_s=SHORT_S)
    begun_s = time.monotonic()
    group.begin("save", {rank: {"at": point, "how": "kill"}}, url=place.url, step=2, options=place.options)
    assert group.hear(rank) == {"at": point}
    assert group.hear(rank) is None
    found = [group.hear(other) for other in range(SIZE) if other != rank]
    assert time.monotonic() - begun_s < SHORT_S + GRACE_S + ROOM_S
    is_published = point in {"outcome", "record", "committed"}
    for one in found:
        assert one is not None
        if is_published:
            assert one.get("prefix") == f"{place.url}/m-2", one
        elif rank and point == "done":
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [rank]), one
        elif rank:
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [rank]), one
            assert one["phase"] == ("hello" if point == "hello" else "write")
        elif point == "hello":
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [0]), one
        else:
            assert one["error"] == "CoordinatorLostError", one
    if is_published:
        place.check(2)
    else:
        assert place.latest() == f"{place.url}/m-1"
    place.check(1)
    # Restarted, the job saves the same step again.
    again = make_group()
    again.make_savers(deadline_s=LONG_S)
    assert_saved(save_all(again, place, 2), place, 2)
    collect_garbage(place, monkeypatch)
    assert_no_strangers(place, [1, 2])
    place.check(1)
    place.check(2)


@pytest.mark.parametrize(("place", "rank", "point"), POINTS, indirect=["place"])
def test_frozen(make_group: MakeGroup, place: Place, monkeypatch: Any, rank: int, point: str) -> None:
    group = make_group()
    warm_up(group, place)
    group.make_savers(deadline_s=SHORT_S)
    begun_s = time.monotonic()
    group.begin("save", {rank: {"at": point, "how": "freeze"}}, url=place.url, step=1, options=place.options)
    assert group.hear(rank) == {"at": point}
    frozen_s = time.monotonic()
    others = [group.hear(other) for other in range(SIZE) if other != rank]
    assert time.monotonic() - begun_s < SHORT_S + GRACE_S + ROOM_S
    # It began before it froze: by its own clock, too, it is too late.
    time.sleep(max(0.0, frozen_s + SHORT_S + GRACE_S + 1.0 - time.monotonic()))
    group.wait_until_frozen(rank)
    group.thaw(rank)
    own = group.hear(rank)
    assert own is not None
    is_published = point in {"outcome", "record", "committed"}
    for one in others:
        assert one is not None
        if is_published:
            assert one.get("prefix") == f"{place.url}/m-1", one
        elif rank or point == "hello":
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [rank]), one
        else:
            assert one["error"] == "CoordinatorLostError", one
    if point in {"outcome", "committed"}:
        assert own.get("prefix") == f"{place.url}/m-1", own
    elif point in {"index", "record"}:
        # It had begun to publish.
        assert own.get("prefix") == f"{place.url}/m-1" or own["error"] == "DeadlineError", own
    else:
        assert own["error"] in {"RanksMissingError", "DeadlineError"}, own
        if rank:
            assert (own["error"], own["ranks"]) == ("RanksMissingError", [rank]), own
            # Its file is gone, as those of the others.
            assert not [name for name in place.names() if ".data-" in name]
        assert not [name for name in place.names() if name.endswith(".index")]
    # The next save, of the same processes and Savers.
    group.make_savers(deadline_s=LONG_S)
    assert_saved(save_all(group, place, 2), place, 2)


def test_the_same_savers_go_on_after_a_freeze(make_group: MakeGroup, place: Place) -> None:
    group = make_group()
    warm_up(group, place)
    group.make_savers(deadline_s=SHORT_S)
    for step in (1, 2):
        group.begin(
            "save",
            {2: {"at": "write", "how": "freeze"}},
            url=place.url,
            step=step,
            options=place.options,
            in_background=True,
        )
        assert group.hear(2) == {"at": "write"}
        for rank in (0, 1, 3):
            one = group.hear(rank)
            assert one is not None
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [2]), one
        group.wait_until_frozen(2)
        group.thaw(2)
        own = group.hear(2)
        assert own is not None
        assert own["error"] == "RanksMissingError", own
    assert_saved(save_all(group, place, 3), place, 3)


def test_a_frozen_rank_is_named_long_before_the_deadline(make_group: MakeGroup, place: Place) -> None:
    group = make_group()
    warm_up(group, place)
    # Of a busy machine four beats in a second would be too much to ask.
    group.make_savers(deadline_s=3600.0, stall_s=8.0)
    group.begin("save", {3: {"at": "write", "how": "freeze"}}, url=place.url, step=1, options=place.options)
    assert group.hear(3) == {"at": "write"}
    for rank in (0, 1, 2):
        one = group.hear(rank)
        assert one is not None
        assert (one["error"], one["ranks"], one["phase"]) == ("RanksMissingError", [3], "write"), one
    group.wait_until_frozen(3)
    group.thaw(3)
    own = group.hear(3)
    assert own is not None
    assert own["error"] == "RanksMissingError", own
    group.make_savers(deadline_s=LONG_S)
    assert_saved(save_all(group, place, 2), place, 2)


def test_a_slow_rank_is_waited_for_and_named(make_group: MakeGroup, minio: Any, toxiproxy: Any) -> None:
    place = Place(f"s3://{minio.make_bucket()}/run", minio.options)
    with toxiproxy.proxy(minio.process.port) as proxy, proxy.toxic("bandwidth", "upstream", rate=4000):
        slow = minio.through(proxy.url).options
        group = make_group()
        # It takes twice as long as a rank may stand still, and each of its parts much less.
        group.make_savers(deadline_s=LONG_S, stall_s=8.0, log_every_s=2.0)
        length = (64 << 20) // 8
        found = save_all_with(group, place, 1, {2: {"options": slow}}, length=length)
        assert_saved(found, place, 1)
    chief = found[0]
    assert chief is not None
    assert chief["slowest"] == 2
    lines = [line for line in chief["log"] if line.startswith("waiting for ") and "rank 2 (host-2), " in line]
    assert lines, chief["log"]
    assert "%" in lines[-1]


def save_all_with(group: Group, place: Place, step: int, ranks: Any, **more: Any) -> list[Any]:
    return group.each("save", ranks, **{"url": place.url, "step": step, "options": place.options, **more})


def test_the_store_is_down(make_group: MakeGroup, minio: Any, toxiproxy: Any) -> None:
    place = Place(f"s3://{minio.make_bucket()}/run", minio.options)
    with toxiproxy.proxy(minio.process.port) as proxy:
        weak = minio.through(proxy.url).options
        group = make_group()
        group.make_savers(deadline_s=LONG_S)
        # By the same way: what a process asks a server at first is not repeated.
        assert_saved(save_all_with(group, place, 1, {}, options=weak), place, 1)
        group.make_savers(deadline_s=SHORT_S)
        more = {"url": place.url, "step": 2, "options": weak}
        # No request is under way when the server goes: whether that was answered would not be known.
        group.begin("save", at="write", how="freeze", **more)
        for rank in range(SIZE):
            assert group.hear(rank) == {"at": "write"}
            group.wait_until_frozen(rank)
        with proxy.down():
            for rank in range(SIZE):
                group.thaw(rank)
            found = [group.hear(rank) for rank in range(SIZE)]
            assert len({one and one.get("error") for one in found}) == 1, found
            assert found[0] is not None
            assert "error" in found[0]
        assert place.latest() == f"{place.url}/m-1"
        group.make_savers(deadline_s=LONG_S)
        assert_saved(save_all(group, place, 3), place, 3)


def test_the_answer_to_the_index_is_lost(make_group: MakeGroup, place: Place) -> None:
    group = make_group()
    group.make_savers(deadline_s=LONG_S)
    found = save_all_with(group, place, 1, {0: {"how": "lose"}})
    assert [one["error"] for one in found] == ["AmbiguousOutcomeError"] * SIZE, found
    # Nothing is deleted.
    place.check(1)
    assert_saved(save_all(group, place, 2), place, 2)


def test_another_step_on_one_rank(make_group: MakeGroup, place: Place) -> None:
    group = make_group()
    group.make_savers(deadline_s=LONG_S)
    found = save_all_with(group, place, 1, {2: {"step": 7}})
    assert [one["error"] for one in found] == ["UsageError"] * SIZE, found
    assert all("rank 2 (host-2)" in one["text"] for one in found)
    assert place.names() == []
    assert_saved(save_all(group, place, 8), place, 8)


def test_a_directory_that_is_not_shared(make_group: MakeGroup, place: Place, tmp_path: Any) -> None:
    group = make_group()
    group.make_savers(deadline_s=LONG_S)
    other = f"{place.url}-elsewhere"
    found = save_all_with(group, place, 1, {2: {"url": other}})
    assert [one["error"] for one in found] == ["UsageError"] * SIZE, found
    assert all("rank 2 (host-2)" in one["text"] for one in found)
    assert place.names() == []
    assert Place(other, place.options).names() == []
    assert_saved(save_all(group, place, 2), place, 2)
