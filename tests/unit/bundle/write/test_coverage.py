"""Boxes that make up a tensor, and the errors that name those which do not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.write.coverage import BoxColumns, check_coverage, check_pieces
from ckptstore.errors import UsageError
from ckptstore.types import Piece

Extents = list[tuple[int, int]]


def pieces(shape: tuple[int, ...], *boxes: Extents) -> list[Piece]:
    return [
        Piece(np.broadcast_to(np.int8(0), [stop - start for start, stop in box]), shape, [a for a, _ in box])
        for box in boxes
    ]


def check(shape: tuple[int, ...], *boxes: Extents) -> None:
    check_pieces([("w", pieces(shape, *boxes))])


@pytest.mark.parametrize(
    ("shape", "boxes"),
    [
        ((), [[]]),
        ((4,), [[(0, 4)]]),
        ((4,), [[(2, 4)], [(0, 2)]]),
        ((4,), [[(2, 4)], [(2, 2)], [(0, 2)]]),
        ((0, 4), [[(0, 0), (0, 2)]]),
        # A pinwheel: no dimension cuts it through.
        ((3, 3), [[(0, 2), (0, 1)], [(0, 1), (1, 3)], [(1, 3), (2, 3)], [(2, 3), (0, 2)], [(1, 2), (1, 2)]]),
    ],
)
def test_boxes_that_make_up_the_tensor_pass(shape: tuple[int, ...], boxes: list[Extents]) -> None:
    check(shape, *boxes)


def test_a_hole_is_named() -> None:
    with pytest.raises(UsageError, match=r"leave a hole at \[1:2, 2:5\]") as caught:
        check((3, 5), [(0, 1), (0, 5)], [(1, 3), (0, 2)], [(2, 3), (2, 5)])
    assert caught.value.tensor == "w"
    assert caught.value.actual == "[0:1, 0:5] (piece 0), [1:3, 0:2] (piece 1), [2:3, 2:5] (piece 2)"


def test_nothing_but_empty_boxes_is_a_hole() -> None:
    with pytest.raises(UsageError, match=r"hole at \[0:3\]"):
        check((3,), [(3, 3)])


def test_an_overlap_is_named_with_who_gives_it() -> None:
    boxes = BoxColumns(
        ["fine", "w"],
        np.array([[2, 2], [3, 4]]),
        np.array([0, 1, 1, 1]),
        np.array([[0, 0], [0, 0], [2, 0], [1, 3]]),
        np.array([[2, 2], [2, 4], [3, 4], [2, 4]]),
    )
    with pytest.raises(UsageError, match="two pieces of a tensor overlap") as caught:
        check_coverage(boxes, lambda row: f"rank {row * 10}")
    assert caught.value.tensor == "w"
    assert caught.value.actual == "[0:2, 0:4] (rank 10) and [1:2, 3:4] (rank 30)"


def test_two_scalars_overlap() -> None:
    with pytest.raises(UsageError, match="overlap"):
        check((), [], [])


def test_a_tensor_that_nobody_gives_is_a_hole() -> None:
    none = np.zeros((0, 1), np.int64)
    with pytest.raises(UsageError, match=r"hole at \[0:3\]") as caught:
        check_coverage(BoxColumns(["w"], np.array([[3]]), np.zeros(0, np.int64), none, none), str)
    assert caught.value.actual == "no piece"


def test_pieces_of_two_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="do not agree on its shape") as caught:
        check_pieces([("w", [*pieces((4,), [(0, 2)]), *pieces((5,), [(2, 4)])])])
    assert (caught.value.expected, caught.value.actual) == ("[4]", "[5]")


@st.composite
def any_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Extents]]:
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3)))
    cuts = [sorted({0, size, *draw(st.sets(st.integers(0, size), max_size=2))}) for size in shape]
    cells: list[Extents] = [[]]
    for edges in cuts:
        spans = list(itertools.pairwise(edges)) or [(0, 0)]
        cells = [[*cell, span] for cell in cells for span in spans]
    cells = draw(st.permutations(cells))
    change = draw(st.sampled_from(["nothing", "drop", "add", "stretch"]))
    if change == "drop":
        cells = cells[1:]
    elif change == "add":
        cells = [*cells, draw(st.sampled_from(cells))]
    elif change == "stretch":
        cells = [[(max(0, start - 1), stop) for start, stop in cells[0]], *cells[1:]]
    return shape, cells


@given(any_boxes())
def test_the_answer_is_that_of_counting_every_element(case: tuple[tuple[int, ...], list[Extents]]) -> None:
    shape, boxes = case
    count = np.zeros(shape, np.int64)
    for box in boxes:
        count[tuple(slice(start, stop) for start, stop in box)] += 1
    expected = "two pieces" if (count > 1).any() else "leave a hole" if (count == 0).any() else ""
    if not boxes and not math.prod(shape):
        return
    rank = len(shape)
    ends = np.array(boxes, np.int64).reshape(len(boxes), rank, 2)
    columns = BoxColumns(
        ["w"], np.array([shape]), np.zeros(len(boxes), np.int64), ends[:, :, 0], ends[:, :, 1]
    )
    if not expected:
        check_coverage(columns, str)
        return
    with pytest.raises(UsageError, match=expected) as caught:
        check_coverage(columns, str)
    if expected == "leave a hole":
        hole = caught.value.what.rsplit("[", 1)[1].rstrip("]").split(", ")
        at = tuple(slice(*map(int, extent.split(":"))) for extent in hole)
        assert count[at].size
        assert not count[at].any()
