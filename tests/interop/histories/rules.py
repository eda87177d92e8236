"""The rows of docs/differences-from-tensorflow.md that the histories meet, one function each.

A rule takes what TensorFlow has, and returns what ckptstore is to have in its place. It looks at the history
and at TensorFlow, and not at our answer. Where our answer may be one of several, the rule says which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.interop.histories.ledger import Ledger, Owner, Writer, owner_of_listed
from tests.interop.histories.view import Listed, PrefixFiles, files_of

__all__ = ["ROWS", "DataFacts", "Rules"]

T = TypeVar("T")
R = TypeVar("R", bound=Callable[..., Any])
Window = list[tuple[str, float]]

ROWS: dict[str, str] = {}
"""Name of a rule → first cell of its row on the page."""


def _row(title: str) -> Callable[[R], R]:
    def register(rule: R) -> R:
        ROWS[rule.__name__] = title
        return rule

    return register


class DataFacts(NamedTuple):
    """What tells how many data files one checkpoint of ours may have.

    Attributes
    ----------
    is_reused : bool
        Its name was in use before, or may have been: steps before it were higher.
    is_written_over : bool
        With ``write_state=False``, which leaves no trace in a record.
    indexes_deleted : int
        How often its index was deleted by hand, and its data was not.
    records : int
        How many there are in the directory.
    handed_over : int
        How often the two programs changed places.
    """

    is_reused: bool
    is_written_over: bool
    indexes_deleted: int
    records: int
    handed_over: int


class Rules:
    """The rules in force, and how often each changed something.

    Parameters
    ----------
    without : iterable of str
        Names of rules that are left out.
    """

    def __init__(self, without: Iterable[str] = ()) -> None:
        self.without = frozenset(without)
        self.used: Counter[str] = Counter()

    def apply(self, rule: Callable[..., T], value: T, *facts: Any) -> T:
        """Return what ckptstore is to have in the place of `value`."""
        if rule.__name__ in self.without:
            return value
        changed = rule(value, *facts)
        if changed != value:
            self.used[rule.__name__] += 1
        return changed


# -------------------------------------------------------------------------------------------------- saving


@_row("saving a prefix again: for a while the new data stands beside the old index")
def new_names_for_new_data(item: PrefixFiles, ours: PrefixFiles, facts: DataFacts) -> PrefixFiles:
    # Another shard count; beside it what was replaced last, until the next save into the record that did it.
    # TensorFlow's record does not say what there is to delete.
    most = facts.records + (1 if item.data else -1) + 2 * facts.handed_over
    return _with_data_of(item, ours, most if facts.is_reused else 0)


@_row("saving a listed prefix again with `write_state=False`: its files are replaced")
def data_that_no_record_names(item: PrefixFiles, ours: PrefixFiles, facts: DataFacts) -> PrefixFiles:
    # What such a save replaced stays until the next one, or for gc.
    most = facts.records + (2 if item.data else 0) + 2 * facts.handed_over
    return _with_data_of(item, ours, most if facts.is_written_over else 0)


@_row("a checkpoint whose index is gone is deleted with all of its files, or its data is replaced")
def data_without_an_index_stays(item: PrefixFiles, ours: PrefixFiles, facts: DataFacts) -> PrefixFiles:
    most = facts.records + facts.indexes_deleted + 2 * facts.handed_over + (2 if item.data else 0)
    return _with_data_of(item, ours, most if facts.indexes_deleted else 0)


@_row("a checkpoint whose index is gone is deleted with all of its files, or its data is replaced")
def files_without_an_index_stay(present: dict[str, bytes], before: dict[str, bytes]) -> dict[str, bytes]:
    return {**before, **present}


@_row("what was saved last under another record, or with `write_state=False`, is deleted by the list it left")
def what_was_saved_outside_stays(present: dict[str, bytes], before: dict[str, bytes]) -> dict[str, bytes]:
    return {**before, **present}


def _with_data_of(item: PrefixFiles, ours: PrefixFiles, most: int) -> PrefixFiles:
    counts = {name.rpartition("-of-")[2] for name in ours.data}
    is_one_shard_each = all(name.startswith("data-00000-of-") for name in ours.data)
    is_right = is_one_shard_each and len(counts) == len(ours.data) and ours.index <= len(ours.data) <= most
    return replace(item, data=ours.data) if is_right else item


@_row("no other files")
def lock_file(others: tuple[str, ...], ours: tuple[str, ...]) -> tuple[str, ...]:
    lock = {".ckptstore.lock"}
    return tuple(sorted(({*others} - lock) | ({*ours} & lock)))


@_row("`save_relative_paths=False` writes absolute paths into the record")
def relative_paths(listed: Listed) -> Listed:
    return replace(listed, latest=listed.latest.removeprefix("<directory>/"), paths=listed.names)


# ------------------------------------------------------------------------------------- keeping and deleting


def _in_order(window: Window, listed: Listed | None) -> Window:
    """Sort as the record lists them; what it does not list comes last."""
    if listed is None:
        return window
    return sorted(
        window,
        key=lambda entry: listed.names.index(entry[0]) if entry[0] in listed.names else len(listed.names),
    )


def _joined(
    window: Window, listed: Listed | None, joins: Callable[[str], bool], writer: Writer, now_s: float
) -> Window:
    if listed is None:
        return window
    names = {name for name, _ in window}
    more = [
        (name, writer.mtimes.get(name, now_s) if time_s is None else time_s)
        for name, time_s in listed.entries
        if joins(name) and name not in names
    ]
    return _in_order([*window, *more], listed) if more else window


@_row("a restarted `Saver` forgets the old checkpoints, which then stay for ever")
def the_list_goes_on(
    window: Window, listed: Listed | None, ledger: Ledger, writer: Writer, now_s: float
) -> Window:
    def joins(name: str) -> bool:
        return writer.counts(ledger, name) and ledger.saved_in.get(name) != writer.run

    return _joined(window, listed, joins, writer, now_s)


@_row("a checkpoint in the list whose files are gone or torn takes a place, and a good one is deleted for it")
def what_is_gone_takes_no_place(
    window: Window, writer: Writer, new: str, directory: Path, stay_for_good: Callable[[Window], list[str]]
) -> Window:
    while True:
        window = [entry for entry in window if entry[0] not in writer.gone and entry[0] not in writer.torn]
        others = [entry for entry in window if entry[0] != new]
        surplus = others[: max(0, len(others) + 1 - writer.keep)] if writer.keep else []
        preserved = stay_for_good(surplus)
        if len(preserved) == len(surplus):
            return window
        # Looked at when something is to be deleted.
        files = files_of(directory)[0]
        suspects = {name for name, _ in others if name in writer.unknown and name not in preserved}
        torn = {name for name in suspects if not is_complete(files, name)}
        writer.unknown -= suspects
        writer.torn |= torn
        if not torn:
            return window


@_row("two savers in one directory overwrite each other's list")
def savers_share_a_list(
    window: Window, listed: Listed | None, ledger: Ledger, writer: Writer, now_s: float
) -> Window:
    def joins(name: str) -> bool:
        return writer.counts(ledger, name) and ledger.saved_in.get(name) == writer.run

    window = _joined(window, listed, joins, writer, now_s)
    if listed is None:
        return window
    times = dict(listed.entries)
    window = [(n, times[n] or time_s) for n, time_s in window if n in times and writer.counts(ledger, n)]
    return _in_order(window, listed)


@_row(
    "`update_checkpoint_state` has no effect on a `Saver` or manager that lives: its next save writes its"
    " own list"
)
def what_the_user_wrote_counts(
    window: Window, listed: Listed | None, ledger: Ledger, writer: Writer, now_s: float
) -> Window:
    if listed is None or writer.user_wrote == ledger.user_wrote:
        return window
    return [
        (name, writer.mtimes.get(name, now_s) if time_s is None else time_s)
        for name, time_s in listed.entries
        if writer.counts(ledger, name)
    ]


@_row("a record that was set back to an older step: that step is deleted first")
def what_was_gone_back_to_is_the_newest(window: Window, listed: Listed | None) -> Window:
    if listed is None or listed.latest not in listed.names[:-1]:
        return window
    return sorted(window, key=lambda entry: entry[0] == listed.latest)


@_row("`update_checkpoint_state` lists a latest one that is not the last of the list twice")
def the_latest_is_listed_once(listed: Listed) -> Listed:
    is_twice = listed.paths[-1] in listed.paths[:-1]
    return replace(listed, paths=listed.paths[:-1]) if is_twice else listed


@_row("`update_checkpoint_state` without `last_preserved_timestamp` drops that of the record")
def the_time_of_the_last_preserved_stays(listed: Listed, before: Listed) -> Listed:
    return replace(listed, last_preserved=before.last_preserved)


@_row("two savers in one directory overwrite each other's list")
def both_lists(
    listed: Listed, before: Listed | None, ledger: Ledger, writer: Writer, judged: set[str]
) -> Listed:
    if before is None:
        return listed
    others = [
        (name, time_s or 0.0)
        for name, time_s in before.entries
        if name not in judged and not writer.counts(ledger, name)
    ]
    return replace(listed.with_entries([*others, *listed.entries]), last_preserved=before.last_preserved)


@_row("without `max_to_keep`, what `recover_last_checkpoints` and the like have set stays listed for ever")
def nothing_is_counted_without_a_limit(window: Window, keep: int) -> Window:
    return window if keep else []


@_row(
    "a `Saver` that saves into two directories, or two records with `latest_filename`, has one list for both"
)
def one_list_per_record(key: str, record: str) -> str:
    return record


@_row(
    "the every-H-hours clock of `Saver` starts again with each restart, so a job that is preempted more often"
    " keeps none"
)
def the_clock_goes_on(next_keep_s: float, clock_s: float | None, first_keep_s: float) -> float:
    return first_keep_s if clock_s is None else clock_s


@_row("`CheckpointManager` reads the record once, when it is made")
def the_first_save_reads_the_record(
    preserved_s: float, clock_s: float | None, before: Listed | None, built_s: float
) -> float:
    if clock_s is not None or before is None:
        return preserved_s if clock_s is None else clock_s
    return min(before.last_preserved, built_s)


@_row("a clock that was set back stops `keep_checkpoint_every_n_hours` until it has caught up")
def the_clock_is_not_in_the_future(clock_s: float, latest_s: float) -> float:
    return min(clock_s, latest_s)


@_row("each save deletes at most one old checkpoint, so a lowered `max_to_keep` has no effect")
def the_surplus_goes_at_once(count: int, surplus: int) -> int:
    return surplus


@_row("with `write_meta_graph=False` the only `.meta` is deleted with its checkpoint")
def the_last_graph_stays(
    graphs: dict[str, bytes], lost: dict[str, bytes], window: list[str]
) -> dict[str, bytes]:
    """`lost` are those of the checkpoints that this save deleted, oldest first."""
    if not lost or not window or any(name in graphs for name in window):
        return graphs
    return {**graphs, window[0]: list(lost.values())[-1]}


@_row("`Saver` writes no times into the record")
def times_in_the_record(listed: Listed, window: Window) -> Listed:
    return replace(listed, times=tuple(time_s for _, time_s in window))


@_row("two savers in one directory overwrite each other's list")
def a_manager_counts_its_own(window: Window, ledger: Ledger, owner: Owner) -> Window:
    return [
        (n, t) for n, t in window if owner_of_listed(n) == owner and Owner(n, "exact") not in ledger.owners
    ]


@_row(
    "`CheckpointManager` takes an entry whose time equals `last_preserved_timestamp` for one that was"
    " preserved, and never deletes it after a restart: two saves within one tick of the clock"
)
def what_is_listed_is_counted(window: Window, listed: Listed | None, now_s: float) -> Window:
    if listed is None or not listed.times:
        return window
    return [(name, min(time_s or 0.0, now_s)) for name, time_s in listed.entries]


@_row("`CheckpointManager` ignores what a record without times lists")
def also_without_times(window: Window, listed: Listed | None, now_s: float) -> Window:
    if listed is None or listed.times:
        return window
    return [(name, now_s) for name in listed.names]


@_row("`CheckpointManager` ignores what a record without times lists")
def as_old_as_the_files(window: Window, before: Listed | None, writer: Writer) -> Window:
    if before is None:
        return window
    if before.times:
        # Another Saver has written 0 where there was no time.
        unknown = {name for name, time_s in before.entries if time_s == 0.0}
        return [(name, 0.0 if name in unknown else time_s) for name, time_s in window]
    return [(name, writer.mtimes.get(name, time_s)) for name, time_s in window]


# -------------------------------------------------------------------------------------- finding and restoring


def is_complete(files: dict[str, PrefixFiles], name: str) -> bool:
    return name in files and files[name].index and bool(files[name].data)


@_row(
    "a checkpoint that is still being copied, or an index that is a web page or a Git LFS pointer: None, or"
    " an error from the restore"
)
def nothing_can_be_restored(answer: str, owner: Owner, listed: Listed | None, directory: Path) -> str:
    """What the first save of a run as `owner` answers."""
    basename = owner.basename if owner.form == "steps" else step_of(owner.basename)[0]
    files = files_of(directory)[0]

    def is_beside(name: str) -> bool:
        return name == owner.basename or step_of(name)[0] == basename or owner_of_listed(name) == owner

    there = {*files, *(() if listed is None else listed.names)}
    beside = {name for name in there if is_beside(name)}
    beside -= {name for name in beside if name in files and files[name] == PrefixFiles(graph=True)}
    return "CorruptError" if beside and not any(is_complete(files, name) for name in beside) else answer


@_row("`latest_checkpoint` never looks at the data files")
def the_data_is_there(latest: str | None, directory: Path) -> str | None:
    return latest if latest is None or is_complete(files_of(directory)[0], latest) else None


@_row("a stale record gives None")
def another_checkpoint_of_the_directory(
    latest: str | None, listed: Listed | None, directory: Path
) -> str | None:
    if latest is not None or listed is None:
        return latest
    return _newest(listed, directory) or "CorruptError"


@_row("no record gives None")
def the_newest_of_the_directory(latest: str | None, listed: Listed | None, directory: Path) -> str | None:
    if latest is not None or listed is not None:
        return latest
    is_there = any(item.index or item.data for item in files_of(directory)[0].values())
    return _newest(None, directory) or ("CorruptError" if is_there else None)


def _newest(listed: Listed | None, directory: Path) -> str | None:
    """Return the newest complete checkpoint: of the basename that the record names, else listed, else any."""
    files = files_of(directory)[0]
    complete = [name for name in files if is_complete(files, name)]

    def place(name: str) -> tuple[float, float]:
        step = _series_of(name)[1]
        return -inf if step is None else step, (directory / f"{name}.index").stat().st_mtime

    newest: dict[str, str] = {}
    for name in sorted((name for name in files if files[name].index), key=place):
        newest[_series_of(name)[0]] = name

    def rank(name: str) -> tuple[object, ...]:
        basename = _series_of(name)[0]
        is_same = listed is not None and basename == _series_of(listed.latest)[0]
        is_listed = listed is not None and not is_same and name in listed.names
        top = newest[basename]
        return is_same, is_listed, _series_of(top)[1] is not None, place(top)[1], top, place(name)

    return max(complete, key=rank, default=None)


def _series_of(name: str) -> tuple[str, int | None]:
    """Return basename and step of a name: ``model--1`` is step 1 of ``model-``."""
    basename, _, digits = name.rpartition("-")
    return (basename, int(digits)) if basename and digits.isdecimal() else (name, None)


def step_of(name: str) -> tuple[str, int | None]:
    """Return basename and step of a name, however it was saved."""
    match = re.fullmatch(r"(.+?)-(-?\d{1,20})", name)
    return (name, None) if match is None else (match[1], int(match[2]))
