"""TensorFlow's checkpoint format on local disk, S3 and Google Cloud Storage, without TensorFlow.

The names below are the whole public interface. Each is imported on first use, so that ``import ckptstore``
costs next to nothing and loads neither numpy nor a storage client nor any framework.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

# Module → the public names it defines. __init__.pyi lists the same for type checkers.
_HOMES = {
    "directory.pins": ("pin", "unpin"),
    "directory.retention_rules": ("Best", "EveryHours", "EveryNSteps", "Latest", "YoungerThan"),
    "errors": (
        "AccessError",
        "AmbiguousOutcomeError",
        "ChecksumError",
        "CkptStoreError",
        "CkptStoreWarning",
        "ConflictError",
        "CoordinatorLostError",
        "CorruptError",
        "DeadlineError",
        "FencedError",
        "FormatError",
        "IncompleteBundleError",
        "NotFoundError",
        "RanksMissingError",
        "SaveCancelledError",
        "StorageFullError",
        "TensorNotFoundError",
        "TransientError",
        "TruncatedFileError",
        "UnsupportedError",
        "UsageError",
    ),
    "cache.cache": ("Cache", "CachedCheckpoint"),
    "distributed.coordinator": ("Coordinator",),
    "distributed.engines": ("coordinator",),
    "distributed.preemption": ("Preemption",),
    "graph": ("Graph", "GraphBuilder", "Operation", "SaverDef", "Tensor"),
    "reading.open_checkpoint": ("OpenCheckpoint", "RestoreReport", "open_checkpoint"),
    "saving.handle": ("SaveHandle",),
    "saving.report": ("RankReport", "SaveReport"),
    "serving.live": ("Live", "LiveHealth"),
    "serving.step": ("Step",),
    "serving.watch": ("WatchHealth", "Watcher", "watch"),
    "train.bundle_writer": ("BundleWriter", "merge_bundles", "part_prefix"),
    "train.checkpoint": ("Checkpoint", "Optimizer"),
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
    "train.checkpoint_reader": ("CheckpointReader", "list_variables", "load_checkpoint", "load_variable"),
    "train.import_meta_graph": ("import_meta_graph",),
    "train.meta_graph": ("export_meta_graph",),
    "train.saver": ("Saver",),
    "transfer.progress": ("Event",),
    "types": ("DType", "Piece", "TensorSpec"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", "inspect_checkpoint", *_HOME_OF]


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
