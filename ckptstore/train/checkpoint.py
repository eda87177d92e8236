"""``tf.train.Checkpoint`` without TensorFlow: nested containers of arrays take the place of objects."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.config import process_run
from ckptstore.directory.bare_write import BareSink
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.retention import KeepNewest
from ckptstore.directory.save_request import SaveRequest
from ckptstore.errors import UsageError
from ckptstore.format.naming import numbered
from ckptstore.reading.options import ReadOptions
from ckptstore.saving.options import Durability, SaveOptions
from ckptstore.saving.task import SaveTask
from ckptstore.storage.prefix_names import check_prefix_name
from ckptstore.storage.registry import locate
from ckptstore.trackable.describe import SAVE_COUNTER
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.status import NothingRestored, RestoreStatus
from ckptstore.trackable.tree import Tree
from ckptstore.trackable.walk import check_member, walk
from ckptstore.train.checkpoint_values import plan_tree, restore_tree
from ckptstore.transfer.progress import Progress
from ckptstore.types import Options, PathText

__all__ = ["Checkpoint", "Optimizer", "RestoreStatus"]


class Checkpoint:
    """A tree of arrays that is saved and restored as a whole, by the names on the way to each array.

    The files are those of ``tf.train.Checkpoint`` for variables in the same tree. The tree is looked at anew
    for each call: arrays and containers may be changed, added and removed between saves.

    Parameters
    ----------
    root : object, optional
        Its members become children of the checkpoint's root, as in TensorFlow; so does ``root``, the root
        itself.
    **tree
        Children of the root, by name: dictionaries with text as keys, lists, tuples, `Optimizer`, and values,
        nested as deep as you like. Values are arrays, numpy scalars, Python numbers (saved as numpy takes
        them: int64, float64, bool) and text or bytes (saved as strings). The same array under two names is
        saved once. None and an empty tuple are left out, an empty dictionary or list is not.

    Attributes
    ----------
    save_counter : ndarray
        See there. The children are attributes, too: ``checkpoint.step``; setting one adds or replaces a
        child.

    Raises
    ------
    UsageError
        If a child is nothing that a checkpoint can hold, or is called ``save_counter``.

    Notes
    -----
    Restoring fills arrays in place. Python numbers, numpy scalars and text cannot be filled: the dictionary,
    list or attribute that holds them gets the restored value instead, so they must not stand in a tuple. What
    could not be restored is not saved either: read-only and masked arrays, the variables of a framework. A
    number takes a value of its kind (an int any integer type), an array only one of its own shape and type.

    Threads
    -------
    One thread at a time.

    Examples
    --------
    >>> import numpy as np
    >>> net = {"w": np.ones((2, 2)), "layers": [np.zeros(3)]}
    >>> checkpoint = Checkpoint(net=net, step=np.array(7))
    >>> path = checkpoint.save("memory://docs/object/ckpt")
    >>> path
    'memory://docs/object/ckpt-1'
    >>> net["w"][...] = 0
    >>> status = checkpoint.restore(path).assert_consumed()
    >>> net["w"].tolist(), int(checkpoint.step)
    ([[1.0, 1.0], [1.0, 1.0]], 7)
    """

    # No __dict__: every other attribute is a child.
    __slots__ = ("__weakref__", "_has_root", "_tree", "_writers")

    _has_root: bool
    _tree: dict[str, Any]
    _writers: dict[tuple[Any, str], CheckpointWriter]

    def __init__(self, /, root: Any = None, **tree: Any) -> None:
        if SAVE_COUNTER in tree:
            raise UsageError(
                f"a child cannot be called {SAVE_COUNTER!r}",
                tensor=SAVE_COUNTER,
                hint="Every checkpoint has its own; set checkpoint.save_counter.",
            )
        if root is not None:
            tree["root"] = root
        for name, value in tree.items():
            check_member(name, value)
        self._has_root = root is not None
        # TensorFlow tracks keyword arguments in this order, whatever the caller's was.
        self._tree = dict(sorted(tree.items()))
        self._writers = {}

    def __getattr__(self, name: str) -> Any:
        # Only called for what is no attribute of the class; before __init__ there is no tree yet.
        tree = {} if name in Checkpoint.__slots__ else self._tree
        if name not in tree:
            raise AttributeError(f"this Checkpoint has no child {name!r}", name=name, obj=self)
        return tree[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Checkpoint.__slots__ or name == SAVE_COUNTER:
            object.__setattr__(self, name, value)
            return
        if hasattr(type(self), name):
            raise UsageError(
                f"a child cannot be set under the name of the method {name!r}",
                tensor=name,
                hint="Give it to the constructor, or choose another name.",
            )
        check_member(name, value)
        self._tree[name] = value

    def __delattr__(self, name: str) -> None:
        if self._tree.pop(name, None) is None:
            raise AttributeError(f"this Checkpoint has no child {name!r}", name=name, obj=self)

    def __repr__(self) -> str:
        return f"Checkpoint({', '.join(self._tree)})"

    @property
    def save_counter(self) -> npt.NDArray[np.int64]:
        """The number of saves so far: a 0-d int64 array, saved with the tree, made when it is first needed.

        Setting it fills the array; `restore` does so, too, so that numbering goes on where the checkpoint was
        saved.
        """
        counter: npt.NDArray[np.int64] | None = self._tree.get(SAVE_COUNTER)
        if counter is None:
            counter = self._tree[SAVE_COUNTER] = np.zeros((), np.int64)
        return counter

    @save_counter.setter
    def save_counter(self, value: Any) -> None:
        number = np.asarray(value)
        if number.shape != () or number.dtype.kind not in "iu":
            raise UsageError("the save counter must be an integer", tensor=SAVE_COUNTER, actual=repr(value))
        self.save_counter[...] = number

    def plan(self, *, with_counter: bool, full_names: Mapping[str, str] | None = None) -> SavePlan:
        """Return what a save of the tree would write now; everything is converted and checked.

        Parameters
        ----------
        with_counter : bool
            Whether to save the counter even if there was none so far. One that is there is always saved.
        full_names : mapping, optional
            Path → name of the variable, for files that TensorFlow's name-based restore finds, too.
            A path is what stands before ``/.ATTRIBUTES`` in the variable's key.

        Raises
        ------
        UsageError
            If something in the tree cannot be saved. ``tensor`` is its place in the tree.
        """
        if with_counter:
            _ = self.save_counter
        return plan_tree(self._walk(), full_names)

    def _walk(self) -> Tree:
        return walk(self._tree["root"], self._tree) if self._has_root else walk(self._tree)

    def write(
        self,
        prefix: PathText,
        *,
        storage_options: Options = None,
        deadline_s: float | None = None,
        memory_budget: int | None = None,
        durability: Durability = "disk",
        progress: Progress = None,
    ) -> str:
        """Write the tree under exactly this prefix: no number, no record.

        Parameters
        ----------
        prefix : str or PathLike
            Prefix or URL; missing directories are made.
        storage_options : mapping, optional
            Goes to the backend as it is.
        durability : {"disk", "cache"}
            ``"disk"``: it outlives a power failure once this returns. ``"cache"``: the local disk is not
            waited for, so it outlives the end of the process only. No difference elsewhere.
        deadline_s, memory_budget, progress :
            How it is saved; as for `Saver`. Options of each call, because those of the constructor are
            children.

        Returns
        -------
        str
            The prefix.

        Raises
        ------
        UsageError
            If something in the tree cannot be saved; nothing was written.
        StorageFullError, AccessError, TransientError, ConflictError, AmbiguousOutcomeError
            From the storage.

        Guarantees
        ----------
        Durable when it returns. A crash at any point leaves the complete old or the complete new checkpoint.
        """
        options = SaveOptions(deadline_s, memory_budget, durability, progress)
        location = options.place(locate(prefix, storage_options))
        check_prefix_name(location)
        request = SaveRequest(location, self.plan(with_counter=False))
        SaveTask(request, BareSink(), options).run()
        return location.url

    def save(
        self,
        prefix: PathText,
        *,
        storage_options: Options = None,
        deadline_s: float | None = None,
        memory_budget: int | None = None,
        durability: Durability = "disk",
        progress: Progress = None,
        fresh_start: bool = False,
    ) -> str:
        """Count, write the tree under ``<prefix>-<save_counter>``, and make it the latest checkpoint.

        Nothing is deleted; for that there is `CheckpointManager`. The number of a save that fails is not used
        again.

        Parameters are those of `write`, and `fresh_start` as for `Saver`.

        Returns
        -------
        str
            The prefix with the number.

        Raises
        ------
        UsageError
            If something in the tree cannot be saved; nothing was written.
        CorruptError
            The directory has checkpoints of this basename, and none of them can be restored; nothing was
            written.
        FencedError
            Another run took over; nothing of this save stays.
        StorageFullError, AccessError, TransientError, ConflictError, AmbiguousOutcomeError
            From the storage. The previous checkpoint still restores.

        Guarantees
        ----------
        As `write`.
        """
        options = SaveOptions(deadline_s, memory_budget, durability, progress, fresh_start=fresh_start)
        base = options.place(locate(prefix, storage_options))
        check_prefix_name(base)
        # Before writing, as in TensorFlow: the number that a save carries is the counter that it stores.
        counter = self.save_counter
        counter += 1
        location = base.suffixed(numbered("", int(counter)))
        check_prefix_name(location)
        plan = self.plan(with_counter=True)
        key = (location.storage, location.parent.key)
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = CheckpointWriter(location.parent, None, KeepNewest(), time.time)
        request = SaveRequest(location, plan, process_run(), step=int(counter), fresh_start=fresh_start)
        SaveTask(request, writer, options).run()
        return location.url

    def read(
        self,
        prefix: PathText | None,
        *,
        memory_budget: int | None = None,
        progress: Progress = None,
        storage_options: Options = None,
    ) -> RestoreStatus:
        """Fill the tree from a checkpoint that `write` wrote.

        Types and shapes are checked before anything changes, checksums while reading. Of a checkpoint without
        an object graph, such as a Saver writes, values are found by name: ``net/w``.

        Parameters
        ----------
        prefix : str, PathLike or None
            Prefix or URL; also the directory of a SavedModel. None restores nothing.
        memory_budget, progress :
            As for `open_checkpoint`.
        storage_options : mapping, optional
            Goes to the backend as it is.

        Returns
        -------
        RestoreStatus
            Ask it whether everything was found: ``.assert_consumed()``,
            ``.assert_existing_objects_matched()``, ``.expect_partial()``.

        Raises
        ------
        UsageError
            A shape or type that differs; nothing was changed.
        NotFoundError
            There is no such checkpoint.
        CorruptError
            A file is damaged; the message names tensor, file and bytes.
        """
        if prefix is None:
            return NothingRestored()
        location = locate(prefix, storage_options)
        return restore_tree(self._walk(), location, ReadOptions(memory_budget, progress))

    def restore(
        self,
        prefix: PathText | None,
        *,
        memory_budget: int | None = None,
        progress: Progress = None,
        storage_options: Options = None,
    ) -> RestoreStatus:
        """Fill the tree and the save counter from a checkpoint that `save` or a manager saved.

        Like `read`; in addition numbering goes on from the checkpoint's counter. In one without an object
        graph the counter need not be there.

        Parameters
        ----------
        prefix : str, PathLike or None
            As for `read`, e.g. what `latest_checkpoint` returns.
        memory_budget, progress :
            As for `open_checkpoint`.
        storage_options : mapping, optional
            Goes to the backend as it is.

        Returns
        -------
        RestoreStatus
            As for `read`.

        Raises
        ------
        UsageError, NotFoundError, CorruptError
            As for `read`.
        """
        options = ReadOptions(memory_budget, progress)
        created = SAVE_COUNTER not in self._tree
        _ = self.save_counter
        if prefix is None:
            return NothingRestored()
        try:
            location = locate(prefix, storage_options)
            return restore_tree(self._walk(), location, options, optional=(SAVE_COUNTER,))
        except BaseException:
            if created:
                del self._tree[SAVE_COUNTER]
            raise
