"""Copies inside Google Cloud Storage: a rewrite, in as many requests as the service wants."""

from __future__ import annotations

from ckptstore.storage.gcs.messages import RESOURCE_FIELDS, json_of, object_path, resource
from ckptstore.storage.gcs.service import (
    JSON_API,
    GcsService,
    condition,
    garbled,
    json_bytes,
    object_url,
    result_in,
)
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutResult
from ckptstore.storage.values import ObjectInfo

__all__ = ["copied"]


def copied(
    service: GcsService,
    source: ObjectInfo,
    target: ObjectName,
    attempts: Attempts,
    write_id: str,
    precondition: Precondition | None,
) -> PutResult:
    """Copy an object; see `Transport.copy`."""
    bucket, _, name = source.key.partition("/")
    url = (
        object_url(JSON_API, ObjectName(bucket, name))
        + "/rewriteTo"
        + object_path(target.bucket, target.name)
    )
    body = (json_bytes(resource(target.name, write_id)),)
    query = {
        "ifSourceGenerationMatch": source.version,
        "fields": f"done,rewriteToken,resource({RESOURCE_FIELDS})",
        **condition(precondition),
    }
    headers = {"Content-Type": "application/json; charset=UTF-8"}
    token: str | None = None
    while True:
        # A large one between places takes several requests, each of which goes on where the last ended.
        answer = service.ask("POST", url, attempts, {**query, "rewriteToken": token}, headers, body)
        if answer.status != 200:
            fault = service.fault(answer, target.bucket, attempts)
            if fault.kind in (Kind.ABSENT, Kind.BAD_REQUEST, Kind.FORBIDDEN):
                raise Fault(Kind.UNSUPPORTED, fault.text, code=fault.code)
            raise fault
        fields = json_of(answer.body)
        if not isinstance(fields, dict):
            raise garbled(answer.status)
        if fields.get("done", True):
            return result_in(fields.get("resource"), answer.status)
        token = str(fields.get("rewriteToken"))
        attempts.record_progress()
