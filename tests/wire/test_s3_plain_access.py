"""Reads of S3 without its client: what they send is what the client would send, or the client sends it."""

from __future__ import annotations

import datetime
import json
import os
import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
import pytest
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, DEFAULT_S3_CONFIG_VARS
from botocore.httpsession import DEFAULT_CA_BUNDLE, get_cert_path

import ckptstore as ck
from ckptstore.errors import AccessError, DeadlineError, TransientError, UsageError
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.client_settings import CONFIG_KWARGS
from ckptstore.storage.s3.direct import S3Direct, trusting_context
from ckptstore.storage.s3.plain_access import PlainAccess, Refused, RoleOf, plain_access
from ckptstore.storage.s3.settings import ADDITIONAL_KWARGS, CLIENT_KWARGS
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.scope import Scope
from tests.servers.fault_proxy import FaultProxy, Request
from tests.servers.peer import PATIENCE_S, Conversation, running
from tests.servers.s3 import S3Server

_KEYS = {"key": "AKIDPLAIN", "secret": "s3cr3t-of-options"}
_PLACE = {"endpoint_url": "http://127.0.0.1:9000"}
_REGION = {"client_kwargs": {"region_name": "eu-north-1"}}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave no setting of this machine in the environment, and no file of AWS."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "BOTO")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()


def set_up(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Set variables and files of a case, and return its options."""
    for name, value in case.get("environment", {}).items():
        monkeypatch.setenv(name, value)
    for name in ("config", "credentials"):
        if name in case:
            Path("~/.aws", name).expanduser().write_text(case[name], encoding="utf-8")
    options: dict[str, Any] = case.get("options", {})
    return options


_VARIABLES = {"AWS_ACCESS_KEY_ID": "AKIDENV", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-environment"}
_FILE = "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = s3cr3t-of-file\n"

PLAIN: dict[str, dict[str, Any]] = {
    "options": {"options": _KEYS | _PLACE},
    "a token": {"options": _KEYS | _PLACE | {"token": "t0ken-of-options"}},
    "other names": {"options": {"username": "u", "password": "p", **_PLACE, "use_ssl": False}},
    "in client_kwargs": {
        "options": {
            "client_kwargs": {
                "aws_access_key_id": "AKIDINNER",
                "aws_secret_access_key": "s3cr3t",
                "aws_session_token": "t0ken",
                "endpoint_url": "https://storage.example:9000/",
                "region_name": "auto",
                "verify": False,
            }
        }
    },
    "anonymous": {"options": {"anon": True, **_PLACE}, "environment": _VARIABLES},
    "Amazon": {"options": _KEYS | _REGION},
    "Amazon's oldest": {"options": _KEYS | {"config_kwargs": {"region_name": "us-east-1"}}},
    "environment": {
        "environment": {
            **_VARIABLES,
            "AWS_SESSION_TOKEN": "t0ken",
            "AWS_ENDPOINT_URL": "http://localhost:1",
            "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000",
            "AWS_DEFAULT_REGION": "eu-south-2",
            "AWS_REGION": "us-west-2",
            "AWS_RETRY_MODE": "adaptive",
        },
        "credentials": _FILE,
    },
    "a region of the environment": {
        "environment": _VARIABLES | {"AWS_DEFAULT_REGION": "ap-southeast-3"},
        "config": "[default]\nregion = eu-west-1\n",
    },
    "files": {"credentials": _FILE, "config": "[default]\nregion = ca-west-1\noutput = json\n"},
    "one file": {"config": f"{_FILE}region = sa-east-1\nendpoint_url = https://h.example\n"},
    "a profile": {
        "options": {"profile": "other"},
        "environment": _VARIABLES,
        "credentials": f"{_FILE}{_FILE.replace('default', 'other').replace('AKIDFILE', 'AKIDOTHER')}",
        "config": "[default]\nrole_arn = x\n[profile other]\nregion = il-central-1\n",
    },
    "a profile of the environment": {
        "environment": {"AWS_PROFILE": "other"},
        "credentials": _FILE.replace("default", "other"),
        "config": "[profile  other]\nregion = me-south-1\n",
    },
    "settings": {
        "options": {
            **_KEYS,
            **_PLACE,
            "requester_pays": True,
            "s3_additional_kwargs": {"ExpectedBucketOwner": "123456789012", "ACL": "private"},
            "config_kwargs": {"connect_timeout": 3, "read_timeout": 4.5, "max_pool_connections": 7},
        },
        "environment": {"NO_PROXY": "127.0.0.1", "HTTP_PROXY": "http://proxy.example"},
    },
}


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_sent_is_what_the_client_would_send(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = S3Client(set_up(PLAIN[name], monkeypatch))
    access = plain_access(client.options)
    assert isinstance(access, PlainAccess), access
    attempts = Attempts(RetryPolicy(), RetryBudget())
    blueprint = client.blueprint("get_object", "bucket", attempts)
    theirs = S3Direct(client).template_of(blueprint)
    assert not isinstance(theirs, Refused), theirs
    assert access.base_of("bucket") == theirs.base
    signing = (access.region, access.keys) if access.keys else ("", None)
    keys = client.current_keys(theirs.credentials, attempts) if theirs.region else None
    assert signing == (theirs.region, keys)
    said = {key.lower(): value for key, value in theirs.headers.items()}
    assert {**said, "user-agent": "ckptstore"} == {
        key.lower(): value for key, value in access.headers.items()
    }
    assert access.verify == blueprint.verify
    assert access.connect_timeout_s == blueprint.connect_timeout_s
    assert access.read_timeout_s == blueprint.read_timeout_s
    assert access.most_connections == blueprint.most_connections
    shown = repr(access)
    assert "s3cr3t" not in shown
    assert "AKID" not in shown
    assert "t0ken" not in shown


def test_who_trusts_as_usual_trusts_the_authorities_of_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[str | None] = []
    monkeypatch.setattr(
        ssl, "create_default_context", lambda cafile: files.append(cafile) or SimpleNamespace()
    )
    trusting_context(True)
    monkeypatch.setitem(sys.modules, "certifi", None)
    trusting_context(True)
    assert files == [get_cert_path(True), DEFAULT_CA_BUNDLE]


def _file(text: str) -> dict[str, Any]:
    return {"options": _PLACE, "credentials": _FILE, "config": f"[default]\n{text}\n"}


_KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

UNUSUAL: dict[str, tuple[dict[str, Any], str]] = {
    "a section s3": (_file("s3 =\n  addressing_style = virtual"), "s3 is set in a profile"),
    "fips in a file": (_file("use_fips_endpoint = true"), "use_fips_endpoint"),
    "services": (_file("services = mine"), "services"),
    "the default twice": (_file("[profile default]\nregion = x"), "twice"),
    "all sections": (_file("[DEFAULT]\nregion = x"), "named"),
    "a broken file": (_file("no value"), "cannot be read"),
    "a name with blanks": (_file("[ profile x ]\nregion = x"), "named"),
    "a name with two blanks": (_file("[a  b]\nregion = x"), "named"),
    "no such profile": ({"options": {"profile": "none", **_KEYS, **_PLACE}}, "profile"),
    "a proxy": ({"options": _KEYS | _PLACE, "environment": {"HTTP_PROXY": "http://p.example"}}, "proxy"),
    "a password of the moment": (_file("role_arn = x\nmfa_serial = y"), "mfa_serial"),
    "half of the keys": ({"options": _PLACE | {"key": "k"}}, "part"),
    "half of a file": ({"options": _PLACE, "credentials": _FILE.rpartition("aws_secret")[0]}, "part"),
    "two sets of keys": ({"options": _KEYS | _PLACE | {"client_kwargs": {"aws_access_key_id": "k"}}}, "too"),
    "two names of a key": ({"options": _KEYS | _PLACE | {"username": "u"}}, "username"),
    "two tokens": (
        {
            "options": _PLACE,
            "environment": _VARIABLES | {"AWS_SESSION_TOKEN": "a", "AWS_SECURITY_TOKEN": "b"},
        },
        "two",
    ),
    "two endpoints": ({"options": _KEYS | _PLACE | {"client_kwargs": {"endpoint_url": "http://h"}}}, "two"),
    "no region": ({"options": _KEYS}, "region"),
    "another partition": ({"options": _KEYS | {"client_kwargs": {"region_name": "cn-north-1"}}}, "region"),
    "a region of none": (
        {"options": _KEYS | {"client_kwargs": {"region_name": "aws-global"}}},
        "region",
    ),
    "plain http to Amazon": ({"options": _KEYS | _REGION | {"use_ssl": False}}, "use_ssl"),
    "a path": ({"options": _KEYS | {"endpoint_url": "http://127.0.0.1:9000/s3"}}, "root"),
    "a user": ({"options": _KEYS | {"endpoint_url": "http://u:p@127.0.0.1"}}, "root"),
    "Amazon's own endpoint": (
        {"options": _KEYS | {"endpoint_url": "https://s3.dualstack.eu-north-1.amazonaws.com"}},
        "Amazon",
    ),
    "a session": ({"options": {"session": object(), **_PLACE}}, "session"),
    "regions of buckets": ({"options": _KEYS | {"cache_regions": True}}, "cache_regions"),
    "not wanted": ({"options": _KEYS | _PLACE | {"direct": False}}, "direct=False"),
    "another signature": (
        {"options": _KEYS | _PLACE | {"config_kwargs": {"signature_version": "s3"}}},
        "signature_version",
    ),
    "no number": ({"options": _KEYS | _PLACE | {"config_kwargs": {"read_timeout": None}}}, ""),
    "authorities in a directory": (
        {"options": _KEYS | _PLACE | {"client_kwargs": {"verify": "/etc"}}},
        "certificates",
    ),
    "an empty variable": ({"options": _KEYS | _PLACE, "environment": {"AWS_PROFILE": ""}}, "AWS_PROFILE"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_plain_is_left_to_the_client(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, reason = UNUSUAL[name]
    access = plain_access(set_up(case, monkeypatch))
    if isinstance(access, PlainAccess):
        found = access.base_of("bucket")
        assert isinstance(found, Refused) or not reason, access
    else:
        assert reason in access.reason
        for secret in ("s3cr3t", "AKID", "u:p@"):
            assert secret not in access.reason


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("end", ["\n", "\x00", " ", "é"])
def test_keys_that_cannot_be_right_are_no_outage(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if end == "\x00":
        options = {"key": f"AKID{end}", "secret": "s3cr3t"}
    else:
        options = {}
        for each in _KEY_VARIABLES:
            monkeypatch.setenv(each, f"s3cr3t{end if each == name else ''}")
    with pytest.raises(ck.AccessError, match="a character that none has") as caught:
        ck.latest_checkpoint("s3://bucket/run", storage_options={**options, **_PLACE})
    assert "s3cr3t" not in str(caught.value)


ROLES: dict[str, dict[str, Any]] = {
    "a role": _file("role_arn = arn:aws:iam::1:role/x\nsource_profile = default"),
    "sso": _file("sso_session = x\nsso_account_id = 1\nsso_role_name = y"),
    "a process": _file("credential_process = x"),
    "keys that are renewed": {
        "options": _PLACE,
        "environment": _VARIABLES | {"AWS_CREDENTIAL_EXPIRATION": "2030-01-01T00:00Z"},
    },
    "a web identity": {
        "options": _PLACE,
        "environment": {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x", "AWS_ROLE_ARN": "x"},
        "credentials": _FILE,
    },
    "nobody": {"options": _PLACE},
}


@pytest.mark.parametrize("name", ROLES)
def test_keys_of_a_role_are_left_to_the_session_of_botocore(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = plain_access(set_up(ROLES[name], monkeypatch))
    assert isinstance(access, PlainAccess), access
    assert isinstance(access.keys, RoleOf)


def test_every_name_that_is_not_known_here_is_left_to_the_client() -> None:
    inner = {
        "client_kwargs": CLIENT_KWARGS,
        "config_kwargs": CONFIG_KWARGS,
        "s3_additional_kwargs": ADDITIONAL_KWARGS,
    }
    left: dict[str, list[str]] = {}
    for option, names in inner.items():
        for name in sorted(names):
            access = plain_access({**_KEYS, **_PLACE, option: {name: object()}})
            if isinstance(access, Refused) and name in access.reason:
                left.setdefault(option, []).append(name)
    assert left["client_kwargs"] == ["api_version", "aws_account_id"]
    assert {"s3", "proxies", "client_cert", "use_fips_endpoint", "user_agent_extra"} <= {
        *left["config_kwargs"]
    }
    assert left["s3_additional_kwargs"] == ["SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5"]


def test_every_variable_that_botocore_reads_is_known_here_or_left_to_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Those of the last group shape no request: see the module.
    carried = {
        *("AWS_DEFAULT_PROFILE", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE"),
        "AWS_SHARED_CREDENTIALS_FILE",
        *(
            "AWS_METADATA_SERVICE_TIMEOUT",
            "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
            "AWS_EC2_METADATA_V1_DISABLED",
        ),
        *("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_MAX_ATTEMPTS"),
        *("AWS_STS_REGIONAL_ENDPOINTS", "AWS_RETRY_MODE", "AWS_REQUEST_CHECKSUM_CALCULATION"),
        *("AWS_RESPONSE_CHECKSUM_VALIDATION", "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES"),
        "AWS_DISABLE_REQUEST_COMPRESSION",
    }
    tables = (BOTOCORE_DEFAUT_SESSION_VARIABLES, DEFAULT_S3_CONFIG_VARS)
    texts = [row[1] for table in tables for row in table.values() if row[1]]
    names = {name for text in texts for name in ([text] if isinstance(text, str) else text)}
    assert len(names) > 25
    for name in names - carried:
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            access = plain_access(_KEYS | _PLACE)
            assert isinstance(access, Refused), name
            assert name in access.reason


def test_regions_are_those_of_one_partition() -> None:
    session = botocore.session.Session()

    def is_plain(region: str) -> bool:
        return isinstance(plain_access(_KEYS | {"client_kwargs": {"region_name": region}}), PlainAccess)

    known = session.get_available_regions("s3", partition_name="aws")
    assert [region for region in known if not is_plain(region)] == []
    assert len(known) > 20
    others = [name for name in session.get_available_partitions() if name != "aws"]
    assert others
    for partition in others:
        regions = session.get_available_regions("s3", partition_name=partition)
        assert [region for region in regions if is_plain(region)] == []


@pytest.mark.parametrize(
    "bucket",
    [
        *("dots.in.it", "some--x-s3", "alias-s3alias", "under_score", "UPPER", "xy"),
        "arn:aws:s3:eu-north-1:123456789012:accesspoint:x",
    ],
)
def test_buckets_with_names_of_their_own_are_left_to_the_client(bucket: str) -> None:
    access = plain_access(_KEYS | _REGION)
    assert isinstance(access, PlainAccess)
    assert isinstance(access.base_of(bucket), Refused)


@pytest.fixture
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


@pytest.fixture
def bucket(minio: S3Server) -> str:
    bucket = minio.make_bucket()
    minio.put(bucket, "run/x", b"there")
    return bucket


def storage_for(options: dict[str, Any]) -> ObjectStorage:
    return ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))


def by_client(request: Request) -> bool:
    return "amz-sdk-request" in {name.lower() for name in request.headers}


def reads(storage: ObjectStorage, bucket: str) -> None:
    key = f"{bucket}/run/x"
    version = storage.head(key).version
    assert storage.get(key).data == b"there"
    assert storage.get_unless(key, version) is None
    assert [info.key for info in storage.list(f"{bucket}/run/")] == [key]


def test_all_reads_go_without_the_client(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    reads(storage, bucket)
    assert [request.method for request in proxy.requests] == ["HEAD", "GET", "GET", "GET"]
    assert not any(map(by_client, proxy.requests))


ANSWERS = [
    *((301, "PermanentRedirect"), (307, "TemporaryRedirect"), (400, "AuthorizationHeaderMalformed")),
    *((400, "InvalidRequest"), (400, "ExpiredToken"), (401, "Unauthorized"), (403, "InvalidAccessKeyId")),
    *((403, "SignatureDoesNotMatch"), (403, "RequestTimeTooSkewed"), (404, "XAdminUserNotFound")),
]


@pytest.mark.parametrize("read", ["head", "get", "list"])
@pytest.mark.parametrize(("status", "code"), ANSWERS)
def test_who_is_not_understood_lets_the_client_ask(
    minio: S3Server, proxy: FaultProxy, bucket: str, read: str, status: int, code: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    proxy.when("HEAD" if read == "head" else "GET").answer(status, code, times=1)
    if read == "head":
        assert storage.head(f"{bucket}/run/x").size_bytes == 5
    elif read == "get":
        assert storage.get(f"{bucket}/run/x").data == b"there"
    else:
        assert len(list(storage.list(f"{bucket}/run/"))) == 1
    # The answer to a HEAD has no code: a GET finds out what was meant, where that matters.
    assert not by_client(proxy.requests[0])
    reads(storage, bucket)
    if proxy.requests[1].method != "GET" or read != "head":
        assert by_client(proxy.requests[1])
        path = storage.transport.read_path(bucket)
        assert path is not None
        assert (path.is_direct, str(code) in path.reason or read == "head") == (False, True)


class _Giver:
    """Gives the keys of a role, as the agent of a container does."""

    def __init__(self, server: S3Server, life_s: float) -> None:
        self.asked = 0
        self.life_s = life_s
        self.answers = True
        self._server = server

    def serve(self, talk: Conversation) -> None:
        talk.take()
        self.asked += 1
        if not self.answers:
            talk.answer(b"{}", "500 Not Now", "Connection: close\n")
            return
        keys = self._server.user_with(["*"], "*")
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.life_s)
        given = {
            "AccessKeyId": keys["key"],
            "SecretAccessKey": keys["secret"],
            "Token": keys["token"],
            "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        talk.answer(json.dumps(given).encode(), "200 OK", "Connection: close\n")


def test_the_keys_of_a_role_are_used_and_renewed_without_the_client(
    minio: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    giver = _Giver(minio, 3600.0)
    with running(giver.serve) as peer:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{peer.port}/")
        storage = storage_for({"endpoint_url": proxy.url})
        reads(storage, bucket)
        assert giver.asked == 1
        # Within the quarter of an hour before the end they are renewed, every time; also those just found.
        giver.life_s = 60.0
        storage = storage_for({"endpoint_url": proxy.url})
        storage.head(f"{bucket}/run/x")
        storage.head(f"{bucket}/run/x")
        assert giver.asked == 4
    assert not any(map(by_client, proxy.requests))
    tokens = {request.headers.get("X-Amz-Security-Token") for request in proxy.requests}
    assert len(tokens) == 3
    path = storage.transport.read_path(bucket)
    assert path is not None
    assert path.is_direct
    assert "botocore" in path.reason
    shown = f"{storage!r} {path!r} {vars(vars(storage.transport)['_direct'])!r}"
    for token in tokens:
        assert token
        assert token not in shown


def test_a_role_that_is_not_given_is_asked_for_by_the_client_which_says_so(
    minio: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = storage_for({"endpoint_url": proxy.url})
    with pytest.raises(AccessError, match="credentials"):
        storage.get(f"{bucket}/run/x")
    path = storage.transport.read_path(bucket)
    assert path is not None
    assert not path.is_direct
    assert "finds no credentials" in path.reason
    assert proxy.requests == []


def test_keys_of_a_role_cannot_be_had_while_their_giver_is_away(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0.0)
    with running(lambda talk: talk.take()) as peer:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{peer.port}/")
        for options in ({}, {"direct": False}):
            storage = storage_for(_PLACE | options)
            with (
                pytest.raises(TransientError, match=r"not answer|container-role"),
                Scope(retries_failed=False),
            ):
                storage.get(f"{bucket}/run/x")


def test_who_gives_no_keys_does_not_hold_up_the_deadline(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()

    def hold(talk: Conversation) -> None:
        talk.take()
        held.wait(PATIENCE_S)

    with running(hold) as peer:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{peer.port}/")
        storage = storage_for(_PLACE)
        with pytest.raises(DeadlineError), Scope(0.3):
            storage.get(f"{bucket}/run/x")
        held.set()


def test_who_may_not_is_told_so_at_once(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    proxy.when("GET").answer(403, "AccessDenied")
    for call in (lambda: storage.get(f"{bucket}/run/x"), lambda: list(storage.list(f"{bucket}/run/"))):
        with pytest.raises(AccessError):
            call()
    assert len(proxy.requests) == 2
    assert not any(map(by_client, proxy.requests))


def test_keys_that_are_replaced_in_their_file_are_found_again_and_again(
    minio: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    path = Path("~/.aws/credentials").expanduser()

    def right() -> str:
        keys = minio.user_with(["*"], "*")
        text = _FILE.replace("AKIDFILE", keys["key"]).replace("s3cr3t-of-file", keys["secret"])
        return f"{text}aws_session_token = {keys['token']}\n"

    path.write_text(_FILE, encoding="utf-8")
    storage = storage_for({"endpoint_url": proxy.url})
    storage.transport.read_path(bucket)  # reads the file
    path.write_text(right(), encoding="utf-8")
    assert storage.get(f"{bucket}/run/x").data == b"there"
    assert not any(map(by_client, proxy.requests))
    # Revoked before there are others: the client has no better ones, and the file is looked at again.
    for text in (_FILE, "[default", _FILE.replace("AKIDFILE", "AKIDOTHER")):
        proxy.when().answer(403, "InvalidAccessKeyId")
        path.write_text(text, encoding="utf-8")
        for read in (storage.get, storage.head):
            with pytest.raises(AccessError):
                read(f"{bucket}/run/x")
        proxy.clear()
        path.write_text(right(), encoding="utf-8")
        reads(storage, bucket)
        assert not by_client(proxy.requests[-1])


def test_keys_of_the_environment_are_in_no_message(
    minio: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (_VARIABLES | {"AWS_SESSION_TOKEN": "t0ken-of-environment"}).items():
        monkeypatch.setenv(name, value)
    storage = storage_for({"endpoint_url": proxy.url})
    proxy.when().echo(403, "AccessDenied")
    with pytest.raises(AccessError) as caught:
        storage.get(f"{bucket}/run/x")
    assert not by_client(proxy.requests[-1])
    shown = f"{caught.value} {caught.value!r} {caught.value.__context__!r} {storage!r} {storage.transport!r}"
    for secret in (*_VARIABLES.values(), "t0ken-of-environment", "Signature=0"):
        assert secret not in shown


def test_another_environment_is_another_way(
    minio: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in minio.through(proxy.url).environment.items():
        monkeypatch.setenv(name, value)
    for fips in (False, True, False):
        with monkeypatch.context() as patch:
            if fips:
                patch.setenv("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "true")
            place = locate(f"s3://{bucket}/run/x")
            assert place.storage.get(place.key).data == b"there"
            assert by_client(proxy.requests[-1]) is False
            assert isinstance(place.storage, ObjectStorage)
            path = place.storage.transport.read_path(bucket)
            assert path is not None
            assert path.is_direct is not fips
            assert ("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH" in path.reason) is fips


def test_what_is_refused_is_refused_before_anything_is_sent(proxy: FaultProxy) -> None:
    storage = storage_for(_KEYS | {"endpoint_url": "http://storage.example"})
    with pytest.raises(UsageError, match="plain http"):
        storage.get("bucket/x")
    storage = storage_for(_KEYS | {"endpoint_url": "http://bucket.localhost"})
    with pytest.raises(UsageError, match="holds the bucket"):
        storage.head("bucket/x")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"<html/>", b"<ListBucketResult><Contents/></ListBucketResult>", b"<Error/>"]
)
def test_a_list_that_is_none_is_no_empty_directory(
    minio: S3Server, proxy: FaultProxy, bucket: str, body: bytes
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    proxy.when("GET").answer(200, body=body)
    with pytest.raises(Exception, match="list") as caught:
        list(storage.list(f"{bucket}/run/"))
    assert type(caught.value).__name__ == "TransientError"


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_list_with_more_to_come_and_no_way_to_ask_for_it_is_not_taken_for_all(
    minio: S3Server, proxy: FaultProxy, bucket: str, is_direct: bool
) -> None:
    storage = storage_for({**minio.through(proxy.url).options, "direct": is_direct})
    body = b"<ListBucketResult><IsTruncated>true</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>"
    proxy.when("GET").answer(200, body=body)
    with pytest.raises(TransientError, match="more of it"):
        list(storage.list(f"{bucket}/run/"))


def test_many_odd_names_are_listed_page_by_page(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    names = ["a b", "plus+and&", "per%2Fcent", "ü", "~(1)'!*", "x=y;z:@,", "<tag>", "q?v=3#x", '"quoted"']
    for name in names:
        minio.put(bucket, f"odd dir+%/{name}", b"")
    storage = storage_for(minio.through(proxy.url).options)
    # Signed anew by the proxy.
    proxy.when("GET").rewrite(lambda request: replace(request, path=f"{request.path}&max-keys=2"))
    found = [info.key for info in storage.list(f"{bucket}/odd dir+%/")]
    assert found == sorted(f"{bucket}/odd dir+%/{name}" for name in names)
    assert len(proxy.requests) == 5
    assert not any(map(by_client, proxy.requests))
