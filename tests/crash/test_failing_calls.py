"""A save that is interrupted, or meets an error, in any of its storage calls, in a process that lives on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from tests.unit.directory.helpers import (
    FailingOnce,
    checkpoints_in,
    files_of,
    fresh_memory,
    listed,
    names_in,
    save_steps,
    stamp_of,
    values,
)

pytestmark = pytest.mark.filterwarnings("ignore::ckptstore.CkptStoreWarning")

DELETES = ("delete_if", "delete_many")
PUTS = ("put_new", "put_if")


@dataclass(frozen=True)
class Kind:
    """A save, and the stamps of the latest before and after it."""

    prepare: Callable[[ck.Saver, str], object]
    save: Callable[[ck.Saver, str], object]
    before: float | None
    after: float


def prepare(saver: ck.Saver, base: str) -> None:
    save_steps(saver, base, [1])
    save_steps(saver, base, [2, 3], write_meta_graph=False)


KINDS = {
    "first": Kind(lambda s, base: None, lambda s, base: s.save(values(1), base, 1), None, 1.0),
    "retention": Kind(prepare, lambda s, base: s.save(values(4), base, 4, write_meta_graph=False), 3.0, 4.0),
    "overwrite": Kind(prepare, lambda s, base: s.save(values(103), base, 3), 3.0, 103.0),
}


@pytest.fixture(params=["local", "memory"])
def make_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    number = iter(range(1000))
    return lambda: f"{tmp_path}/{next(number)}" if request.param == "local" else fresh_memory()


@dataclass
class Attempt:
    directory: str
    saver: ck.Saver
    raised: BaseException | None
    calls: list[tuple[str, str]]


def attempt(
    kind: Kind,
    directory: str,
    number: int,
    side: str,
    error: Callable[[], BaseException],
    then: Callable[[Attempt], None],
) -> None:
    """Let call `number` of a save fail, and look at what is there while the wrapper is still in place."""
    wrappers: list[FailingOnce] = []

    def wrap(inner):
        wrappers.append(FailingOnce(inner, 0, side, error))
        return wrappers[0]

    with use_wrapper(wrap):
        saver = ck.Saver(max_to_keep=2, run="job")
        kind.prepare(saver, f"{directory}/model")
        ck.checkpoint_exists(f"{directory}/model")  # There is a wrapper now, whatever was prepared.
        wrappers[0].begin(number)
        raised = None
        try:
            kind.save(saver, f"{directory}/model")
        except (ck.CkptStoreError, KeyboardInterrupt) as failure:
            # Its frames would keep the unfinished upload alive.
            raised = failure.with_traceback(None)
        calls = list(wrappers[0].calls)
        wrappers[0].begin(0)
        then(Attempt(directory, saver, raised, calls))


def count_calls(kind: Kind, directory: str) -> int:
    counted: list[int] = []
    attempt(kind, directory, 0, "before", KeyboardInterrupt, lambda a: counted.append(len(a.calls)))
    return counted[0]


def check_reader(kind: Kind, tried: Attempt) -> None:
    latest = ck.latest_checkpoint(tried.directory)
    found = None if latest is None else stamp_of(latest)
    assert found in ((kind.before, kind.after) if tried.raised else (kind.after,))
    for name in checkpoints_in(tried.directory):
        stamp_of(f"{tried.directory}/{name}")


def check_no_leftovers(tried: Attempt) -> None:
    published = set(checkpoints_in(tried.directory))
    for name in names_in(tried.directory):
        prefix = name.partition(".")[0]
        assert name == "checkpoint" or prefix in published, f"{name} is left of {tried.raised!r}"


def check_goes_on(tried: Attempt) -> None:
    """The same saver saves on, keeps two, and leaves nothing."""
    base = f"{tried.directory}/model"
    for step in (5, 6, 7):
        path = tried.saver.save(values(step), base, step, write_meta_graph=False)
        assert ck.latest_checkpoint(tried.directory) == path
    assert listed(tried.saver) == ["model-6", "model-7"]
    found = names_in(tried.directory)
    expected = ["checkpoint", *files_of("model-6", graph=False), *files_of("model-7", graph=False)]
    graphs = [name for name in found if name.endswith(".meta")]
    assert [name for name in found if name not in graphs] == expected
    # The only graph went from checkpoint to checkpoint; the first save may have died before it had one.
    assert graphs == ["model-6.meta"] or (not graphs and tried.raised)


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_interrupt_in_any_call_leaves_nothing_half_done(
    kind: Kind, side: str, make_directory: Callable[[], str]
) -> None:
    def look(tried: Attempt) -> None:
        primitive, key = tried.calls[number - 1]
        assert isinstance(tried.raised, KeyboardInterrupt), (primitive, key)
        check_reader(kind, tried)
        # While the answer to the index is open, an index may name the files; and what the record says is to
        # be deleted is left to the next save.
        if not (key.endswith(".index") and primitive in PUTS) and primitive not in DELETES:
            check_no_leftovers(tried)
        check_goes_on(tried)

    for number in range(1, count_calls(kind, make_directory()) + 1):
        attempt(kind, make_directory(), number, side, KeyboardInterrupt, look)


@pytest.mark.parametrize("error", [ck.StorageFullError, ck.AccessError, ck.TransientError])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_error_of_the_storage_in_any_call_comes_as_it_is(
    kind: Kind, error: type[ck.CkptStoreError], make_directory: Callable[[], str]
) -> None:
    def look(tried: Attempt) -> None:
        primitive, key = tried.calls[number - 1]
        if primitive in (*DELETES, "upload.abort", "upload.close", "abort_stale_uploads", "is_abandoned"):
            assert tried.raised is None, (primitive, key)
        elif primitive == "list" and error is ck.AccessError:
            # Saving works where listing is denied (test_denied.py).
            assert tried.raised is None
        else:
            assert type(tried.raised) is error, (primitive, key)
            assert "told once" in str(tried.raised)
        check_reader(kind, tried)
        if tried.raised is not None:
            check_no_leftovers(tried)
        check_goes_on(tried)

    for number in range(1, count_calls(kind, make_directory()) + 1):
        attempt(kind, make_directory(), number, "before", lambda: error("told once"), look)
