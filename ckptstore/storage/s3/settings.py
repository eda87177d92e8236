"""The options of s3fs: which of them there are, and what ckptstore makes of them for its client.

A setting that would be dropped without a word is refused: above all a misspelt one that was to encrypt.
`docs/storage-options.md` lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ckptstore.errors import UsageError
from ckptstore.suggest import did_you_mean

__all__ = [
    "ADDITIONAL_KWARGS",
    "CLIENT_KWARGS",
    "CONFIG_DEFAULTS",
    "PLAIN_CONFIG_KWARGS",
    "Additional",
    "additional_of",
    "check_names",
    "check_options",
    "has_plain_config",
]

CLIENT_KWARGS = frozenset(
    (
        *("region_name", "api_version", "use_ssl", "verify", "endpoint_url", "aws_access_key_id"),
        *("aws_secret_access_key", "aws_session_token", "aws_account_id"),
    )
)
"""Of ``client_kwargs``: the arguments of botocore's `create_client`."""

PLAIN_CONFIG_KWARGS = frozenset(
    (
        *("region_name", "connect_timeout", "read_timeout", "max_pool_connections", "signature_version"),
        *("parameter_validation", "request_checksum_calculation", "response_checksum_validation"),
        *("request_min_compression_size_bytes", "disable_request_compression"),
    )
)
"""Of ``config_kwargs``: those that are known without botocore. The second and third line concern writes."""

CONFIG_DEFAULTS: dict[str, Any] = {
    # With ten connections, the default, 60 ranges take seven rounds.
    "max_pool_connections": 64,
    "connect_timeout": 5,
    "read_timeout": 30,
}
"""Of ``config_kwargs``: what stands for names that are not given."""

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
    """Check the names inside the options that hold further ones; ``config_kwargs`` is botocore's to know.

    Raises
    ------
    UsageError
        If one is unknown, or is what ckptstore decides itself.
    """
    check_names("client_kwargs", options, CLIENT_KWARGS)
    additional = check_names("s3_additional_kwargs", options, ADDITIONAL_KWARGS)
    if additional.get("ChecksumAlgorithm", "CRC32C") != "CRC32C":
        raise UsageError(
            "ChecksumAlgorithm in s3_additional_kwargs is not the one that is used",
            expected="CRC32C, which every upload carries",
            actual=repr(additional["ChecksumAlgorithm"]),
            hint="Leave it out.",
        )


def has_plain_config(options: Mapping[str, Any]) -> bool:
    """Whether every name in ``config_kwargs`` is known without botocore."""
    given = options.get("config_kwargs") or {}
    return isinstance(given, Mapping) and not given.keys() - PLAIN_CONFIG_KWARGS


def check_names(
    option: str, given: Mapping[str, Any], known: Iterable[str], where: str = ""
) -> Mapping[str, Any]:
    """Return the names inside an option, all of which must be known; see `check_options`."""
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
