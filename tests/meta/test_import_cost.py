"""``import ckptstore`` is free and inert: nothing heavy is loaded before something heavy is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.meta.source import ROOT

HEAVY = (
    "aiobotocore",
    "botocore",
    "click",
    "fsspec",
    "gcsfs",
    "google.protobuf",
    "google_crc32c",
    "jax",
    "ml_dtypes",
    "numpy",
    "rich",
    "s3fs",
    "tensorflow",
    "torch",
    "urllib3",
)


def _loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    loaded = _loaded_after("import ckptstore")
    assert sorted(loaded.intersection(HEAVY)) == []
    assert sorted(name for name in loaded if name.startswith("ckptstore")) == ["ckptstore"]


def test_listing_the_names_loads_nothing_either():
    loaded = _loaded_after("import ckptstore\nassert 'Saver' in dir(ckptstore)")
    assert sorted(loaded.intersection(HEAVY)) == []


@pytest.mark.parametrize("name", ["Saver", "latest_checkpoint", "open_checkpoint", "CheckpointManager"])
def test_the_everyday_names_load_no_storage_client_and_no_framework(name):
    loaded = _loaded_after(f"import ckptstore\nckptstore.{name}")
    unwanted = {"aiobotocore", "botocore", "click", "gcsfs", "jax", "rich", "s3fs", "tensorflow", "torch"}
    assert sorted(loaded.intersection(unwanted)) == []


def test_import_starts_no_thread_and_leaves_the_environment_alone():
    look = "dict(os.environ), threading.active_count(), list(warnings.filters), list(logging.root.handlers)"
    _loaded_after(
        "import logging, os, threading, warnings\n"
        f"before = {look}\n"
        "import ckptstore\n"
        f"assert before == ({look})"
    )


class _Objects(BaseHTTPRequestHandler):
    """An object store that can only be read; its objects are the files of a directory."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer()

    def _answer(self, *, is_head: bool = False) -> None:
        path = self.root / self.path.rpartition("/")[2]
        if "?" in self.path or not path.is_file():
            body, status, content_range = b"<Error><Code>NoSuchKey</Code></Error>", 404, ""
        else:
            whole = path.read_bytes()
            start, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            if not start:  # the end of it
                start, last = str(max(0, len(whole) - int(last))), ""
            body = whole[int(start) : int(last) + 1 if last else None]
            status = 206 if "Range" in self.headers else 200
            content_range = f"bytes {start}-{int(start) + len(body) - 1}/{len(whole)}"
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", self.date_time_string())
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _object_store(root: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Objects,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_reader_of_s3_loads_no_client_no_protobuf_and_nothing_of_writers(tmp_path: Path) -> None:
    ck.Saver().save({"w": np.arange(5.0)}, f"{tmp_path}/model", global_step=3)
    with _object_store(tmp_path) as url:
        options = {"endpoint_url": url, "key": "k", "secret": "s"}
        loaded = _loaded_after(
            "import ckptstore as ck\n"
            f"options = {options}\n"
            "prefix = ck.latest_checkpoint('s3://bucket/run', storage_options=options)\n"
            "with ck.open_checkpoint(prefix, storage_options=options) as checkpoint:\n"
            "    assert checkpoint['w'].tolist() == [0, 1, 2, 3, 4]"
        )
    heavy = {*HEAVY, "aiohttp", "asyncio", "concurrent.futures", "requests", "xml.sax"}
    assert sorted(loaded.intersection(heavy - {"numpy", "ml_dtypes", "google_crc32c"})) == []
    rooms = (
        "bundle.write",
        "cache",
        "directory.collect",
        "directory.publish",
        "distributed",
        "graph",
        "saving",
    )
    modules = ("conditional_write", "deletes", "diagnosis", "probe", "upload")
    unwanted = [
        *(f"ckptstore.{room}" for room in rooms),
        *(f"ckptstore.storage.object_store.{module}" for module in modules),
        *(f"ckptstore.storage.s3.{module}" for module in ("multipart", "s3fs_client", "http_session")),
    ]
    assert [name for name in sorted(loaded) if name.startswith(tuple(unwanted))] == []
