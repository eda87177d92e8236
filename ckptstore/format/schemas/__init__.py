"""The messages of TensorFlow's files as ``.proto`` text, of which `ckptstore.format.protos` makes classes."""

from __future__ import annotations

from ckptstore.format.schemas import graphs, meta_graphs, objects, tensors

__all__ = ["GOOGLE_PROTOBUF", "TENSORFLOW"]

GOOGLE_PROTOBUF = """
message Any { string type_url = 1; bytes value = 2; }
message BoolValue { bool value = 1; }
"""
"""Package ``google.protobuf``."""

TENSORFLOW = tensors.SCHEMA + graphs.SCHEMA + objects.SCHEMA + meta_graphs.SCHEMA
"""Package ``tensorflow``."""
