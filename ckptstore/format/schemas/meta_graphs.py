"""The ``.meta`` file, what its collections hold, and the checkpoint record.

Format
------
Field names and numbers as in the files of TensorFlow 2.21 that the comments name.
"""

from __future__ import annotations

SCHEMA = """
// tensorflow/core/framework/variable.proto
enum VariableSynchronization {
  VARIABLE_SYNCHRONIZATION_AUTO = 0; VARIABLE_SYNCHRONIZATION_NONE = 1;
  VARIABLE_SYNCHRONIZATION_ON_WRITE = 2; VARIABLE_SYNCHRONIZATION_ON_READ = 3;
}
enum VariableAggregation {
  VARIABLE_AGGREGATION_NONE = 0; VARIABLE_AGGREGATION_SUM = 1; VARIABLE_AGGREGATION_MEAN = 2;
  VARIABLE_AGGREGATION_ONLY_FIRST_REPLICA = 3;
}
message VariableDef {
  string variable_name = 1;
  string initializer_name = 2;
  string snapshot_name = 3;
  SaveSliceInfoDef save_slice_info_def = 4;
  bool is_resource = 5;
  string initial_value_name = 6;
  bool trainable = 7;
  VariableSynchronization synchronization = 8;
  VariableAggregation aggregation = 9;
}
message SaveSliceInfoDef {
  string full_name = 1;
  repeated int64 full_shape = 2;
  repeated int64 var_offset = 3;
  repeated int64 var_shape = 4;
}

// tensorflow/core/protobuf/saver.proto
message SaverDef {
  enum CheckpointFormatVersion { LEGACY = 0; V1 = 1; V2 = 2; }
  string filename_tensor_name = 1;
  string save_tensor_name = 2;
  string restore_op_name = 3;
  int32 max_to_keep = 4;
  bool sharded = 5;
  float keep_checkpoint_every_n_hours = 6;
  CheckpointFormatVersion version = 7;
}

// tensorflow/core/protobuf/meta_graph.proto
message MetaGraphDef {
  message MetaInfoDef {
    string meta_graph_version = 1;
    OpList stripped_op_list = 2;
    google.protobuf.Any any_info = 3;
    repeated string tags = 4;
    string tensorflow_version = 5;
    string tensorflow_git_version = 6;
    bool stripped_default_attrs = 7;
    map<string, string> function_aliases = 8;
  }
  MetaInfoDef meta_info_def = 1;
  GraphDef graph_def = 2;
  SaverDef saver_def = 3;
  map<string, CollectionDef> collection_def = 4;
  map<string, SignatureDef> signature_def = 5;
  repeated AssetFileDef asset_file_def = 6;
  SavedObjectGraph object_graph_def = 7;
}
message CollectionDef {
  message NodeList { repeated string value = 1; }
  message BytesList { repeated bytes value = 1; }
  message Int64List { repeated int64 value = 1; }
  message FloatList { repeated float value = 1; }
  message AnyList { repeated google.protobuf.Any value = 1; }
  oneof kind {
    NodeList node_list = 1;
    BytesList bytes_list = 2;
    Int64List int64_list = 3;
    FloatList float_list = 4;
    AnyList any_list = 5;
  }
}
message TensorInfo {
  message CooSparse {
    string values_tensor_name = 1;
    string indices_tensor_name = 2;
    string dense_shape_tensor_name = 3;
  }
  message CompositeTensor { TypeSpecProto type_spec = 1; repeated TensorInfo components = 2; }
  oneof encoding { string name = 1; CooSparse coo_sparse = 4; CompositeTensor composite_tensor = 5; }
  DataType dtype = 2;
  TensorShapeProto tensor_shape = 3;
}
message SignatureDef {
  map<string, TensorInfo> inputs = 1;
  map<string, TensorInfo> outputs = 2;
  string method_name = 3;
  map<string, TensorProto> defaults = 4;
}
message AssetFileDef { TensorInfo tensor_info = 1; string filename = 2; }

// tensorflow/core/protobuf/saved_model.proto
message SavedModel { int64 saved_model_schema_version = 1; repeated MetaGraphDef meta_graphs = 2; }

// tensorflow/core/protobuf/control_flow.proto
message ValuesDef { repeated string values = 1; map<string, string> external_values = 2; }
message ControlFlowContextDef {
  oneof ctxt { CondContextDef cond_ctxt = 1; WhileContextDef while_ctxt = 2; }
}
message CondContextDef {
  string context_name = 1;
  string pred_name = 2;
  string pivot_name = 3;
  int32 branch = 4;
  ValuesDef values_def = 5;
  repeated ControlFlowContextDef nested_contexts = 6;
}
message WhileContextDef {
  string context_name = 1;
  int32 parallel_iterations = 2;
  bool back_prop = 3;
  bool swap_memory = 4;
  string pivot_name = 5;
  string pivot_for_pred_name = 6;
  string pivot_for_body_name = 7;
  repeated string loop_exit_names = 8;
  ValuesDef values_def = 9;
  repeated string loop_enter_names = 10;
  string maximum_iterations_name = 11;
  repeated ControlFlowContextDef nested_contexts = 12;
}

// tensorflow/core/protobuf/queue_runner.proto
message QueueRunnerDef {
  string queue_name = 1;
  repeated string enqueue_op_name = 2;
  string close_op_name = 3;
  string cancel_op_name = 4;
  repeated int32 queue_closed_exception_types = 5;
}

// tensorflow/python/training/checkpoint_state.proto
message CheckpointState {
  string model_checkpoint_path = 1;
  repeated string all_model_checkpoint_paths = 2;
  repeated double all_model_checkpoint_timestamps = 3;
  double last_preserved_timestamp = 4;
}
"""
