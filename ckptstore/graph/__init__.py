"""The network in a ``.meta``: build it, read it, look up its operations by name."""

from __future__ import annotations

from ckptstore.format.metagraph import SaverDef
from ckptstore.graph.arrays import meta_graph_for_arrays
from ckptstore.graph.builder import GraphBuilder
from ckptstore.graph.export import export_meta_graph_bytes, read_meta_graph
from ckptstore.graph.graph import Graph
from ckptstore.graph.handles import BuiltOperation, BuiltTensor
from ckptstore.graph.nodes import Operation, Tensor, Variable
from ckptstore.graph.saver_nodes import with_saver
from ckptstore.graph.signatures import Argument, Function, Signature, TensorInfo

__all__ = [
    "Argument",
    "BuiltOperation",
    "BuiltTensor",
    "Function",
    "Graph",
    "GraphBuilder",
    "Operation",
    "SaverDef",
    "Signature",
    "Tensor",
    "TensorInfo",
    "Variable",
    "export_meta_graph_bytes",
    "meta_graph_for_arrays",
    "read_meta_graph",
    "with_saver",
]
