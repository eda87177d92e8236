"""What the ranks of a job write into their messages: a JSON head, and bytes beside it.

Nothing in a message is ever executed. Every length is checked before memory is taken for it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ckptstore import errors
from ckptstore.checksums import crc32c
from ckptstore.distributed.coordinator import MAX_MESSAGE_BYTES
from ckptstore.errors import CkptStoreError, CorruptError, SaveCancelledError

__all__ = ["pack", "pack_error", "unpack", "unpack_error"]

# magic | CRC32C of what follows | bytes of the head | of the blob: u32 LE each | head | blob, deflated
_MAGIC: Final = b"CKR2"
_NUMBER_BYTES: Final = 4

# Manifests and indexes shrink to a tenth; more than a thousandth is an attack.
_MOST_UNPACKED_BYTES: Final = 16 * MAX_MESSAGE_BYTES

_FIELDS: Final = ("url", "tensor", "expected", "actual", "hint")

_CLASSES: Final = {
    cls.__name__: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, CkptStoreError)
}


def pack(head: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """Return a message.

    Parameters
    ----------
    head : mapping
        What JSON can express.
    blob : bytes
        Beside it; is compressed.
    """
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=True).encode()
    packed = zlib.compress(blob, 1) if blob else b""
    body = _number(len(text)) + _number(len(blob)) + text + packed
    return _MAGIC + _number(crc32c(body)) + body


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_BYTES, "little")


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the head and the blob of a message.

    Raises
    ------
    CorruptError
        If it is no message of `pack`, or was damaged.
    """
    begin = len(_MAGIC) + 3 * _NUMBER_BYTES
    try:
        if data[: len(_MAGIC)] != _MAGIC or len(data) < begin:
            raise ValueError("another beginning")
        crc, text_bytes, blob_bytes = (
            int.from_bytes(data[at : at + _NUMBER_BYTES], "little")
            for at in range(len(_MAGIC), begin, _NUMBER_BYTES)
        )
        if crc32c(data[len(_MAGIC) + _NUMBER_BYTES :]) != crc:
            raise ValueError("another checksum than it says")
        if blob_bytes > _MOST_UNPACKED_BYTES or text_bytes > len(data) - begin:
            raise ValueError("a length that cannot be")
        head = json.loads(data[begin : begin + text_bytes])
        if not isinstance(head, dict):
            raise TypeError("a head that is no object")
        packed = data[begin + text_bytes :]
        if not blob_bytes:
            if packed:
                raise ValueError("bytes behind the end")
            return head, b""
        unpacker = zlib.decompressobj()
        blob = unpacker.decompress(packed, blob_bytes)
        if len(blob) != blob_bytes or not unpacker.eof or unpacker.unused_data:
            raise ValueError("another length than it says")
    except (ValueError, TypeError, RecursionError, zlib.error) as error:
        raise CorruptError(
            "a message between ranks cannot be read",
            actual=f"{len(data)} bytes, {error}",
            hint="All ranks must run the same version of ckptstore.",
        ) from error
    else:
        return head, blob


def pack_error(error: BaseException) -> dict[str, Any]:
    """Return what a message says of `error`: its class, its text and its fields.

    An error of another program is told by its class alone.
    """
    if isinstance(error, CkptStoreError):
        fields = {name: getattr(error, name) for name in _FIELDS if getattr(error, name) is not None}
        head: dict[str, Any] = {"class": type(error).__name__, "what": error.what, **fields}
        if isinstance(error, errors.RanksMissingError):
            head |= {"ranks": error.ranks, "host_names": error.host_names, "phase": error.phase}
        return head
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return {"class": SaveCancelledError.__name__, "what": f"it was ended by {type(error).__name__}"}
    return {"class": CkptStoreError.__name__, "what": f"{type(error).__name__} was raised there"}


def unpack_error(head: Any, where: str) -> CkptStoreError:
    """Return the error that `pack_error` told of, of the same class; something general of anything else.

    Parameters
    ----------
    where : str
        Who had it, e.g. ``"rank 2 (node-b)"``; empty if it concerns all ranks alike.
    """
    if not isinstance(head, Mapping):
        head = {}
    cls = _CLASSES.get(str(head.get("class")), CkptStoreError)
    what = str(head.get("what", "a rank failed"))
    fields = {name: str(head[name]) for name in _FIELDS if head.get(name) is not None}
    error = cls(f"{where}: {what}" if where else what, **fields)  # type: ignore[arg-type]
    if isinstance(error, errors.RanksMissingError):
        error.ranks = tuple(_integers(head.get("ranks")))
        names = head.get("host_names")
        error.host_names = tuple(str(name) for name in names) if isinstance(names, Sequence) else ()
        error.phase = str(head.get("phase", ""))
    return error


def _integers(value: Any) -> list[int]:
    return [int(one) for one in value if isinstance(one, int)] if isinstance(value, list) else []
