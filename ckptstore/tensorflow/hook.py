"""A hook of ``MonitoredSession`` that restores the newest checkpoint and saves the next ones."""

from __future__ import annotations

import posixpath
from typing import Any

from ckptstore.errors import UsageError
from ckptstore.storage.registry import locate
from ckptstore.tensorflow.framework import import_tensorflow
from ckptstore.tensorflow.saver import Saver
from ckptstore.train.checkpoint_management import latest_checkpoint
from ckptstore.types import Options, PathText

__all__ = ["CheckpointHook"]


class CheckpointHook:
    """Resumes a monitored session from the newest checkpoint of a directory, and saves it now and then.

    In the place of ``tf.compat.v1.train.CheckpointSaverHook`` and of ``checkpoint_dir``, both of which need a
    file system of TensorFlow: leave ``checkpoint_dir`` out. The graph needs a global step. List it before
    other hooks, which may read the step when the session begins, as ``StopAtStepHook`` does. A session that
    is made again after an error of a worker is restored, too. The first save comes at once unless there was
    something to restore, the last one when the session ends; an error of a save ends the session.

    Parameters
    ----------
    directory : str or PathLike
        Directory or URL; checkpoints are called ``model.ckpt-<step>``.
    save_steps : int, optional
        Save when so many steps went by since the last save.
    save_secs : float, optional
        Save when so many seconds went by; exactly one of the two is given.
    saver : Saver, optional
        Of this module. By default one for all variables is made when the graph is complete.
    storage_options : mapping, optional
        Goes to the backend as it is; those of `saver` are its own.

    Raises
    ------
    UsageError
        If not exactly one of `save_steps` and `save_secs` is given, or the graph has no global step.
    CkptStoreError
        From restoring and saving: a directory that cannot be read is never "no checkpoint".

    Threads
    -------
    One thread at a time, that of the session.
    """

    def __init__(
        self,
        directory: PathText,
        save_steps: int | None = None,
        save_secs: float | None = None,
        *,
        saver: Saver | None = None,
        storage_options: Options = None,
    ) -> None:
        if (save_steps is None) == (save_secs is None):
            raise UsageError("exactly one of save_steps and save_secs is needed")
        if (save_steps or 0) < 0 or (save_secs or 0) < 0 or not (save_steps or save_secs):
            raise UsageError("save_steps and save_secs are above 0")
        if saver is not None and not isinstance(saver, Saver):
            raise UsageError(
                "the saver must be a ckptstore.tensorflow.Saver",
                actual=f"{type(saver).__module__}.{type(saver).__name__}",
            )
        self._directory = locate(directory, storage_options).url
        self._options = storage_options
        self._every = (save_steps, save_secs)
        self._saver = saver
        self._step_tensor: Any = None
        self._timer: Any = None
        self._saved_step: int | None = None

    def begin(self) -> None:
        """Make the saver, while the graph may grow; the session calls it."""
        tf1 = import_tensorflow().compat.v1
        self._step_tensor = tf1.train.get_global_step()
        if self._step_tensor is None:
            raise UsageError(
                "the graph has no global step",
                hint="Call tf.compat.v1.train.get_or_create_global_step(), and count with it.",
            )
        steps, seconds = self._every
        self._timer = tf1.train.SecondOrStepTimer(every_secs=seconds, every_steps=steps)
        if self._saver is None:
            self._saver = Saver(storage_options=self._options)

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Restore the newest checkpoint, or save the first one; the session calls it."""
        del coord
        assert self._saver is not None
        prefix = latest_checkpoint(self._directory, storage_options=self._options)
        if prefix is not None:
            self._saver.restore(session, prefix, storage_options=self._options)
        step = int(session.run(self._step_tensor))
        if prefix is None:
            self._save(session, step)
        self._saved_step = step
        self._timer.update_last_triggered_step(step)

    def before_run(self, run_context: Any) -> Any:
        """Ask for the step; the session calls it."""
        del run_context
        return import_tensorflow().compat.v1.train.SessionRunArgs(self._step_tensor)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Save if it is time; the session calls it."""
        # That step may have been read before the run counted it.
        if not self._timer.should_trigger_for_step(int(run_values.results) + 1):
            return
        session = run_context.session
        step = int(session.run(self._step_tensor))
        if self._timer.should_trigger_for_step(step):
            self._timer.update_last_triggered_step(step)
            self._save(session, step)

    def end(self, session: Any) -> None:
        """Save the last step; the session calls it."""
        step = int(session.run(self._step_tensor))
        if step != self._saved_step:
            self._save(session, step)
        assert self._saver is not None
        self._saver.close()

    def _save(self, session: Any, step: int) -> None:
        assert self._saver is not None
        self._saver.save(
            session,
            posixpath.join(self._directory, "model.ckpt"),
            step,
            storage_options=self._options,
        )
        self._saved_step = step
