"""TensorFlow's graph and session for all histories, and its clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saver_pb2
from tensorflow.python.checkpoint import checkpoint_management
from tensorflow.python.training import saver as saver_module

__all__ = ["Session", "tf1"]

tf1 = tf.compat.v1


class _Time:
    """In the place of the module ``time``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.time = clock


class Session:
    """One graph with one variable, for all histories: what takes time in TensorFlow is to build them."""

    def __init__(self) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.value = tf1.get_variable("w", shape=(2,), dtype=tf.float32)
            self._saver_def = tf1.train.Saver().as_saver_def()
            self._fed = tf1.placeholder(tf.float32, (2,))
            self._assign = self.value.assign(self._fed)
        self.session = tf1.Session(graph=self.graph)

    def set(self, number: float) -> None:
        """Let the variable have this number everywhere."""
        self.session.run(self._assign, {self._fed: np.full(2, number, np.float32)})

    def restored(self, path: str) -> np.ndarray:
        """Return the value of the variable in a checkpoint."""
        saver = self.saver(5, 1.0)
        with self.graph.as_default():
            saver.restore(self.session, path)
        return self.session.run(self.value)

    def saver(self, max_to_keep: int | None, hours: float, **options: bool) -> Any:
        """Return a new Saver; the graph stays as it is."""
        saver_def = saver_pb2.SaverDef()
        saver_def.CopyFrom(self._saver_def)
        saver_def.max_to_keep = max_to_keep or 0
        saver_def.keep_checkpoint_every_n_hours = hours
        with self.graph.as_default():
            return tf1.train.Saver(saver_def=saver_def, **options)

    @contextlib.contextmanager
    def clock(self, clock: Callable[[], float]) -> Iterator[None]:
        """Let TensorFlow's Savers and managers take the time from `clock`."""
        modules = (saver_module, checkpoint_management)
        before = [module.time for module in modules]
        for module in modules:
            module.time = _Time(clock)
        try:
            yield
        finally:
            for module, time in zip(modules, before, strict=True):
                module.time = time
