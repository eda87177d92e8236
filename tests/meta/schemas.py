"""`make protos`: the descriptors that ckptstore ships, made of its ``.proto`` files by protoc."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.meta.source import ROOT

SCHEMAS = ROOT / "ckptstore" / "format" / "schemas"
DESCRIPTORS = SCHEMAS / "descriptors.binpb"


def compiled() -> bytes:
    """Return the ``FileDescriptorSet`` of all schemas, each file after those that it imports."""
    from grpc_tools import protoc

    sources = sorted(path.name for path in SCHEMAS.glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "descriptors.binpb")
        options = [f"--proto_path={SCHEMAS}", "--include_imports", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *options, *sources]) != 0:
            raise ValueError("protoc does not accept the schemas; its output says why")
        return output.read_bytes()


if __name__ == "__main__":
    DESCRIPTORS.write_bytes(compiled())
