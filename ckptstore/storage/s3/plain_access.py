"""Reading from S3 without its client: where requests go and with which keys, if everything is plain.

Loading s3fs and making a client takes a second of CPU time. For a read that is seldom necessary: an address,
a region and two keys do. So a small set of settings is known here, and whoever sets anything else, in the
options, the environment or the files of AWS, gets the client. What is known means here what it means there:
`tests/wire/test_s3_plain_access.py` compares the requests of both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ckptstore.config import aws_environment, proxy_for
from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.s3.settings import CONFIG_DEFAULTS, PLAIN_CONFIG_KWARGS

__all__ = ["PlainAccess", "Refused", "RoleOf", "plain_access"]


class Refused(NamedTuple):
    """Why a way cannot be taken."""

    reason: str


class RoleOf(NamedTuple):
    """Keys that botocore's session finds, and renews; see `role_keys`.

    Attributes
    ----------
    profile : str or None
        The one that the options name.
    """

    profile: str | None


@dataclass(frozen=True, slots=True)
class PlainAccess:
    """All that reads need.

    Attributes
    ----------
    endpoint : str
        The root of a server that has buckets in the path; empty: Amazon's, with buckets in the name.
    keys : SessionKeys, RoleOf or None
        None: anonymous.
    source : str
        Where the keys were found, for people.
    headers : mapping
        Of every request.
    verify : str or bool
        Which certificates are trusted, in botocore's form.
    """

    endpoint: str
    region: str
    keys: SessionKeys | RoleOf | None = field(repr=False)
    source: str
    headers: Mapping[str, str]
    verify: str | bool
    connect_timeout_s: float
    read_timeout_s: float
    most_connections: int

    def base_of(self, bucket: str) -> str | Refused:
        """Return the URL that names of objects in `bucket` are appended to."""
        if self.endpoint:
            known = _BUCKET_IN_PATH
            base = f"{self.endpoint}/{bucket}/"
        else:
            known = _BUCKET_IN_NAME
            # As botocore: this region has the name of the time when there was no other.
            region = "" if self.region == "us-east-1" else f".{self.region}"
            base = f"https://{bucket}.s3{region}.amazonaws.com/"
        if not known.fullmatch(bucket):
            return Refused("the bucket is not named as usual")
        if proxy_for(base):
            return Refused("a proxy is configured")
        return base


# What botocore takes for a bucket, without dots where it would become a part of the server's name, and
# without the endings of directory buckets and access points.
_BUCKET_IN_PATH = re.compile(r"(?!.*--)[a-zA-Z0-9._-]{3,63}")
_BUCKET_IN_NAME = re.compile(r"(?!.*--)(?!.*-s3alias$)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")

# Of a server that is not Amazon's; and Amazon's in the partition whose addresses are built here.
_REGION = re.compile(r"(?!.*(?:global|fips))[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
_AMAZON_REGION = re.compile(r"(?:af|ap|ca|eu|il|me|mx|sa|us)-(?:north|south|east|west|central){1,2}-[0-9]")
_AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".aws", ".amazonaws.eu", ".amazonaws-fips.com")

_OPTIONS = {
    *("anon", "key", "secret", "token", "username", "password", "profile", "endpoint_url"),
    *("allow_http", "direct", "requester_pays", "client_kwargs", "config_kwargs", "s3_additional_kwargs"),
    "use_ssl",
}
_CLIENT_KWARGS = {
    *("region_name", "verify", "endpoint_url", "aws_access_key_id", "aws_secret_access_key"),
    *("aws_session_token", "use_ssl"),
}
# Parameters of requests that write, and two that reads carry.
_ADDITIONAL_KWARGS = {
    *("ACL", "GrantFullControl", "GrantRead", "GrantReadACP", "GrantWriteACP", "ServerSideEncryption"),
    *("SSEKMSKeyId", "SSEKMSEncryptionContext", "BucketKeyEnabled", "StorageClass", "Tagging", "Metadata"),
    *("CacheControl", "ContentDisposition", "ContentLanguage", "ContentType", "Expires", "MFA"),
    *("WebsiteRedirectLocation", "ChecksumAlgorithm", "ObjectLockMode", "ObjectLockRetainUntilDate"),
    *("ObjectLockLegalHoldStatus", "BypassGovernanceRetention", "RequestPayer", "ExpectedBucketOwner"),
}

# Of the environment. The last lines say something to others: about roles where there are keys, about the
# client's own repetitions, which are off, to the command line.
_VARIABLES = {
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    *("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    *("AWS_CREDENTIAL_EXPIRATION", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME"),
    *("AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_V1_DISABLED"),
    *("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_METADATA_SERVICE_TIMEOUT", "AWS_STS_REGIONAL_ENDPOINTS"),
    *("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_ENDPOINT_URL_STS", "AWS_REGION", "AWS_ACCOUNT_ID"),
    *("AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_EXECUTION_ENV"),
    *("AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES"),
    *("AWS_DISABLE_REQUEST_COMPRESSION", "AWS_PAGER", "AWS_DEFAULT_OUTPUT", "BOTO_CONFIG"),
}

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")

# What services set for the programs that they run; botocore reads those of containers where it has no keys.
_FOREIGN = ("AWS_BATCH_", "AWS_CONTAINER_", "AWS_LAMBDA_", "AWS_XRAY_")

# Of a profile.
_SETTINGS = {
    *("region", "output", "ca_bundle", "endpoint_url", "aws_access_key_id", "aws_secret_access_key"),
    *("aws_session_token", "aws_security_token", "aws_account_id", "retry_mode", "max_attempts"),
    *("sts_regional_endpoints", "cli_pager", "cli_timestamp_format", "cli_auto_prompt", "cli_history"),
}


# Of a profile with a role: botocore's own affair. ``mfa_serial`` is not among them: it asks a person.
_ROLE_SETTINGS = {
    *("role_arn", "source_profile", "credential_source", "external_id", "duration_seconds"),
    *("role_session_name", "web_identity_token_file", "credential_process", "sso_session", "sso_start_url"),
    *("sso_region", "sso_account_id", "sso_role_name", "sso_registration_scopes"),
}


# botocore takes blanks for a part of the name, but between these two words.
_SECTION = re.compile(r"profile\s+[^\s\"'\\]+|[^\s\"'\\]+(?: [^\s\"'\\]+)?")


class _Unusual(Exception):  # noqa: N818 - a message from inside, not an error
    pass


def plain_access(options: Mapping[str, Any]) -> PlainAccess | Refused:
    """Return how objects are read without the client, or why they are not.

    Parameters
    ----------
    options : mapping
        Those of `S3Client`, after its check of their names.
    """
    try:
        return _plain_access(options)
    except _Unusual as unusual:
        return Refused(str(unusual))


def _plain_access(options: Mapping[str, Any]) -> PlainAccess:
    if not options.get("direct", True):
        raise _Unusual("direct=False in the storage options")
    client = _known("client_kwargs", options.get("client_kwargs"), _CLIENT_KWARGS)
    config = _known("config_kwargs", options.get("config_kwargs"), PLAIN_CONFIG_KWARGS)
    additional = _known("s3_additional_kwargs", options.get("s3_additional_kwargs"), _ADDITIONAL_KWARGS)
    environment = _environment()
    _known("the storage options", options, _OPTIONS)
    if config.get("signature_version", "s3v4") != "s3v4":
        raise _Unusual("signature_version is set")
    profile = _Profile(options.get("profile"), environment)
    keys, source = _keys(options, client, environment, profile)
    endpoint = _endpoint(options, client, environment, profile)
    region = (
        client.get("region_name")
        or config.get("region_name")
        or environment.get("AWS_DEFAULT_REGION")
        or profile.settings.get("region")
        or ("us-east-1" if endpoint else "")
    )
    if not region:
        raise _Unusual("no region is set")
    if not isinstance(region, str) or not (_REGION if endpoint else _AMAZON_REGION).fullmatch(region):
        raise _Unusual("the region is not one of those that are known")
    if not endpoint and not all(given.get("use_ssl", True) for given in (options, client)):
        raise _Unusual("use_ssl is set")
    return PlainAccess(
        endpoint,
        region,
        keys,
        source,
        _headers(options, additional),
        _verify(client, environment, profile),
        _number(config, "connect_timeout"),
        _number(config, "read_timeout"),
        int(_number(config, "max_pool_connections")),
    )


def _known(where: str, given: Any, known: Collection[str]) -> Mapping[str, Any]:
    """Return what is `given`, without names that are not set."""
    found = {name: value for name, value in (given or {}).items() if value is not None}
    for name in found:
        if name not in known:
            raise _Unusual(f"{name} is set in {where}")
    return found


def _environment() -> Mapping[str, str]:
    """Return the variables of AWS, empty ones not among them."""
    given = {
        name: value
        for name, value in aws_environment().items()
        if not name.startswith(_FOREIGN) and (value or name not in _KEYS)
    }
    for name, value in _known("the environment", given, _VARIABLES).items():
        if not value:
            # For some botocore takes the empty text, for some what comes next.
            raise _Unusual(f"{name} in the environment is empty")
    return given


class _Profile:
    """What the two files of AWS say of the profile that counts.

    Attributes
    ----------
    is_explicit : bool
        Whether the options name it; keys in the environment do not count then.
    settings : mapping
        Of both files.
    has_role : bool
        Whether the keys are those of a role, or come from a process.
    secrets : list of mapping
        In either file, the one that counts first.
    """

    def __init__(self, given: Any, environment: Mapping[str, str]) -> None:
        self.is_explicit = bool(given)
        name = given or environment.get("AWS_DEFAULT_PROFILE") or environment.get("AWS_PROFILE")
        config = _sections(environment.get("AWS_CONFIG_FILE") or "~/.aws/config")
        credentials = _sections(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")
        found = [config.get(f"profile {name or 'default'}"), credentials.get(name or "default")]
        if name in (None, "default") and "default" in config:
            if found[0] is not None:
                raise _Unusual("the default profile stands twice in a file")
            found[0] = config["default"]
        if name and found == [None, None]:
            raise _Unusual("the profile is not to be found")
        self.secrets = [section or {} for section in reversed(found)]
        merged = {**(found[0] or {}), **(found[1] or {})}
        self.settings = _known("a profile", merged, _SETTINGS | _ROLE_SETTINGS)
        self.has_role = not _ROLE_SETTINGS.isdisjoint(self.settings)


def _sections(path: str) -> dict[str, dict[str, str]]:
    path = os.path.expanduser(os.path.expandvars(path))
    if not os.path.isfile(path):
        return {}
    # On use: most hosts that serve have no such file.
    import configparser

    parser = configparser.RawConfigParser()
    try:
        parser.read([path])
    except (configparser.Error, UnicodeDecodeError, OSError):
        raise _Unusual(f"{path} cannot be read") from None
    if parser.defaults() or not all(map(_SECTION.fullmatch, parser.sections())):
        raise _Unusual(f"{path} has a section that is not named as usual")
    return {" ".join(name.split()): dict(parser.items(name)) for name in parser.sections()}


def _keys(
    options: Mapping[str, Any],
    client: Mapping[str, Any],
    environment: Mapping[str, str],
    profile: _Profile,
) -> tuple[SessionKeys | RoleOf | None, str]:
    """Return the keys that count, and where they were found."""
    if options.get("anon"):
        return None, "anonymous"
    for source, given in _candidates(options, client, environment, profile):
        key, secret, *tokens = given
        if not any(value is not None for value in given):
            continue
        texts = [value for value in given if value is not None]
        if not key or not secret or not all(isinstance(text, str) and text for text in texts):
            raise _Unusual(f"of the keys in {source} a part is missing")
        known = {token for token in tokens if token is not None}
        if len(known) > 1:
            raise _Unusual(f"there are two session tokens in {source}")
        _check_keys([key, secret, *known], source)
        return SessionKeys(key, secret, "".join(known)), source
    return _role(options), "found by botocore"


def _check_keys(texts: Iterable[str], source: str) -> None:
    if any(not text.isascii() or not text.isprintable() or " " in text for text in texts):
        raise Fault(
            Kind.FORBIDDEN,
            f"the access key, the secret or the session token in {source} has a character that none has",
            hint="Look for a newline at the end: text that was read from a file has one.",
        )


def _role(options: Mapping[str, Any]) -> RoleOf:
    profile = options.get("profile")
    if profile is not None and not isinstance(profile, str):
        raise _Unusual("the profile is no text")
    return RoleOf(profile)


def _candidates(
    options: Mapping[str, Any],
    client: Mapping[str, Any],
    environment: Mapping[str, str],
    profile: _Profile,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield places for keys, key, secret and session tokens in each, in botocore's order.

    It ends where those of a role come first.
    """
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    own = [options.get(name) for name in ("key", "secret", "token")]
    for number, name in enumerate(("username", "password")):
        if options.get(name) is not None:
            if own[number] is not None:
                raise _Unusual(f"{name} is set beside another name for it")
            own[number] = options[name]
    inner = tuple(client.get(name) for name in names)
    if any(value is not None for value in own):
        if any(value is not None for value in inner):
            raise _Unusual("there are keys in client_kwargs, too")
        yield "the storage options", tuple(own)
    yield "the storage options", inner
    if not profile.is_explicit:
        if _KEYS[0] in environment:
            if "AWS_CREDENTIAL_EXPIRATION" in environment:
                return
            yield "the environment", tuple(environment.get(name) for name in _KEYS)
        if "AWS_WEB_IDENTITY_TOKEN_FILE" in environment:
            return
    if profile.has_role:
        return
    for secrets in profile.secrets:
        yield "a file of AWS", tuple(secrets.get(name) for name in (*names, "aws_security_token"))


def _endpoint(
    options: Mapping[str, Any],
    client: Mapping[str, Any],
    environment: Mapping[str, str],
    profile: _Profile,
) -> str:
    given = [given["endpoint_url"] for given in (options, client) if given.get("endpoint_url")]
    if len(set(given)) > 1:
        raise _Unusual("there are two endpoints in the storage options")
    text = (
        (given[0] if given else "")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or profile.settings.get("endpoint_url")
        or ""
    )
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        port = parts.port
    except (AttributeError, TypeError, ValueError):
        raise _Unusual("the endpoint is not a URL") from None
    host = parts.hostname or ""
    is_root = parts.path in ("", "/") and not parts.query and not parts.fragment and "@" not in parts.netloc
    if parts.scheme not in ("http", "https") or not host.isascii() or not host or not is_root or port == 0:
        raise _Unusual("the endpoint is not the root of a server")
    if f".{host}".endswith(_AMAZON):
        raise _Unusual("the endpoint is one of Amazon's own")
    return f"{parts.scheme}://{parts.netloc}"


def _headers(options: Mapping[str, Any], additional: Mapping[str, Any]) -> dict[str, str]:
    headers = {"User-Agent": "ckptstore"}
    payer = "requester" if options.get("requester_pays") else additional.get("RequestPayer")
    for name, value in (
        ("x-amz-request-payer", payer),
        ("x-amz-expected-bucket-owner", additional.get("ExpectedBucketOwner")),
    ):
        if value is not None:
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise _Unusual("s3_additional_kwargs holds what is no text")
            headers[name] = value
    return headers


def _verify(client: Mapping[str, Any], environment: Mapping[str, str], profile: _Profile) -> str | bool:
    """Return which certificates are trusted: a file, those of botocore (True), or all (False)."""
    verify = client.get("verify")
    if verify is None:
        verify = environment.get("AWS_CA_BUNDLE") or profile.settings.get("ca_bundle")
    if verify is None:
        verify = environment.get("REQUESTS_CA_BUNDLE", True)
    if isinstance(verify, bool) or (isinstance(verify, str) and os.path.isfile(verify)):
        return verify
    raise _Unusual("the certificates that are to be trusted are no file")


def _number(config: Mapping[str, Any], name: str) -> float:
    value = config.get(name, CONFIG_DEFAULTS[name])
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise _Unusual(f"{name} in config_kwargs is not a number")
    return float(value)
