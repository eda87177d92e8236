"""The bulk requests of S3 over connections of our own, as the service's client would make and sign them.

Where a request goes and what it carries is not decided here: the client prepares one request of each kind for
each bucket, the blueprint (`S3Client.blueprint`). Only the name of the object, the headers of the request at
hand, and the signature are filled in.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError, create_parser

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import DataPath
from ckptstore.storage.s3.client import Blueprint, S3Client
from ckptstore.storage.s3.errors import fault_of, fault_of_response
from ckptstore.storage.wire.connections import Server, Servers
from ckptstore.storage.wire.exchange import Accept, HttpRequest, HttpResponse, exchange

__all__ = ["NotDirect", "Refused", "S3Direct", "Template", "object_target", "tls_context"]

_SCOPE = "AWS4-HMAC-SHA256 Credential="

# Headers of the prepared request that belong to that one only.
_OF_ONE_REQUEST = {
    *("authorization", "x-amz-date", "date", "x-amz-content-sha256", "x-amz-security-token", "expect"),
    *("amz-sdk-invocation-id", "amz-sdk-request", "content-length", "content-md5", "host"),
    *("transfer-encoding", "x-amz-decoded-content-length", "x-amz-trailer", "x-amz-te", "content-encoding"),
}

# A bucket that redirects more often than this is left to the client.
_MOST_REDIRECTS = 3

_REDIRECTS = {301, 302, 307, 308}

_PARSER = create_parser("rest-xml")


def object_target(name: str, query: str = "") -> str:
    """Return the end of a URL for an object; `query` is percent-encoded, without question mark."""
    return quote(name, safe="/~") + (f"?{query}" if query else "")


class NotDirect(Exception):  # noqa: N818 - not an error: the request goes through the client
    """A request that has to go through the client."""


class _Signer(S3SigV4Auth):  # type: ignore[misc]
    def payload(self, request: AWSRequest) -> str:
        # Its checksum is in the headers, and those are signed; hashing it once more costs 0.7 s per GiB.
        return "UNSIGNED-PAYLOAD"


class Refused(NamedTuple):
    """Why a blueprint cannot be followed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Template:
    """How one kind of request for one bucket is made."""

    server: Server
    base: str  # the URL, up to the name of the object
    headers: Mapping[str, str] = field(repr=False)
    region: str  # empty: anonymous
    credentials: Any = field(repr=False)


class S3Direct:
    """Sends requests with large bodies, or for them.

    Parameters
    ----------
    is_wanted : bool
        False: every request goes through the client.

    Threads
    -------
    Safe for concurrent use, and after a fork.
    """

    def __init__(self, client: S3Client, is_wanted: bool = True) -> None:
        self._client = client
        self._is_wanted = is_wanted
        self._pid = os.getpid()
        self._templates: dict[tuple[str, str], Template | Refused] = {}
        self._servers = Servers()
        self._redirects: dict[str, int] = {}

    def data_path(self, bucket: str, attempts: Attempts) -> DataPath:
        """Return how bulk bytes travel; see `Transport.data_path`."""
        if not self._is_wanted:
            return DataPath(False, "through s3fs: direct=False in the storage options")
        template = self._template("get_object", bucket, attempts)
        if isinstance(template, Refused):
            return DataPath(False, f"through s3fs: {template.reason}", is_wanted=False)
        return DataPath(True, "over " + ("HTTPS" if template.server.is_encrypted else "HTTP"))

    def request(
        self,
        kind: str,
        bucket: str,
        request: HttpRequest,
        attempts: Attempts,
        accept: Accept | None = None,
    ) -> HttpResponse:
        """Send one request and return its answer, which is a success.

        Parameters
        ----------
        kind : str
            The name of the client's method: ``"get_object"``, ``"put_object"``, ``"upload_part"``.
        request : HttpRequest
            With a target of `object_target`, and the headers that the client's request does not have.

        Raises
        ------
        NotDirect
            If the client has to do it.
        Fault
        """
        template = self._template(kind, bucket, attempts) if self._is_wanted else Refused("")
        if isinstance(template, Refused):
            raise NotDirect
        reply = exchange(template.server, self._signed(template, request, attempts), attempts, accept)
        self._client.note_date(reply.headers.get("Date"))
        if reply.status in (200, 206) or (request.method == "PUT" and 200 <= reply.status < 300):
            return reply
        raise self._judged(reply, bucket)

    def _judged(self, reply: HttpResponse, bucket: str) -> Fault | NotDirect:
        headers = {name.lower(): value for name, value in reply.headers.items()}
        answer = {"status_code": reply.status, "headers": headers, "body": reply.body}
        try:
            parsed = _PARSER.parse(answer, None) if reply.status >= 300 else {}
        except ResponseParserError as error:
            fault = fault_of(error, self._client.redact)
            return fault or Fault(Kind.GARBLED, "the answer cannot be read")
        code = parsed.get("Error", {}).get("Code")
        if reply.status in _REDIRECTS or code == "AuthorizationHeaderMalformed":
            # The client finds the region, and its next blueprint leads there.
            self._redirects[bucket] = self._redirects.get(bucket, 0) + 1
            self._forget(bucket)
            return NotDirect()
        return fault_of_response(parsed, self._client.redact)

    def _forget(self, bucket: str) -> None:
        refusal = Refused("the server sends requests for this bucket elsewhere, again and again")
        for key in [key for key in self._templates if key[1] == bucket]:
            if self._redirects[bucket] < _MOST_REDIRECTS:
                self._templates.pop(key, None)
            else:
                self._templates[key] = refusal

    def _signed(self, template: Template, request: HttpRequest, attempts: Attempts) -> HttpRequest:
        """Return `request` as it is sent: with its whole path, all headers and a signature."""
        url = template.base + request.target
        parts = urlsplit(url)
        headers = {**template.headers, **request.headers, "Host": parts.netloc.rpartition("@")[2]}
        if template.region:
            prepared = AWSRequest(method=request.method, url=url, headers=headers)
            frozen = self._client.current_credentials(template.credentials, attempts)
            _Signer(frozen, "s3", template.region).add_auth(prepared)
            headers = dict(prepared.headers.items())
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        return HttpRequest(request.method, target, headers, request.body)

    def _template(self, kind: str, bucket: str, attempts: Attempts) -> Template | Refused:
        if self._pid != os.getpid():
            # Client, credentials and connections of the parent are not used in a forked child.
            self._templates, self._servers, self._pid = {}, Servers(), os.getpid()
        template = self._templates.get((kind, bucket))
        if template is None:
            blueprint = self._client.blueprint(kind, bucket, attempts)
            template = self._templates[kind, bucket] = self.template_of(blueprint)
        return template

    def template_of(self, blueprint: Blueprint) -> Template | Refused:
        """Return how requests are made after a blueprint, or why it cannot be followed."""
        headers = {
            name: value for name, value in blueprint.headers.items() if name.lower() not in _OF_ONE_REQUEST
        }
        all_headers = {name.lower(): value for name, value in blueprint.headers.items()}
        base, placed, _ = blueprint.url.partition("?")[0].rpartition(blueprint.name)
        parts = urlsplit(blueprint.url)
        if (
            not placed
            or not base.endswith("/")
            or parts.scheme not in ("http", "https")
            or not parts.hostname
        ):
            return Refused("the client makes URLs of an unknown form")
        if blueprint.has_proxy:
            return Refused("a proxy is configured")
        if blueprint.own_connections:
            return Refused(f"{blueprint.own_connections} in config_kwargs shapes the client's connections")
        if blueprint.verify is None:
            return Refused("the TLS settings of this release of the client cannot be found")
        authorization = all_headers.get("authorization", "")
        region = ""
        if authorization:
            _, _, scope = authorization.removeprefix(_SCOPE).partition(",")[0].partition("/")
            fields = scope.split("/")
            if not authorization.startswith(_SCOPE) or len(fields) != 4 or fields[2] != "s3":
                return Refused("requests are signed in an unknown way")
            if all_headers.get("x-amz-content-sha256") != "UNSIGNED-PAYLOAD":
                return Refused("the configuration asks for signed payloads")
            if blueprint.credentials is None:
                return Refused("the credentials of this release of the client cannot be found")
            region = fields[1]
        elif "signature" in parts.query.lower():
            return Refused("requests are signed in an unknown way")
        server = self._servers.at(
            parts,
            partial(tls_context, blueprint),
            blueprint.connect_timeout_s,
            blueprint.read_timeout_s,
            blueprint.most_connections,
        )
        return Template(server, base, headers, region, blueprint.credentials)


def tls_context(blueprint: Blueprint) -> ssl.SSLContext:
    """Return a context that trusts, and presents, what the client would."""
    context = ssl.create_default_context(cafile=_authorities(blueprint.verify))
    if not blueprint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if blueprint.certificate:
        context.load_cert_chain(*blueprint.certificate)
    return context


def _authorities(verify: Any) -> str | None:
    return str(get_cert_path(verify)) if verify else None
