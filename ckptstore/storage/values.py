"""The plain data of the storage seam: what goes into its calls and what they answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]

__all__ = [
    "Ambiguous",
    "Capabilities",
    "Committed",
    "GetResult",
    "Lost",
    "ObjectInfo",
    "PutOutcome",
    "SuffixRange",
]


@dataclass(frozen=True, slots=True)
class SuffixRange:
    """The last `size_bytes` bytes of a file, or all of it when it is shorter."""

    size_bytes: int


class GetResult(NamedTuple):
    """What `Storage.get` answers: bytes, the version they belong to, the size of the whole object."""

    data: bytes
    version: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a HEAD or a listing says of one object."""

    key: str
    size_bytes: int
    version: str
    mtime_s: float
    write_id: str | None = None
    crc32c: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The write is in place, as this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Another writer's object is there; `version` is its version, None if nothing is there (any more)."""

    version: str | None


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """The answer was lost and could not be read back: the write may still land. Clean up nothing."""

    reason: str


PutOutcome: TypeAlias = Committed | Lost | Ambiguous


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend really does. The guarantees table is generated from these."""

    backend: str
    create_if_absent: bool
    compare_and_swap: bool
    conditional_delete: bool
    durable_when_acknowledged: bool
    checksum_proved_by_store: bool
    several_hosts: bool

    @property
    def single_writer(self) -> bool:
        """True where concurrent writers are not kept apart."""
        return not (self.create_if_absent and self.compare_and_swap)
