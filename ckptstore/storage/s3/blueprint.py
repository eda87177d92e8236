"""A request that the service's client prepared, as the pattern of those that are made without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Blueprint"]


class Blueprint(NamedTuple):
    """One request as the client prepared and signed it, and what it would be sent with.

    Attributes
    ----------
    name : str
        Of the object in it, the end of the URL's path.
    credentials : object
        The client's own; None if they cannot be found.
    verify : str, bool or None
        Which certificates are trusted, in botocore's form; None if that cannot be found.
    certificate : tuple of str
        Files of the certificate that the client presents, and of its key; empty without one.
    """

    name: str
    url: str
    headers: Mapping[str, str]
    credentials: Any
    verify: Any
    certificate: tuple[str, ...]
    has_proxy: bool
    own_connections: str  # the setting that shapes the client's connections in a way of its own
    connect_timeout_s: float
    read_timeout_s: float
    most_connections: int

    def __repr__(self) -> str:
        return "Blueprint()"
