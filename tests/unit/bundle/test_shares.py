"""Who writes what: everything once, about as much on each rank, and errors that name tensor, boxes, ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.write.held_boxes import HeldBoxes
from ckptstore.bundle.write.manifest import Holding, Manifest, manifest_of
from ckptstore.bundle.write.plan import plan_save, write_item, write_items
from ckptstore.bundle.write.shares import Deal, Share, item_of
from ckptstore.bundle.write.shares import deal as deal_out
from ckptstore.distributed.manifests import decode_deal, decode_manifest, encode_deal, encode_manifest
from ckptstore.errors import CorruptError, UsageError
from ckptstore.types import Piece

MIB = 1 << 20


def deal(manifests: Sequence[Sequence[Holding]], fixed: Mapping[int, Sequence[Share]] | None = None) -> Deal:
    return deal_out([Manifest.of(each) for each in manifests], fixed)


def whole(name: str, size_bytes: int, dtype: str = "float32", rows: int | None = None) -> Holding:
    items = size_bytes // (2 if dtype == "float16" else 4)
    shape = (items,) if rows is None else (rows, items // rows)
    return Holding(name, dtype, shape, (0,) * len(shape), shape, size_bytes)


def rows_of(name: str, start: int, stop: int, total: int) -> Holding:
    return Holding(name, "float32", (total, 4), (start, 0), (stop - start, 4), (stop - start) * 16)


def bytes_by_rank(result: Deal, manifests: list[list[Holding]]) -> list[int]:
    def size(rank: int, share: Share) -> int:
        holding = manifests[rank][share.item]
        start, stop = share.rows or (0, 1)
        return holding.size_bytes * (stop - start) // (holding.shape[0] if share.rows else 1)

    return [sum(size(rank, share) for share in shares) for rank, shares in enumerate(result.shares)]


def test_sharded_and_replicated_tensors_are_spread_evenly():
    manifests = [
        [rows_of(f"rows/{n}", 64 * rank, 64 * rank + 64, 256) for n in range(16)]
        + [whole(f"same/{n}", MIB) for n in range(8)]
        for rank in range(4)
    ]
    result = deal(manifests)
    loads = bytes_by_rank(result, manifests)
    assert max(loads) <= 1.05 * sum(loads) / 4
    assert sum(loads) == 8 * MIB + 16 * 256 * 16
    assert result.numbers == (0, 1, 2, 3)
    assert len(result.replicas) == 8


def test_a_large_replica_is_cut_where_tensorflow_can_assemble_it():
    manifests = [[whole("large", 1 << 30, rows=1 << 14)] for _ in range(4)]
    result = deal(manifests)
    loads = bytes_by_rank(result, manifests)
    assert max(loads) <= 1.1 * (1 << 30) / 4
    assert [len(shares) for shares in result.shares] == [1, 1, 1, 1]
    assert {replica.rows for replica in result.replicas} == {shares[0].rows for shares in result.shares}
    halves = [[whole("large", 1 << 30, "float16", rows=1 << 14)] for _ in range(4)]
    assert [len(shares) for shares in deal(halves).shares] == [1, 0, 0, 0]
    assert deal(halves).numbers == (0, None, None, None)


def test_small_things_and_texts_go_to_the_chief_if_it_has_them():
    text = Holding("text", "string", (), (), (), 40)
    manifests = [[whole("own/0", 4 * MIB), text, whole("step", 4)], [text, whole("step", 4)]]
    assert deal(manifests).shares == ((Share(0), Share(1), Share(2)), ())


def test_the_same_for_the_same_arguments():
    manifests = [[whole(f"w{n}", (n % 7 + 1) * MIB) for n in range(30)] for _ in range(5)]
    assert deal(manifests) == deal([list(each) for each in manifests])


@pytest.mark.parametrize(
    ("manifests", "texts"),
    [
        ([[rows_of("w", 0, 2, 4)], [rows_of("w", 3, 4, 4)]], ["hole at [2:3, 0:4]", "rank 0", "rank 1"]),
        ([[rows_of("w", 0, 3, 4)], [rows_of("w", 2, 4, 4)]], ["overlap", "[0:3, 0:4] (rank 0)", "(rank 1)"]),
        ([[whole("w", 16)], [whole("w", 32)]], ["float32 [4] as on rank 0", "float32 [8] on rank 1"]),
        (
            [[whole("w", 16)], [whole("w", 8, "float16")]],
            ["float32 [4] as on rank 0", "float16 [4] on rank 1"],
        ),
        ([[rows_of("w", 0, 2, 4), rows_of("w", 2, 4, 4)], [rows_of("w", 0, 4, 4)]], ["overlap", "rank 1"]),
    ],
)
def test_mistakes_name_tensor_boxes_and_ranks(manifests, texts):
    with pytest.raises(UsageError) as raised:
        deal(manifests)
    assert raised.value.tensor == "w"
    for text in texts:
        assert text in str(raised.value)


def test_what_is_fixed_stays_and_the_rest_is_dealt_among_the_others():
    before = [[whole("a", MIB), whole("b", MIB)] for _ in range(2)]
    first = deal(before)
    after = [before[0], [*before[1], whole("c", 2 * MIB)]]
    result = deal(after, {0: first.shares[0]})
    assert result.shares[0] == first.shares[0]
    assert {(rank, s.item) for rank, own in enumerate(result.shares) for s in own} == {
        (0, first.shares[0][0].item),
        (1, first.shares[1][0].item),
        (1, 2),
    }
    with pytest.raises(UsageError, match="copied their part already"):
        deal([before[0], []], {0: first.shares[0]})


grids = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))


@given(grids, st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_element_is_written_exactly_once(grid, ranks, random):
    rows, columns, row_cuts, column_cuts = grid
    array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    values: list[dict[str, object]] = [{"same": array} for _ in range(ranks)]
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    for r in np.array_split(np.arange(rows), row_cuts):
        for c in np.array_split(np.arange(columns), column_cuts):
            if len(r) and len(c):
                piece = Piece(array[r[0] : r[-1] + 1, c[0] : c[-1] + 1], array.shape, (r[0], c[0]))
                for rank in random.sample(range(ranks), random.randint(1, ranks)):
                    pieces[rank].append(piece)
    for rank, own in enumerate(pieces):
        if own:
            values[rank]["cut"] = own
    items = [write_items(each.items()) for each in values]
    manifests = [manifest_of(each) for each in items]
    manifests = [decode_manifest(encode_manifest(each)) for each in manifests]
    result = deal(manifests)
    assert decode_deal(encode_deal(result, manifests)) == result
    seen = {name: np.zeros(array.shape, int) for name in ("same", "cut")}
    for held, shares in zip(items, result.shares, strict=True):
        plan_save([item_of(held, share) for share in shares])
        for share in shares:
            item = item_of(held, share)
            box = (slice(None), slice(None))
            if item.slice is not None:
                first, second = item.slice.resolve(array.shape)
                box = (slice(first[0], sum(first)), slice(second[0], sum(second)))
            seen[item.name][box] += 1
            np.testing.assert_array_equal(array[box], item.array)
    assert all((counts == 1).all() for counts in seen.values())


@st.composite
def holdings(draw: st.DrawFn) -> list[list[Holding]]:
    """Boxes of tensors of several ranks; they need not cover anything."""
    shapes = {"scalar": (), "row": (4,), "table": (3, 4), "other": (2, 2), "cube": (2, 2, 3)}
    ranks = []
    for _ in range(draw(st.integers(1, 4))):
        own = []
        for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=6)):
            full = shapes[name]
            start = tuple(draw(st.integers(0, size)) for size in full)
            box = tuple(draw(st.integers(0, size - at)) for size, at in zip(full, start, strict=True))
            own.append(Holding(name, "int8", full, start, box, int(np.prod(box))))
        ranks.append(own)
    return ranks


@given(holdings(), st.booleans())
def test_equal_boxes_are_found_also_where_all_hashes_are_the_same(ranks, collide):
    expected: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for rank, own in enumerate(ranks):
        for item, one in enumerate(own):
            expected.setdefault((one.name, one.start, one.shape), []).append((rank, item))
    manifests = [Manifest.of(own) for own in ranks]
    boxes = HeldBoxes.of(manifests)
    if collide:
        with mock.patch("ckptstore.bundle.write.held_boxes._HASH_FACTOR", np.uint64(0)):
            boxes = HeldBoxes.of(manifests)
    found: list[list[tuple[int, int]]] = [[] for _ in boxes.firsts]
    for row, group in enumerate(boxes.groups.tolist()):
        found[group].append((int(boxes.ranks[row]), int(boxes.items[row])))
    assert found == list(expected.values())
    assert [holders for _, holders in boxes.held_by_several()] == [
        holders for holders in expected.values() if len(holders) > 1
    ]


@given(holdings())
def test_manifests_survive_a_message(ranks):
    for own in ranks:
        assert list(Manifest.of(own)) == own
        assert list(decode_manifest(encode_manifest(Manifest.of(own)))) == own


def test_a_box_outside_its_tensor_is_refused():
    for start, shape in (((3, 0), (2, 4)), ((0, 0), (4, 5)), ((-1, 0), (1, 1)), ((0, 0), (-1, 1))):
        bad = Manifest.of([whole("v", 16), Holding("w", "float32", (4, 4), start, shape, 4)])
        with pytest.raises(CorruptError, match="does not lie inside tensor 'w'"):
            decode_manifest(encode_manifest(bad))


@pytest.mark.parametrize("cut", [3, 40, -8, -1])
def test_a_manifest_that_is_cut_off_is_refused(cut):
    data = encode_manifest(Manifest.of([rows_of("w", 0, 2, 4), whole("v", 16)]))
    with pytest.raises(CorruptError):
        decode_manifest(data[:cut])


def test_a_share_of_what_is_not_held_any_more_is_refused():
    with pytest.raises(UsageError, match="rank 0 has copied what it does not hold any more"):
        deal([[whole("a", 16)], [whole("b", 16)]], {0: [Share(1)]})


def test_rows_of_a_box_are_a_box_of_the_tensor():
    array = np.arange(24.0).reshape(6, 4)
    item = write_item("w", array[2:5, 1:3], shape=(6, 4), spec=[(2, 3), (1, 2)])
    part = item_of([item], Share(0, (1, 3)))
    assert part.slice is not None
    assert part.slice.extents == ((3, 2), (1, 2))
    assert part.size_bytes == 32
    np.testing.assert_array_equal(part.array, array[3:5, 1:3])


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"names":[1],"types":[2]}', b"[" * 100_000])
def test_messages_that_say_something_else_are_refused(data):
    with pytest.raises(CorruptError):
        decode_manifest(data)
    with pytest.raises(CorruptError):
        decode_deal(data)
