"""The files of one model: one, several, or those that an index of Hugging Face names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptstore.errors import FormatError, TensorNotFoundError, TruncatedFileError, UsageError
from ckptstore.safetensors.header import (
    MOST_HEADER_BYTES,
    SIZE_BYTES,
    FileTensor,
    parse_header,
    parse_json,
)
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.types import ByteRange, Options, PathText

__all__ = ["INDEX_ENDING", "SourceFile", "index_text", "open_files", "shard_name"]

INDEX_ENDING = ".index.json"

_ENDING = ".safetensors"


@dataclass(frozen=True)
class SourceFile:
    """One file whose header was read.

    Attributes
    ----------
    version : str
        Of what was there then.
    data_start : int
        Where the data begin.
    tensors : list of FileTensor
        Ascending by where they begin.
    """

    place: Location
    version: str
    data_start: int
    tensors: list[FileTensor]


def open_files(source: PathText | Sequence[PathText], options: Options) -> list[SourceFile]:
    """Read the headers of all files.

    Raises
    ------
    UsageError
        If no file is given.
    TensorNotFoundError
        If a file lacks a tensor that the index promises.
    FormatError, TruncatedFileError
        If a header or the index is malformed.
    CkptStoreError
        From the storage.
    """
    if isinstance(source, str | os.PathLike):
        place = locate(source, options)
        if place.name.endswith(".json"):
            return _indexed(place)
        return [_open(place)]
    files = [_open(locate(one, options)) for one in source]
    if not files:
        raise UsageError("no file is given", hint="Pass a safetensors file, a list of them, or their index.")
    return files


def _open(place: Location) -> SourceFile:
    info = place.storage.head(place.key)
    if info.size_bytes < SIZE_BYTES:
        raise TruncatedFileError(
            "the file ends inside its header", url=place.url, expected="8 bytes", actual=info.size_bytes
        )
    start = place.storage.get(place.key, ByteRange(0, SIZE_BYTES), version=info.version).data
    size_bytes = int.from_bytes(start, "little")
    if size_bytes > MOST_HEADER_BYTES:
        raise FormatError(
            "the header is too large",
            url=place.url,
            expected=f"at most {MOST_HEADER_BYTES} bytes",
            actual=size_bytes,
            hint="This is no safetensors file.",
        )
    data_start = SIZE_BYTES + size_bytes
    if data_start > info.size_bytes:
        raise TruncatedFileError(
            "the file ends inside its header", url=place.url, expected=data_start, actual=info.size_bytes
        )
    text = b""
    if size_bytes:
        text = place.storage.get(place.key, ByteRange(SIZE_BYTES, data_start), version=info.version).data
    tensors = parse_header(text, info.size_bytes - data_start, url=place.url)
    return SourceFile(place, info.version, data_start, tensors)


def _indexed(place: Location) -> list[SourceFile]:
    size_bytes = place.storage.head(place.key).size_bytes
    if size_bytes > MOST_HEADER_BYTES:
        raise FormatError("the index is too large", url=place.url, actual=f"{size_bytes} bytes")
    weights = parse_json(place.storage.get(place.key).data, url=place.url).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FormatError(
            "the index has no weight_map", url=place.url, hint="Pass model.safetensors.index.json."
        )
    by_file: dict[str, set[str]] = {}
    for name, file in weights.items():
        # A name that leads elsewhere would read what nobody asked for.
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(_ENDING):
            raise FormatError(
                "the index names what is no safetensors file beside it",
                url=place.url,
                tensor=name,
                actual=repr(file),
            )
        by_file.setdefault(file, set()).add(name)
    files = []
    for file in sorted(by_file):
        opened = _open(place.parent.child(file))
        _check_same({tensor.name for tensor in opened.tensors}, by_file[file], opened.place.url)
        files.append(opened)
    return files


def _check_same(found: set[str], promised: set[str], url: str) -> None:
    missing = min(promised - found, default=None)
    if missing is not None:
        raise TensorNotFoundError("the file lacks a tensor that the index promises", url=url, tensor=missing)
    more = min(found - promised, default=None)
    if more is not None:
        raise FormatError(
            "the file has a tensor that the index does not name",
            url=url,
            tensor=more,
            hint="Pass the list of the files instead of the index to take all of them.",
        )


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the name of one of `count` files, `number` from 0, as Hugging Face has them."""
    return f"{stem}{_ENDING}" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}{_ENDING}"


def index_text(files: Mapping[str, Iterable[str]], total_bytes: int) -> bytes:
    """Return ``model.safetensors.index.json``: file → names of its tensors."""
    weights = {name: file for file, names in files.items() for name in names}
    content = {
        "metadata": {"total_size": total_bytes},
        "weight_map": dict(sorted(weights.items())),
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
