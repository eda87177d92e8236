"""Where requests to Google Cloud Storage go, and with which credentials: from options and environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ckptstore.config import gcs_environment
from ckptstore.errors import UsageError
from ckptstore.storage.url import check_not_in_the_clear

__all__ = ["GCS_OPTIONS", "resolve_options"]

_PASSED_ON = frozenset(
    (
        *("project", "access", "token", "requester_pays", "endpoint_url", "session_kwargs"),
        *("requests_timeout",),
    )
)
# So that a dictionary made for gcsfs can be passed unchanged. These options concern parts that are not used
# here: cached listings, file objects, shared instances.
_WITHOUT_EFFECT = frozenset(
    (
        *("block_size", "cache_timeout", "check_connection", "consistency", "listings_expiry_time"),
        *("max_paths", "skip_instance_cache", "use_listings_cache", "version_aware", "default_location"),
        *("secure_serialize",),
    )
)
GCS_OPTIONS = _PASSED_ON | _WITHOUT_EFFECT | {"allow_http", "direct", "parallel_uploads"}


def resolve_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the parameters for ``gcsfs.core.GCSFileSystem``, and the root URL of the server.

    Parameters
    ----------
    options : mapping
        As users give them; see `GCS_OPTIONS`.

    Raises
    ------
    UsageError
        If the endpoint is not a URL, or credentials would travel in the clear.
    """
    environment = gcs_environment()
    kept = {name: value for name, value in options.items() if name in _PASSED_ON}
    emulator = "" if kept.get("endpoint_url") else environment.emulator_host
    text = kept.get("endpoint_url") or emulator
    if not text:
        return kept, f"https://storage.{environment.universe_domain}"
    endpoint = kept["endpoint_url"] = _checked_endpoint(str(text))
    is_plain = endpoint.startswith("http://")
    if kept.get("token") is None and not environment.credentials_file and (emulator or is_plain):
        # Otherwise gcsfs looks for credentials in the usual places, which takes seconds outside of Google's
        # machines, and shows them to a server that is not Google's.
        kept["token"] = "anon"
    if kept.get("token") != "anon" and not options.get("allow_http"):
        check_not_in_the_clear(endpoint, endpoint)
    return kept, endpoint


def _checked_endpoint(text: str) -> str:
    """Return the root of the server without a slash at the end.

    Raises
    ------
    UsageError
        If it is not one.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        is_good = (
            parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        is_good = False
    if not is_good or "@" in parts.netloc:
        # Not the text: it may hold a password.
        raise UsageError(
            "the endpoint of Google Cloud Storage is not the root URL of a server",
            expected="https://HOST[:PORT], without user and password",
            hint="Check endpoint_url in the storage options, or STORAGE_EMULATOR_HOST.",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
