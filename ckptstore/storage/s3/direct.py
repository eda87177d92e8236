"""Requests of S3 over connections of our own: on one object, and reads that need no client.

Where a request goes, what it carries and who signs it is decided in one of two ways. Reads with plain
settings know it by themselves (`plain_access`). For everything else the service's client prepares one request
of each kind for each bucket, the blueprint (`S3Client.blueprint`). Only the name of the object, the headers
of the request at hand, and the signature are filled in here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ckptstore.storage.bucket_names import check_endpoint_names_no_bucket
from ckptstore.storage.credentials import SessionKeys
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import DataPath
from ckptstore.storage.redact import Redactor
from ckptstore.storage.s3.answers import parsed_refusal
from ckptstore.storage.s3.blueprint import Blueprint
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.plain_access import PlainAccess, Refused, RoleOf, plain_access
from ckptstore.storage.s3.refusals import fault_of_response
from ckptstore.storage.s3.renewed_keys import NoKeysError
from ckptstore.storage.s3.server_name import server_name
from ckptstore.storage.s3.signature import signed_headers
from ckptstore.storage.url import check_not_in_the_clear
from ckptstore.storage.wire.connections import Server, Servers
from ckptstore.storage.wire.exchange import Accept, HttpRequest, HttpResponse, exchange

if TYPE_CHECKING:
    from ckptstore.storage.s3.role_keys import RoleKeys

__all__ = ["NotDirect", "S3Direct", "Template", "object_target", "tls_context", "trusting_context"]

_SCOPE = "AWS4-HMAC-SHA256 Credential="

# Headers of the prepared request that belong to that one only.
_OF_ONE_REQUEST = {
    *("authorization", "x-amz-date", "date", "x-amz-content-sha256", "x-amz-security-token", "expect"),
    *("amz-sdk-invocation-id", "amz-sdk-request", "content-length", "content-md5", "host"),
    *("transfer-encoding", "x-amz-decoded-content-length", "x-amz-trailer", "x-amz-te", "content-encoding"),
}

# Requests that only the plain way makes; the client makes them itself.
_SMALL_READS = {"head_object", "list_objects_v2"}
_READS = {"get_object", *_SMALL_READS}

# A bucket that redirects more often than this is left to the client.
_MOST_REDIRECTS = 3

_REDIRECTS = {301, 302, 307, 308}
_WRITES = {"PUT", "DELETE"}

# Who is asking is known, and may not do it; the answer to a HEAD has no code.
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}


def object_target(name: str, query: str = "") -> str:
    """Return the end of a URL for an object; `query` is percent-encoded, without question mark."""
    return quote(name, safe="/~") + (f"?{query}" if query else "")


class NotDirect(Exception):  # noqa: N818 - not an error: the request goes through the client
    """A request that has to go through the client."""


@dataclass(frozen=True, slots=True)
class Template:
    """How one kind of request for one bucket is made.

    Attributes
    ----------
    base : str
        The URL, up to the name of the object.
    region : str
        Empty: anonymous.
    credentials : object
        `SessionKeys`, `RoleKeys`, or what the client calls so.
    is_plain : bool
        Whether the client has no part in it.
    """

    server: Server
    base: str
    headers: Mapping[str, str] = field(repr=False)
    region: str
    credentials: Any = field(repr=False)
    is_plain: bool = False


class S3Direct:
    """Sends what reads, writes or deletes one object, and other reads, where everything is plain.

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
        self._plain: PlainAccess | Refused | None = None
        self._not_plain: dict[str, Refused] = {}
        # By bucket, keys that a server did not take: files and environment may have others by now.
        self._refused: dict[str, SessionKeys] = {}
        self._role: RoleKeys | None = None

    def data_path(self, bucket: str, attempts: Attempts) -> DataPath:
        """Return how bulk bytes travel; see `Transport.data_path`."""
        if not self._is_wanted:
            return DataPath(False, "through s3fs: direct=False in the storage options")
        template = self._template("get_object", bucket, attempts)
        if not isinstance(template, Refused) and template.is_plain:
            template = self._template("put_object", bucket, attempts)
        if isinstance(template, Refused):
            return DataPath(False, f"through s3fs: {template.reason}", is_wanted=False)
        return DataPath(True, _over(template))

    def read_path(self, bucket: str) -> DataPath:
        """Return how small reads travel; see `Transport.read_path`."""
        template = self._plain_template("head_object", bucket)
        if isinstance(template, Refused):
            return DataPath(False, f"through s3fs: {template.reason}")
        plain = self._plain
        source = plain.source if isinstance(plain, PlainAccess) else ""
        return DataPath(True, f"{_over(template)}; keys: {source}")

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
            The name of the client's method: ``"get_object"``, ``"put_object"``, ``"upload_part"``,
            ``"delete_object"``, ``"head_object"``, ``"list_objects_v2"``.
        request : HttpRequest
            With a target of `object_target`, and the headers that the client's request does not have.

        Raises
        ------
        NotDirect
            If the client has to do it.
        Fault
        """
        if kind in _READS and bucket in self._refused:
            self._takes_other_keys(bucket)
        template = self._template(kind, bucket, attempts) if self._is_wanted else Refused("")
        if isinstance(template, Refused):
            raise NotDirect
        reply = self._reply(template, bucket, request, attempts, accept)
        fault = self._fault_of(request, reply, bucket, template)
        if bucket in self._refused and template.is_plain and self._takes_other_keys(bucket):
            template = self._template(kind, bucket, attempts)
            if isinstance(template, Refused):
                raise NotDirect
            reply = self._reply(template, bucket, request, attempts, accept)
            fault = self._fault_of(request, reply, bucket, template)
        if fault is not None:
            raise fault
        return reply

    def _reply(
        self,
        template: Template,
        bucket: str,
        request: HttpRequest,
        attempts: Attempts,
        accept: Accept | None,
    ) -> HttpResponse:
        try:
            signed = self._signed(template, request, attempts)
        except NoKeysError as error:
            self._leave_to_client(bucket, str(error))
            raise NotDirect from None
        reply = exchange(template.server, signed, attempts, accept)
        self._client.note_answer(reply.headers.get("Date"), reply.headers.get("Server"))
        return reply

    def _fault_of(
        self, request: HttpRequest, reply: HttpResponse, bucket: str, template: Template
    ) -> Fault | NotDirect | None:
        if reply.status in (200, 206) or (request.method in _WRITES and 200 <= reply.status < 300):
            return None
        if reply.status < 300:
            return Fault(Kind.GARBLED, f"the answer has status {reply.status}")
        keys = template.credentials
        if template.is_plain and not isinstance(keys, SessionKeys | None):
            keys = keys.known
        redact = self._client.redact
        if template.is_plain and keys is not None:
            # Keys of the environment, of a file or of a role are in no option.
            own = Redactor(keys._asdict())

            def redact(text: str) -> str:
                return own(self._client.redact(text))

        parsed = parsed_refusal(reply)
        fault = fault_of_response(parsed, redact)
        if template.is_plain and _needs_client(reply.status, fault):
            # It may know more of region and credentials, and has the word if it does not.
            self._leave_to_client(bucket, f"the server did not take a plain request ({fault.code})")
            self._redirects[bucket] = int(reply.status in _REDIRECTS)
            own_keys = template.credentials
            if fault.kind is Kind.FORBIDDEN and isinstance(own_keys, SessionKeys) and not self._are_renewed:
                self._refused[bucket] = own_keys
            return NotDirect()
        if reply.status in _REDIRECTS or fault.code == "AuthorizationHeaderMalformed":
            # The client finds the region, and its next blueprint leads there.
            self._redirects[bucket] = self._redirects.get(bucket, 0) + 1
            self._forget(bucket)
            return NotDirect()
        return fault

    @property
    def _are_renewed(self) -> bool:
        """Whether the keys are those that the caller gave last (`Transport.renew`), and no file counts."""
        return self._client.keys.newest is not None

    def _takes_other_keys(self, bucket: str) -> bool:
        """Look for keys again, in place of those that were refused; return whether there are others.

        The client, which is asked otherwise, looks once in its life: keys that are replaced in their file
        twice, or late, would need a new process.
        """
        try:
            found = plain_access(self._client.options)
        except Fault:
            return False  # it is just being written, perhaps
        if not isinstance(found, PlainAccess) or found.keys in (None, self._refused.get(bucket)):
            return False
        self._plain = found
        self._refused.pop(bucket, None)
        self._not_plain.pop(bucket, None)
        for key, template in list(self._templates.items()):
            if key[1] == bucket or (isinstance(template, Template) and template.is_plain):
                self._templates.pop(key, None)
        return True

    def _leave_to_client(self, bucket: str, reason: str) -> None:
        self._not_plain[bucket] = Refused(reason)
        for key in [key for key in self._templates if key[1] == bucket]:
            self._templates.pop(key, None)

    def _forget(self, bucket: str) -> None:
        refusal = Refused("the server sends requests for this bucket elsewhere, again and again")
        for key in [key for key in self._templates if key[1] == bucket]:
            if self._redirects[bucket] < _MOST_REDIRECTS:
                self._templates.pop(key, None)
            else:
                self._templates[key] = refusal

    def _signed(self, template: Template, request: HttpRequest, attempts: Attempts) -> HttpRequest:
        """Return `request` as it is sent: with its whole path, all headers and a signature."""
        # A bucket itself is written without the slash at the end, where it stands in the path.
        is_bucket = request.target.startswith("?") and urlsplit(template.base).path != "/"
        base = template.base.removesuffix("/") if is_bucket else template.base
        url = urlsplit(base + request.target)
        headers = {**template.headers, **request.headers, "Host": url.netloc.rpartition("@")[2]}
        if template.region:
            keys = self._client.current_keys(template.credentials, attempts)
            headers = signed_headers(request.method, url, headers, keys, template.region)
        target = url.path + (f"?{url.query}" if url.query else "")
        return HttpRequest(request.method, target, headers, request.body)

    def _template(self, kind: str, bucket: str, attempts: Attempts) -> Template | Refused:
        if self._pid != os.getpid():
            # Client, credentials and connections of the parent are not used in a forked child.
            self._templates, self._servers, self._pid = {}, Servers(), os.getpid()
        template = self._templates.get((kind, bucket))
        if template is None:
            template = self._plain_template(kind, bucket)
            if isinstance(template, Refused) and kind not in _SMALL_READS:
                template = self.template_of(self._client.blueprint(kind, bucket, attempts))
            self._templates[kind, bucket] = template
        return template

    def plain_server(self) -> str | None:
        """Return the name of the server, without the client; None if only the client can say."""
        plain = self._plain_access()
        if isinstance(plain, Refused):
            return None
        return server_name(plain.endpoint, self._client.redact(plain.endpoint))

    def _plain_access(self) -> PlainAccess | Refused:
        if self._plain is None:
            self._plain = plain_access(self._client.options)
        return self._plain

    def _plain_template(self, kind: str, bucket: str) -> Template | Refused:
        if kind not in _READS:
            return Refused("it writes")
        plain = self._not_plain.get(bucket) or self._plain_access()
        if isinstance(plain, Refused):
            return plain
        base = plain.base_of(bucket)
        if isinstance(base, Refused):
            return base
        if plain.endpoint:
            shown = self._client.redact(plain.endpoint)
            check_endpoint_names_no_bucket(plain.endpoint, bucket, shown)
            if not self._client.allow_http:
                check_not_in_the_clear(plain.endpoint, shown)
        server = self._servers.at(
            urlsplit(base),
            partial(trusting_context, plain.verify),
            plain.connect_timeout_s,
            plain.read_timeout_s,
            plain.most_connections,
        )
        region = plain.region if plain.keys is not None else ""
        return Template(server, base, plain.headers, region, self._credentials(plain.keys), is_plain=True)

    def _credentials(self, keys: SessionKeys | RoleOf | None) -> Any:
        if not isinstance(keys, RoleOf):
            return keys
        if self._role is None:
            # On use: botocore's session takes a third of a second to load.
            from ckptstore.storage.s3.role_keys import RoleKeys

            self._role = RoleKeys(keys.profile)
        return self._role

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


def _needs_client(status: int, fault: Fault) -> bool:
    """Whether the answer to a plain request may be another one if the client asks."""
    if status in _REDIRECTS or fault.kind is Kind.BAD_REQUEST:
        return True
    return fault.kind is Kind.FORBIDDEN and fault.code not in _DENIED


def _over(template: Template) -> str:
    return "over " + ("HTTPS" if template.server.is_encrypted else "HTTP")


def tls_context(blueprint: Blueprint) -> ssl.SSLContext:
    """Return a context that trusts, and presents, what the client would."""
    context = trusting_context(blueprint.verify)
    if blueprint.certificate:
        context.load_cert_chain(*blueprint.certificate)
    return context


def trusting_context(verify: str | bool) -> ssl.SSLContext:
    """Return a context that trusts the authorities in a file, those that botocore takes (True), or all."""
    context = ssl.create_default_context(cafile=_authorities() if verify is True else verify or None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _authorities() -> str:
    """Return the file of authorities that botocore takes, without loading botocore."""
    try:
        import certifi
    except ImportError:
        found = find_spec("botocore")
        return os.path.join(os.path.dirname((found and found.origin) or ""), "cacert.pem")
    return certifi.where()
