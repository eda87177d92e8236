"""The fixtures of the tests of a GCS server's requests; other modules here have a `proxy` of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.gcs import GcsServer
from tests.wire.gcs_scene import CHUNK, Scene
from tests.wire.requests import WireProxy


@pytest.fixture(scope="module")
def proxy(gcs_server: GcsServer) -> Iterator[WireProxy]:
    with WireProxy(gcs_server.processes[-1].port) as proxy:
        yield proxy


@pytest.fixture(params=[True, False], ids=["direct", "gcsfs"])
def scene(proxy: WireProxy, gcs_server: GcsServer, request: pytest.FixtureRequest) -> Scene:
    return Scene(proxy, gcs_server, direct=request.param)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let objects be sent in chunks that are not large enough for it."""
    monkeypatch.setattr("ckptstore.storage.object_store.upload.SINGLE_SIZE_BYTES", CHUNK)
