"""The header of a safetensors file, read and written; its builder and its parser stand together.

Format
------
``size: u64 LE | JSON[size] | data``. The JSON is an object: name → ``{"dtype", "shape", "data_offsets":
[begin, end]}``, offsets counted from the end of the JSON, and ``__metadata__``, texts by name. The data have
no holes, and nothing follows them (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ckptstore.errors import FormatError, UsageError
from ckptstore.safetensors.element_types import BITS

__all__ = ["METADATA", "MOST_HEADER_BYTES", "SIZE_BYTES", "FileTensor", "build_header", "parse_header"]

SIZE_BYTES: Final = 8

# The library reads no longer one.
MOST_HEADER_BYTES: Final = 100_000_000

METADATA: Final = "__metadata__"

_ALIGNMENT = 8

# numpy's, since 2.0.
_MOST_DIMENSIONS = 64
_HINT = "This is not a safetensors file as its specification has it; download or write it again."


class FileTensor(NamedTuple):
    """One tensor of a file.

    Attributes
    ----------
    code : str
        Its type, as the file calls it.
    begin, end : int
        Bytes from the beginning of the data.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(text: bytes, data_bytes: int, *, url: str) -> list[FileTensor]:
    """Return the tensors of a header, ascending by where they begin.

    Parameters
    ----------
    text : bytes
        The JSON.
    data_bytes : int
        Bytes in the file behind it.

    Raises
    ------
    FormatError
        If the header is malformed, or does not describe data of this size.
    """
    entries = parse_json(text, url=url)
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
        raise _error("the metadata of the header is not a mapping of texts", url)
    tensors = [_tensor(name, entry, url) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    reached = 0
    for tensor in tensors:
        if tensor.begin != reached:
            raise FormatError(
                "the data of two tensors overlap, or there is a hole between them",
                url=url,
                tensor=tensor.name,
                expected=f"data that begin at {reached}",
                actual=tensor.begin,
                hint=_HINT,
            )
        reached = tensor.end
    if reached != data_bytes:
        raise FormatError(
            "the file has another size than its header says",
            url=url,
            expected=f"{reached} bytes of data",
            actual=f"{data_bytes} bytes",
            hint=_HINT,
        )
    return tensors


def parse_json(text: bytes, *, url: str) -> dict[str, Any]:
    """Return a JSON object from a file that nobody vouches for.

    Raises
    ------
    FormatError
        If it is none, a key comes twice, or it is nested too deeply.
    """
    try:
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _error(f"the header is no JSON object: {error}"[:300], url) from error
    if not isinstance(found, dict):
        raise _error("the header is no JSON object", url)
    return found


def build_header(tensors: Sequence[FileTensor], metadata: Mapping[str, str] | None, *, url: str) -> bytes:
    """Return the size and the JSON, padded so that the data begin at a multiple of 8.

    Raises
    ------
    UsageError
        If it would be longer than the library reads, or is no text that UTF-8 can express.
    """
    entries: dict[str, Any] = {} if metadata is None else {METADATA: dict(metadata)}
    for name, code, shape, begin, end in tensors:
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            "a name or the metadata hold half a surrogate pair, which UTF-8 cannot express",
            url=url,
            hint="Change rename= or metadata=.",
        ) from error
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MOST_HEADER_BYTES:
        raise UsageError(
            "there are too many tensors for the header of one file",
            url=url,
            expected=f"at most {MOST_HEADER_BYTES} bytes",
            actual=len(text),
            hint="Give max_shard_size=, so that there are several files.",
        )
    return len(text).to_bytes(SIZE_BYTES, "little") + text


def _tensor(name: str, entry: object, url: str) -> FileTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _error("a tensor of the header has other fields than dtype, shape and data_offsets", url, name)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = BITS.get(code) if isinstance(code, str) else None
    if bits is None:
        raise _error(f"there is no element type {code!r}"[:200], url, name)
    if not _are_counts(shape, _MOST_DIMENSIONS) or not _are_counts(offsets, 2) or len(offsets) != 2:
        raise _error("shape and data_offsets are not lists of numbers from 0", url, name)
    begin, end = offsets
    size_bits = math.prod(shape) * bits
    if size_bits % 8 or end - begin != size_bits // 8:
        raise FormatError(
            "type, shape and data_offsets of a tensor do not agree",
            url=url,
            tensor=name,
            expected=f"{size_bits / 8:g} bytes" if size_bits < 1 << 53 else "fewer elements",
            actual=f"{end - begin} bytes",
            hint=_HINT,
        )
    return FileTensor(name, code, tuple(shape), begin, end)


def _are_counts(values: object, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(one) is int and 0 <= one < 1 << 63 for one in values)
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _error(what: str, url: str, tensor: str | None = None) -> FormatError:
    return FormatError(what, url=url, tensor=tensor, hint=_HINT)
