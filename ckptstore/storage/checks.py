"""Checks of arguments that all backends share."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, cast

from ckptstore.errors import NotFoundError, TruncatedFileError, UsageError
from ckptstore.storage.values import SuffixRange

if TYPE_CHECKING:
    from ckptstore.storage.values import Buffer
    from ckptstore.types import ByteRange

__all__ = ["byte_view", "check_pin", "resolve_range", "resolve_reads", "truncated"]


def byte_view(data: Buffer) -> memoryview:
    """Return the bytes of `data` as a flat view, without a copy.

    Raises
    ------
    UsageError
        If its memory is not one contiguous block in C order.
    """
    # numpy's type stubs declare the buffer protocol from Python 3.12 on.
    view = memoryview(cast("bytes", data))
    if not view.c_contiguous:
        raise UsageError("the bytes to write are not contiguous in memory")
    # A view with a zero in its shape cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_pin(wanted: str | None, found: str, url: str) -> None:
    """Raise `NotFoundError` if a version is wanted and another one is there."""
    if wanted is not None and wanted != found:
        raise NotFoundError(
            "the version asked for was replaced",
            url=url,
            expected=f"version {wanted}",
            actual=f"version {found}",
            hint="Start again from the record or the index.",
        )


def truncated(url: str, offset: int, expected_bytes: int, actual_bytes: int) -> TruncatedFileError:
    """Return the error for an object of `actual_bytes` of which `expected_bytes` were needed."""
    return TruncatedFileError(
        "the file ends before the bytes asked for",
        url=url,
        offset=offset,
        expected=f"at least {expected_bytes} bytes",
        actual=f"{actual_bytes} bytes",
        hint="The file was cut short or is still being copied; copy it again or take another checkpoint.",
    )


def resolve_range(byte_range: ByteRange | SuffixRange | None, size_bytes: int, url: str) -> tuple[int, int]:
    """Return first byte and end of `byte_range` in an object of `size_bytes`.

    Raises
    ------
    UsageError
        If the range is empty, inverted or negative.
    TruncatedFileError
        If it ends after the object.
    """
    if byte_range is None:
        return 0, size_bytes
    if isinstance(byte_range, SuffixRange):
        if byte_range.size_bytes <= 0:
            raise UsageError("an empty range was asked for", url=url, actual=byte_range)
        return max(0, size_bytes - byte_range.size_bytes), size_bytes
    if not 0 <= byte_range.start < byte_range.stop:
        raise UsageError("an empty or inverted range was asked for", url=url, actual=byte_range)
    if byte_range.stop > size_bytes:
        raise truncated(url, byte_range.start, byte_range.stop, size_bytes)
    return byte_range.start, byte_range.stop


def resolve_reads(
    ranges: Sequence[ByteRange], buffers: Sequence[memoryview], size_bytes: int, url: str
) -> list[tuple[int, int, memoryview]]:
    """Return ``(start, stop, flat buffer)`` of every range that is not empty, ascending by start.

    Raises
    ------
    UsageError
        If a buffer is read-only, not contiguous or of another size than its range, or a range is inverted.
    TruncatedFileError
        If a range ends after the object of `size_bytes`.
    """
    if len(ranges) != len(buffers):
        raise UsageError(
            "every range needs a buffer", url=url, expected=f"{len(ranges)} buffers", actual=len(buffers)
        )
    reads = []
    for byte_range, buffer in zip(ranges, buffers, strict=True):
        start = byte_range.start
        stop = byte_range.stop
        if buffer.nbytes != stop - start or start < 0:
            raise UsageError(
                "a buffer has another size than its range",
                url=url,
                expected=byte_range,
                actual=f"{buffer.nbytes} bytes",
            )
        if start == stop:
            continue
        if stop > size_bytes:
            raise truncated(url, start, stop, size_bytes)
        if buffer.readonly or not buffer.c_contiguous:
            raise UsageError("a buffer is read-only or not contiguous in memory", url=url, offset=start)
        is_flat = buffer.format == "B" and buffer.ndim == 1
        reads.append((start, stop, buffer if is_flat else _flat(buffer, url)))
    reads.sort(key=itemgetter(0))
    return reads


def _flat(buffer: memoryview, url: str) -> memoryview:
    try:
        return buffer.cast("B")
    except (TypeError, ValueError) as error:
        # memoryview knows the formats of the array module only, not complex numbers for example.
        raise UsageError(
            "a buffer is not a view of bytes",
            url=url,
            expected="format 'B'",
            actual=f"format {buffer.format!r}",
        ) from error
