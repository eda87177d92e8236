"""TensorFlow's functions around checkpoints: find, list, date, remove and follow them."""

from __future__ import annotations

import posixpath
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.directory.latest import check_is_directory, find_latest, look_for_latest, record_location
from ckptstore.directory.paths import UNNAMED, relative_prefix
from ckptstore.directory.record_update import RecordSnapshot, read_state, update_record
from ckptstore.errors import (
    AccessError,
    CkptStoreWarning,
    CorruptError,
    NotFoundError,
    TransientError,
    UsageError,
)
from ckptstore.format.naming import index_name
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.retry import pause
from ckptstore.storage.scope import Scope
from ckptstore.types import Options, PathText
from ckptstore.warn import warn

if TYPE_CHECKING:
    from ckptstore.cache.cache import Cache
    from ckptstore.cache.last_seen import LastSeen
    from ckptstore.distributed.coordinator import Coordinator
    from ckptstore.serving.watch import Watcher

__all__ = [
    "CheckpointState",
    "checkpoint_exists",
    "checkpoints_iterator",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "latest_checkpoint",
    "remove_checkpoint",
    "update_checkpoint_state",
    "wait_for_new_checkpoint",
]


_RECORD_TIMEOUT_S = 60.0


def latest_checkpoint(
    checkpoint_dir: PathText,
    latest_filename: str | None = None,
    *,
    recover: bool = True,
    allow_external_paths: bool = False,
    coordinator: Coordinator | None = None,
    cache: Cache | PathText | None = None,
    storage_options: Options = None,
) -> str | None:
    """Return the prefix of the newest checkpoint in a directory; what it names can be restored.

    Parameters
    ----------
    checkpoint_dir : str or PathLike
        Directory or URL.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default.
    recover : bool
        Where the record is missing, stale or unreadable, warn and return the newest complete checkpoint that
        lies in the directory: of the same basename, else listed, else any other. With False such a record
        raises.
    allow_external_paths : bool
        Follow a path of the record that leads out of the directory. Otherwise the same basename beside the
        record is tried, which is what a moved directory needs.
    coordinator : Coordinator, optional
        All ranks of a job call this alike and get one answer, that of the chief; or an error of the same
        class. The others read nothing.
    cache : Cache or path, optional
        Answers with the last one that was seen, and a warning, while the storage is away.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    str or None
        None only when there is no checkpoint: no record, and no file of one except what a save of ckptstore
        left that was killed before it had published any.

    Raises
    ------
    CorruptError
        If there are checkpoints and none of them can be restored now: they are torn, still being copied, or
        other files lie in their place. The message lists them.
    AccessError, TransientError, UsageError
        If the directory cannot be read. That is never reported as "no checkpoint".
    RanksMissingError
        If the chief does not answer.
    """
    if coordinator is not None:
        from ckptstore.distributed.agreement import Agreement

        def answer() -> dict[str, str | None]:
            return {
                "prefix": latest_checkpoint(
                    checkpoint_dir,
                    latest_filename,
                    recover=recover,
                    allow_external_paths=allow_external_paths,
                    cache=cache,
                    storage_options=storage_options,
                )
            }

        with Agreement(coordinator, "find the latest checkpoint") as agreement:
            prefix = agreement.ask_chief(answer)["prefix"]
        return None if prefix is None else str(prefix)
    directory = locate(checkpoint_dir, storage_options)
    last_seen: LastSeen | None = None
    if cache is not None:
        # On use: most readers have none, and a host that starts waits for what it imports.
        from ckptstore.cache.cache import as_cache

        last_seen = as_cache(cache).last_seen
    try:
        if last_seen is not None and last_seen.knows(directory, latest_filename):
            # One request shows whether the storage is there; the others may take their time.
            with Scope(last_seen.patience_s, what="cannot find the latest checkpoint", url=directory.url):
                read_state(record_location(directory, latest_filename))
        found = find_latest(
            directory, latest_filename, recover=recover, allow_external_paths=allow_external_paths
        )
    except UsageError:
        check_is_directory(directory)
        raise
    except TransientError as error:
        known = None if last_seen is None else last_seen.instead_of(error, directory, latest_filename)
        if known is None:
            raise
        return known[0].url
    if found is None:
        check_is_directory(directory)
        return None
    if last_seen is not None:
        last_seen.remember(directory, latest_filename, found)
    return found.url


def get_checkpoint_state(
    checkpoint_dir: PathText, latest_filename: str | None = None, *, storage_options: Options = None
) -> CheckpointState | None:
    """Return the record of a directory, relative paths joined to `checkpoint_dir`.

    Parameters
    ----------
    checkpoint_dir : str or PathLike
        Directory or URL.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    CheckpointState or None
        None if there is no record. If one cannot be read, or is missing where there are checkpoints, a
        warning says so. A record that is there is not compared with the files: use `latest_checkpoint` for
        a checkpoint that can be restored.

    Raises
    ------
    CorruptError
        If there is no record that can be read, and checkpoints of which none can be restored now.
    AccessError, TransientError, UsageError
        If the record cannot be reached.
    """
    directory = locate(checkpoint_dir, storage_options)
    record = record_location(directory, latest_filename)
    try:
        state = read_state(record).record.state
        found, remark = (None, "") if state is not None else look_for_latest(directory, latest_filename)
    except UsageError:
        check_is_directory(directory)
        raise
    if state is None:
        if found is None:
            check_is_directory(directory)
        if remark:
            warnings.warn(remark, CkptStoreWarning, stacklevel=2)
        return None

    def join(path: str) -> str:
        return path if path.startswith("/") or "://" in path else directory.child(path).url

    return CheckpointState(
        join(state.model_checkpoint_path),
        tuple(join(path) for path in state.all_model_checkpoint_paths),
        state.all_model_checkpoint_timestamps,
        state.last_preserved_timestamp,
    )


def update_checkpoint_state(
    save_dir: PathText,
    model_checkpoint_path: str,
    all_model_checkpoint_paths: Sequence[str] | None = None,
    latest_filename: str | None = None,
    all_model_checkpoint_timestamps: Sequence[float] | None = None,
    last_preserved_timestamp: float | None = None,
    *,
    storage_options: Options = None,
) -> None:
    """Write the record of a directory. Savers do so by themselves.

    Paths are stored relative to `save_dir`. As in TensorFlow, a relative path is taken as relative to the
    working directory when `save_dir` is relative too, and to `save_dir` when that is absolute or a URL.

    Parameters
    ----------
    save_dir : str or PathLike
        Directory or URL of the record; made when missing.
    model_checkpoint_path : str
        Prefix of the latest checkpoint.
    all_model_checkpoint_paths : sequence of str, optional
        The listed ones, oldest first; the latest is appended if it is not among them.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default.
    all_model_checkpoint_timestamps : sequence of float, optional
        Seconds since 1970, one per path.
    last_preserved_timestamp : float, optional
        CheckpointManager's clock, seconds since 1970.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UsageError
        If the timestamps do not match the paths, or a path is that of the record itself.
    """
    directory = locate(save_dir, storage_options)
    record = record_location(directory, latest_filename)
    latest = _to_relative(directory, model_checkpoint_path)
    paths = [_to_relative(directory, path) for path in all_model_checkpoint_paths or ()]
    times = list(all_model_checkpoint_timestamps or ())
    if times and len(times) != len(paths):
        raise UsageError(
            "checkpoint timestamps, if provided, must match checkpoint paths",
            url=record.url,
            expected=f"{len(paths)} timestamps",
            actual=str(len(times)),
        )
    if latest not in paths:
        paths.append(latest)
        if times:
            times.append(time.time())
    if record.name in (latest, *paths):
        raise UsageError(
            f"save path {model_checkpoint_path!r} conflicts with the path of the record",
            url=record.url,
            hint="Use a different save path.",
        )

    def change(snapshot: RecordSnapshot) -> Record:
        present = snapshot.record
        last = present.state.last_preserved_timestamp if present.state else 0.0
        state = CheckpointState(
            latest,
            tuple(paths),
            tuple(times),
            last if last_preserved_timestamp is None else last_preserved_timestamp,
        )
        # What was announced came before this.
        return replace(present, state=state, intents=())

    update_record(record, change, timeout_s=_RECORD_TIMEOUT_S)


def _to_relative(directory: Location, path: str) -> str:
    if path.startswith("/") or "://" in path:
        relative = relative_prefix(directory, path)
        if relative is not None:
            return relative
        if "://" in path or "://" in directory.url:
            raise UsageError(
                "a record cannot name a checkpoint on another storage", url=directory.url, actual=path
            )
        return posixpath.relpath(path, directory.key)
    if directory.url.startswith("/") or "://" in directory.url:
        return path
    relative = posixpath.relpath(path, directory.url or ".")
    return UNNAMED if relative == "." and path.endswith("/") else relative


def checkpoint_exists(checkpoint_prefix: PathText, *, storage_options: Options = None) -> bool:
    """Return whether a V2 or V1 checkpoint of this prefix is there; its bytes are not checked.

    Parameters
    ----------
    checkpoint_prefix : str or PathLike
        Prefix or URL. A directory is not a checkpoint.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    AccessError, TransientError
        If the storage cannot answer.
    """
    try:
        open_bundle(locate(checkpoint_prefix, storage_options))
    except NotFoundError:
        return False
    except CorruptError:
        return True
    return True


def get_checkpoint_mtimes(
    checkpoint_prefixes: Sequence[PathText], *, storage_options: Options = None
) -> list[float]:
    """Return when each checkpoint was written.

    Parameters
    ----------
    checkpoint_prefixes : sequence of str or PathLike
        Prefixes or URLs.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    list of float
        Whole seconds since 1970; missing checkpoints are left out.
    """
    times = []
    for prefix in checkpoint_prefixes:
        mtime_s = _mtime_s(locate(prefix, storage_options))
        if mtime_s is not None:
            times.append(float(int(mtime_s)))
    return times


def _mtime_s(prefix: Location) -> float | None:
    places = [prefix.suffixed(index_name("")), prefix]
    if prefix.url.endswith("/"):
        places.insert(0, Location(prefix.storage, f"{prefix.key}/", prefix.url).suffixed(index_name("")))
    for place in places:
        try:
            return place.storage.head(place.key).mtime_s
        except NotFoundError:
            continue
    return None


def remove_checkpoint(
    checkpoint_prefix: PathText,
    checkpoint_format_version: int = 2,
    meta_graph_suffix: str = "meta",
    *,
    storage_options: Options = None,
) -> None:
    """Delete one checkpoint: index, then data and graph, by exact names. Missing files are fine.

    Parameters
    ----------
    checkpoint_prefix : str or PathLike
        Prefix or URL.
    checkpoint_format_version : int
        2, or 1 for a checkpoint of TensorFlow before 0.12: one file, or the shards of
        ``PREFIX-?????-of-00003``.
    meta_graph_suffix : str
        Of the graph's file.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    UnsupportedError, AccessError, StorageFullError, TransientError
        If a file could not be deleted, after all were tried.
    """
    if checkpoint_format_version not in (1, 2):
        raise UsageError(
            "there is no such checkpoint format", expected="1 or 2", actual=checkpoint_format_version
        )
    from ckptstore.directory.collect import remove_checkpoint_files, remove_v1_files

    prefix = locate(checkpoint_prefix, storage_options)
    if checkpoint_format_version == 1:
        remove_v1_files(prefix.parent, prefix.name, meta_graph_suffix)
    elif prefix.url.endswith("/"):
        # An empty basename, as in TensorFlow. What has the name without the slash is not meant.
        remove_checkpoint_files(prefix, "", meta_graph_suffix)
    else:
        remove_checkpoint_files(prefix.parent, prefix.name, meta_graph_suffix)


def wait_for_new_checkpoint(
    checkpoint_dir: PathText,
    last_checkpoint: str | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    *,
    storage_options: Options = None,
) -> str | None:
    """Wait until the latest checkpoint of a directory is another than `last_checkpoint`.

    Parameters
    ----------
    checkpoint_dir : str or PathLike
        Directory or URL.
    last_checkpoint : str, optional
        The one that is known already.
    seconds_to_sleep : float
        Between two checks.
    timeout : float, optional
        In seconds. Stops when the next check would come later, so one shorter than `seconds_to_sleep` checks
        once.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    str or None
        None after the timeout. A checkpoint that is not complete yet is waited for, with a warning.

    Raises
    ------
    AccessError, TransientError, UsageError
        If the first look fails. A storage that fails later is waited for, with a warning.

    See Also
    --------
    watch : the same for hosts that serve
    """
    from ckptstore.serving.watch import watch

    watcher = watch(checkpoint_dir, storage_options=storage_options)
    return _wait_for_another(watcher, last_checkpoint, seconds_to_sleep, timeout)


def _wait_for_another(
    watcher: Watcher, last_checkpoint: str | None, seconds_to_sleep: float, timeout: float | None
) -> str | None:
    stop_s = None if timeout is None else time.monotonic() + timeout
    is_first = watcher.health().looked_s_ago is None
    while True:
        step = None
        try:
            step = watcher.check()
        except CorruptError as error:
            warn(f"still waiting: {error}")
        except (AccessError, TransientError) as error:
            if is_first:
                raise
            warn(f"still waiting: {error}")
        is_first = False
        if step is not None and step.prefix != last_checkpoint:
            return step.prefix
        if stop_s is not None and time.monotonic() + seconds_to_sleep > stop_s:
            return None
        pause(seconds_to_sleep)


def checkpoints_iterator(
    checkpoint_dir: PathText,
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    storage_options: Options = None,
) -> Iterator[str]:
    """Yield each new latest checkpoint of a directory.

    Parameters
    ----------
    checkpoint_dir : str or PathLike
        Directory or URL.
    min_interval_secs : float
        Least time between two of them.
    timeout : float, optional
        Seconds without a new one after which iteration stops, or, with `timeout_fn`, after which it is asked.
    timeout_fn : callable, optional
        Returns True to stop. Asked after each timeout.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Raises
    ------
    AccessError, TransientError, UsageError
        As `wait_for_new_checkpoint`.
    """
    from ckptstore.serving.watch import watch

    path: str | None = None
    watcher = watch(checkpoint_dir, storage_options=storage_options)
    while True:
        new = _wait_for_another(watcher, path, 1.0, timeout)
        if new is None:
            if timeout_fn is None or timeout_fn():
                return
            continue
        started_s = time.monotonic()
        path = new
        yield path
        rest_s = started_s + min_interval_secs - time.monotonic()
        if rest_s > 0:
            pause(rest_s)
