"""The README's examples do on a MinIO, and on a GCS server, what the README says."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from tests.backends.conftest import names_in
from tests.meta.source import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BUCKET = "checkpoints"


def _run(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    return printed.getvalue()


@pytest.mark.parametrize(("scheme", "server"), [("s3", "minio"), ("gs", "gcs_server")])
def test_the_examples_print_on_an_object_store_what_the_readme_shows(
    scheme: str, server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = re.search(r"^```py\n(.*?)^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    first = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert example
    assert first
    running = request.getfixturevalue(server)
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    running.make_bucket(BUCKET)
    assert _run(example[1].replace("s3://", f"{scheme}://")) == example[2].replace("s3://", f"{scheme}://")
    # "A path becomes a URL; nothing else changes": the first example, with URLs.
    directory = f"{scheme}://{BUCKET}/scene"
    scene = first[1].replace('"my-model', f'"{directory}/my-model').replace('"./"', f'"{directory}"')
    assert _run(scene) == first[2]
    names = names_in(directory)
    assert [name for name in names if name.endswith(".index")] == [
        f"my-model-{n}000.index" for n in (2, 3, 4, 5)
    ]
    assert [name for name in names if name.endswith(".meta")] == ["my-model-2000.meta"]
