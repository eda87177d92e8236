"""Tensors that are saved in pieces, by one process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.types import Slice

W = np.arange(40, dtype=np.float32).reshape(8, 5)


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(array: np.ndarray[Any, Any], *cuts: int) -> list[ck.Piece]:
    edges = [0, *cuts, len(array)]
    return [
        ck.Piece(array[start:stop], array.shape, [start] + [0] * (array.ndim - 1))
        for start, stop in itertools.pairwise(edges)
    ]


def test_pieces_are_the_slices_of_a_partitioned_tensor() -> None:
    assert ck.Saver().save({"b": np.ones(2), "w": rows(W, 3, 4)}, "m") == "m"
    with ck.open_checkpoint("m") as checkpoint:
        assert checkpoint["w"].tolist() == W.tolist()
        spec = checkpoint.specs()["w"]
        assert spec.shape == (8, 5)
        assert spec.slices == (Slice(((0, 3), (0, 5))), Slice(((3, 1), (0, 5))), Slice(((4, 4), (0, 5))))
        assert checkpoint["b"].tolist() == [1, 1]


def test_pieces_write_the_bytes_that_add_slice_writes() -> None:
    ck.Saver().save({"w": rows(W, 3)}, "m", write_meta_graph=False)
    with ck.BundleWriter("expected") as writer:
        writer.add_slice("w", W.shape, "0,3:0,5", W[:3])
        writer.add_slice("w", W.shape, "3,5:0,5", W[3:])
    for suffix in ("index", "data-00000-of-00001"):
        assert Path(f"m.{suffix}").read_bytes() == Path(f"expected.{suffix}").read_bytes()


def test_a_piece_that_is_the_whole_is_a_whole_tensor() -> None:
    ck.Saver().save({"w": ck.Piece(W, W.shape, (0, 0)), "s": [ck.Piece(np.int64(7), (), ())]}, "m")
    ck.Saver().save({"w": W, "s": np.int64(7)}, "expected")
    assert Path("m.index").read_bytes() == Path("expected.index").read_bytes()


def test_empty_pieces_are_left_out_and_an_empty_tensor_is_written_whole() -> None:
    empty = np.zeros((0, 4), np.float16)
    values = {"w": rows(W, 3, 3), "e": [ck.Piece(empty[:, :2], (0, 4), (0, 2)), *rows(empty)]}
    ck.Saver().save(values, "m")
    with ck.open_checkpoint("m") as checkpoint:
        assert len(checkpoint.specs()["w"].slices) == 2
        assert checkpoint.specs()["e"].slices == ()
        assert (checkpoint["e"].shape, checkpoint["e"].dtype) == ((0, 4), np.float16)
        assert checkpoint["w"].tolist() == W.tolist()


def test_columns_text_and_views_of_any_layout() -> None:
    text = np.array([["a", "bb"], ["ccc", ""]])
    big = np.arange(200_000.0).reshape(2, -1)
    values = {
        "columns": [ck.Piece(W[:, 3:], W.shape, (0, 3)), ck.Piece(W[:, :3], W.shape, (0, 0))],
        "text": rows(text, 1),
        "big": [
            ck.Piece(big[:, ::-1][:, ::-1][:, :9], big.shape, (0, 0)),
            ck.Piece(big[:, 9:], big.shape, (0, 9)),
        ],
    }
    ck.Saver().save(values, "m")
    with ck.open_checkpoint("m") as checkpoint:
        assert checkpoint["columns"].tolist() == W.tolist()
        assert checkpoint["text"].tolist() == [[b"a", b"bb"], [b"ccc", b""]]
        assert checkpoint["big"].tolist() == big.tolist()


def test_a_background_save_copies_pieces() -> None:
    array = W.copy()
    with ck.Saver() as saver:
        handle = saver.save_async({"w": rows(array, 3)}, "m")
        array[:] = 0
        handle.result()
    assert ck.load_variable("m", "w").tolist() == W.tolist()


def test_the_graph_has_the_shape_of_the_whole() -> None:
    saver = ck.Saver()
    saver.save({"w": rows(W, 3)}, "m")
    graph = ck.import_meta_graph("m.meta").graph
    assert graph is not None
    assert graph.get_tensor_by_name("w:0").shape == (8, 5)
    saver.save({"w": rows(W, 5)}, "m2")
    assert Path("m.meta").read_bytes() == Path("m2.meta").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (rows(W, 3)[:1], r"leave a hole at \[3:8, 0:5\]"),
        ([*rows(W, 3), *rows(W, 7)[1:]], "two pieces of a tensor overlap"),
        (rows(W, 3)[0], "leave a hole"),
        ([rows(W, 3)[0], W], "mixed"),
        ([rows(W, 3)[0], ck.Piece(W[3:].astype(np.float64), W.shape, (3, 0))], "do not agree on its type"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_does_not_make_up_a_tensor_is_refused_before_a_byte_is_written(
    value: Any, message: str, asynchronous: bool, tmp_path: Path
) -> None:
    saver = ck.Saver()
    save: Any = saver.save_async if asynchronous else saver.save
    with pytest.raises(ck.UsageError, match=message) as caught:
        save({"a": np.ones(3), "w": value}, "m")
    assert caught.value.tensor == "w"
    assert list(tmp_path.iterdir()) == []
