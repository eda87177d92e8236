"""A save in phases: the files of one checkpoint come from several writers, one of which keeps the record."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.write.plan import SavePlan, plan_save, write_item
from ckptstore.directory.bare_write import BareSink
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.open_save import Assignment, ShardReport
from ckptstore.directory.retention import KeepNewest
from ckptstore.directory.save_request import CheckpointSink, RunningSave, SaveRequest
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.transfer.transfer import Transfer
from tests.unit.directory.helpers import fresh_memory, names_in

ROWS = np.arange(12.0).reshape(4, 3)


@pytest.fixture(params=["writer", "bare"])
def sink(request: pytest.FixtureRequest) -> CheckpointSink:
    if request.param == "bare":
        return BareSink()
    return CheckpointWriter(locate(fresh_memory()), None, KeepNewest(), lambda: 1.0)


def _directory(sink: CheckpointSink) -> Location:
    return sink.directory if isinstance(sink, CheckpointWriter) else locate(fresh_memory())


def _plan(rank: int) -> SavePlan:
    spec = [(2 * rank, 2), (0, 3)]
    items = [write_item("rows", ROWS[2 * rank : 2 * rank + 2], shape=(4, 3), spec=spec)]
    return plan_save([*items, write_item(f"only-{rank}", np.full(2, rank))])


class _OtherRank:
    """Writes data file 1, as another process would."""

    def __init__(self, directory: Location) -> None:
        self.files = ShardSet(directory, "model-1", transfer=_transfer(directory))

    def write(self, assignment: Assignment) -> list[ShardReport] | None:
        return self.files.reports() if self.files.write(_plan(1), assignment.count, [1]) else None


def _transfer(directory: Location) -> Transfer:
    return Transfer("save", directory.url)


def _job(directory: Location, transfer: Transfer) -> tuple[SaveRequest, RunningSave]:
    request = SaveRequest(directory.child("model-1"), _plan(0), "run", step=1, shards=2)
    return request, RunningSave(transfer)


def test_the_files_of_two_writers_make_one_checkpoint(sink):
    directory = _directory(sink)
    other = _OtherRank(directory)
    with _transfer(directory) as transfer, sink.lock, sink.open(*_job(directory, transfer)) as save:
        assignment = save.begin()
        assert assignment is not None
        assert assignment.count == 2
        assert assignment.files.write(_plan(0), assignment.count)
        reports = other.write(assignment)
        assert reports is not None
        assert save.commit(reports) is None
    other.files.settle()
    with ck.open_checkpoint(directory.child("model-1").url) as checkpoint:
        np.testing.assert_array_equal(checkpoint["rows"], ROWS)
        np.testing.assert_array_equal(checkpoint["only-1"], [1, 1])
        assert checkpoint.specs()["rows"].shards == (0, 1)
    names = [f"model-1.data-0000{number}-of-00002" for number in range(2)]
    assert [name for name in names_in(directory.url) if ".data-" in name] == names


def test_a_name_that_is_taken_gives_both_writers_another_count(sink):
    directory = _directory(sink)
    other = _OtherRank(directory)
    with _transfer(directory) as transfer, sink.lock, sink.open(*_job(directory, transfer)) as save:
        assignment = save.begin()
        counts = []
        # Only now: what is there at the beginning is avoided at once.
        assert _OtherRank(directory).files.write(_plan(1), 2, [1])
        stranger = directory.child("model-1.data-00001-of-00002")
        version = stranger.storage.head(stranger.key).version
        while assignment is not None:
            counts.append(assignment.count)
            reports = other.write(assignment)
            written = reports is not None and assignment.files.write(_plan(0), assignment.count)
            assignment = save.commit(reports) if written and reports is not None else save.refuse()
    assert counts[0] == 2
    assert len(counts) == 2
    with ck.open_checkpoint(directory.child("model-1").url) as checkpoint:
        np.testing.assert_array_equal(checkpoint["rows"], ROWS)
    assert stranger.storage.head(stranger.key).version == version


@pytest.mark.parametrize("error", [None, CkptStoreError("a rank failed")])
def test_an_aborted_save_deletes_what_its_own_writer_wrote_and_nothing_else(sink, error):
    directory = _directory(sink)
    other = _OtherRank(directory)
    with _transfer(directory) as transfer, sink.lock, sink.open(*_job(directory, transfer)) as save:
        assignment = save.begin()
        assert assignment is not None
        assert assignment.files.write(_plan(0), assignment.count)
        assert other.write(assignment)
        save.abort(error)
    assert [name for name in names_in(directory.url) if ".data-" in name] == ["model-1.data-00001-of-00002"]
    other.files.drop()
    assert not [name for name in names_in(directory.url) if name.startswith("model-1")]
