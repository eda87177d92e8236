"""The README's example on S3 does on a MinIO what the README says."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.backends.conftest import names_in
from tests.meta.source import ROOT
from tests.servers.s3 import S3Server

README = (ROOT / "README.md").read_text(encoding="utf-8")
BUCKET = "checkpoints"


def test_the_example_on_s3_prints_what_the_local_one_prints(
    minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.search(r"^```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    promised = re.search(r"^```python\n.*?^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert example
    assert promised
    for name, value in minio.environment.items():
        monkeypatch.setenv(name, value)
    minio.raw.create_bucket(Bucket=BUCKET)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(example[1], "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == promised[1]
    names = names_in(f"s3://{BUCKET}/run")
    assert [name for name in names if name.endswith(".index")] == [
        f"my-model-{n}000.index" for n in (2, 3, 4, 5)
    ]
    assert [name for name in names if name.endswith(".meta")] == ["my-model-2000.meta"]
