"""What a file is that should be one of a checkpoint and is not: said from its first bytes.

Each mark below stands in the documentation of its format: Git LFS pointers and git-crypt in those projects,
gzip in RFC 1952, zip in APPNOTE 4.3.7, HDF5 in its superblock, pickle in ``pickletools``, safetensors and
GGUF in their READMEs, SavedModel in `tensorflow/core/protobuf/saved_model.proto`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HEAD_SIZE_BYTES", "FileKind", "file_kind"]

HEAD_SIZE_BYTES = 512
"""How many of the first bytes `file_kind` looks at: the mark of a tar archive ends at byte 262."""

_COPY_AGAIN = "Copy the file itself again from where it came from."


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file that is not part of a TensorFlow checkpoint.

    Attributes
    ----------
    name : str
        With its article: ``"a Git LFS pointer"``.
    advice : str
        What to do, in whole sentences.
    """

    name: str
    advice: str


_LFS = FileKind("a Git LFS pointer", "Fetch the file that it stands for: `git lfs pull`.")
_ANNEX = FileKind("a git-annex pointer", "Fetch the file that it stands for: `git annex get`.")
_DVC = FileKind("a DVC pointer", "Fetch the file that it stands for: `dvc pull`.")
_CRYPT = FileKind("a file encrypted by git-crypt", "Decrypt it: `git-crypt unlock`.")
_HTML = FileKind(
    "an HTML page",
    "A download stored a page, often one to sign in or one with an error, in place of the file. "
    + _COPY_AGAIN,
)
_XML = FileKind(
    "an XML document", "Object stores answer with XML when they refuse a download. " + _COPY_AGAIN
)
_JSON = FileKind("a JSON document", "A service may have answered with an error. " + _COPY_AGAIN)
_RECORD = FileKind(
    "the record of a directory (the file `checkpoint`)",
    "latest_checkpoint() of its directory gives the prefix to pass.",
)
_SAVED_MODEL = FileKind(
    "a SavedModel", "Its variables are a checkpoint: pass the prefix variables/variables beside it."
)
_HDF5 = FileKind("an HDF5 file, such as Keras saves as .h5", "Read it with h5py or Keras.")
_KERAS = FileKind("a .keras file", "Load it with Keras.")
_TORCH = FileKind("a file of torch.save", "Load it with torch.load(path, weights_only=True).")
_NPY = FileKind("an array of numpy.save", "Load it with numpy.load.")
_NPZ = FileKind("arrays of numpy.savez", "Load them with numpy.load.")
_PICKLE = FileKind(
    "a pickle", "It is not a TensorFlow checkpoint. Loading it may run any code: do so only if you trust it."
)
_SAFETENSORS = FileKind("a safetensors file", "Load it with safetensors.")
_GGUF = FileKind("a GGUF file", "It is not a TensorFlow checkpoint; tools for GGUF read it.")
_TFLITE = FileKind("a TensorFlow Lite model", "Read it with TensorFlow Lite.")
_ZEROS = FileKind(
    "a file of zeros",
    "A copy was interrupted, or the machine went down before the bytes were on disk. " + _COPY_AGAIN,
)


def _archive(name: str, command: str) -> FileKind:
    return FileKind(name, f"Unpack it first, e.g. with {command}.")


_MARKS: tuple[tuple[bytes, FileKind], ...] = (
    (b"version https://git-lfs.github.com/spec/", _LFS),
    (b"/annex/objects/", _ANNEX),
    (b"\0GITCRYPT\0", _CRYPT),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"\x93NUMPY", _NPY),
    (b"GGUF", _GGUF),
    (b"\x1f\x8b\x08", _archive("gzip data", "gunzip")),
    (b"BZh", _archive("bzip2 data", "bunzip2")),
    (b"\xfd7zXZ\0", _archive("xz data", "xz -d")),
    (b"\x28\xb5\x2f\xfd", _archive("zstd data", "zstd -d")),
    (b"\x04\x22\x4d\x18", _archive("lz4 data", "lz4 -d")),
    (b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive", "7z x")),
    # saved_model_schema_version (1) = 1, then the first of meta_graphs (2).
    (b"\x08\x01\x12", _SAVED_MODEL),
)
_AT_OFFSET: tuple[tuple[int, bytes, FileKind], ...] = (
    (4, b"TFL3", _TFLITE),
    (257, b"ustar", _archive("a tar archive", "tar -x")),
)

# torch's magic number as the first pickle of its format before 1.6: LONG1, ten bytes.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# PROTO 2 to 5, then FRAME or an opcode with which the pickle of a dict, list, tuple, class, number or text
# begins.
_PICKLE_START = re.compile(rb"\x80[\x02-\x05][\x95}\](cXK\x8a\x8c]")
_HTML_START = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_DVC_START = re.compile(rb"(outs|md5): *(\n- )?[a-z0-9]")
_RECORD_START = re.compile(rb'(#[^\n]*\n|\s)*(all_)?model_checkpoint_paths?\s*:\s*["\']')
_SAFETENSORS_START = re.compile(rb'.{8}\{\s*"', re.DOTALL)
# Of a local header: name's length at 26, the name at 30.
_ZIP_MARK = b"PK\x03\x04"
_TEXT_MARKS = (
    (_HTML_START, _HTML),
    (re.compile(rb"<(\?xml|Error)\b"), _XML),
    (_RECORD_START, _RECORD),
    (_DVC_START, _DVC),
    (re.compile(rb'[\[{]\s*"'), _JSON),
)


def file_kind(head: bytes) -> FileKind | None:
    """Return what a file is, unless it may be a file of a checkpoint.

    Parameters
    ----------
    head : bytes
        Its first `HEAD_SIZE_BYTES`, or all of a shorter file.

    Returns
    -------
    FileKind or None
        None for bytes that are not known; those of a real index never are. A data file holds any bytes and
        may begin with a mark by chance: ask only after it was found to be wrong.
    """
    for mark, kind in _MARKS:
        if head.startswith(mark):
            return kind
    for offset, mark, kind in _AT_OFFSET:
        if head[offset : offset + len(mark)] == mark:
            return kind
    if head.startswith(_ZIP_MARK):
        return _zip_kind(head)
    if _SAFETENSORS_START.match(head) and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return _SAFETENSORS
    if head.startswith(_OLD_TORCH):
        return _TORCH
    if _PICKLE_START.match(head):
        return _PICKLE
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, kind in _TEXT_MARKS:
        if pattern.match(text):
            return kind
    return _ZEROS if head and not head.strip(b"\0") else None


def _zip_kind(head: bytes) -> FileKind:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    if name.endswith((b"/data.pkl", b"/.format_version")):
        return _TORCH
    if name.endswith(b".npy"):
        return _NPZ
    if name in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return _KERAS
    return _archive("a zip archive", "unzip")
