"""The public names and their signatures, spelled out: a change here is a change of the interface.

Where TensorFlow has the thing, its positional order and defaults hold; what is ours is keyword-only.
"""

from __future__ import annotations

import ast
import inspect
import signal
import time
from typing import Any

import pytest

import ckptstore
import ckptstore.safetensors
import ckptstore.tensorflow
import ckptstore.torch
from tests.meta.source import ROOT

NAMES = {
    # low level
    *("BundleWriter", "merge_bundles", "part_prefix", "DType", "Piece", "TensorSpec", "CheckpointReader"),
    *("load_checkpoint", "load_variable", "list_variables", "inspect_checkpoint"),
    # TensorFlow's shapes
    *(
        "Saver",
        "SaveHandle",
        "SaveReport",
        "RankReport",
        "CheckpointManager",
        "Checkpoint",
        "Optimizer",
        "CheckpointState",
        "Event",
    ),
    *("latest_checkpoint", "checkpoint_exists", "remove_checkpoint", "get_checkpoint_mtimes"),
    *("get_checkpoint_state", "update_checkpoint_state", "checkpoints_iterator", "wait_for_new_checkpoint"),
    # the short modern API
    *("open_checkpoint", "OpenCheckpoint", "RestoreReport"),
    # retention beyond TensorFlow
    *("Latest", "EveryNSteps", "EveryHours", "Best", "YoungerThan", "pin", "unpin"),
    # many ranks
    *("coordinator", "Coordinator", "Preemption"),
    # inference hosts
    *("watch", "Watcher", "WatchHealth", "Step", "Live", "LiveHealth", "Cache", "CachedCheckpoint"),
    # graphs
    *("Graph", "GraphBuilder", "Operation", "Tensor", "SaverDef", "import_meta_graph", "export_meta_graph"),
    # errors
    *("CkptStoreError", "UsageError", "NotFoundError", "TensorNotFoundError", "CorruptError", "FormatError"),
    *("TruncatedFileError", "ChecksumError", "IncompleteBundleError", "ConflictError", "FencedError"),
    *("AccessError", "StorageFullError", "TransientError", "DeadlineError", "AmbiguousOutcomeError"),
    *("UnsupportedError", "SaveCancelledError", "CkptStoreWarning"),
    *("RanksMissingError", "CoordinatorLostError"),
    "__version__",
}

REQUIRED = inspect.Parameter.empty
ANY_NAME = None
URL = {"storage_options": None}
EACH_SAVE = {"deadline_s": None, "memory_budget": None, "durability": "disk", "progress": None}

# Dotted name → (what may be given by position: (name, default) in order; keyword-only: name → default).
# A trailing Ellipsis in the first part: more may follow.
SIGNATURES = {
    "Piece": ([("array", REQUIRED), ("shape", REQUIRED), ("start", REQUIRED)], {}),
    "BundleWriter": ([("prefix", REQUIRED)], URL),
    "BundleWriter.add": ([("name", REQUIRED), ("array", REQUIRED)], {"dtype": None}),
    "BundleWriter.add_slice": (
        [("name", REQUIRED), ("shape", REQUIRED), ("spec", REQUIRED), ("array", REQUIRED)],
        {"dtype": None},
    ),
    "BundleWriter.finish": ([], {}),
    "BundleWriter.abort": ([], {}),
    "merge_bundles": ([("prefixes", REQUIRED), ("output_prefix", REQUIRED)], URL),
    "part_prefix": ([("output_prefix", REQUIRED), ("number", REQUIRED), ("count", REQUIRED)], {}),
    "load_checkpoint": ([("dir_or_prefix", REQUIRED)], URL),
    "load_variable": ([(ANY_NAME, REQUIRED), ("name", REQUIRED)], URL),
    "list_variables": ([(ANY_NAME, REQUIRED)], URL),
    "CheckpointReader.get_tensor": ([("name", REQUIRED)], {}),
    "CheckpointReader.has_tensor": ([("name", REQUIRED)], {}),
    "CheckpointReader.get_variable_to_shape_map": ([], {}),
    "CheckpointReader.get_variable_to_dtype_map": ([], {}),
    "CheckpointReader.debug_string": ([], {}),
    "latest_checkpoint": (
        [("checkpoint_dir", REQUIRED), ("latest_filename", None)],
        {"recover": True, "allow_external_paths": False, "cache": None, **URL},
    ),
    "checkpoint_exists": ([("checkpoint_prefix", REQUIRED)], URL),
    "remove_checkpoint": (
        [("checkpoint_prefix", REQUIRED), ("checkpoint_format_version", 2), ("meta_graph_suffix", "meta")],
        URL,
    ),
    "pin": ([("prefix", REQUIRED)], {"latest_filename": None, **URL}),
    "unpin": ([("prefix", REQUIRED)], {"latest_filename": None, **URL}),
    "Latest": ([("n", REQUIRED)], {}),
    "EveryNSteps": ([("n", REQUIRED)], {}),
    "EveryHours": ([("h", REQUIRED)], {}),
    "Best": ([("n", REQUIRED), ("metric", REQUIRED), ("mode", "min")], {}),
    "YoungerThan": ([("seconds", REQUIRED)], {}),
    "get_checkpoint_mtimes": ([("checkpoint_prefixes", REQUIRED)], URL),
    "get_checkpoint_state": ([("checkpoint_dir", REQUIRED), ("latest_filename", None)], URL),
    "update_checkpoint_state": (
        [
            ("save_dir", REQUIRED),
            ("model_checkpoint_path", REQUIRED),
            ("all_model_checkpoint_paths", None),
            ("latest_filename", None),
            ("all_model_checkpoint_timestamps", None),
            ("last_preserved_timestamp", None),
        ],
        URL,
    ),
    "checkpoints_iterator": (
        [("checkpoint_dir", REQUIRED), ("min_interval_secs", 0), ("timeout", None), ("timeout_fn", None)],
        URL,
    ),
    "wait_for_new_checkpoint": (
        [("checkpoint_dir", REQUIRED), ("last_checkpoint", None), ("seconds_to_sleep", 1), ("timeout", None)],
        URL,
    ),
    "open_checkpoint": ([("prefix", REQUIRED)], {"version": None, "cache": None, **URL}),
    "jax.save": (
        [("tree", REQUIRED), ("save_path", REQUIRED), ("global_step", None)],
        {"saver": None, **URL},
    ),
    "jax.save_async": (
        [("tree", REQUIRED), ("save_path", REQUIRED), ("global_step", None)],
        {"saver": None, **URL},
    ),
    "jax.restore": (
        [("tree", REQUIRED), ("checkpoint", REQUIRED)],
        {"missing": "raise", "unexpected": "ignore", **URL},
    ),
    "jax.pieces": ([("tree", REQUIRED)], {}),
    "keras.save": (
        [("model", REQUIRED), ("save_path", REQUIRED), ("global_step", None)],
        {"saver": None, **URL},
    ),
    "keras.load": (
        [("model", REQUIRED), ("checkpoint", REQUIRED)],
        {"optimizer": True, "missing": "raise", **URL},
    ),
    "keras.ModelCheckpoint": (
        [
            ("filepath", REQUIRED),
            ("monitor", "val_loss"),
            ("verbose", 0),
            ("save_best_only", False),
            ("save_weights_only", False),
            ("mode", "auto"),
            ("save_freq", "epoch"),
            ("initial_value_threshold", None),
        ],
        {"saver": None, "resume": True, **URL},
    ),
    "torch.save": (
        [("state_dict", REQUIRED), ("save_path", REQUIRED), ("global_step", None)],
        {"saver": None, "coordinator": None, **URL},
    ),
    "torch.save_async": (
        [("state_dict", REQUIRED), ("save_path", REQUIRED), ("global_step", None)],
        {"saver": None, "coordinator": None, **URL},
    ),
    "torch.load": (
        [("state_dict", REQUIRED), ("checkpoint", REQUIRED)],
        {"missing": "raise", "unexpected": "ignore", "coordinator": None, **URL},
    ),
    "torch.pieces": ([("state_dict", REQUIRED)], {}),
    "torch.read_state_dict": (
        [("checkpoint", REQUIRED), ("names", None)],
        {"device": None, "staging_bytes": 256 << 20, **URL},
    ),
    "tensorflow.CheckpointHook": (
        [("directory", REQUIRED), ("save_steps", None), ("save_secs", None)],
        {"saver": None, **URL},
    ),
    "tensorflow.Saver.restore": ([("sess", REQUIRED), ("save_path", REQUIRED)], URL),
    "safetensors.from_safetensors": (
        [("source", REQUIRED), ("save_path", REQUIRED)],
        {"names": None, "rename": None, "memory_budget": None, **URL},
    ),
    "safetensors.to_safetensors": (
        [("checkpoint", REQUIRED), ("target", REQUIRED)],
        {
            **{"names": None, "rename": None, "metadata": None, "max_shard_size": None},
            **{"memory_budget": None, **URL},
        },
    ),
    "OpenCheckpoint.specs": ([], {}),
    "OpenCheckpoint.read": ([("name", REQUIRED), ("index", ...)], {}),
    "OpenCheckpoint.read_into": ([("requests", REQUIRED)], {}),
    "OpenCheckpoint.restore": (
        [("into", None)],
        {"names": None, "rename": None, "missing": "raise", "unexpected": "ignore", "only_changed": False},
    ),
    "Saver": (
        [
            ("var_list", None),
            ("reshape", False),
            ("sharded", False),
            ("max_to_keep", 5),
            ("keep_checkpoint_every_n_hours", 10000.0),
            ("name", None),
            ("restore_sequentially", False),
            ("saver_def", None),
            ("builder", None),
            ("defer_build", False),
            ("allow_empty", False),
            ("write_version", 2),
            ("pad_step_number", False),
            ("save_relative_paths", False),
            ("filename", None),
        ],
        {
            "clock": time.time,
            "run": None,
            **EACH_SAVE,
            "reuse_unchanged": False,
            "queue": "wait",
            "fresh_start": False,
            "retention": None,
            "storage_options": None,
        },
    ),
    "Saver.save": (
        [
            ("values", REQUIRED),
            ("save_path", REQUIRED),
            ("global_step", None),
            ("latest_filename", None),
            ("meta_graph_suffix", "meta"),
            ("write_meta_graph", True),
            ("write_state", True),
            ("strip_default_attrs", False),
            ("save_debug_info", False),
        ],
        {"metrics": None, **URL},
    ),
    "Saver.save_async": (
        [
            ("values", REQUIRED),
            ("save_path", REQUIRED),
            ("global_step", None),
            ("latest_filename", None),
            ("meta_graph_suffix", "meta"),
            ("write_meta_graph", True),
            ("write_state", True),
            ("strip_default_attrs", False),
            ("save_debug_info", False),
        ],
        {"snapshot": True, "metrics": None, **URL},
    ),
    "Saver.close": ([], {}),
    "SaveHandle.wait_staged": ([("timeout_s", None)], {}),
    "SaveHandle.result": ([("timeout_s", None)], {}),
    "SaveHandle.cancel": ([], {}),
    "SaveHandle.add_done_callback": ([("fn", REQUIRED)], {}),
    "SaveHandle.report": ([], {}),
    "Saver.restore": ([("values", REQUIRED), ("save_path", REQUIRED)], {"only_changed": False, **URL}),
    "Saver.export_meta_graph": ([("filename", None), ...], URL),
    "Saver.as_saver_def": ([], {}),
    "Saver.to_proto": ([...], {}),
    "Saver.set_last_checkpoints": ([("last_checkpoints", REQUIRED)], {}),
    "Saver.set_last_checkpoints_with_time": ([("last_checkpoints_with_time", REQUIRED)], {}),
    "Saver.recover_last_checkpoints": ([("checkpoint_paths", REQUIRED)], URL),
    "CheckpointManager": (
        [
            ("checkpoint", REQUIRED),
            ("directory", REQUIRED),
            ("max_to_keep", REQUIRED),
            ("keep_checkpoint_every_n_hours", None),
            ("checkpoint_name", "ckpt"),
            ("step_counter", None),
            ("checkpoint_interval", None),
            ("init_fn", None),
            ("last_checkpoint_step", None),
        ],
        {
            **{"clock": time.time, "run": None, **URL, **EACH_SAVE},
            **{"reuse_unchanged": False, "fresh_start": False, "retention": None},
        },
    ),
    "CheckpointManager.save": (
        [("checkpoint_number", None), ("check_interval", True), ...],
        {"metrics": None},
    ),
    "CheckpointManager.restore_or_initialize": ([], {}),
    "Checkpoint": ([("root", None)], {}),
    "Checkpoint.write": ([("prefix", REQUIRED), ...], URL | EACH_SAVE),
    "Checkpoint.save": ([("prefix", REQUIRED), ...], URL | EACH_SAVE | {"fresh_start": False}),
    "Checkpoint.read": ([("prefix", REQUIRED), ...], URL),
    "Checkpoint.restore": ([("prefix", REQUIRED), ...], URL),
    "import_meta_graph": (
        [("path_or_proto", REQUIRED), ("clear_devices", False), ("import_scope", None)],
        URL,
    ),
    "export_meta_graph": ([("filename", None), ...], URL),
    "coordinator": (
        [("engine", "auto"), ...],
        {"rank": None, "size": None, "url": None, "attempt": None, **URL},
    ),
    "watch": (
        [("directory", REQUIRED)],
        {"every_s": None, "spread_s": 0.0, "start": "latest", "latest_filename": None, "cache": None, **URL},
    ),
    "Watcher.next": ([("timeout_s", None)], {}),
    "Watcher.check": ([("timeout_s", 60.0)], {}),
    "Watcher.health": ([], {}),
    "Watcher.stop": ([], {}),
    "Step.open": ([...], {}),
    "Live": (
        [("load", REQUIRED), ("directory", REQUIRED)],
        {
            "accept": None,
            "close": None,
            "every_s": None,
            "spread_s": 0.0,
            "latest_filename": None,
            "cache": None,
            **URL,
        },
    ),
    "Live.wait_ready": ([("timeout_s", None)], {}),
    "Live.use": ([], {}),
    "Live.health": ([], {}),
    "Live.retry": ([], {}),
    "Live.close": ([], {}),
    "Cache": ([("directory", REQUIRED)], {"max_bytes": REQUIRED, "stale": "on-outage"}),
    "Cache.contents": ([], {}),
    "Cache.trim": ([], {}),
    "Cache.verify": ([], {}),
    "Cache.remove": ([("prefix", REQUIRED)], {}),
    "Preemption": ([("coordinator", None)], {"signals": (signal.SIGTERM,), "grace_s": 25.0}),
    "Preemption.should_save": ([("step", REQUIRED)], {}),
    "Graph.get_tensor_by_name": ([("name", REQUIRED)], {}),
    "Graph.get_operation_by_name": ([("name", REQUIRED)], {}),
    "Graph.get_operations": ([], {}),
    "Graph.get_collection": ([("name", REQUIRED), ...], {}),
    "Graph.get_all_collection_keys": ([], {}),
    "Graph.as_graph_def": ([...], {}),
    "GraphBuilder": ([], {}),
    "GraphBuilder.placeholder": ([("name", REQUIRED), ("dtype", REQUIRED), ("shape", REQUIRED)], {}),
    "GraphBuilder.constant": ([("name", REQUIRED), ("value", REQUIRED), ...], {}),
    "GraphBuilder.variable": ([("name", REQUIRED), ("dtype", REQUIRED), ("shape", REQUIRED)], {}),
    "GraphBuilder.operation": (
        [("name", REQUIRED), ("type", REQUIRED), ("inputs", REQUIRED), ("attrs", None), ("device", "")],
        {},
    ),
    "GraphBuilder.collection": ([("name", REQUIRED), ("items", REQUIRED)], {}),
    "GraphBuilder.build": ([], {}),
    "inspect_checkpoint.print_tensors_in_checkpoint_file": (
        [
            ("file_name", REQUIRED),
            ("tensor_name", REQUIRED),
            ("all_tensors", REQUIRED),
            ("all_tensor_names", False),
            ("count_exclude_pattern", ""),
        ],
        URL,
    ),
}

MEMBERS = {
    "DType": ("name", "as_numpy_dtype", "as_datatype_enum"),
    "TensorSpec": ("name", "shape", "dtype", "nbytes", "shards", "slices"),
    "RestoreReport": ("restored", "missing", "unexpected", "cast"),
    "OpenCheckpoint": ("__getitem__", "__iter__", "__len__", "__contains__", "__enter__", "__exit__"),
    "BundleWriter": ("__enter__", "__exit__"),
    "Saver": ("last_checkpoints",),
    "SaveHandle": ("prefix", "staged", "committed"),
    "CheckpointManager": ("checkpoints", "latest_checkpoint", "directory"),
    "CheckpointState": (
        "model_checkpoint_path",
        "all_model_checkpoint_paths",
        "all_model_checkpoint_timestamps",
        "last_preserved_timestamp",
    ),
    "Preemption": ("requested", "left_s", "__enter__", "__exit__"),
    "Watcher": ("__iter__", "__next__", "__aiter__", "__anext__", "__enter__", "__exit__"),
    "Live": ("step", "__enter__", "__exit__"),
    "Graph": ("placeholders", "variables", "constants", "signatures", "functions"),
}

# Classes whose public members are these and no others.
WHOLE = {
    "Graph": {
        *("get_tensor_by_name", "get_operation_by_name", "get_operations", "get_collection"),
        *("get_all_collection_keys", "placeholders", "variables", "constants", "signatures", "functions"),
        *("as_graph_def", "saver_def"),
    },
    "Operation": {"name", "type", "inputs", "control_inputs", "outputs", "device", "get_attr"},
    "Tensor": {"name", "op", "index", "dtype", "shape", "value"},
}


def _resolve(dotted):
    value = ckptstore
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def test_the_public_names_are_these():
    assert set(vars(ckptstore)["__all__"]) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_name_resolves(name):
    value = getattr(ckptstore, name)
    assert getattr(ckptstore, name) is value
    assert name in dir(ckptstore)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Savior'"):
        _ = ckptstore.Savior  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "ckptstore" / "__init__.pyi").read_text(encoding="utf-8"))
    in_stub = {
        (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # the form that exports a name from a stub
    }
    homes = vars(ckptstore)["_HOMES"]
    lazy = {(f"ckptstore.{home}", name) for home, names in homes.items() for name in names}
    assert in_stub == lazy | {("ckptstore", "inspect_checkpoint")}
    assert {name for _, name in in_stub} | {"__version__"} == NAMES


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_class_shows_these_members_and_no_internals(name):
    cls = _resolve(name)
    assert {member for member in (*dir(cls), *cls.__annotations__) if not member.startswith("_")} == WHOLE[
        name
    ]


@pytest.mark.parametrize("dotted", sorted(SIGNATURES))
def test_signature(dotted):
    positional: Any
    keyword_only: Any
    positional, keyword_only = SIGNATURES[dotted]
    value = _resolve(dotted)
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name != "self"]
    by_position = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    open_ended = bool(positional) and positional[-1] is ...
    expected = positional[:-1] if open_ended else positional
    found = [(one.name, one.default) for one in by_position[: len(expected)]]
    wanted = [
        (real[0] if name is ANY_NAME else name, default)
        for (name, default), real in zip(expected, found, strict=False)
    ]
    assert found == wanted
    assert len(found) == len(expected)
    if not open_ended:
        extra = [one.name for one in by_position[len(expected) :]]
        assert not extra, f"ours beyond TensorFlow's must be keyword-only: {extra}"
    given = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert {name: given.get(name, "missing") for name in keyword_only} == keyword_only
    required = [name for name, default in given.items() if default is REQUIRED != keyword_only.get(name)]
    assert not required, f"a keyword-only parameter needs a default: {required}"


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_members(name):
    cls = _resolve(name)
    known = {*dir(cls), *getattr(cls, "__annotations__", ()), *getattr(cls, "__slots__", ())}
    assert sorted(set(MEMBERS[name]) - known) == []


def test_restore_report_and_tensor_spec_take_their_fields_in_this_order():
    for name in ("TensorSpec", "RestoreReport"):
        parameters = tuple(inspect.signature(_resolve(name)).parameters)
        assert parameters[: len(MEMBERS[name])] == MEMBERS[name]
