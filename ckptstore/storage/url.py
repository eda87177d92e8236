"""Parse the text that names a place into a scheme and a key, without fsspec's own rules.

fsspec takes chained URLs (``simplecache::s3://…``) and fills in options from the environment: a name that
came with somebody's checkpoint could lead anywhere. So the schemes are an allow-list: our own backends, and
the file systems that fsspec knows, without those that are built around another one.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

from ckptstore.errors import UsageError
from ckptstore.storage.bucket_names import split_arn, url_for_web_address
from ckptstore.storage.redact import Redactor

__all__ = ["ParsedUrl", "UrlLike", "check_not_in_the_clear", "host_of", "is_within", "parse_url"]

UrlLike: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*::")
_SQUASHED = re.compile(r"(?P<scheme>s3|gs|gcs|memory|file):(?!//|:)", re.IGNORECASE)

# The query parameters of signed URLs: of the services, and of servers compatible with them.
_SIGNED = re.compile(r"\?(?:.*&)?(?:x-amz-signature|x-goog-signature|signature|sig)=", re.IGNORECASE)

# Removes secrets from a URL that is refused, before it is shown.
_shown = Redactor({})

# The regions of these services are hosts of one domain, and send requests to one another.
_SERVICE_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".googleapis.com")

_ALIASES = {"gcs": "gs"}
_SCHEMES = ("file", "memory", "s3", "gs")


class ParsedUrl(NamedTuple):
    """The parsed form of a URL.

    Attributes
    ----------
    scheme : str
        ``"file"`` (also for a plain path), ``"memory"``, ``"s3"``, ``"gs"``, or one that fsspec knows.
    key : str
        The key in the storage of that scheme, without a slash at the end; empty for its root.
    url : str
        The user's text, unchanged.
    """

    scheme: str
    key: str
    url: str


def parse_url(path: UrlLike) -> ParsedUrl:
    """Return what `path` means.

    Parameters
    ----------
    path : str, bytes or os.PathLike
        A path on this machine, absolute or relative to the current directory (empty: that directory itself),
        or a URL. Dot segments of local paths are resolved in the text; symbolic links are not.

    Raises
    ------
    UsageError
        If it is not text, chains several URLs, names an unknown scheme, or is a URL that went through
        `pathlib.Path`, which turns ``s3://bucket`` into ``s3:/bucket``.
    """
    text = _text_of(path)
    squashed = _SQUASHED.match(text)
    if squashed:
        scheme = squashed["scheme"]
        raise UsageError(
            "this is a URL without its two slashes, which a pathlib.Path loses",
            url=_shown(text),
            expected=f"{scheme}://…",
            hint=f"Pass URLs as text; a directory of that name is written ./{scheme}:",
        )
    match = _URL.fullmatch(text)
    arn, rest = "", match["rest"] if match else ""
    if match and match["scheme"].lower() == "s3":
        arn, rest = split_arn(rest, _shown(text))
    if _CHAINED.match(text) or "::" in rest:
        raise UsageError(
            "chained URLs are not supported",
            url=_shown(text),
            hint="Pass the URL of the files themselves; a local directory of that name is written ./name",
        )
    if not match:
        return ParsedUrl("file", _local_key(text), text)
    scheme = match["scheme"].lower()
    scheme = _ALIASES.get(scheme, scheme)
    if scheme == "file":
        if not rest.startswith("/"):
            raise UsageError(
                "a file URL must hold an absolute path and no host", url=_shown(text), expected="file:///path"
            )
        return ParsedUrl(scheme, _local_key(rest), text)
    _check_no_secret(scheme, rest, text)
    if scheme not in _SCHEMES:
        _check_foreign(scheme, text)
    name = arn + rest.rstrip("/")
    if scheme == "memory":
        # As in fsspec, memory://a, memory:///a and /a are one file.
        name = name.lstrip("/")
        name = f"/{name}" if name else ""
    return ParsedUrl(scheme, name, text)


def check_not_in_the_clear(endpoint: str, shown: str) -> None:
    """Refuse to send credentials over plain http to another machine.

    Parameters
    ----------
    endpoint : str
        The URL of the server.
    shown : str
        The same without secrets, for the message.

    Raises
    ------
    UsageError
    """
    parts = urlsplit(endpoint)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise UsageError(
            "credentials would travel over plain http",
            url=shown,
            expected="https, or an endpoint on this machine",
            hint="Use https, or pass allow_http=True in the storage options.",
        )


def host_of(url: str) -> str:
    """Return the host that a URL leads to, for messages."""
    try:
        return urlsplit(url).hostname or "nowhere"
    except ValueError:
        return "nowhere"


def is_within(url: str, endpoint: str) -> bool:
    """Whether `url` may get what is meant for `endpoint`.

    Its host is the endpoint, one below it, or another one of the same service, and not reached with less
    protection.
    """
    try:
        target, home = urlsplit(url), urlsplit(endpoint)
    except ValueError:
        return False
    host, home_host = target.hostname or "", home.hostname or ""
    if target.scheme not in ("https", home.scheme) or not host:
        return False
    domains = [f".{home_host}", *(domain for domain in _SERVICE_DOMAINS if home_host.endswith(domain))]
    return host == home_host or host.endswith(tuple(domains))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_no_secret(scheme: str, rest: str, text: str) -> None:
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise UsageError(
            "the URL holds a password, which would end up in messages and records",
            url=_shown(text),
            hint="Pass it in storage_options.",
        )
    if scheme != "memory" and _SIGNED.search(rest):
        raise UsageError(
            "this is a signed URL: it works for one file, and anybody who reads it can use it",
            url=_shown(text),
            hint="Pass the URL without its query, and credentials in storage_options.",
        )


def _check_foreign(scheme: str, text: str) -> None:
    # Lazily: it asks fsspec.
    from ckptstore.storage.generic.files import is_served

    if not is_served(scheme):
        raise UsageError(
            f"unknown URL scheme {scheme!r}",
            url=_shown(text),
            expected=f"a local path or one of {', '.join(f'{known}://' for known in _SCHEMES)}",
            hint=_hint_for(scheme, text),
        )


def _hint_for(scheme: str, text: str) -> str | None:
    if scheme in ("http", "https"):
        return _shown(url_for_web_address(text))
    return "Write s3://." if scheme in ("s3a", "s3n") else None


def _text_of(path: UrlLike) -> str:
    try:
        # The types that TensorFlow and the os module accept.
        return os.fsdecode(path)
    except TypeError as error:
        raise UsageError(
            "a path must be text, bytes or a path object",
            expected="str or os.PathLike",
            actual=type(path).__name__,
        ) from error


def _local_key(text: str) -> str:
    try:
        path = os.path.abspath(text)
    except FileNotFoundError as error:
        raise UsageError(
            "the current directory does not exist any more", url=text, hint="Pass an absolute path."
        ) from error
    # POSIX lets two leading slashes mean something else; Linux does not.
    path = path.strip("/")
    return f"/{path}" if path else ""
