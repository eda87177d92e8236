"""The most common operations, for graphs that do not define them.

A ``.meta`` from TensorFlow contains the definitions of its operations (``stripped_op_list``) and does not
need this; those of other writers, and graphs made with `ckptstore.graph.builder`, do.

Format
------
``Name, Name(input: type, …) -> (output: type, …) {attribute: kind = default, …}``, as registered in
TensorFlow 2.21 (`tensorflow/core/ops/*.cc`). An argument's type is an element type or the attribute that
names it; ``N * T`` is N tensors, ``list(T)`` one for each type in T, ``ref`` a reference. ``?`` is a shape of
unknown rank.
"""

from __future__ import annotations

__all__ = ["CATALOG"]

CATALOG = """
# State and what a Saver adds
NoOp() -> ()
Const() -> (output: dtype) {value: tensor, dtype: type}
Placeholder() -> (output: dtype) {dtype: type, shape: shape = ?}
PlaceholderV2() -> (output: dtype) {dtype: type, shape: shape}
PlaceholderWithDefault(input: dtype) -> (output: dtype) {dtype: type, shape: shape}
Identity, StopGradient(input: T) -> (output: T) {T: type}
IdentityN(input: list(T)) -> (output: list(T)) {T: list(type)}
Variable, VariableV2() -> (ref: ref dtype) {shape: shape, dtype: type, container: string = "",
    shared_name: string = ""}
VarHandleOp() -> (resource: resource) {container: string = "", shared_name: string = "",
    debug_name: string = "", dtype: type, shape: shape, allowed_devices: list(string) = []}
ReadVariableOp(resource: resource) -> (value: dtype) {dtype: type}
AssignVariableOp(resource: resource, value: dtype) -> () {dtype: type, validate_shape: bool = false}
AssignAddVariableOp, AssignSubVariableOp(resource: resource, value: dtype) -> () {dtype: type}
VarIsInitializedOp(resource: resource) -> (is_initialized: bool)
IsVariableInitialized(ref: ref dtype) -> (is_initialized: bool) {dtype: type}
Assign(ref: ref T, value: T) -> (output_ref: ref T) {T: type, validate_shape: bool = true,
    use_locking: bool = true}
AssignAdd, AssignSub(ref: ref T, value: T) -> (output_ref: ref T) {T: type, use_locking: bool = false}
CountUpTo(ref: ref T) -> (output: T) {limit: int, T: type}
ScatterUpdate(ref: ref T, indices: Tindices, updates: T) -> (output_ref: ref T) {T: type, Tindices: type,
    use_locking: bool = true}
Save(filename: string, tensor_names: string, data: list(T)) -> () {T: list(type)}
SaveSlices(filename: string, tensor_names: string, shapes_and_slices: string, data: list(T)) -> ()
    {T: list(type)}
SaveV2(prefix: string, tensor_names: string, shape_and_slices: string, tensors: list(dtypes)) -> ()
    {dtypes: list(type)}
Restore(file_pattern: string, tensor_name: string) -> (tensor: dt) {dt: type, preferred_shard: int = -1}
RestoreSlice(file_pattern: string, tensor_name: string, shape_and_slice: string) -> (tensor: dt) {dt: type,
    preferred_shard: int = -1}
RestoreV2(prefix: string, tensor_names: string, shape_and_slices: string) -> (tensors: list(dtypes))
    {dtypes: list(type)}
MergeV2Checkpoints(checkpoint_prefixes: string, destination_prefix: string) -> ()
    {delete_old_dirs: bool = true, allow_missing_files: bool = false}
ShardedFilename(basename: string, shard: int32, num_shards: int32) -> (filename: string)
ShardedFilespec(basename: string, num_shards: int32) -> (filename: string)
# Arithmetic
Add, AddV2, Sub, Mul, Div, RealDiv, FloorDiv, DivNoNan, Mod, FloorMod, Pow, Maximum, Minimum,
    SquaredDifference(x: T, y: T) -> (z: T) {T: type}
AddN(inputs: N * T) -> (sum: T) {N: int, T: type}
Neg, Abs, Sign, Square, Sqrt, Rsqrt, Reciprocal, Exp, Expm1, Log, Log1p, Sin, Cos, Tanh, Sigmoid, Erf,
    Floor, Ceil, Round(x: T) -> (y: T) {T: type}
MatMul(a: T, b: T) -> (product: T) {transpose_a: bool = false, transpose_b: bool = false, T: type,
    grad_a: bool = false, grad_b: bool = false}
BatchMatMul, BatchMatMulV2(x: T, y: T) -> (output: T) {T: type, adj_x: bool = false, adj_y: bool = false,
    grad_x: bool = false, grad_y: bool = false}
Einsum(inputs: N * T) -> (output: T) {equation: string, N: int, T: type}
Cast(x: SrcT) -> (y: DstT) {SrcT: type, DstT: type, Truncate: bool = false}
Bitcast(input: T) -> (output: type) {T: type, type: type}
ClipByValue(t: T, clip_value_min: T, clip_value_max: T) -> (output: T) {T: type}
# Reductions and comparisons
Sum, Mean, Prod, Max, Min(input: T, reduction_indices: Tidx) -> (output: T) {keep_dims: bool = false,
    T: type, Tidx: type = int32}
All, Any(input: bool, reduction_indices: Tidx) -> (output: bool) {keep_dims: bool = false,
    Tidx: type = int32}
ArgMax, ArgMin(input: T, dimension: Tidx) -> (output: output_type) {T: type, Tidx: type = int32,
    output_type: type = int64}
Cumsum(x: T, axis: Tidx) -> (out: T) {exclusive: bool = false, reverse: bool = false, T: type,
    Tidx: type = int32}
Equal, NotEqual(x: T, y: T) -> (z: bool) {T: type, incompatible_shape_error: bool = true}
Less, LessEqual, Greater, GreaterEqual(x: T, y: T) -> (z: bool) {T: type}
LogicalAnd, LogicalOr(x: bool, y: bool) -> (z: bool)
LogicalNot(x: bool) -> (y: bool)
IsNan, IsInf, IsFinite(x: T) -> (y: bool) {T: type}
Select, SelectV2(condition: bool, t: T, e: T) -> (output: T) {T: type}
Where(input: T) -> (index: int64) {T: type = bool}
# Neural networks
Relu, Relu6, Elu, Selu, Softplus, Softsign(features: T) -> (activations: T) {T: type}
LeakyRelu(features: T) -> (activations: T) {alpha: float = 0.2, T: type = float32}
Softmax(logits: T) -> (softmax: T) {T: type}
LogSoftmax(logits: T) -> (logsoftmax: T) {T: type}
BiasAdd(value: T, bias: T) -> (output: T) {T: type, data_format: string = "NHWC"}
Conv2D(input: T, filter: T) -> (output: T) {T: type, strides: list(int), use_cudnn_on_gpu: bool = true,
    padding: string, explicit_paddings: list(int) = [], data_format: string = "NHWC",
    dilations: list(int) = [1, 1, 1, 1]}
DepthwiseConv2dNative(input: T, filter: T) -> (output: T) {T: type, strides: list(int), padding: string,
    explicit_paddings: list(int) = [], data_format: string = "NHWC", dilations: list(int) = [1, 1, 1, 1]}
MaxPool(input: T) -> (output: T) {T: type = float32, ksize: list(int), strides: list(int), padding: string,
    explicit_paddings: list(int) = [], data_format: string = "NHWC"}
AvgPool(value: T) -> (output: T) {ksize: list(int), strides: list(int), padding: string,
    data_format: string = "NHWC", T: type}
FusedBatchNorm(x: T, scale: T, offset: T, mean: T, variance: T) -> (y: T, batch_mean: T, batch_variance: T,
    reserve_space_1: T, reserve_space_2: T) {T: type, epsilon: float = 0.0001,
    exponential_avg_factor: float = 1.0, data_format: string = "NHWC", is_training: bool = true}
FusedBatchNormV3(x: T, scale: U, offset: U, mean: U, variance: U) -> (y: T, batch_mean: U,
    batch_variance: U, reserve_space_1: U, reserve_space_2: U, reserve_space_3: U) {T: type, U: type,
    epsilon: float = 0.0001, exponential_avg_factor: float = 1.0, data_format: string = "NHWC",
    is_training: bool = true}
LRN(input: T) -> (output: T) {depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0,
    beta: float = 0.5, T: type = float32}
L2Loss(t: T) -> (output: T) {T: type}
SoftmaxCrossEntropyWithLogits(features: T, labels: T) -> (loss: T, backprop: T) {T: type}
SparseSoftmaxCrossEntropyWithLogits(features: T, labels: Tlabels) -> (loss: T, backprop: T) {T: type,
    Tlabels: type = int64}
TopKV2(input: T, k: Tk) -> (values: T, indices: index_type) {sorted: bool = true, T: type, Tk: type = int32,
    index_type: type = int32}
ReluGrad(gradients: T, features: T) -> (backprops: T) {T: type}
ApplyGradientDescent(var: ref T, alpha: T, delta: T) -> (out: ref T) {T: type, use_locking: bool = false}
ApplyMomentum(var: ref T, accum: ref T, lr: T, grad: T, momentum: T) -> (out: ref T) {T: type,
    use_locking: bool = false, use_nesterov: bool = false}
ApplyAdam(var: ref T, m: ref T, v: ref T, beta1_power: T, beta2_power: T, lr: T, beta1: T, beta2: T,
    epsilon: T, grad: T) -> (out: ref T) {T: type, use_locking: bool = false, use_nesterov: bool = false}
ResourceApplyGradientDescent(var: resource, alpha: T, delta: T) -> () {T: type, use_locking: bool = false}
ResourceApplyMomentum(var: resource, accum: resource, lr: T, grad: T, momentum: T) -> () {T: type,
    use_locking: bool = false, use_nesterov: bool = false}
ResourceApplyAdam(var: resource, m: resource, v: resource, beta1_power: T, beta2_power: T, lr: T, beta1: T,
    beta2: T, epsilon: T, grad: T) -> () {T: type, use_locking: bool = false, use_nesterov: bool = false}
# Shapes and indices
Shape, Size(input: T) -> (output: out_type) {T: type, out_type: type = int32}
Rank(input: T) -> (output: int32) {T: type}
Reshape(tensor: T, shape: Tshape) -> (output: T) {T: type, Tshape: type = int32}
ExpandDims(input: T, dim: Tdim) -> (output: T) {T: type, Tdim: type = int32}
Squeeze(input: T) -> (output: T) {T: type, squeeze_dims: list(int) = []}
Transpose(x: T, perm: Tperm) -> (y: T) {T: type, Tperm: type = int32}
ConcatV2(values: N * T, axis: Tidx) -> (output: T) {N: int, T: type, Tidx: type = int32}
Split(split_dim: int32, value: T) -> (output: num_split * T) {num_split: int, T: type}
SplitV(value: T, size_splits: Tlen, split_dim: int32) -> (output: num_split * T) {num_split: int, T: type,
    Tlen: type = int64}
Pack(values: N * T) -> (output: T) {N: int, T: type, axis: int = 0}
Unpack(value: T) -> (output: num * T) {num: int, T: type, axis: int = 0}
Slice(input: T, begin: Index, size: Index) -> (output: T) {T: type, Index: type}
StridedSlice(input: T, begin: Index, end: Index, strides: Index) -> (output: T) {T: type, Index: type,
    begin_mask: int = 0, end_mask: int = 0, ellipsis_mask: int = 0, new_axis_mask: int = 0,
    shrink_axis_mask: int = 0}
Gather(params: Tparams, indices: Tindices) -> (output: Tparams) {validate_indices: bool = true,
    Tparams: type, Tindices: type}
GatherV2(params: Tparams, indices: Tindices, axis: Taxis) -> (output: Tparams) {batch_dims: int = 0,
    Tparams: type, Tindices: type, Taxis: type}
GatherNd(params: Tparams, indices: Tindices) -> (output: Tparams) {Tparams: type, Tindices: type,
    bad_indices_policy: string = ""}
Tile(input: T, multiples: Tmultiples) -> (output: T) {T: type, Tmultiples: type = int32}
Pad(input: T, paddings: Tpaddings) -> (output: T) {T: type, Tpaddings: type = int32}
PadV2(input: T, paddings: Tpaddings, constant_values: T) -> (output: T) {T: type, Tpaddings: type = int32}
Fill(dims: index_type, value: T) -> (output: T) {T: type, index_type: type = int32}
ZerosLike, OnesLike(x: T) -> (y: T) {T: type}
OneHot(indices: TI, depth: int32, on_value: T, off_value: T) -> (output: T) {axis: int = -1, T: type,
    TI: type = int64}
Range(start: Tidx, limit: Tidx, delta: Tidx) -> (output: Tidx) {Tidx: type = int32}
LinSpace(start: T, stop: T, num: Tidx) -> (output: T) {T: type, Tidx: type = int32}
ReverseV2(tensor: T, axis: Tidx) -> (output: T) {Tidx: type = int32, T: type}
BroadcastTo(input: T, shape: Tidx) -> (output: T) {T: type, Tidx: type = int32}
InvertPermutation(x: T) -> (y: T) {T: type = int32}
DynamicStitch(indices: N * int32, data: N * T) -> (merged: T) {N: int, T: type}
DynamicPartition(data: T, partitions: int32) -> (outputs: num_partitions * T) {num_partitions: int, T: type}
Unique(x: T) -> (y: T, idx: out_idx) {T: type, out_idx: type = int32}
# Random numbers, text, control
RandomUniform, RandomStandardNormal, TruncatedNormal(shape: T) -> (output: dtype) {seed: int = 0,
    seed2: int = 0, dtype: type, T: type}
RandomUniformInt(shape: T, minval: Tout, maxval: Tout) -> (output: Tout) {seed: int = 0, seed2: int = 0,
    Tout: type, T: type}
RandomShuffle(value: T) -> (output: T) {seed: int = 0, seed2: int = 0, T: type}
StringJoin(inputs: N * string) -> (output: string) {N: int, separator: string = ""}
AsString(input: T) -> (output: string) {T: type, precision: int = -1, scientific: bool = false,
    shortest: bool = false, width: int = -1, fill: string = ""}
StringToNumber(string_tensor: string) -> (output: out_type) {out_type: type = float32}
Assert(condition: bool, data: list(T)) -> () {T: list(type), summarize: int = 3}
Switch(data: T, pred: bool) -> (output_false: T, output_true: T) {T: type}
Merge(inputs: N * T) -> (output: T, value_index: int32) {T: type, N: int}
Enter(data: T) -> (output: T) {T: type, frame_name: string, is_constant: bool = false,
    parallel_iterations: int = 10}
Exit, NextIteration(data: T) -> (output: T) {T: type}
LoopCond(input: bool) -> (output: bool)
PartitionedCall, StatefulPartitionedCall(args: list(Tin)) -> (output: list(Tout)) {Tin: list(type),
    Tout: list(type), f: func, config: string = "", config_proto: string = "", executor_type: string = ""}
If, StatelessIf(cond: Tcond, input: list(Tin)) -> (output: list(Tout)) {Tcond: type, Tin: list(type),
    Tout: list(type), then_branch: func, else_branch: func, output_shapes: list(shape) = []}
While, StatelessWhile(input: list(T)) -> (output: list(T)) {T: list(type), cond: func, body: func,
    output_shapes: list(shape) = [], parallel_iterations: int = 10}
ScalarSummary(tags: string, values: T) -> (summary: string) {T: type}
MergeSummary(inputs: N * string) -> (summary: string) {N: int}
"""
