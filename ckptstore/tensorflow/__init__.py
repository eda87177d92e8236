"""ckptstore for TensorFlow: a Saver that takes sessions, and a hook for monitored ones."""

from ckptstore.tensorflow.hook import CheckpointHook
from ckptstore.tensorflow.saver import Saver, import_meta_graph

__all__ = ["CheckpointHook", "Saver", "import_meta_graph"]
