"""A staged save writes the same bytes, and the arrays may change as soon as they are copied."""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.bundle.write import shard_writer as writer_module
from ckptstore.bundle.write import stage as stage_module
from ckptstore.bundle.write.plan import SavePlan, plan_save, write_item
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.bundle.write.stage import Stage, StagedShard
from ckptstore.errors import ConflictError, TransientError
from ckptstore.transfer import blocks
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.transfer import Transfer
from tests.unit.bundle.helpers import Sink
from tests.unit.transfer.helpers import TIMEOUT_S, eventually, in_background

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    blocks.release_blocks()
    for module in (blocks, stage_module):
        monkeypatch.setattr(module, "BLOCK_SIZE_BYTES", BLOCK)
    yield
    blocks.release_blocks()


def _plan(values: dict[str, Any], shard_of: Callable[[str], str] | None = None) -> SavePlan:
    return plan_save([write_item(name, value) for name, value in values.items()], shard_of)


def _sinks(plan: SavePlan, part: int, parallel: int) -> list[Sink]:
    return [Sink(part, parallel) for _ in plan.shards]


def _write(plan: SavePlan, sinks: list[Sink], transfer: Transfer, stage: Stage | None) -> list[list[Any]]:
    entries = []
    with transfer:
        for number, (shard, sink) in enumerate(zip(plan.shards, sinks, strict=True)):
            writer = ShardWriter(sink, shard_id=number, transfer=transfer, size_bytes=shard.size_bytes)
            try:
                if stage is None:
                    writer.write(shard.items)
                else:
                    writer.write_staged(shard.items, stage.shard(number, writer.held_bytes))
                writer.finish()
                sink.commit()
            finally:
                writer.close()
            entries.append(writer.entries)
    return entries


def _staged(
    plan: SavePlan, sinks: list[Sink], budget: MemoryBudget, spoil: Callable[[], None] = lambda: None
) -> list[list[Any]]:
    stage = Stage(plan, budget)
    transfer = Transfer("save", "x", memory_budget=budget)

    def save() -> list[list[Any]]:
        try:
            entries = _write(plan, sinks, transfer, stage)
        except BaseException as error:
            stage.close(error)
            raise
        stage.close()
        return entries

    wait = in_background(save)
    stage.copy()
    spoil()
    return wait()


_SIZES = st.one_of(st.integers(0, 60), st.integers(0, 9000))
_VALUES = st.one_of(
    _SIZES.map(lambda size: np.arange(size, dtype="<u2")),
    _SIZES.map(lambda size: np.arange(size, dtype=">u4")[::-1]),
    st.integers(1, 60).map(lambda size: np.arange(size * size, dtype="<i4").reshape(size, size).T),
    st.lists(st.binary(max_size=900), max_size=9).map(lambda values: np.array([*values, None], object)[:-1]),
)


@settings(max_examples=60)
@given(
    st.lists(_VALUES, max_size=12),
    st.sampled_from([1000, BLOCK, 3 * BLOCK]),
    st.integers(1, 3),
    st.sampled_from([None, 1, BLOCK, 2 * BLOCK, 5 * BLOCK]),
    st.sampled_from([40, 700, 256 * 1024]),
    st.booleans(),
)
def test_the_bytes_and_entries_are_those_of_a_direct_save(arrays, part, parallel, limit, small, has_shards):
    values = {f"t{number:02}": array for number, array in enumerate(arrays)}
    kept = {name: array.copy() for name, array in values.items()}
    shard_of = (lambda name: name[-1]) if has_shards else None

    def spoil() -> None:
        for array in values.values():
            if array.dtype != object:
                array[...] = 77

    with (
        mock.patch.object(writer_module, "_BATCHED_BELOW_BYTES", small),
        mock.patch.object(stage_module, "_JOINED_BELOW_BYTES", small),
        mock.patch("ckptstore.bundle.write.plan._CONVERTED_AT_ONCE_SIZE_BYTES", small),
    ):
        expected_plan = _plan(kept, shard_of)
        expected = _sinks(expected_plan, part, parallel)
        entries = _write(expected_plan, expected, Transfer("save", "x"), None)
        plan = _plan(values, shard_of)
        sinks = _sinks(plan, part, parallel)
        budget = MemoryBudget(limit)
        assert _staged(plan, sinks, budget, spoil) == entries
    assert [sink.data for sink in sinks] == [sink.data for sink in expected]
    assert budget.used_bytes == 0


def test_the_checksum_of_strings_is_known_when_their_first_bytes_are(monkeypatch):
    """They lie in several blocks, and the first of these is written while the others are copied."""
    asked = threading.Event()
    ask, publish = StagedShard.crc, Stage._publish

    def note(staged: StagedShard, index: int) -> int:
        try:
            return ask(staged, index)
        finally:
            asked.set()

    def publish_and_wait(stage: Stage, number: int) -> None:
        publish(stage, number)
        assert asked.wait(TIMEOUT_S)

    monkeypatch.setattr(stage_module, "_JOINED_BELOW_BYTES", 700)
    plan = _plan({"s": np.array([b"x" * 90] * 140, object)})
    (expected,) = _sinks(plan, BLOCK, 1)
    entries = _write(plan, [expected], Transfer("save", "x"), None)
    monkeypatch.setattr(StagedShard, "crc", note)
    monkeypatch.setattr(Stage, "_publish", publish_and_wait)
    (sink,) = _sinks(plan, BLOCK, 1)
    assert _staged(plan, [sink], MemoryBudget(5 * BLOCK)) == entries
    assert sink.data == expected.data


def test_a_budget_below_the_checkpoint_is_kept():
    budget = MemoryBudget(5 * BLOCK)
    plan = _plan({f"t{n}": np.full(3000, n, np.uint8) for n in range(50)})
    (sink,) = _sinks(plan, BLOCK, 2)
    _staged(plan, [sink], budget)
    assert len(sink.data) == 150_000
    assert 3 * BLOCK <= budget.high_water_bytes <= 5 * BLOCK


def test_blocks_are_used_again_and_no_more_of_them_are_kept_than_a_save_needs():
    taken: list[int] = []
    make = mmap.mmap

    def counted(*args: Any, **options: Any) -> Any:
        taken.append(1)
        return make(*args, **options)

    plan = _plan({"w": np.zeros(10 * BLOCK, np.uint8)})
    small = _plan({"w": np.zeros(BLOCK, np.uint8)})
    with mock.patch.object(mmap, "mmap", counted):
        for wanted in (plan, plan, small):
            _staged(wanted, _sinks(wanted, BLOCK, 2), MemoryBudget())
    assert len(taken) == 10
    assert blocks.release_blocks() == BLOCK


def test_a_stage_with_room_for_everything_can_be_read_again():
    plan = _plan({"a": np.arange(5000, dtype="<i4")})
    stage = Stage(plan, MemoryBudget())
    stage.copy()
    for _ in range(2):
        sinks = _sinks(plan, BLOCK, 1)
        _write(plan, sinks, Transfer("save", "x"), stage)
        assert sinks[0].data == np.arange(5000, dtype="<i4").tobytes()
    stage.close()


def test_a_stage_in_pieces_cannot_be_read_again():
    budget = MemoryBudget(BLOCK)
    plan = _plan({"a": np.arange(5000, dtype="<i4")})
    stage = Stage(plan, budget)
    wait = in_background(lambda: _write(plan, _sinks(plan, BLOCK, 1), Transfer("save", "x"), stage))
    stage.copy()
    wait()
    with pytest.raises(ConflictError, match="names of the data files"):
        stage.shard(0, lambda: 0)
    stage.close()
    assert budget.used_bytes == 0


class _Broken(Sink):
    """Fails at a part."""

    def _send(self, number: int, *args: Any) -> None:
        if number == 2:
            raise TransientError("the disk fell off")
        super()._send(number, *args)


@pytest.mark.parametrize("limit", [2 * BLOCK, None])
def test_a_save_that_fails_gives_all_memory_back_and_wakes_who_copies(limit):
    budget = MemoryBudget(limit)
    plan = _plan({"a": np.zeros(20 * BLOCK, np.uint8)})
    stage = Stage(plan, budget)
    transfer = Transfer("save", "x", memory_budget=budget)

    def save() -> None:
        try:
            _write(plan, [_Broken(BLOCK, 2)], transfer, stage)
        except BaseException as error:
            stage.close(error)
            raise

    wait = in_background(save)
    if limit is None:
        stage.copy()
    else:
        with pytest.raises(TransientError, match="fell off"):
            stage.copy()
    with pytest.raises(TransientError, match="fell off"):
        wait()
    assert budget.used_bytes == 0


def test_a_part_that_fails_while_everybody_waits_ends_it():
    budget = MemoryBudget(2 * BLOCK)
    plan = _plan({"a": np.zeros(20 * BLOCK, np.uint8)})
    stage = Stage(plan, budget)

    class Broken(Sink):
        def _send(self, *args: Any) -> None:
            # The one thread waits for memory then, the other one for bytes.
            assert eventually(lambda: stage._stuck_bytes is not None)
            raise TransientError("the disk fell off")

    def save() -> None:
        try:
            _write(plan, [Broken(BLOCK, 3)], Transfer("save", "x", memory_budget=budget), stage)
        except BaseException as error:
            stage.close(error)
            raise

    wait = in_background(save)
    for waiting in (stage.copy, wait):
        with pytest.raises(TransientError, match="fell off"):
            waiting()
    assert budget.used_bytes == 0


def test_cancelling_wakes_both():
    budget = MemoryBudget(2 * BLOCK)
    plan = _plan({"a": np.zeros(20 * BLOCK, np.uint8)})
    stage = Stage(plan, budget)
    transfer = Transfer("save", "x", memory_budget=budget)
    begun = threading.Event()

    class Slow(Sink):
        def _send(self, *args: Any) -> None:
            begun.set()
            transfer.scope.cancellation.sleep(TIMEOUT_S)
            transfer.scope.check()

    def save() -> None:
        try:
            _write(plan, [Slow(BLOCK, 2)], transfer, stage)
        except BaseException as error:
            stage.close(error)
            raise

    wait = in_background(save)
    copying = in_background(stage.copy)
    assert begun.wait(TIMEOUT_S)
    transfer.cancel()
    for waiting in (wait, copying):
        with pytest.raises(TransientError, match="given up"):
            waiting()
    assert budget.used_bytes == 0


def test_an_error_while_copying_ends_the_save():
    class Unreadable:
        """Breaks when it is encoded."""

        def __len__(self) -> int:
            return 5

    budget = MemoryBudget(2 * BLOCK)
    array = np.array([b"x" * 5, b"y" * 5], object)
    plan = _plan({"a": np.zeros(3 * BLOCK, np.uint8), "s": array})
    plan.shards[0].items[1].array[1] = Unreadable()
    stage = Stage(plan, budget)
    wait = in_background(
        lambda: _write(plan, _sinks(plan, BLOCK, 2), Transfer("save", "x", memory_budget=budget), stage)
    )
    with pytest.raises(TypeError):
        stage.copy()
    with pytest.raises(TypeError):
        wait()
    stage.close()
    assert budget.used_bytes == 0


def _no_memory(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def _out_of_memory(*_: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("limit", [None, 5 * BLOCK])
def test_a_copy_for_which_there_is_no_memory_says_so_and_what_to_do(limit, monkeypatch):
    budget = MemoryBudget(limit)
    stage = Stage(_plan({"a": np.zeros(20 * BLOCK, np.uint8)}), budget, url="memory://x/model-1")
    monkeypatch.setattr(mmap, "mmap", _no_memory)
    with pytest.raises(
        TransientError, match=rf"no memory .*memory_budget={limit}.* snapshot=False"
    ) as caught:
        stage.copy()
    assert (caught.value.url, caught.value.errno) == ("memory://x/model-1", errno.ENOMEM)
    assert budget.used_bytes == 0


def test_so_do_strings_that_cannot_be_encoded_for_want_of_it(monkeypatch):
    budget = MemoryBudget(100 * BLOCK)
    stage = Stage(_plan({"s": np.array([b"x" * 300_000], object)}), budget)
    monkeypatch.setattr(stage_module, "encoded", _out_of_memory)
    with pytest.raises(TransientError, match=rf"no memory .*memory_budget={100 * BLOCK}") as caught:
        stage.copy()
    assert (caught.value.tensor, caught.value.errno) == ("s", errno.ENOMEM)
    assert budget.used_bytes == 0


@pytest.mark.parametrize("limit", [1, BLOCK, 20 * BLOCK, 60 * BLOCK, 75 * BLOCK, 80 * BLOCK, None])
def test_strings_and_variants_take_their_encoded_size_from_the_budget(limit, monkeypatch):
    text = np.array([b"s" * 50_000, b"t" * 50_000], object)
    plan = _plan(
        {"a": np.zeros(BLOCK + 5, np.uint8), "s": text, "t": text, "w": np.zeros(3 * BLOCK, np.uint8)}
    )
    budget = MemoryBudget(limit)
    used: list[int] = []
    encode = vars(stage_module)["encoded"]

    def watched(item: Any) -> Any:
        used.append(budget.used_bytes)
        return encode(item)

    monkeypatch.setattr(stage_module, "encoded", watched)
    expected = _sinks(plan, BLOCK, 1)
    _write(plan, expected, Transfer("save", "x"), None)
    sinks = _sinks(plan, BLOCK, 2)
    _staged(plan, sinks, budget)
    assert sinks[0].data == expected[0].data
    encoded_bytes = plan.shards[0].items[1].size_bytes
    assert min(used) >= min(encoded_bytes, limit or encoded_bytes)
    # A block beside strings that take the whole budget already.
    assert limit is None or budget.high_water_bytes <= max(limit, 3 * BLOCK) + BLOCK
    assert budget.used_bytes == 0


def test_a_budget_without_room_for_the_encoded_strings_is_not_one_for_everything():
    plan = _plan({"s": np.array([b"x" * 100_000], object)})
    blocks = -(-plan.size_bytes // BLOCK) * BLOCK
    assert not Stage(plan, MemoryBudget(blocks)).is_whole
    assert Stage(plan, MemoryBudget(blocks + plan.size_bytes)).is_whole
