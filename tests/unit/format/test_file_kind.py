"""What a file is that should be part of a checkpoint, as its own writer begins it."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from ckptstore.errors import FormatError, TransientError, TruncatedFileError
from ckptstore.format.file_kind import HEAD_SIZE_BYTES, file_kind
from ckptstore.format.metagraph import parse_meta_graph
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1048576\n"


def _zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        # Without the time of now: the bytes are part of a test's name, which all workers have to agree on.
        archive.writestr(zipfile.ZipInfo(name), b"0123456789" * 20)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.index"), io.BytesIO())
    return file.getvalue()


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


def _safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


# The first pickle of torch.save before 1.6: its magic number, with protocol 2.
_OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps({"w": 1}, protocol=2)

FOREIGN = [
    (LFS_POINTER, "Git LFS pointer", "git lfs pull"),
    (b"/annex/objects/SHA256E-s4--9f86d08.index\n", "git-annex", "git annex get"),
    (b"outs:\n- md5: a304afb96060aad90176268345e10355\n  path: model.index\n", "DVC", "dvc pull"),
    (b"\0GITCRYPT\0\x12\x34\x56\x78" + bytes(20), "git-crypt", "git-crypt unlock"),
    (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "HTML", "again"),
    (b"\xef\xbb\xbf\r\n  <HTML lang='en'>", "HTML", "again"),
    (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>', "XML", "again"),
    (b'{"error": {"code": 403}}', "JSON", "again"),
    (b'model_checkpoint_path: "model-1"\n', "record", "latest_checkpoint"),
    (b'# ckptstore 1\n\nall_model_checkpoint_paths: "model-1"\n', "record", "latest_checkpoint"),
    (gzip.compress(b"index" * 30, mtime=0), "gzip", "gunzip"),
    (bz2.compress(b"index" * 30), "bzip2", "bunzip2"),
    (lzma.compress(b"index" * 30), "xz", "xz -d"),
    (b"\x28\xb5\x2f\xfd\x24\x05\x29\x00\x00index", "zstd", "zstd -d"),
    (_tar(), "tar archive", "tar -x"),
    (_zip_of("model.index"), "zip archive", "unzip"),
    (_zip_of("archive/data.pkl"), "torch.save", "torch.load"),
    (_zip_of("model_12/data.pkl"), "torch.save", "torch.load"),
    (_OLD_TORCH, "torch.save", "torch.load"),
    (_zip_of("w.npy"), "numpy.savez", "numpy.load"),
    (_npy(), "numpy.save", "numpy.load"),
    (_zip_of("metadata.json"), ".keras", "Keras"),
    (b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00" + bytes(60), "HDF5", "h5py"),
    (_safetensors(), "safetensors", "safetensors"),
    (b"GGUF\x03\0\0\0" + bytes(20), "GGUF", "GGUF"),
    (b"\x1c\0\0\0TFL3" + bytes(20), "TensorFlow Lite", "TensorFlow Lite"),
    (b"\x08\x01\x12\xb4\x01\x0a\x10\x32\x01*", "SavedModel", "variables/variables"),
    (bytes(4096), "zeros", "again"),
    *(
        (pickle.dumps(value, protocol=protocol), "pickle", "trust")
        for protocol in (2, 3, 4, 5)
        for value in ({"w": 1}, [1, 2], (1, "a"), "text", collections.OrderedDict(w=1))
    ),
]


@pytest.mark.parametrize(("data", "name", "advice"), FOREIGN)
def test_the_kind_of_a_foreign_file_is_named_with_what_to_do(data, name, advice):
    kind = file_kind(data[:HEAD_SIZE_BYTES])
    assert kind is not None
    assert name in kind.name
    assert advice in kind.advice


@pytest.mark.parametrize(("data", "name", "advice"), FOREIGN)
def test_an_index_that_is_a_foreign_file_is_named_in_the_error(data, name, advice):
    with pytest.raises((FormatError, TruncatedFileError)) as caught:
        Table.from_bytes(data, source="model-1.index")
    assert name in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize("data", [LFS_POINTER, b"<!doctype html><p>moved", gzip.compress(b"graph", mtime=0)])
def test_a_graph_that_is_a_foreign_file_is_named_in_the_error(data):
    kind = file_kind(data)
    assert kind is not None
    with pytest.raises(FormatError) as caught:
        parse_meta_graph(data, source="model-1.meta")
    assert kind.name in str(caught.value)
    assert kind.advice in str(caught.value)


def test_what_may_be_a_file_of_a_checkpoint_has_no_kind(fixtures_dir):
    files = [path for path in fixtures_dir.rglob("*") if path.suffix in (".index", ".meta")]
    assert len(files) > 20
    for path in files:
        assert file_kind(path.read_bytes()[:HEAD_SIZE_BYTES]) is None, path
    assert file_kind(b"") is None
    builder = TableBuilder()
    builder.add(b"", b"header")
    assert file_kind(builder.finish()) is None
    assert file_kind(b"\x80\x04 not a pickle") is None
    assert file_kind(b"notes about the model") is None


def test_a_file_whose_first_bytes_cannot_be_read_is_still_not_a_table():
    def read(offset: int, size: int) -> bytes:
        if offset == 0:
            raise TransientError("the connection was reset")
        return bytes(size)

    with pytest.raises(FormatError, match="bad magic number"):
        Table(read, 1 << 20, source="x.index")
