from __future__ import annotations

import base64
import json
import os

import ml_dtypes
import numpy as np
import pytest

from ckptstore.errors import FormatError, NotFoundError, TensorNotFoundError
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.registry import locate
from ckptstore.train.checkpoint_reader import CheckpointReader, list_variables, load_checkpoint, load_variable
from ckptstore.types import Slice
from tests.unit.bundle.helpers import save


@pytest.fixture
def prefix(tmp_path):
    """A checkpoint with one tensor of each kind, in a directory with a record."""
    path = tmp_path / "model-12"
    variant = np.empty((), object)
    variant[()] = b"\x0a\x01x"
    save(
        locate(path),
        [
            {"name": "w", "array": np.arange(4, dtype="f4").reshape(2, 2)},
            {"name": "b", "array": np.float32(1.5)},
            {"name": "step", "array": np.int64(7)},
            {"name": "text", "array": "caf\xe9"},
            {"name": "texts", "array": ["a", "b"]},
            {"name": "q", "array": np.array([1, -2], np.int8), "dtype": "qint8"},
            {"name": "half", "array": np.ones(2, "f2")},
            {"name": "bf", "array": np.ones(2, ml_dtypes.bfloat16)},
            {"name": "v", "array": variant, "dtype": "variant"},
            {"name": "p", "array": np.zeros((1, 2)), "shape": (2, 2), "spec": "0,1:-"},
            {"name": "p", "array": np.ones((1, 2)), "shape": (2, 2), "spec": "1,1:-"},
        ],
    )
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "model-12"\nall_model_checkpoint_paths: "model-12"\n'
    )
    return path


def test_the_maps_list_every_tensor_and_no_slice(prefix):
    reader = load_checkpoint(prefix)
    assert reader.get_variable_to_shape_map() == {
        **{"w": [2, 2], "p": [2, 2], "b": [], "step": [], "text": [], "v": []},
        **{"texts": [2], "q": [2], "half": [2], "bf": [2]},
    }
    types = reader.get_variable_to_dtype_map()
    assert types["w"] == np.float32
    assert types["q"] == "qint8"
    assert types["text"] == "string"
    assert types["p"].as_datatype_enum == 2


def test_values_have_the_python_types_of_tensorflows_reader(prefix):
    reader = load_checkpoint(prefix)
    step, b = reader.get_tensor("step"), reader.get_tensor("b")
    assert (type(step), step) == (np.int64, 7)
    assert (type(b), b) == (np.float32, 1.5)
    assert reader.get_tensor("text") == "café".encode()
    assert type(reader.get_tensor("text")) is bytes
    assert reader.get_tensor("texts").tolist() == [b"a", b"b"]
    assert reader.get_tensor("q").dtype == np.int8
    assert reader.get_tensor("bf").dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(reader.get_tensor("p"), [[0, 0], [1, 1]])
    variant = reader.get_tensor("v")
    assert (variant.shape, variant.dtype, variant.item()) == ((), object, b"\x0a\x01x")


def test_has_tensor_knows_tensors_and_raw_slice_keys(prefix):
    reader = load_checkpoint(prefix)
    assert reader.has_tensor("w")
    assert reader.has_tensor("p")
    assert not reader.has_tensor("nope")
    assert not reader.has_tensor("")
    key = encode_slice_key("p", Slice(((0, 1), (0, -1))))
    assert reader.has_tensor(key.decode("utf-8", "surrogateescape"))


def test_an_unknown_tensor_is_a_key_error_with_tensorflows_words(prefix):
    with pytest.raises(TensorNotFoundError, match=r"Key stepp not found in checkpoint.*'step'") as caught:
        load_checkpoint(prefix).get_tensor("stepp")
    assert isinstance(caught.value, KeyError)


def test_the_debug_string_lists_the_entries_in_key_order(prefix):
    lines = load_checkpoint(prefix).debug_string().split(b"\n")
    slices = [encode_slice_key("p", Slice(((row, 1), (0, -1)))) + b" (DT_DOUBLE) [1,2]" for row in (0, 1)]
    assert lines == [
        *slices,
        b"b (DT_FLOAT) []",
        b"bf (DT_BFLOAT16) [2]",
        b"half (DT_HALF) [2]",
        b"q (DT_QINT8) [2]",
        b"step (DT_INT64) []",
        b"text (DT_STRING) []",
        b"texts (DT_STRING) [2]",
        b"v (DT_VARIANT) []",
        b"w (DT_FLOAT) [2,2]",
        b"",
    ]


def test_a_directory_stands_for_its_latest_checkpoint(prefix):
    assert list_variables(prefix.parent) == list_variables(prefix)
    assert load_variable(str(prefix.parent), "step") == 7
    assert load_variable(f"{prefix.parent}{os.sep}", "step") == 7


def test_a_prefix_wins_over_a_directory_of_the_same_name(prefix):
    (prefix.parent / "model-12").mkdir()
    (prefix.parent / "model-12" / "x").touch()
    assert load_variable(prefix, "step") == 7


def test_variables_are_listed_by_name_with_lists_as_shapes(prefix):
    listed = list_variables(prefix)
    assert listed == sorted(listed)
    assert ("w", [2, 2]) in listed
    assert len(listed) == 10


def test_a_trailing_output_number_is_dropped(prefix):
    assert load_variable(prefix, "step:0") == 7


def test_a_directory_without_checkpoints_is_told_in_tensorflows_words(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(
        NotFoundError, match="Couldn't find 'checkpoint' file or checkpoints in given directory"
    ):
        load_checkpoint(tmp_path)


def test_a_prefix_that_is_not_there_is_not_found(tmp_path):
    for load in (load_checkpoint, list_variables, CheckpointReader):
        with pytest.raises(NotFoundError, match="no checkpoint with this prefix"):
            load(tmp_path / "nope")


def test_an_index_file_is_no_prefix(prefix):
    """TensorFlow opens it as an empty V1 checkpoint."""
    with pytest.raises(NotFoundError, match=r"Pass the prefix: .*model-12$"):
        load_checkpoint(f"{prefix}.index")


def test_an_index_that_is_damaged_is_an_error_of_format(prefix):
    path = prefix.with_name("model-12.index")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FormatError, match="bad magic number"):
        load_checkpoint(prefix)


def test_v1_checkpoints_have_a_reader_too(fixtures_dir):
    directory = fixtures_dir / "05_v1_format"
    for expected in json.loads((directory / "expected.json").read_text())["checkpoints"]:
        reader = load_checkpoint(directory / expected["prefix"])
        lines = base64.b64decode(expected["debug_string_b64"]).split(b"\n")
        assert sorted(reader.debug_string().split(b"\n")) == sorted(lines)
        assert reader.get_variable_to_shape_map() == {
            name: tensor["shape"] for name, tensor in expected["tensors"].items()
        }
