"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptstore.errors import CkptStoreError
from ckptstore.format.entry import BundleEntry
from ckptstore.types import ByteRange

__all__ = ["BundleFault", "Findings", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class BundleFault:
    """One thing that is wrong.

    Attributes
    ----------
    message : str
        The whole sentence, with place and hint.
    code : str
        Of the error that reading would raise: ``"checksum"``, ``"truncated"``, ``"incomplete"``,
        ``"format"``.
    file : str
        URL.
    byte_range : ByteRange or None
        Where in the file.
    what : str
        What is wrong, in one clause.
    """

    message: str
    code: str
    file: str
    tensor: str | None = None
    byte_range: ByteRange | None = None
    expected: str | None = None
    actual: str | None = None
    what: str = ""

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify.verify_bundle` found.

    Attributes
    ----------
    url : str
        The prefix.
    tensors_checked : int
        Tensors that the index lists; the slices of one count once.
    bytes_checked : int
        Bytes whose checksum was compared: the index and, unless quick, the data files.
    faults : tuple of BundleFault
        Empty if everything can be restored.
    notes : tuple of str
        What is odd but not damage.
    index_version : str or None
        Of the index that was checked; None if it could not be opened.
    """

    url: str
    tensors_checked: int
    bytes_checked: int
    faults: tuple[BundleFault, ...]
    notes: tuple[str, ...] = ()
    # The same findings about another copy are equal.
    index_version: str | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether everything can be restored."""
        return not self.faults


@dataclass(slots=True)
class Findings:
    """A report in the making."""

    url: str
    tensors_checked: int = 0
    bytes_checked: int = 0
    faults: list[BundleFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    index_version: str | None = None

    def add(
        self, error: CkptStoreError, file: str, tensor: str | None = None, entry: BundleEntry | None = None
    ) -> None:
        """Record an error as a fault of `file`, concerning the bytes of `entry`."""
        error.url = error.url or file
        error.tensor = error.tensor or tensor
        place = None if entry is None else ByteRange(entry.offset, entry.offset + entry.size_bytes)
        self.faults.append(
            BundleFault(
                str(error),
                error.code,
                error.url,
                error.tensor,
                place,
                error.expected,
                error.actual,
                error.what,
            )
        )

    def report(self) -> VerifyReport:
        """Return what was found so far."""
        return VerifyReport(
            self.url,
            self.tensors_checked,
            self.bytes_checked,
            tuple(self.faults),
            tuple(self.notes),
            self.index_version,
        )
