"""The Savers of calls that are given none: one for each path and process, so that retention goes on."""

from __future__ import annotations

import collections
import os
import threading
from typing import Final

from ckptstore.distributed.coordinator import Coordinator
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import locate
from ckptstore.train.saver import Saver
from ckptstore.types import Options, PathText

__all__ = ["kept_saver"]

# What retention counts stands in the record, so a Saver that is let go is only made anew.
_MOST: Final = 64

_SAVERS: collections.OrderedDict[tuple[int, int, str, int], tuple[Saver, Storage]] = collections.OrderedDict()
_LOCK = threading.Lock()


def kept_saver(
    save_path: PathText,
    coordinator: Coordinator | None = None,
    storage_options: Options = None,
) -> Saver:
    """Return the Saver of this process for a path without its step; the same for every call with it.

    It keeps the newest five, as ``Saver()`` does.

    Parameters
    ----------
    save_path : str or PathLike
        As for `Saver.save`.
    coordinator : Coordinator, optional
        All ranks call this with the same paths in the same order.
    storage_options : mapping, optional
        Those of the call; the Saver does not keep them.

    Raises
    ------
    UsageError
        If the path is wrong.
    """
    place = locate(save_path, storage_options)
    # A Saver of many ranks belongs to the process that made it.
    key = (os.getpid(), id(place.storage), place.key, id(coordinator))
    with _LOCK:
        found = _SAVERS.get(key)
        if found is None:
            # It keeps its coordinator, and with the storage no other object gets one of these ids.
            found = _SAVERS[key] = Saver(coordinator=coordinator), place.storage
            if len(_SAVERS) > _MOST:
                _SAVERS.popitem(last=False)
        _SAVERS.move_to_end(key)
        return found[0]
