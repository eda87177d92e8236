"""Find out what an argument names: a checkpoint, one of its files, or a directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ckptstore.bundle.read.other_names import saved_model_hint
from ckptstore.cli.output import Output
from ckptstore.directory.catalog import list_checkpoints
from ckptstore.directory.latest import find_latest
from ckptstore.directory.record_update import RECORD_NAME
from ckptstore.errors import AccessError, CkptStoreError, NotFoundError, TensorNotFoundError, UsageError
from ckptstore.format.naming import index_name, parse_file_name
from ckptstore.storage.base import Location
from ckptstore.suggest import close_names

__all__ = ["at_checkpoint", "at_directory", "latest_in", "refuse_prefix", "require_directory"]

_T = TypeVar("_T")


def at_checkpoint(location: Location, action: Callable[[Location], _T], output: Output) -> _T | None:
    """Return the result of `action` for the checkpoint that `location` names; None if that is a directory.

    `location` is tried as a prefix first, so that the usual case costs no extra request; then as a file of a
    checkpoint, with a note to the user. TensorFlow takes prefixes only, but shell completion offers files.

    Parameters
    ----------
    action : callable
        Raises `NotFoundError` if there is no checkpoint of this prefix.

    Raises
    ------
    NotFoundError
        If there is neither a checkpoint nor a directory of that name; the hint lists similar names.
    """
    if location.url.rpartition("/")[2] in ("", ".", ".."):
        require_directory(location)
        return None
    parsed = parse_file_name(location.name)
    # Opened as V1 checkpoints these two would give misleading errors: a text file, and a part of one.
    misleading = location.name == RECORD_NAME or (parsed is not None and parsed.kind == "v1-shard")
    missing: NotFoundError | AccessError | None = None
    if not misleading or _is_file(location.suffixed(index_name(""))):
        try:
            return action(location)
        except TensorNotFoundError:
            raise
        except (NotFoundError, AccessError) as error:
            # Who may not list a bucket is refused what is missing.
            missing = error
    if parsed is not None:
        name = parsed.prefix
        if parsed.kind == "v1-shard":
            name = f"{name}-?????-of-{parsed.num_shards:05d}"
        prefix = _beside(location, name)
        try:
            result = action(prefix)
        except TensorNotFoundError:
            raise
        except (NotFoundError, AccessError) as error:
            missing = missing if isinstance(missing, AccessError) else error
        else:
            output.note(f"{location.url} names a file of the checkpoint {prefix.url}")
            return result
    try:
        if _is_directory(location) or (location.name == RECORD_NAME and _is_file(location)):
            return None
    except AccessError as error:
        raise missing if isinstance(missing, AccessError) else error from None
    if isinstance(missing, AccessError):
        raise missing
    raise _not_found(location) from missing


def at_directory(location: Location) -> Location:
    """Return the directory that `location` names, itself or by the record in it."""
    if location.name == RECORD_NAME and not location.url.endswith("/") and _is_file(location):
        return location.parent
    return location


def require_directory(location: Location) -> None:
    """Raise unless `location` is a directory.

    Raises
    ------
    NotFoundError
        If it does not exist.
    UsageError
        If it is a file.
    """
    if _is_directory(location):
        return
    if _is_file(location):
        raise UsageError(
            "this is a file, not a directory",
            url=location.url,
            hint="ckptstore inspect shows one checkpoint.",
        )
    if location.key and not location.url.endswith("/") and _is_file(location.suffixed(index_name(""))):
        raise _prefix_instead(location)
    raise NotFoundError("there is no such directory", url=location.url, hint=_did_you_mean(location, set()))


def refuse_prefix(location: Location) -> None:
    """Raise `UsageError` if `location` is the prefix of a checkpoint, and no directory."""
    try:
        is_prefix = _is_file(location.suffixed(index_name(""))) and not _is_directory(location)
    except CkptStoreError:
        return
    if is_prefix:
        raise _prefix_instead(location)


def _prefix_instead(location: Location) -> UsageError:
    return UsageError(
        "this is the prefix of a checkpoint, not a directory",
        url=location.url,
        hint="ckptstore inspect and ckptstore verify take it.",
    )


def latest_in(directory: Location, output: Output) -> Location:
    """Return the newest checkpoint of a directory that can be restored, with a note to the user.

    Raises
    ------
    NotFoundError
        If there are no checkpoints.
    CorruptError
        If none of them can be restored.
    """
    found = find_latest(directory)
    if found is None:
        raise NotFoundError(
            "there is no checkpoint in this directory",
            url=directory.url,
            hint=saved_model_hint(directory) or "ckptstore ls shows its contents.",
        )
    output.note(f"the latest checkpoint in {directory.url or '.'} is {found.name}")
    return found


def _is_file(location: Location) -> bool:
    try:
        location.storage.head(location.key)
    except (NotFoundError, UsageError, AccessError):
        return False
    return True


def _is_directory(location: Location) -> bool:
    """Whether `location` is a directory; on an object store, whether there are objects below it."""
    if not location.key:
        return True
    try:
        return _holds_files(location)
    except AccessError:
        # The record is enough for who may read and not list.
        if _is_file(location.child(RECORD_NAME)):
            return True
        raise


def _holds_files(location: Location) -> bool:
    try:
        location.storage.head(location.key)
    except NotFoundError:
        return next(iter(location.storage.list(f"{location.key}/")), None) is not None
    except UsageError:
        # It exists and is not a file. Listing fails unless it is a directory.
        location.storage.list(f"{location.key}/")
        return True
    return False


def _beside(location: Location, name: str) -> Location:
    """Return the entry `name` beside `location`, with a URL in the form the user gave."""
    url = location.url[: len(location.url) - len(location.name)] + name
    return Location(location.storage, location.parent.child(name).key, url)


def _not_found(location: Location) -> NotFoundError:
    try:
        found = list_checkpoints(location.parent)
    except CkptStoreError:
        found = {}
    names = {name for name, item in found.items() if item.index is not None}
    parsed = parse_file_name(location.name)
    leftover = found.get(location.name) or (found.get(parsed.prefix) if parsed is not None else None)
    if leftover is not None and leftover.data:
        return NotFoundError(
            "this checkpoint has data files but no index",
            url=_beside(location, leftover.prefix).url,
            expected=f"a file {index_name(leftover.prefix)}",
            hint="The save is still running, or died before it was published; use another checkpoint.",
        )
    if leftover is not None and leftover.meta is not None:
        return NotFoundError(
            "this name has a graph but no checkpoint",
            url=_beside(location, leftover.prefix).url,
            expected=f"a file {index_name(leftover.prefix)}",
        )
    return NotFoundError(
        "there is no checkpoint and no directory of this name",
        url=location.url,
        hint=_did_you_mean(location, names),
    )


def _did_you_mean(location: Location, names: set[str]) -> str:
    close = close_names(location.name, names)
    if close:
        return f"Did you mean {' or '.join(_beside(location, name).url for name in close)}?"
    return "Check the path; ckptstore ls shows the checkpoints of a directory."
