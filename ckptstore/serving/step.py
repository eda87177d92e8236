"""One step of a job: which checkpoint, and which version of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint
from ckptstore.types import Options

if TYPE_CHECKING:
    from ckptstore.cache.cache import Cache

__all__ = ["Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """A complete checkpoint, pinned to one version of its index.

    It can be pickled and sent to other ranks or hosts: all of them open the same version, or get an error.
    Neither the pickle nor the text of a step contains storage options.

    Attributes
    ----------
    prefix : str
        Prefix or URL.
    step : int or None
        The step in the name; None if it has none.
    version : str
        Of the index: what distinguishes two saves under one name.
    seen_s : float
        When a watcher saw it, in seconds since 1970, by the clock of its host.

    Threads
    -------
    Immutable.

    Examples
    --------
    >>> from ckptstore import BundleWriter, update_checkpoint_state, watch
    >>> with BundleWriter("memory://docs/step/model-3") as writer:
    ...     writer.add("w", [1.0, 2.0])
    >>> update_checkpoint_state("memory://docs/step", "memory://docs/step/model-3")
    >>> step = watch("memory://docs/step").check()
    >>> step.prefix, step.step
    ('memory://docs/step/model-3', 3)
    >>> with step.open() as checkpoint:
    ...     checkpoint["w"]
    array([1., 2.])
    """

    prefix: str
    step: int | None
    version: str
    seen_s: float
    # Of the watcher, for `open` in the same process. May hold secrets.
    _storage_options: Options = field(default=None, repr=False, compare=False)
    _cache: Cache | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Step], tuple[object, ...]]:
        return Step, (self.prefix, self.step, self.version, self.seen_s)

    def __copy__(self) -> Step:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Step:
        return self

    def open(self, **options: Any) -> OpenCheckpoint:
        """Open the checkpoint, in this version.

        Parameters
        ----------
        **options
            As for `open_checkpoint`. In the process of the watcher, ``storage_options`` and ``cache`` are the
            watcher's unless they are given; a step that was pickled has none.

        Raises
        ------
        NotFoundError
            If the checkpoint is gone, or another one was saved under its name.
        CorruptError
            If its index is damaged.
        AccessError, TransientError
            If the storage cannot be read.
        """
        own = {"storage_options": self._storage_options, "cache": self._cache}
        return open_checkpoint(self.prefix, version=self.version, **{**own, **options})
