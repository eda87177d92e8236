"""Piece: what is one, and what is refused when it is made."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.types import Slice


def test_a_piece_knows_its_box() -> None:
    piece = ck.Piece(np.zeros((2, 3)), [5, 3], (np.int64(3), 0))
    assert (piece.shape, piece.start) == ((5, 3), (3, 0))
    assert piece.box == Slice(((3, 2), (0, 3)))
    assert not piece.covers_whole


@pytest.mark.parametrize("shape", [(), (3,), (2, 0)], ids=str)
def test_a_piece_may_be_the_whole(shape: tuple[int, ...]) -> None:
    assert ck.Piece(np.zeros(shape), shape, [0] * len(shape)).covers_whole


def test_a_piece_without_elements_is_one() -> None:
    piece = ck.Piece(np.zeros((0, 3)), (3, 3), (3, 0))
    assert piece.box == Slice(((3, 0), (0, 3)))
    assert not piece.covers_whole


def test_an_array_is_kept_and_other_things_are_converted_without_a_copy() -> None:
    array = np.arange(6)[::2]
    assert ck.Piece(array, (9,), (1,)).array is array

    class Tensor:
        """As a framework's: no ndarray, but it exports its memory."""

        def __dlpack__(self, **options: Any) -> Any:
            return array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return array.__dlpack_device__()

    piece = ck.Piece(Tensor(), (9,), (1,))  # type: ignore[arg-type]
    assert np.shares_memory(piece.array, array)
    assert ck.Piece([[1, 2]], (1, 4), (0, 2)).array.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("array", "shape", "start"),
    [
        (np.zeros(3), (3, 1), (0, 0)),
        (np.zeros(3), (4,), (0, 0)),
        (np.zeros(3), (4,), ()),
        (np.zeros(3), (4,), (2,)),
        (np.zeros(3), (4,), (-1,)),
        (np.zeros(()), (4,), (0,)),
        (np.zeros(0), (4,), (5,)),
        (np.zeros((1, 1, 1)), (2**31, 2**31, 2), (0, 0, 0)),
    ],
)
def test_a_box_outside_its_tensor_is_refused(array: Any, shape: Any, start: Any) -> None:
    with pytest.raises(ck.UsageError, match="does not lie inside its tensor") as caught:
        ck.Piece(array, shape, start)
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize(("shape", "start"), [((4.0,), (0,)), ((4,), ("0",)), (4, (0,)), ((4,), None)])
def test_shape_and_start_are_integers(shape: Any, start: Any) -> None:
    with pytest.raises(ck.UsageError, match="sequences of integers"):
        ck.Piece(np.zeros(3), shape, start)


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(ck.UsageError, match="array that numpy can look at") as caught:
        ck.Piece([[1, 2], [3]], (2, 2), (0, 0))
    assert caught.value.actual == "list"


def test_a_piece_is_fixed_survives_pickling_and_prints_no_elements() -> None:
    piece = ck.Piece(np.arange(4), (8,), (2,))
    with pytest.raises(AttributeError):
        piece.start = (0,)  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(piece))
    assert (again.shape, again.start, again.array.tolist()) == ((8,), (2,), [0, 1, 2, 3])
    assert repr(piece) == "Piece([4] of [8] at [2])"
