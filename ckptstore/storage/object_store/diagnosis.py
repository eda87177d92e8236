"""What an object store answers to the first requests of ``ckptstore doctor``: where it is, what it does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ckptstore.errors import CkptStoreError, NotFoundError
from ckptstore.storage.finding import Finding, failed
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import Verdicts
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.transport import ObjectName

__all__ = ["diagnose_objects"]

# Nothing came back, or not from an object store.
_NO_ANSWER = frozenset({Kind.NOT_SENT, Kind.CUT, Kind.STALLED, Kind.UNTRUSTED, Kind.GARBLED})

# Codes of FORBIDDEN that say who is asking, and not what.
_UNKNOWN_USER = frozenset(
    {
        *("DefaultCredentialsError", "RefreshError"),
        *("401", "ExpiredToken", "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken"),
        *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired", "XAdminUserNotFound"),
    }
)

# Larger than what goes in one stream anywhere.
_LARGE_BYTES = 1 << 40


def diagnose_objects(service: ObjectService, directory_key: str, *, read_only: bool) -> Iterator[Finding]:
    """Yield what `Diagnosable.diagnose` asks for.

    Parameters
    ----------
    service : ObjectService
    directory_key : str
        ``bucket/name`` of the directory, or the bucket alone.
    """
    url = service.url_of(directory_key)
    try:
        endpoint = service.transport.endpoint
    except Fault as fault:
        yield failed("endpoint", error_of(fault, "cannot find out where the server is", url))
        return
    except CkptStoreError as error:
        yield failed("endpoint", error)
        return
    finding = _answers(service, directory_key, url)
    if finding.check != "endpoint":
        yield Finding("endpoint", "ok", endpoint)
    yield finding
    if finding.state == "failed":
        return
    bucket = directory_key.partition("/")[0]
    yield from _read_path(service, bucket)
    yield from _data_path(service, bucket)
    if read_only:
        return
    try:
        object_name = service.object_name(f"{directory_key}/.ckptstore-doctor")
        verdicts = service.verdicts(object_name, url)
    except CkptStoreError as error:
        yield failed("conditions", error)
        return
    yield _conditions(verdicts)
    yield from _parts(service, object_name)


def _answers(service: ObjectService, directory_key: str, url: str) -> Finding:
    """Return whether a server answers, takes the credentials, and lists the directory."""
    bucket, _, name = directory_key.partition("/")
    attempts = service.new_attempts()
    try:
        attempts.run(partial(service.transport.list_page, bucket, f"{name}/" if name else "", None))
    except Fault as fault:
        error = error_of(fault, "cannot list the directory", url, attempts)
        if fault.kind in _NO_ANSWER:
            return failed("endpoint", error)
        if fault.kind is Kind.NO_BUCKET:
            # Elsewhere not a NotFoundError, which readers take for "no checkpoint". Here it is the answer.
            missing = NotFoundError(f"the bucket does not exist: {fault}", url=url, hint=error.hint)
            return failed("bucket", missing)
        if fault.kind is Kind.FORBIDDEN:
            # Who is known and may not list may still read and write. Others may do nothing.
            # Without a code nothing was sent: the client has no credentials.
            has_credentials = bool(fault.code) or fault.hint is None
            is_known = fault.code not in _UNKNOWN_USER and has_credentials
            return Finding("bucket", "degraded", str(error)) if is_known else failed("credentials", error)
        return failed("bucket", error)
    except CkptStoreError as error:
        return failed("bucket", error)
    return Finding("bucket", "ok", "is there, and can be listed with these credentials")


def _read_path(service: ObjectService, bucket: str) -> Iterator[Finding]:
    """Yield how small reads travel, where there are two ways; neither is a fault."""
    path = service.transport.read_path(bucket)
    if path is not None:
        yield Finding("reads", "ok", ("directly " if path.is_direct else "") + path.reason)


def _data_path(service: ObjectService, bucket: str) -> Iterator[Finding]:
    """Yield how the bytes of large objects travel."""
    try:
        data_path = service.new_attempts().run(partial(service.transport.data_path, bucket))
    except Fault:
        return  # the finding before has reported it
    if data_path.is_wanted:
        directly = "directly " if data_path.is_direct else ""
        yield Finding("large objects", "ok", directly + data_path.reason)
    else:
        yield Finding(
            "large objects",
            "degraded",
            data_path.reason,
            hint="It works, and is slower; see storage option direct.",
        )


def _parts(service: ObjectService, object_name: ObjectName) -> Iterator[Finding]:
    """Yield how the parts of large objects travel, where that depends on the server."""
    try:
        parts = service.transport.parts(object_name, _LARGE_BYTES, service.new_attempts())
    except Fault as fault:
        yield Finding("parts of uploads", "degraded", f"cannot find out how they travel: {fault}")
        return
    if parts.reason:
        hint = None if parts.is_wanted else "It works, and is slower."
        yield Finding("parts of uploads", "ok" if parts.is_wanted else "degraded", parts.reason, hint=hint)


def _conditions(verdicts: Verdicts) -> Finding:
    words = [
        f"create {_word(verdicts.create)}",
        f"swap {_word(verdicts.cas)} (of nothing: {_word(verdicts.cas_missing)})",
        f"delete {'honoured' if verdicts.cond_delete else 'not relied on'}",
    ]
    detail = ", ".join(words)
    # The finding of the trial reports the consequences.
    return Finding("conditions", "degraded" if verdicts.single_writer else "ok", detail)


def _word(verdict: str) -> str:
    return {"yes": "honoured", "created": "created nevertheless"}.get(verdict, verdict)
