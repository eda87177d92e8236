"""The README's example on an object store does on a MinIO, and on a GCS server, what the README says."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.backends.conftest import names_in
from tests.meta.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BUCKET = "checkpoints"


@pytest.mark.parametrize(("scheme", "server"), [("s3", "minio"), ("gs", "gcs_server")])
def test_the_example_on_an_object_store_prints_what_the_local_one_prints(
    scheme: str, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.search(r"^```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    promised = re.search(r"^```python\n.*?^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert example
    assert promised
    running = request.getfixturevalue(server)
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    running.make_bucket(BUCKET)
    code = example[1].replace("s3://", f"{scheme}://")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == promised[1]
    names = names_in(f"{scheme}://{BUCKET}/run")
    assert [name for name in names if name.endswith(".index")] == [
        f"my-model-{n}000.index" for n in (2, 3, 4, 5)
    ]
    assert [name for name in names if name.endswith(".meta")] == ["my-model-2000.meta"]
