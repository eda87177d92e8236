"""Publishing one checkpoint: the graph, then the index. One of the two modules that commit."""

from __future__ import annotations

from ckptstore.checksums import crc32c
from ckptstore.errors import AmbiguousOutcomeError, ConflictError, NotFoundError
from ckptstore.storage.abilities import SupportsRelaxedDurability
from ckptstore.storage.base import Location
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome

__all__ = ["publish_index", "put_graph"]


def put_graph(location: Location, data: bytes, *, is_there: bool = False) -> None:
    """Put a graph in its place, unless the same bytes are there.

    Parameters
    ----------
    is_there : bool
        Whether a graph is probably there: it is then compared first, which saves the upload.

    Raises
    ------
    ConflictError
        If another writer keeps changing it.
    """
    storage = location.storage
    outcome: PutOutcome = Lost(None) if is_there else storage.put_new(location.key, data)
    for _ in range(3):
        if isinstance(outcome, Committed):
            return
        if isinstance(outcome, Ambiguous):
            raise AmbiguousOutcomeError(
                "the graph may or may not have been written", url=location.url, actual=outcome.reason
            )
        try:
            version = _version_unless_same(location, data)
        except NotFoundError:
            outcome = storage.put_new(location.key, data)
            continue
        if version is None:
            return
        outcome = storage.put_if(location.key, data, version)
    raise ConflictError(
        "another writer keeps changing the graph",
        url=location.url,
        hint="Let only one job save under this prefix.",
    )


def _version_unless_same(location: Location, data: bytes) -> str | None:
    """Return the version of the graph that is there; None if it has the same bytes, made durable then."""
    storage = location.storage
    if storage.capabilities.checksum_proved_by_store:
        info = storage.head(location.key)
        if info.crc32c is not None:
            return None if (info.size_bytes, info.crc32c) == (len(data), crc32c(data)) else info.version
    there = storage.get(location.key)
    if there.data != data:
        return there.version
    # Its writer may not have waited for the disk.
    if isinstance(storage, SupportsRelaxedDurability):
        storage.make_durable(location.key, there.version)
    return None


def publish_index(location: Location, data: bytes, expected_version: str | None) -> PutOutcome:
    """Put an index in its place: from here on the checkpoint exists.

    Parameters
    ----------
    location : Location
        Of the index.
    data : bytes
    expected_version : str or None
        Of the index to replace; None to create it.

    Raises
    ------
    CkptStoreError
        Refused for certain: a lost answer is the outcome `Ambiguous`.

    Guarantees
    ----------
    A reader sees the complete old checkpoint or the complete new one, whatever call the writer dies in.
    """
    # COMMIT POINT: the checkpoint exists.
    if expected_version is None:
        return location.storage.put_new(location.key, data)
    return location.storage.put_if(location.key, data, expected_version)
