from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptstore.transfer.ranges import (
    LONG_REQUEST_SIZE_BYTES,
    REQUEST_SIZE_BYTES,
    cell_of,
    coalesce,
    fair_size_bytes,
    split,
)

RANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=30).map(
    lambda pairs: sorted((start, start + size) for start, size in pairs)
)


def one_after_the_other(ranges: list[tuple[int, int]], gap: int, most: int) -> list[tuple[int, int]]:
    """The same, said naively, for ranges that do not overlap."""
    groups: list[tuple[int, int]] = []
    for number, (start, stop) in enumerate(ranges):
        if groups:
            first, end = groups[-1]
            if start - ranges[end - 1][1] <= gap and stop - ranges[first][0] <= most:
                groups[-1] = (first, number + 1)
                continue
        groups.append((number, number + 1))
    return groups


@given(RANGES, st.integers(0, 40), st.integers(1, 200))
def test_groups_are_those_of_a_naive_walk(ranges: list[tuple[int, int]], gap: int, most: int) -> None:
    apart: list[tuple[int, int]] = []
    for start, stop in ranges:
        if not apart or start >= apart[-1][1]:
            apart.append((start, stop))
    found = coalesce(
        [start for start, _ in apart], [stop for _, stop in apart], gap_size_bytes=gap, most_size_bytes=most
    )
    assert found == one_after_the_other(apart, gap, most)


@given(RANGES, st.integers(0, 40), st.integers(1, 200))
def test_ranges_that_overlap_are_each_in_one_group_of_bounded_length(
    ranges: list[tuple[int, int]], gap: int, most: int
) -> None:
    found = coalesce(
        [start for start, _ in ranges], [stop for _, stop in ranges], gap_size_bytes=gap, most_size_bytes=most
    )
    assert [number for first, end in found for number in range(first, end)] == list(range(len(ranges)))
    for first, end in found:
        members = ranges[first:end]
        assert len(members) == 1 or max(stop for _, stop in members) - members[0][0] <= most
        reached = members[0][1]
        for start, stop in members[1:]:
            assert start - reached <= gap
            reached = max(reached, stop)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 20).map(lambda units: 16 * units))
def test_pieces_lie_end_to_end_and_begin_where_the_file_was_cut(start: int, size: int, most: int) -> None:
    pieces = list(split(start, start + size, most))
    assert [low for low, _ in pieces][1:] == [high for _, high in pieces][:-1]
    assert (pieces[0][0], pieces[-1][1]) == (start, start + size) if size else not pieces
    for low, high in pieces:
        assert 0 < high - low <= most
    for low, _ in pieces[1:]:
        assert (low - start) % 16 == 0
        assert -low % most < 16
    cells = [cell_of(low, most) for low, _ in pieces]
    assert cells == list(range(cells[0], cells[0] + len(cells))) if size else not cells


@given(st.integers(1, 1 << 40), st.integers(1, 64))
def test_as_many_requests_as_are_wanted_fit_into_the_budget(budget: int, parallel: int) -> None:
    size = fair_size_bytes(budget, parallel)
    assert size % (256 * 1024) == 0
    assert 256 * 1024 <= size <= REQUEST_SIZE_BYTES
    assert size * parallel <= budget or size == 256 * 1024


def test_without_a_budget_a_request_has_its_best_size() -> None:
    assert fair_size_bytes(None, 64) == REQUEST_SIZE_BYTES
    assert fair_size_bytes(None, 64, 1 << 30) == LONG_REQUEST_SIZE_BYTES


def test_a_small_budget_holds_for_much_to_read_as_well() -> None:
    assert fair_size_bytes(1 << 20, 4, 1 << 30) == 256 * 1024
