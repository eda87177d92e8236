"""Nodes, operations, functions and the graph that holds them.

Format
------
Field names and numbers as in the files of TensorFlow 2.21 that the comments name.
"""

from __future__ import annotations

SCHEMA = """
// tensorflow/core/framework/attr_value.proto
message AttrValue {
  message ListValue {
    repeated bytes s = 2;
    repeated int64 i = 3;
    repeated float f = 4;
    repeated bool b = 5;
    repeated DataType type = 6;
    repeated TensorShapeProto shape = 7;
    repeated TensorProto tensor = 8;
    repeated NameAttrList func = 9;
  }
  oneof value {
    ListValue list = 1;
    bytes s = 2;
    int64 i = 3;
    float f = 4;
    bool b = 5;
    DataType type = 6;
    TensorShapeProto shape = 7;
    TensorProto tensor = 8;
    string placeholder = 9;
    NameAttrList func = 10;
  }
}
message NameAttrList { string name = 1; map<string, AttrValue> attr = 2; }

// tensorflow/core/framework/full_type.proto
enum FullTypeId {
  TFT_UNSET = 0; TFT_VAR = 1; TFT_ANY = 2; TFT_PRODUCT = 3; TFT_NAMED = 4; TFT_FOR_EACH = 20;
  TFT_CALLABLE = 100; TFT_TENSOR = 1000; TFT_ARRAY = 1001; TFT_OPTIONAL = 1002; TFT_LITERAL = 1003;
  TFT_ENCODED = 1004; TFT_SHAPE_TENSOR = 1005; TFT_BOOL = 200; TFT_UINT8 = 201; TFT_UINT16 = 202;
  TFT_UINT32 = 203; TFT_UINT64 = 204; TFT_INT8 = 205; TFT_INT16 = 206; TFT_INT32 = 207; TFT_INT64 = 208;
  TFT_HALF = 209; TFT_FLOAT = 210; TFT_DOUBLE = 211; TFT_BFLOAT16 = 215; TFT_COMPLEX64 = 212;
  TFT_COMPLEX128 = 213; TFT_STRING = 214; TFT_DATASET = 10102; TFT_RAGGED = 10103; TFT_ITERATOR = 10104;
  TFT_MUTEX_LOCK = 10202; TFT_LEGACY_VARIANT = 10203;
}
message FullTypeDef {
  FullTypeId type_id = 1;
  repeated FullTypeDef args = 2;
  oneof attr { string s = 3; int64 i = 4; }
}

// tensorflow/core/framework/node_def.proto
message NodeDef {
  message ExperimentalDebugInfo {
    repeated string original_node_names = 1;
    repeated string original_func_names = 2;
  }
  string name = 1;
  string op = 2;
  repeated string input = 3;
  string device = 4;
  map<string, AttrValue> attr = 5;
  ExperimentalDebugInfo experimental_debug_info = 6;
  FullTypeDef experimental_type = 7;
}

// tensorflow/core/framework/op_def.proto
message OpDef {
  message ArgDef {
    string name = 1;
    string description = 2;
    DataType type = 3;
    string type_attr = 4;
    string number_attr = 5;
    string type_list_attr = 6;
    repeated ResourceHandleProto.DtypeAndShape handle_data = 7;
    bool is_ref = 16;
    FullTypeDef experimental_full_type = 17;
  }
  message AttrDef {
    string name = 1;
    string type = 2;
    AttrValue default_value = 3;
    string description = 4;
    bool has_minimum = 5;
    int64 minimum = 6;
    AttrValue allowed_values = 7;
  }
  string name = 1;
  repeated ArgDef input_arg = 2;
  repeated ArgDef output_arg = 3;
  repeated AttrDef attr = 4;
  string summary = 5;
  string description = 6;
  OpDeprecation deprecation = 8;
  bool is_aggregate = 16;
  bool is_stateful = 17;
  bool is_commutative = 18;
  bool allows_uninitialized_input = 19;
  repeated string control_output = 20;
  bool is_distributed_communication = 21;
}
message OpDeprecation { int32 version = 1; string explanation = 2; }
message OpList { repeated OpDef op = 1; }

// tensorflow/core/framework/function.proto
message FunctionDefLibrary {
  repeated FunctionDef function = 1;
  repeated GradientDef gradient = 2;
  repeated RegisteredGradient registered_gradients = 3;
}
message FunctionDef {
  message ArgAttrs { map<string, AttrValue> attr = 1; }
  OpDef signature = 1;
  repeated NodeDef node_def = 3;
  map<string, string> ret = 4;
  map<string, AttrValue> attr = 5;
  map<string, string> control_ret = 6;
  map<uint32, ArgAttrs> arg_attr = 7;
  map<uint32, uint32> resource_arg_unique_id = 8;
}
message GradientDef { string function_name = 1; string gradient_func = 2; }
message RegisteredGradient { string gradient_func = 1; string registered_op_type = 2; }

// tensorflow/core/framework/graph_debug_info.proto
message GraphDebugInfo {
  message FileLineCol {
    int32 file_index = 1;
    int32 line = 2;
    int32 col = 3;
    string func = 4;
    string code = 5;
  }
  message StackTrace { repeated FileLineCol file_line_cols = 1; repeated fixed64 frame_id = 2; }
  repeated string files = 1;
  map<string, StackTrace> traces = 2;
  map<fixed64, FileLineCol> frames_by_id = 4;
  map<string, fixed64> name_to_trace_id = 5;
  map<fixed64, StackTrace> traces_by_id = 6;
}

// tensorflow/core/framework/graph.proto
message GraphDef {
  repeated NodeDef node = 1;
  FunctionDefLibrary library = 2;
  int32 version = 3;
  VersionDef versions = 4;
  GraphDebugInfo debug_info = 5;
}
"""
