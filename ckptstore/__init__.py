"""TensorFlow's checkpoint format on local disk, S3 and Google Cloud Storage, without TensorFlow.

The names below are the whole public interface. Each is imported on first use, so that ``import ckptstore``
costs next to nothing and loads neither numpy nor a storage client nor any framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ckptstore.inspect_checkpoint as inspect_checkpoint
    from ckptstore.errors import (
        AccessError,
        AmbiguousOutcomeError,
        ChecksumError,
        CkptStoreError,
        CkptStoreWarning,
        ConflictError,
        CorruptError,
        DeadlineError,
        FencedError,
        FormatError,
        IncompleteBundleError,
        NotFoundError,
        SaveCancelledError,
        StorageFullError,
        TensorNotFoundError,
        TransientError,
        TruncatedFileError,
        UnsupportedError,
        UsageError,
    )
    from ckptstore.graph import Graph, GraphBuilder
    from ckptstore.reading.open_checkpoint import OpenCheckpoint, RestoreReport, open_checkpoint
    from ckptstore.saving.handle import SaveHandle
    from ckptstore.train.bundle_writer import BundleWriter, merge_bundles
    from ckptstore.train.checkpoint import Checkpoint, Optimizer
    from ckptstore.train.checkpoint_management import (
        CheckpointState,
        checkpoint_exists,
        checkpoints_iterator,
        get_checkpoint_mtimes,
        get_checkpoint_state,
        latest_checkpoint,
        remove_checkpoint,
        update_checkpoint_state,
        wait_for_new_checkpoint,
    )
    from ckptstore.train.checkpoint_manager import CheckpointManager
    from ckptstore.train.checkpoint_reader import (
        CheckpointReader,
        list_variables,
        load_checkpoint,
        load_variable,
    )
    from ckptstore.train.import_meta_graph import import_meta_graph
    from ckptstore.train.meta_graph import export_meta_graph
    from ckptstore.train.saver import Saver
    from ckptstore.transfer.progress import Event
    from ckptstore.types import DType, TensorSpec

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "AmbiguousOutcomeError",
    "BundleWriter",
    "Checkpoint",
    "CheckpointManager",
    "CheckpointReader",
    "CheckpointState",
    "ChecksumError",
    "CkptStoreError",
    "CkptStoreWarning",
    "ConflictError",
    "CorruptError",
    "DType",
    "DeadlineError",
    "Event",
    "FencedError",
    "FormatError",
    "Graph",
    "GraphBuilder",
    "IncompleteBundleError",
    "NotFoundError",
    "OpenCheckpoint",
    "Optimizer",
    "RestoreReport",
    "SaveCancelledError",
    "SaveHandle",
    "Saver",
    "StorageFullError",
    "TensorNotFoundError",
    "TensorSpec",
    "TransientError",
    "TruncatedFileError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "checkpoint_exists",
    "checkpoints_iterator",
    "export_meta_graph",
    "get_checkpoint_mtimes",
    "get_checkpoint_state",
    "import_meta_graph",
    "inspect_checkpoint",
    "latest_checkpoint",
    "list_variables",
    "load_checkpoint",
    "load_variable",
    "merge_bundles",
    "open_checkpoint",
    "remove_checkpoint",
    "update_checkpoint_state",
    "wait_for_new_checkpoint",
]

# Module → the public names it defines. The imports above say the same to type checkers, which cannot read a
# table; tests/meta/test_api_names.py compares the two.
_HOMES = {
    "saving.handle": ("SaveHandle",),
    "train.bundle_writer": ("BundleWriter", "merge_bundles"),
    "reading.open_checkpoint": ("OpenCheckpoint", "RestoreReport", "open_checkpoint"),
    "train.checkpoint_reader": ("CheckpointReader", "list_variables", "load_checkpoint", "load_variable"),
    "errors": (
        "AccessError",
        "AmbiguousOutcomeError",
        "ChecksumError",
        "CkptStoreError",
        "CkptStoreWarning",
        "ConflictError",
        "CorruptError",
        "DeadlineError",
        "FencedError",
        "FormatError",
        "IncompleteBundleError",
        "NotFoundError",
        "SaveCancelledError",
        "StorageFullError",
        "TensorNotFoundError",
        "TransientError",
        "TruncatedFileError",
        "UnsupportedError",
        "UsageError",
    ),
    "graph": ("Graph", "GraphBuilder"),
    "train.import_meta_graph": ("import_meta_graph",),
    "train.checkpoint_management": (
        "CheckpointState",
        "checkpoint_exists",
        "checkpoints_iterator",
        "get_checkpoint_mtimes",
        "get_checkpoint_state",
        "latest_checkpoint",
        "remove_checkpoint",
        "update_checkpoint_state",
        "wait_for_new_checkpoint",
    ),
    "train.checkpoint_manager": ("CheckpointManager",),
    "train.checkpoint": ("Checkpoint", "Optimizer"),
    "train.meta_graph": ("export_meta_graph",),
    "train.saver": ("Saver",),
    "transfer.progress": ("Event",),
    "types": ("DType", "TensorSpec"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    value: object
    if name == "inspect_checkpoint":
        value = importlib.import_module("ckptstore.inspect_checkpoint")
    elif name in _HOME_OF:
        value = getattr(importlib.import_module(f"ckptstore.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'ckptstore' has no attribute {name!r}")
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
