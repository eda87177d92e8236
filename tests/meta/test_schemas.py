"""The descriptors in the package are those of the ``.proto`` files beside them."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.meta.schemas import DESCRIPTORS, SCHEMAS, compiled


def test_the_shipped_descriptors_are_what_protoc_makes_of_the_schemas():
    # Compared as messages: releases of protoc may order the fields of a descriptor differently.
    shipped, made = map(FileDescriptorSet.FromString, (DESCRIPTORS.read_bytes(), compiled()))
    assert shipped == made, "run `make protos`"


def test_every_schema_names_the_files_of_tensorflow_that_it_mirrors():
    for path in SCHEMAS.glob("*.proto"):
        text = path.read_text()
        assert "// tensorflow/" in text or "package google.protobuf" in text, path
