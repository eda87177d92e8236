"""What s3fs and the clients below it raise, and which fault that is: by code and status."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import botocore.exceptions as boto
import pytest
from botocore.parsers import ResponseParserError
from s3fs.errors import translate_boto_error

from ckptstore.storage.object_store.faults import Kind
from ckptstore.storage.s3.errors import fault_of


def _shown(text: str) -> str:
    return text


def _client_error(status: int, code: str = "", message: str = "words", **headers: str) -> boto.ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return boto.ClientError(response, "PutObject")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", Kind.ABSENT),
        (404, "NoSuchBucket", Kind.NO_BUCKET),
        (404, "404", Kind.UNPROVED),
        (404, "", Kind.UNPROVED),
        (404, "XAdminUserNotFound", Kind.FORBIDDEN),
        (404, "NoSuchUpload", Kind.UPLOAD_GONE),
        (400, "InvalidPart", Kind.UPLOAD_GONE),
        (403, "AccessDenied", Kind.FORBIDDEN),
        (403, "403", Kind.FORBIDDEN),
        (403, "InvalidAccessKeyId", Kind.FORBIDDEN),
        (403, "SignatureDoesNotMatch", Kind.FORBIDDEN),
        (403, "RequestTimeTooSkewed", Kind.FORBIDDEN),
        (400, "ExpiredToken", Kind.FORBIDDEN),
        (400, "KMS.DisabledException", Kind.FORBIDDEN),
        (401, "Unauthorized", Kind.FORBIDDEN),
        (412, "PreconditionFailed", Kind.PRECONDITION),
        (412, "412", Kind.PRECONDITION),
        (409, "ConditionalRequestConflict", Kind.CONFLICT),
        (409, "OperationAborted", Kind.CONFLICT),
        (409, "ObjectParentIsFile", Kind.MISPLACED),
        (409, "ExistingObjectIsDirectory", Kind.MISPLACED),
        (416, "InvalidRange", Kind.BAD_RANGE),
        (429, "TooManyRequests", Kind.THROTTLED),
        (503, "SlowDown", Kind.THROTTLED),
        (503, "", Kind.THROTTLED),
        (500, "SlowDown", Kind.THROTTLED),
        (500, "InternalError", Kind.SERVER),
        (502, "", Kind.SERVER),
        (504, "", Kind.SERVER),
        (507, "", Kind.FULL),
        (507, "XMinioStorageFull", Kind.FULL),
        (400, "BadDigest", Kind.BAD_CHECKSUM),
        (400, "XAmzContentChecksumMismatch", Kind.BAD_CHECKSUM),
        (400, "RequestTimeout", Kind.CUT),
        (400, "IncompleteBody", Kind.CUT),
        (400, "InvalidArgument", Kind.BAD_REQUEST),
        (405, "MethodNotAllowed", Kind.UNSUPPORTED),
        (501, "NotImplemented", Kind.UNSUPPORTED),
    ],
)
def test_the_code_decides_and_then_the_status(status: int, code: str, kind: Kind) -> None:
    error = _client_error(status, code)
    for raised in (error, translate_boto_error(error)):
        fault = fault_of(raised, _shown)
        assert fault is not None
        assert (fault.kind, fault.code, fault.text) == (kind, code or str(status), "words")


def test_a_lost_create_is_the_same_with_and_without_a_condition_element() -> None:
    # MinIO does not, and s3fs raises OSError(22) instead of FileExistsError.
    for condition in ({}, {"Condition": "If-None-Match"}):
        error = _client_error(412, "PreconditionFailed")
        error.response["Error"].update(condition)
        fault = fault_of(translate_boto_error(error), _shown)
        assert fault is not None
        assert fault.kind is Kind.PRECONDITION


def test_a_full_disk_that_is_reported_in_words_only_is_recognised() -> None:
    error = _client_error(500, "InternalError", "cause(write /data/x: no space left on device)")
    fault = fault_of(error, _shown)
    assert fault is not None
    assert fault.kind is Kind.FULL


@pytest.mark.parametrize(("said", "retry_after_s"), [("3", 3.0), ("0.5", 0.5), ("soon", 0.0)])
def test_the_pause_that_a_server_asks_for_is_kept(said: str, retry_after_s: float) -> None:
    fault = fault_of(_client_error(503, "SlowDown", **{"retry-after": said}), _shown)
    assert fault is not None
    assert fault.retry_after_s == retry_after_s


def _key() -> Any:
    return aiohttp.client_reqrep.ConnectionKey("host", 443, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (boto.NoCredentialsError(), Kind.FORBIDDEN),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), Kind.FORBIDDEN),
        (boto.CredentialRetrievalError(provider="x", error_msg="y"), Kind.FORBIDDEN),
        (boto.ProfileNotFound(profile="x"), Kind.FORBIDDEN),
        (boto.ConnectTimeoutError(endpoint_url="u"), Kind.NOT_SENT),
        (
            boto.EndpointConnectionError(
                endpoint_url="u", error=aiohttp.ClientConnectorError(_key(), OSError(111, "refused"))
            ),
            Kind.NOT_SENT,
        ),
        (boto.EndpointConnectionError(endpoint_url="u", error=aiohttp.ClientOSError(104, "reset")), Kind.CUT),
        (boto.EndpointConnectionError(endpoint_url="u", error=socket.gaierror(-2, "unknown")), Kind.NOT_SENT),
        (boto.ReadTimeoutError(endpoint_url="u"), Kind.STALLED),
        (boto.ConnectionClosedError(endpoint_url="u"), Kind.CUT),
        (boto.HTTPClientError(error=ValueError("x")), Kind.CUT),
        (
            boto.SSLError(
                endpoint_url="u",
                error=aiohttp.ClientConnectorCertificateError(_key(), ValueError("self-signed")),
            ),
            Kind.UNTRUSTED,
        ),
        (boto.SSLError(endpoint_url="u", error=OSError("handshake")), Kind.NOT_SENT),
        (aiohttp.ClientPayloadError("cut"), Kind.CUT),
        (TimeoutError(), Kind.STALLED),
        (ConnectionResetError(104, "reset"), Kind.CUT),
        (ResponseParserError("not XML"), Kind.GARBLED),
        (boto.ParamValidationError(report="bad bucket"), Kind.BAD_REQUEST),
        (ValueError("Invalid endpoint: x"), Kind.BAD_REQUEST),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_errors_below_the_service_are_told_apart_by_their_class(error: BaseException, kind: Kind) -> None:
    fault = fault_of(error, _shown)
    assert fault is not None
    assert fault.kind is kind
    assert str(fault)


@pytest.mark.parametrize(
    ("code", "word"),
    [("RequestTimeTooSkewed", "clock"), ("ExpiredToken", "Renew"), ("SignatureDoesNotMatch", "secret key")],
)
def test_a_refusal_says_what_to_mend(code: str, word: str) -> None:
    fault = fault_of(_client_error(403, code), _shown)
    assert fault is not None
    assert word in (fault.hint or "")


def test_missing_credentials_are_told_apart_from_wrong_ones() -> None:
    fault = fault_of(boto.NoCredentialsError(), _shown)
    assert fault is not None
    assert "AWS_ACCESS_KEY_ID" in (fault.hint or "")


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (boto.EndpointConnectionError(endpoint_url="u", error=OSError(111, "refused")), Kind.NOT_SENT),
        (boto.ReadTimeoutError(endpoint_url="u"), Kind.NOT_SENT),
        (boto.MetadataRetrievalError(error_msg="Received non 200 response 403"), Kind.FORBIDDEN),
        (boto.SSLError(endpoint_url="u", error=OSError("self-signed")), Kind.FORBIDDEN),
    ],
    ids=["refused", "no answer", "says no", "not trusted"],
)
def test_a_giver_of_keys_that_is_away_is_an_outage(below: Exception, kind: Kind) -> None:
    # As botocore raises it: in handlers of the error before, without a cause.
    try:
        try:
            raise below
        except boto.BotoCoreError:
            raise boto.CredentialRetrievalError(provider="container-role", error_msg="y")  # noqa: B904
    except boto.CredentialRetrievalError as error:
        fault = fault_of(error, _shown)
    assert fault is not None
    assert fault.kind is kind


def test_an_error_in_the_program_is_no_fault() -> None:
    assert fault_of(KeyError("x"), _shown) is None
    assert fault_of(AttributeError("x"), _shown) is None


def test_every_text_goes_through_the_redactor() -> None:
    for error in (_client_error(403, "X", "the secret"), aiohttp.ClientPayloadError("the secret")):
        fault = fault_of(error, lambda text: text.replace("secret", "***"))
        assert fault is not None
        assert fault.text == "the ***"


def test_a_redirect_names_the_host_and_what_to_do() -> None:
    for error in (
        _client_error(307, "TemporaryRedirect", location="https://elsewhere.example/bucket"),
        _client_error(301, "PermanentRedirect", location="https://me:hidden@elsewhere.example/"),
    ):
        fault = fault_of(error, _shown)
        assert fault is not None
        assert fault.kind is Kind.BAD_REQUEST
        assert "elsewhere.example" in fault.text
        assert "hidden" not in fault.text
        assert "region" in (fault.hint or "")
