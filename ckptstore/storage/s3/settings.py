"""The options of s3fs: which of them there are, and what ckptstore makes of them for its client.

A setting that would be dropped without a word is refused: above all a misspelt one that was to encrypt.
`docs/storage-options.md` lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from botocore.config import Config
from botocore.configprovider import DEFAULT_PROXIES_CONFIG_VARS, DEFAULT_S3_CONFIG_VARS

from ckptstore.errors import UsageError
from ckptstore.storage.s3.http_session import OneHostSession
from ckptstore.suggest import did_you_mean

__all__ = [
    "ADDITIONAL_KWARGS",
    "CLIENT_KWARGS",
    "CONFIG_KWARGS",
    "Additional",
    "additional_of",
    "check_options",
    "client_settings",
]

CLIENT_KWARGS = frozenset(
    (
        *("region_name", "api_version", "use_ssl", "verify", "endpoint_url", "aws_access_key_id"),
        *("aws_secret_access_key", "aws_session_token", "aws_account_id"),
    )
)
"""Of ``client_kwargs``: the arguments of botocore's `create_client`."""

CONFIG_KWARGS = frozenset({*Config.OPTION_DEFAULTS, "connector_args"} - {"retries"})
"""Of ``config_kwargs``: those of botocore's `Config` and aiobotocore's `AioConfig`."""

ADDITIONAL_KWARGS = frozenset(
    (
        *("ACL", "GrantFullControl", "GrantRead", "GrantReadACP", "GrantWriteACP"),
        *("ServerSideEncryption", "SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled"),
        *("SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5"),
        *("StorageClass", "Tagging", "Metadata", "CacheControl", "ContentDisposition", "ContentLanguage"),
        *("ContentType", "Expires", "WebsiteRedirectLocation", "ChecksumAlgorithm"),
        *("ObjectLockMode", "ObjectLockRetainUntilDate", "ObjectLockLegalHoldStatus"),
        *("BypassGovernanceRetention", "MFA", "RequestPayer", "ExpectedBucketOwner"),
    )
)
"""Of ``s3_additional_kwargs``: parameters of S3's requests that ckptstore does not set itself."""

_CONFIG: dict[str, Any] = {
    # With ten connections, the default, 60 ranges take seven rounds.
    "max_pool_connections": 64,
    "connect_timeout": 5,
    "read_timeout": 30,
    # Every upload carries our own CRC32C, and the bytes of a checkpoint have checksums of their own.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


class Additional(NamedTuple):
    """What ``s3_additional_kwargs`` say about single requests.

    Attributes
    ----------
    metadata : mapping of str to str
        Of every object, besides our own.
    source_key : mapping of str to str
        The customer's key as a copy has to name it for its source.
    """

    metadata: Mapping[str, str]
    source_key: Mapping[str, Any]


def additional_of(options: Mapping[str, Any]) -> Additional:
    """Return what has to be said in some requests only."""
    given = options.get("s3_additional_kwargs") or {}
    source_key = {
        f"CopySource{name}": value for name, value in given.items() if name.startswith("SSECustomer")
    }
    return Additional(dict(given.get("Metadata") or {}), source_key)


def check_options(options: Mapping[str, Any]) -> None:
    """Check the names inside the options that hold further ones.

    Raises
    ------
    UsageError
        If one is unknown, or is what ckptstore decides itself.
    """
    _check("client_kwargs", options, CLIENT_KWARGS)
    config = _check("config_kwargs", options, CONFIG_KWARGS)
    _check("s3", config, DEFAULT_S3_CONFIG_VARS, "config_kwargs ")
    _check("proxies_config", config, DEFAULT_PROXIES_CONFIG_VARS, "config_kwargs ")
    additional = _check("s3_additional_kwargs", options, ADDITIONAL_KWARGS)
    if additional.get("ChecksumAlgorithm", "CRC32C") != "CRC32C":
        raise UsageError(
            "ChecksumAlgorithm in s3_additional_kwargs is not the one that is used",
            expected="CRC32C, which every upload carries",
            actual=repr(additional["ChecksumAlgorithm"]),
            hint="Leave it out.",
        )


def _check(option: str, given: Mapping[str, Any], known: Iterable[str], where: str = "") -> Mapping[str, Any]:
    inner = given.get(option) or {}
    if not isinstance(inner, Mapping):
        raise UsageError(f"{where}{option} is a mapping", actual=type(inner).__name__)
    for name in inner:
        if name not in known:
            raise UsageError(
                f"unknown or unused name {name!r} in {where}{option}",
                expected=f"one of {', '.join(sorted(known))}",
                hint=did_you_mean(name, known, limit=1),
            )
    return inner


def client_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `s3fs.S3FileSystem`, for checked `options`."""
    settings = dict(options)
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
