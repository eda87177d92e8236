"""What ckptstore makes of the options of s3fs for its client, and the names that only botocore knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from botocore.config import Config
from botocore.configprovider import DEFAULT_PROXIES_CONFIG_VARS, DEFAULT_S3_CONFIG_VARS

from ckptstore.storage.s3.http_session import OneHostSession
from ckptstore.storage.s3.settings import CONFIG_DEFAULTS, check_names

__all__ = ["CONFIG_KWARGS", "check_config", "client_settings"]

CONFIG_KWARGS = frozenset({*Config.OPTION_DEFAULTS, "connector_args"} - {"retries"})
"""Of ``config_kwargs``: those of botocore's `Config` and aiobotocore's `AioConfig`."""

# Options of ckptstore, which s3fs does not know.
_OURS = {"allow_http", "direct"}

_CONFIG: dict[str, Any] = {
    **CONFIG_DEFAULTS,
    # Every upload carries our own CRC32C, and the bytes of a checkpoint have checksums of their own.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


def check_config(options: Mapping[str, Any]) -> None:
    """Check the names in ``config_kwargs``; see `settings.check_options`."""
    config = check_names("config_kwargs", options, CONFIG_KWARGS)
    check_names("s3", config, DEFAULT_S3_CONFIG_VARS, "config_kwargs ")
    check_names("proxies_config", config, DEFAULT_PROXIES_CONFIG_VARS, "config_kwargs ")


def client_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `s3fs.S3FileSystem`, for checked `options` of `S3Client`."""
    settings = {name: value for name, value in options.items() if name not in _OURS}
    config = _CONFIG | dict(settings.get("config_kwargs") or {})
    # One attempt: `Attempts` repeats, because only this package knows what a lost answer means.
    config["retries"] = {"mode": "standard", "total_max_attempts": 1}
    config["http_session_cls"] = OneHostSession
    # With a checksum given, botocore would hash the whole body a second time for the signature.
    config["s3"] = {"payload_signing_enabled": False} | dict(config.get("s3") or {})
    settings["config_kwargs"] = config
    additional = dict(settings.get("s3_additional_kwargs") or {})
    # Parts would carry it without the checksum that it announces.
    additional.pop("ChecksumAlgorithm", None)
    if settings.pop("requester_pays", False):
        # Not every release of s3fs adds it to the calls that are made here.
        additional["RequestPayer"] = "requester"
    settings["s3_additional_kwargs"] = additional
    # A cached listing is out of date; a cached instance may have other settings.
    settings["use_listings_cache"] = False
    settings["skip_instance_cache"] = True
    return settings
