"""Who may only read, with and without the right to list: what the commands show, and what doctor says."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from tests.servers.process import free_port


@pytest.fixture
def bucket(minio):
    bucket = minio.make_bucket()
    saver = ck.Saver(max_to_keep=3)
    for step in (1, 2):
        saver.save({"w": np.arange(9.0)}, f"s3://{bucket}/run/model", step, storage_options=minio.options)
    return bucket


@pytest.fixture
def command(minio, bucket, capsys):
    """Run a command with the rights of somebody who may do only these actions."""

    def run(*words, actions):
        options = minio.options | minio.user_with(actions, bucket)
        flags = [f"--storage-option={name}={json.dumps(value)}" for name, value in options.items()]
        capsys.readouterr()
        code = main([*words, *flags])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("target", ["run", "run/", "run/checkpoint", "run/model-2", "run/model-2.index"])
def test_inspect_and_verify_need_get_object_alone(command, bucket, target):
    for words in (["inspect"], ["verify"], ["verify", "--quick"]):
        code, out, err = command(*words, f"s3://{bucket}/{target}", actions=["GetObject"])
        assert code == 0, err
        assert "model-2" in out + err


@pytest.mark.parametrize("target", ["run", "run/", "run/checkpoint"])
def test_ls_shows_what_the_record_lists_and_says_so(command, bucket, target):
    code, out, err = command("ls", f"s3://{bucket}/{target}", actions=["GetObject"])
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["1", "model-1", "complete"] in [row[:3] for row in rows]
    assert ["*", "2", "model-2", "complete"] in [row[:4] for row in rows]
    assert "only what the record lists is shown" in out
    assert "2 checkpoints, " in out
    assert "2 checkpoints, 0 B" not in out


def test_without_a_record_the_refusal_is_the_answer(command, minio, bucket):
    minio.remove(bucket, "run/checkpoint")
    for name in ("ls", "inspect", "verify"):
        code, _, err = command(name, f"s3://{bucket}/run", actions=["GetObject"])
        assert code == 5, err
        assert "AccessDenied" in err


def test_doctor_calls_a_bucket_that_can_only_be_read_by_its_name(command, bucket):
    code, out, _ = command("doctor", f"s3://{bucket}/run", actions=["GetObject", "ListBucket"])
    assert code == 5
    assert f"s3://{bucket}/run: readable, not writable: " in out
    assert "s3:ListBucket granted, s3:GetObject granted" in out


@pytest.mark.parametrize(
    ("actions", "code", "permissions", "verdict"),
    [
        (["GetObject", "ListBucket"], 0, "s3:ListBucket granted, s3:GetObject granted", "readable, all"),
        (["GetObject"], 0, "s3:ListBucket refused, s3:GetObject granted", "readable, with 2 limits"),
        (["ListBucket"], 5, "s3:ListBucket granted, s3:GetObject refused", "not usable: read"),
    ],
)
def test_doctor_for_readers_writes_nothing_and_lists_the_permissions(
    command, minio, bucket, actions, code, permissions, verdict
):
    before = minio.keys(bucket)
    found, out, _ = command("doctor", "--read-only", f"s3://{bucket}/run", actions=actions)
    assert found == code, out
    assert permissions in out
    assert f"s3://{bucket}/run: {verdict}" in out
    assert "conditions" not in out
    assert minio.keys(bucket) == before


def test_doctor_names_an_endpoint_that_nobody_answers(minio, bucket, capsys):
    # One attempt is enough to see it.
    from tests.backends.fault_cases import COUNTED, impatient

    with impatient(COUNTED):
        code = main(
            [
                "doctor",
                f"s3://{bucket}/run",
                "--storage-option=key=k",
                "--storage-option=secret=s",
                f"--storage-option=endpoint_url=http://127.0.0.1:{free_port()}",
            ]
        )
    out = capsys.readouterr().out
    assert code == 6
    assert [line.split()[:2] for line in out.splitlines()[1:2]] == [["endpoint", "failed"]]


def test_doctor_fails_without_credentials(minio, bucket, capsys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    code = main(["doctor", f"s3://{bucket}/run", f"--storage-option=endpoint_url={minio.url}"])
    out = capsys.readouterr().out
    assert code == 5
    assert "credentials  failed" in out
    assert "not usable: credentials" in out


def test_doctor_fails_with_a_wrong_secret(minio, bucket, capsys):
    options = minio.options | {"secret": "another"}
    flags = [f"--storage-option={name}={json.dumps(value)}" for name, value in options.items()]
    assert main(["doctor", f"s3://{bucket}/run", *flags]) == 5
    assert "credentials  failed" in capsys.readouterr().out
