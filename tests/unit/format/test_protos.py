"""The private protobuf classes: they know TensorFlow's fields and stay out of everybody's way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ckptstore.format import protos
from ckptstore.format.protos import descriptor_pool, message_class


def test_files_of_tensorflow_hold_no_unknown_field_and_come_back_to_the_byte(fixtures_dir):
    cases = [(path, "MetaGraphDef") for path in sorted(fixtures_dir.rglob("*.meta"))]
    cases.append((fixtures_dir / "11_saved_model" / "sm" / "saved_model.pb", "SavedModel"))
    assert len(cases) == 5
    for path, name in cases:
        data = path.read_bytes()
        message = message_class(name).FromString(data)
        assert message.SerializeToString(deterministic=True) == data, path
        message.DiscardUnknownFields()
        assert message.ByteSize() == len(data), path


def test_unknown_fields_survive():
    node = message_class("NodeDef").FromString(b"\x0a\x01a" + b"\xfa\x07\x03new" + b"\x12\x04NoOp")
    node.device = "/cpu:0"
    assert node.SerializeToString(deterministic=True) == b"\x0a\x01a\x12\x04NoOp\x22\x06/cpu:0\xfa\x07\x03new"


def test_text_format_knows_enums_maps_and_any():
    from google.protobuf import text_format

    text = (
        "meta_info_def { any_info { [type.googleapis.com/tensorflow.VersionDef] { producer: 7 } } }\n"
        'graph_def { node { name: "a" attr { key: "T" value { type: DT_BFLOAT16 } } } }\n'
        "saver_def { version: V2 }"
    )
    meta = text_format.Parse(text, message_class("MetaGraphDef")(), descriptor_pool=descriptor_pool())
    assert meta.graph_def.node[0].attr["T"].type == 14
    assert meta.saver_def.version == 2
    assert meta.meta_info_def.any_info.value == b"\x08\x07"


def test_a_class_is_made_once():
    assert message_class("NodeDef") is message_class("NodeDef")
    with pytest.raises(KeyError):
        message_class("NoSuchMessage")


def test_nothing_is_registered_for_the_whole_process_and_import_loads_no_protobuf():
    code = (
        "import sys, ckptstore.format.protos as protos\n"
        "assert not any(name.startswith('google.protobuf') for name in sys.modules), 'protobuf loaded'\n"
        "protos.message_class('MetaGraphDef')\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('tensorflow.NodeDef')\n"
        "except KeyError:\n"
        "    print('private')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "private\n", result.stderr


def test_classes_are_made_by_many_threads_at_once():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: protos.message_class("FunctionDef"), range(64)))
    assert len({id(one) for one in found}) == 1
