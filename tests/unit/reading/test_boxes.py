"""Many boxes of many tensors in one pass: `read_into`, and pieces in `restore`."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ckptstore as ck
from tests.meta.source import ROOT

Array = np.ndarray[Any, Any]


def grid(array: Array, cuts: list[list[int]]) -> list[ck.Piece]:
    """Return the pieces of an array that is cut at these places of each dimension."""
    cells: list[list[tuple[int, int]]] = [[]]
    for size, places in zip(array.shape, cuts, strict=True):
        edges = sorted({0, size, *places})
        cells = [[*cell, span] for cell in cells for span in itertools.pairwise(edges)]
    return [
        ck.Piece(array[tuple(slice(*span) for span in cell)], array.shape, [start for start, _ in cell])
        for cell in cells
    ]


def strided(shape: tuple[int, ...], dtype: Any, layout: str) -> Array:
    """Return an array to fill: in C order, in another, or with gaps."""
    if layout == "F":
        return np.zeros(shape, dtype, order="F")
    if layout == "gaps":
        every_second: Any = (*[slice(None, None, 2)] * len(shape), ...)
        return np.zeros([2 * size for size in shape], dtype)[every_second]
    if layout == "swapped":
        return np.zeros(shape, np.dtype(dtype).newbyteorder())
    return np.zeros(shape, dtype)


LAYOUTS = st.sampled_from(["C", "C", "F", "gaps", "swapped"])


@st.composite
def saved_tensors(draw: st.DrawFn) -> dict[str, tuple[Array, list[ck.Piece]]]:
    tensors = {}
    for number in range(draw(st.integers(1, 4))):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=9))
        dtype = draw(st.sampled_from(["<f4", "<i8", "bool", "<c8", "O"]))
        array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        array = np.array([b"x" * n for n in array.ravel()], object).reshape(shape) if dtype == "O" else array
        array = array.astype(dtype)
        cuts = [draw(st.lists(st.integers(0, size), max_size=3)) for size in shape]
        tensors[f"t{number}"] = array, list(draw(st.permutations(grid(array, cuts))))
    return tensors


class _Nothing:
    """What no storage is."""


@pytest.fixture(params=["usual", "tiny", "tiny and far"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the paths of large tensors taken by small ones, too."""
    if request.param == "usual":
        return
    for module, name in [
        ("fetch", "DIRECT_SIZE_BYTES"),
        ("box_plan", "GAP_SIZE_BYTES"),
        ("partial_reads", "GAP_SIZE_BYTES"),
        ("partial_reads", "FAR_GAP_SIZE_BYTES"),
        ("box_plan", "FAR_GAP_SIZE_BYTES"),
    ]:
        monkeypatch.setattr(f"ckptstore.bundle.read.{module}.{name}", 8)
    if request.param == "tiny and far":
        # As if each range cost a request.
        monkeypatch.setattr("ckptstore.bundle.read.shard_files.SupportsViews", _Nothing)
    monkeypatch.setattr(
        "ckptstore.bundle.read.plan.plan_reads.__kwdefaults__",
        {"gap_size_bytes": 8, "direct_size_bytes": 24, "stage_size_bytes": 64},
    )
    monkeypatch.setattr(
        "ckptstore.bundle.read.indexing.BoxLayout.__init__.__kwdefaults__",
        {"gap_size_bytes": 8, "direct_size_bytes": 24, "stage_size_bytes": 64},
    )


@pytest.mark.usefixtures("sizes")
@settings(deadline=None, max_examples=40)
@given(data=st.data(), tensors=saved_tensors())
def test_read_into_gives_what_numpy_gives(
    tensors: dict[str, tuple[Array, list[ck.Piece]]], data: st.DataObject
) -> None:
    prefix = f"memory://test_boxes/{uuid.uuid4().hex}/m"
    values = {name: pieces for name, (_, pieces) in tensors.items()}
    ck.Saver().save(values, prefix, write_meta_graph=False, write_state=False)
    requests = []
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=6)):
        array, _ = tensors[name]
        index = data.draw(
            hnp.basic_indices(array.shape, allow_newaxis=True, allow_ellipsis=True)
            if array.shape
            else st.sampled_from([(), ..., None])
        )
        expected = np.asarray(array[index])
        layout = data.draw(LAYOUTS) if array.dtype != object else "C"
        requests.append((name, index, strided(expected.shape, array.dtype, layout)))
    with ck.open_checkpoint(prefix) as checkpoint:
        checkpoint.read_into(requests)
    for name, index, out in requests:
        np.testing.assert_array_equal(out, np.asarray(tensors[name][0][index]))


@pytest.mark.usefixtures("sizes")
@settings(deadline=None, max_examples=40)
@given(data=st.data(), tensors=saved_tensors())
def test_pieces_are_restored_on_any_other_grid(
    tensors: dict[str, tuple[Array, list[ck.Piece]]], data: st.DataObject
) -> None:
    prefix = f"memory://test_boxes/{uuid.uuid4().hex}/m"
    values = {name: pieces for name, (_, pieces) in tensors.items()}
    ck.Saver().save(values, prefix, write_meta_graph=False, write_state=False)
    into: dict[str, Any] = {}
    for name, (array, _) in tensors.items():
        cuts = [data.draw(st.lists(st.integers(0, size), max_size=3)) for size in array.shape]
        layout = data.draw(LAYOUTS) if array.dtype != object else "C"
        into[name] = [
            ck.Piece(strided(piece.array.shape, array.dtype, layout), piece.shape, piece.start)
            for piece in grid(array, cuts)
        ]
    report = ck.open_checkpoint(prefix).restore(into=into)
    assert list(report.restored) == list(into)
    for name, (array, _) in tensors.items():
        for piece in into[name]:
            where = tuple(slice(a, a + n) for a, n in piece.box.extents)
            np.testing.assert_array_equal(piece.array, array[where])
    ck.Saver().restore(again := {name: pieces[:1] for name, pieces in into.items()}, prefix)
    assert again.keys() == into.keys()


W = np.arange(60, dtype=np.float32).reshape(12, 5)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    values = {"w": grid(W, [[4, 8], []]), "v": np.arange(6), "text": np.array([b"a", b"bc"], object)}
    return ck.Saver().save(values, tmp_path / "m", write_meta_graph=False) or ""


def test_arrays_pieces_and_new_arrays_are_restored_together(prefix: str) -> None:
    piece = ck.Piece(np.zeros((6, 2), np.float32), W.shape, (3, 1))
    into: dict[str, Any] = {"w": piece, "v": np.zeros(6, np.int64), "text": None}
    report = ck.open_checkpoint(prefix).restore(into=into)
    assert report.restored["w"] is piece
    np.testing.assert_array_equal(piece.array, W[3:9, 1:3])
    assert into["v"].tolist() == [0, 1, 2, 3, 4, 5]
    assert into["text"].tolist() == [b"a", b"bc"]
    # Three slices of "w", which are small; "v" and "text".
    assert (report.verified, report.unverified) == (5, 0)


def test_a_renamed_tensor_goes_into_a_piece(prefix: str) -> None:
    into = {"mine": ck.Piece(np.zeros((1, 5), np.float32), W.shape, (11, 0))}
    ck.open_checkpoint(prefix).restore(into=into, rename={"w": "mine"})
    np.testing.assert_array_equal(into["mine"].array, W[11:])


def test_a_piece_in_the_other_byte_order_is_reported(prefix: str) -> None:
    piece = ck.Piece(np.zeros((12, 1), ">f4"), W.shape, (0, 4))
    report = ck.open_checkpoint(prefix).restore(into={"w": [piece]})
    assert report.cast == ("w",)
    np.testing.assert_array_equal(piece.array, W[:, 4:])


def test_a_piece_without_elements_gets_none(prefix: str) -> None:
    piece = ck.Piece(np.zeros((0, 5), np.float32), W.shape, (12, 0))
    report = ck.open_checkpoint(prefix).restore(into={"w": piece})
    assert (report.verified, report.unverified) == (0, 0)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (
            lambda: ck.Piece(np.zeros((2, 5), np.float32), (13, 5), (0, 0)),
            "one of a tensor with the shape",
        ),
        (lambda: ck.Piece(np.zeros((2, 5)), (12, 5), (0, 0)), "does not have the type"),
        (lambda: ck.Piece(np.broadcast_to(np.float32(0), (2, 5)), (12, 5), (0, 0)), "read-only"),
        (lambda: [ck.Piece(np.zeros((2, 5), np.float32), (12, 5), (0, 0)), np.zeros(2)], "are mixed"),
    ],
)
def test_a_piece_that_does_not_fit_is_refused_before_anything_changes(
    prefix: str, piece: Any, message: str
) -> None:
    into = {"v": np.full(6, -1), "w": piece()}
    with pytest.raises(ck.UsageError, match=message) as caught:
        ck.open_checkpoint(prefix).restore(into=into)
    assert caught.value.tensor == "w"
    assert into["v"].tolist() == [-1] * 6


def test_pieces_that_share_memory_are_refused(prefix: str) -> None:
    memory = np.zeros((6, 5), np.float32)
    pieces = [ck.Piece(memory[:4], W.shape, (0, 0)), ck.Piece(memory[3:], W.shape, (4, 0))]
    with pytest.raises(ck.UsageError, match="same memory"):
        ck.open_checkpoint(prefix).restore(into={"w": pieces})
    assert not memory.any()
    # Two that get the same: both are filled.
    same = [ck.Piece(memory[:4], W.shape, (2, 0)), ck.Piece(memory[:4], W.shape, (2, 0))]
    ck.open_checkpoint(prefix).restore(into={"w": same})
    np.testing.assert_array_equal(memory[:4], W[2:6])


def test_missing_names_are_listed(prefix: str) -> None:
    piece = ck.Piece(np.zeros((1, 5), np.float32), W.shape, (0, 0))
    with pytest.raises(ck.TensorNotFoundError, match="ww"):
        ck.open_checkpoint(prefix).restore(into={"ww": piece})
    report = ck.open_checkpoint(prefix).restore(into={"ww": piece, "w": piece}, missing="ignore")
    assert (list(report.restored), report.missing) == (["w"], ("ww",))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (("x", ..., np.zeros((12, 5), np.float32)), ck.TensorNotFoundError),
        (("w", 12, np.zeros(5, np.float32)), IndexError),
        (("w", [0], np.zeros((1, 5), np.float32)), ck.UsageError),
        (("w", 0, np.zeros(6, np.float32)), ck.UsageError),
        (("w", 0, np.zeros(5)), ck.UsageError),
    ],
)
def test_read_into_checks_everything_first(prefix: str, request_: Any, error: type[Exception]) -> None:
    out = np.full(5, -1, np.float32)
    with pytest.raises(error):
        ck.open_checkpoint(prefix).read_into([("w", 0, out), request_])
    assert out.tolist() == [-1] * 5


def test_slices_that_are_missing_are_named(tmp_path: Path) -> None:
    with ck.BundleWriter(tmp_path / "m") as writer:
        writer.add_slice("w", W.shape, "0,4:-", W[:4])
    out, rest = np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)
    with ck.open_checkpoint(tmp_path / "m") as checkpoint:
        checkpoint.read_into([("w", np.s_[1:3], out)])
        np.testing.assert_array_equal(out, W[1:3])
        with pytest.raises(ck.FormatError, match=r"sufficient slices .* slice_spec: 3,2:-"):
            checkpoint.read_into([("w", np.s_[3:5], rest)])


def test_what_is_read_whole_is_verified_and_what_is_not_is_counted(tmp_path: Path) -> None:
    large = np.arange(3 * 2**18, dtype=np.float32).reshape(3, 512, 512)
    ck.Saver().save({"w": grid(large, [[1, 2], [], []])}, tmp_path / "m", write_meta_graph=False)
    data = tmp_path / "m.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[2**20 + 5] ^= 1
    data.write_bytes(raw)
    rows = ck.Piece(np.zeros((3, 8, 512), np.float32), large.shape, (0, 500, 0))
    report = ck.open_checkpoint(tmp_path / "m").restore(into={"w": rows})
    assert (report.verified, report.unverified) == (0, 3)
    np.testing.assert_array_equal(rows.array, large[:, 500:508])
    # Nearly everything has to be read for some columns: all of it is, and verified.
    columns = ck.Piece(np.zeros((3, 512, 8), np.float32), large.shape, (0, 0, 100))
    with pytest.raises(ck.ChecksumError) as caught:
        ck.open_checkpoint(tmp_path / "m").restore(into={"w": columns})
    assert caught.value.tensor == "w"
    one = ck.Piece(np.zeros((1, 512, 8), np.float32), large.shape, (2, 0, 100))
    report = ck.open_checkpoint(tmp_path / "m").restore(into={"w": one})
    assert (report.verified, report.unverified) == (1, 0)
    np.testing.assert_array_equal(one.array, large[2:, :, 100:108])


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_data_file_that_is_not_all_there_is_an_error_before_anything_changes(
    damage: str, tmp_path: Path
) -> None:
    large = np.zeros((4, 300_000), np.float32)
    for rank in range(2):
        with ck.BundleWriter(tmp_path / f"part{rank}") as writer:
            writer.add_slice("w", large.shape, f"{2 * rank},2:-", large[:2])
    ck.merge_bundles([tmp_path / f"part{rank}" for rank in range(2)], tmp_path / "m")
    data = tmp_path / "m.data-00001-of-00002"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-1])
    columns = np.full((4, 3), -1, np.float32)
    with ck.open_checkpoint(tmp_path / "m") as checkpoint:
        with pytest.raises((ck.IncompleteBundleError, ck.TruncatedFileError)) as caught:
            checkpoint.read_into([("w", np.s_[:, :3], columns)])
        assert caught.value.tensor == "w"
        assert (columns == -1).all()
        checkpoint.read_into([("w", np.s_[:2, :3], columns[:2])])
    assert (columns[:2] == 0).all()


def test_a_small_budget_is_enough(tmp_path: Path) -> None:
    large = np.arange(3 * 2**20, dtype=np.float32).reshape(1024, -1)
    ck.Saver().save({"w": grid(large, [[500], []])}, tmp_path / "m", write_meta_graph=False)
    rows, columns = np.zeros((700, 3072), np.float32), np.zeros((1024, 100), np.float32)
    with ck.open_checkpoint(tmp_path / "m", memory_budget=1) as checkpoint:
        checkpoint.read_into([("w", np.s_[200:900], rows), ("w", np.s_[:, 2000:2100], columns)])
        backwards = checkpoint.read("w", np.s_[::-1, ::-7])
    np.testing.assert_array_equal(rows, large[200:900])
    np.testing.assert_array_equal(columns, large[:, 2000:2100])
    np.testing.assert_array_equal(backwards, large[::-1, ::-7])


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    large = np.arange(2**20, dtype=np.float32).reshape(1024, -1)
    ck.Saver().save({"w": grid(large, [[500], []])}, tmp_path / "m", write_meta_graph=False)
    events: list[ck.Event] = []
    with ck.open_checkpoint(tmp_path / "m", progress=events.append) as checkpoint:
        for box in (np.s_[10:20, 0:1024], np.s_[0:1024, 7:9]):
            piece = ck.Piece(np.zeros_like(large[box]), large.shape, [each.start for each in box])
            checkpoint.restore(into={"w": piece})
            assert events[-1].is_over
            assert events[-1].done_bytes == events[-1].total_bytes


def test_the_example_in_the_docs_restores_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/pieces.md").read_text(encoding="utf-8")
    (example,) = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    found: dict[str, Any] = {}
    exec(compile(example, "docs/pieces.md", "exec"), found)
    np.testing.assert_array_equal(np.hstack([found["left"], found["right"]]), found["w"])
    np.testing.assert_array_equal(found["row"], found["w"][2, ::-1])
    assert (found["report"].verified, found["report"].unverified) == (2, 0)
