"""When a service fails: a typed error, in time, with the place and the next step; and nothing is lost."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.exit_codes import exit_code_of
from ckptstore.cli.main import main
from tests.backends.fault_cases import (
    COMMANDS,
    FAULT_CASES,
    OPERATIONS,
    Expected,
    FaultCase,
    Options,
    Stage,
    flags,
    impatient,
    save,
    texts_of,
    values_of,
)
from tests.own_warnings import own_warnings
from tests.servers.fault_proxy import FaultProxy

# The watchdog: what does not come to an end fails.

_ON_EACH = [
    pytest.param(case, scheme, id=f"{case.name}-{scheme}") for case in FAULT_CASES for scheme in case.schemes
]


@pytest.fixture
def stage(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    server = request.getfixturevalue("minio" if scheme == "s3" else "gcs_server")
    port = server.process.port if scheme == "s3" else server.processes[-1].port
    bucket = server.make_bucket()
    options = server.options
    if scheme == "s3":
        options |= server.user_with(["*"], bucket)
    else:
        # Otherwise Google is asked how long it is good for.
        monkeypatch.setenv("FETCH_RAW_TOKEN_EXPIRY", "false")
        options |= {"token": "ya29.a0s3cret-bearer"}
    with FaultProxy(port) as proxy:
        stage = Stage(server, scheme, bucket, proxy, tmp_path, options)
        ck.Saver().save(values_of(1), f"{stage.url}/model", 1, storage_options=options)
        yield stage


def secrets_in(options: Options) -> list[str]:
    """Return what must not be read anywhere."""
    if options.get("secret") == "testtest":
        # The owner's, who is called the same.
        return []
    token = options["token"]
    if isinstance(token, dict):
        # Its lines: one may be shown without the others.
        return [token["private_key_id"], *token["private_key"].splitlines()[1:-1]]
    return [text for text in (options.get("secret"), token) if text not in (None, "anon")]


def check_error(error: ck.CkptStoreError | None, expected: Expected, case: FaultCase, place: str) -> None:
    if expected is None:
        assert error is None
        return
    assert isinstance(error, expected)
    assert error.url is not None
    assert error.url.startswith(place)
    assert error.url in str(error)
    assert error.hint
    assert case.says in str(error)


def check_command(code: int, said: str, expected: Expected, case: FaultCase, place: str) -> None:
    if expected is None:
        assert code == 0, said
        return
    assert code == exit_code_of(expected("")), said
    printed = json.loads(said.splitlines()[-1])
    assert printed["url"].startswith(place)
    assert printed["hint"]
    assert case.says in printed["message"]


def check_that_all_is_well(stage: Stage) -> None:
    """Check that whatever is there is whole, and that saving goes on."""
    options = stage.options
    latest = ck.latest_checkpoint(stage.url, storage_options=options)
    assert latest in (f"{stage.url}/model-1", f"{stage.url}/model-2")
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, latest, storage_options=options)
    for name, expected in values_of(int(latest[-1])).items():
        np.testing.assert_array_equal(values[name], expected)
    for name in stage.server.keys(stage.bucket, "some/run/"):
        if name.endswith(".index"):
            ck.Saver().restore({}, f"{stage.scheme}://{stage.bucket}/{name[:-6]}", storage_options=options)
    saved = ck.Saver().save(values_of(9), f"{stage.url}/model", 9, storage_options=options)
    assert ck.latest_checkpoint(stage.url, storage_options=options) == saved


@pytest.mark.parametrize(("case", "scheme"), _ON_EACH)
def test_a_bad_day(
    case: FaultCase,
    scheme: str,
    stage: Stage,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG, "ckptstore")
    read: list[str] = []
    with (
        impatient(case.policy),
        case.trouble(stage) as options,
        own_warnings() as warned,
    ):
        place = f"{scheme}://{stage.bucket}"
        errors: dict[str, ck.CkptStoreError | None] = {}

        def attempt(name: str, call: Callable[[Stage, Options], object]) -> None:
            errors[name] = None
            try:
                # None would be "no checkpoint", False "it does not exist".
                assert call(stage, options)
            except ck.CkptStoreError as error:
                errors[name] = error
                read.extend(texts_of(error))

        for name, operation in OPERATIONS.items():
            attempt(name, operation)
        for command, (word, rest) in COMMANDS.items():
            code = main([word, f"{stage.url}{rest}", "--json", *flags(options)])
            said = capsys.readouterr()
            read.extend(said)
            expected = case.expected_of(command, scheme)
            if command == "doctor":
                assert code == (0 if expected is None else exit_code_of(expected("")))
                assert json.loads(said.out)["usable"] is (expected is None)
            else:
                check_command(code, said.err, expected, case, place)
        attempt("save", save)
        for name, error in errors.items():
            check_error(error, case.expected_of(name, scheme), case, place)
    read += [str(warning.message) for warning in warned]
    read += [record.getMessage() for record in caplog.records if record.name.startswith("ckptstore")]
    for secret in {*secrets_in(options), *secrets_in(stage.options)}:
        assert not [text for text in read if secret in text]
    stage.proxy.clear()
    check_that_all_is_well(stage)
