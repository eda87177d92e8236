"""gc, repair and doctor against real servers: nothing too much, nothing too little, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.storage.registry import locate
from tests.servers.s3 import S3Server


@dataclass
class Place:
    """A bucket of a server, and the options that lead to it."""

    scheme: str
    bucket: str
    server: Any

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/run"

    @property
    def options(self) -> dict[str, Any]:
        return self.server.options

    def keys(self) -> set[str]:
        return {key.removeprefix("run/") for key in self.server.keys(self.bucket)}

    def put(self, name: str, data: bytes = b"left over") -> None:
        self.server.put(self.bucket, f"run/{name}", data)

    def save(self, *steps: int, **settings: Any) -> ck.Saver:
        saver = ck.Saver(**{"max_to_keep": 2, **settings})
        for step in steps:
            values = {"w": np.full(4, step, np.float32)}
            saver.save(values, f"{self.url}/model", step, storage_options=self.options)
        return saver


@pytest.fixture(params=["minio", "versitygw", "gcs_server", "bare_gcs_server"])
def place(request: pytest.FixtureRequest) -> Place:
    server = request.getfixturevalue(request.param)
    return Place("gs" if "gcs" in request.param else "s3", server.make_bucket(), server)


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(command: str, *arguments: str, url: str | None = None) -> tuple[int, dict[str, Any]]:
        options = [f"{name}={json.dumps(value)}" for name, value in place.options.items()]
        words = [word for option in options for word in ("--storage-option", option)]
        capsys.readouterr()
        code = main([command, url or place.url, "--json", *arguments, *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, json.loads(said.out or "{}")

    return call


def files(*prefixes: str) -> set[str]:
    return {f"{p}.{ending}" for p in prefixes for ending in ("data-00000-of-00001", "index", "meta")}


def test_gc_leaves_exactly_what_is_needed(place: Place, run: Any) -> None:
    place.save(1, 2, 3)
    for name in ("model-9.data-00000-of-00001", "model-9.meta", ".ckptstore-probe-0123456789ab"):
        place.put(name)
    place.put("exported.meta")
    assert run("gc")[1]["files"] == []
    assert run("gc", "--min-age", "0s", "--dry-run")[1]["files_removed"] == 0
    code, found = run("gc", "--min-age", "0s")
    assert (code, found["files_removed"]) == (0, 3)
    assert place.keys() == {"checkpoint", "exported.meta"} | files("model-2", "model-3")


def test_gc_removes_what_overwrites_replaced(place: Place, run: Any) -> None:
    place.save(1, 2, 2, 2)
    assert run("gc", "--min-age", "0s")[1]["files_removed"] == 1
    assert len(place.keys()) == 1 + 3 + 3
    restored: dict[str, np.ndarray] = {}
    ck.Saver().restore(restored, f"{place.url}/model-2", storage_options=place.options)
    np.testing.assert_array_equal(restored["w"], np.full(4, 2, np.float32))


def test_gc_drops_unfinished_uploads(minio: S3Server, versitygw: S3Server, capsys: Any) -> None:
    for server in (minio, versitygw):
        bucket = server.make_bucket()
        key = "run/model-1.data-00000-of-00001"
        server.raw.create_multipart_upload(Bucket=bucket, Key=key)
        options = [f"--storage-option={name}={json.dumps(value)}" for name, value in server.options.items()]
        assert main(["gc", f"s3://{bucket}/run", *options]) == 3
        assert server.uploads(bucket, key) == [key]
        assert main(["gc", f"s3://{bucket}/run", "--min-age", "0s", *options]) == 0
        assert server.uploads(bucket, key) == []


def test_repair_after_the_record_was_lost(place: Place, run: Any) -> None:
    place.save(1, 2, 3)
    place.put("checkpoint", b"\xff\xfe")
    code, found = run("repair")
    assert (code, found["written"], found["latest"]) == (0, True, "model-3")
    assert ck.latest_checkpoint(place.url, storage_options=place.options) == f"{place.url}/model-3"
    assert run("repair")[1]["changed"] is False
    place.save(4, 5, 6, max_to_keep=1, run="after")
    assert place.keys() == {"checkpoint"} | files("model-2", "model-3", "model-6")


def test_doctor(place: Place, run: Any) -> None:
    place.save(1)
    before = place.keys()
    code, found = run("doctor")
    assert (code, found["usable"]) == (0, True)
    states = {check["check"]: check["state"] for check in found["checks"]}
    deletes = locate(place.url, place.options).storage.capabilities.conditional_delete
    missing = set() if deletes else {"delete by version"}
    if place.scheme == "gs" and not deletes:
        # Who drops the conditions of a delete drops those of compose, too.
        missing.add("parts of uploads")
    assert {name for name, state in states.items() if state != "ok"} == missing
    assert place.keys() == before


def test_doctor_of_a_bucket_that_is_not_there(place: Place, run: Any) -> None:
    code, found = run("doctor", url=f"{place.scheme}://no-such-bucket-here/run")
    assert (code, found["usable"]) == (3, False)
    assert found["checks"][-1]["check"] == "bucket"


def test_doctor_with_a_wrong_key(minio: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = minio.make_bucket()
    options = {**minio.options, "key": "somebody", "secret": "s3cr3t-s3cr3t"}
    words = [f"--storage-option={name}={json.dumps(value)}" for name, value in options.items()]
    assert main(["doctor", f"s3://{bucket}/run", *words]) == 5
    said = capsys.readouterr()
    assert "s3cr3t" not in said.out + said.err
    assert "InvalidAccessKeyId" in said.out


def test_doctor_tries_what_happens_when_two_requests_meet(place: Place, run: Any) -> None:
    code, said = run("doctor", "--race")
    tried = {one["check"]: one for one in said["checks"] if one["check"].endswith("at once")}
    # Of a server that is known to delete in two steps, or keeps no conditions, no such thing is expected.
    has = locate(place.url, place.options).storage.capabilities
    assert set(tried) == {
        *(["two creators at once"] if has.create_if_absent else []),
        *(["two replacements at once"] if has.compare_and_swap else []),
        *(["delete and replacement at once"] if has.compare_and_swap and has.conditional_delete else []),
    }
    assert {one["state"] for one in tried.values()} <= {"ok"}
    assert code == 0
    assert place.keys() == set()
    _, said = run("doctor")
    assert not [one for one in said["checks"] if one["check"].endswith("at once")]
