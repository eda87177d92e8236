"""``python -m benchmarks.cold_start``: from the start of a process to its first tensor, out of a bucket.

Every contender reads one tensor of 4 MiB from MinIO, in a new process: with a checkpoint library it finds the
newest checkpoint first, with a client it gets record, index and the bytes of the tensor by known names.
The contenders alternate; what a process takes is what the kernel counts for it, the interpreter included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

import ckptstore as ck
from benchmarks.server import BUCKET, Minio, minio
from benchmarks.stats import Spread, ratios, spread
from tests.servers.gcs import GcsServer, strict_gcs

_TENSOR = "layer_010/w"
_SHAPE = (1024, 1024)
_KEY_FILES = f"{BUCKET}/run"

# The first contact is the first call that needs the bucket, once the names are imported.
_OURS = f"""
import numpy, json, time
import ckptstore as ck
ck.latest_checkpoint, ck.open_checkpoint
wall, cpu = time.perf_counter(), time.process_time()
prefix = ck.latest_checkpoint(f"{{SCHEME}}://{_KEY_FILES}", storage_options=OPTIONS)
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
assert ck.open_checkpoint(prefix, storage_options=OPTIONS)["{_TENSOR}"].shape == {_SHAPE}
"""
_OBSTORE = f"""
import numpy, os
from obstore.store import S3Store
options = {{"allow_http": True}}
place = os.environ["AWS_ENDPOINT_URL"]
store = S3Store("{BUCKET}", endpoint=place, region="us-east-1", client_options=options)
for name in ("run/checkpoint", "run/model-7.index"):
    store.get(name).bytes()
data = store.get_range("run/model-7.data-00000-of-00001", start=0, length=4 << 20)
assert numpy.frombuffer(data, numpy.float32).size == 1 << 20
"""
_BOTO3 = f"""
import numpy, boto3
client = boto3.client("s3")
for name in ("run/checkpoint", "run/model-7.index"):
    client.get_object(Bucket="{BUCKET}", Key=name)["Body"].read()
part = {{"Key": "run/model-7.data-00000-of-00001", "Range": "bytes=0-4194303"}}
data = client.get_object(Bucket="{BUCKET}", **part)["Body"].read()
assert numpy.frombuffer(data, numpy.float32).size == 1 << 20
"""
_ZARR = f"""
import numpy, os, tensorstore
kvstore = {{"driver": "s3", "bucket": "{BUCKET}", "endpoint": os.environ["AWS_ENDPOINT_URL"]}}
kvstore.update(aws_region="us-east-1", path="zarr/w/")
spec = {{"driver": "zarr3", "kvstore": kvstore}}
"""
_TENSORSTORE = f"{_ZARR}assert tensorstore.open(spec).result().read().result().shape == {_SHAPE}\n"
_ZARR_WRITER = f"""{_ZARR}
grid = {{"name": "regular", "configuration": {{"chunk_shape": {list(_SHAPE)}}}}}
spec["metadata"] = {{"shape": {list(_SHAPE)}, "data_type": "float32", "chunk_grid": grid}}
array = tensorstore.open(spec | {{"create": True}}).result()
array.write(numpy.ones({_SHAPE}, numpy.float32)).result()
"""


@dataclass(frozen=True)
class Contender:
    """A program, and the environments that may have what it imports."""

    name: str
    code: str
    needs: str
    role: bool = False
    gcs: bool = False


def _ours(options: Mapping[str, object], scheme: str = "s3") -> str:
    return f"SCHEME, OPTIONS = {scheme!r}, {dict(options)!r}\n{_OURS}"


CONTENDERS = (
    Contender("numpy alone", "import numpy", "numpy"),
    Contender("ckptstore", _ours({}), "ckptstore"),
    Contender("ckptstore, a role", _ours({}), "ckptstore", role=True),
    Contender("ckptstore, by s3fs", _ours({"direct": False}), "ckptstore"),
    Contender("ckptstore, GCS", _ours({"token": "anon"}, "gs"), "gcsfs", gcs=True),
    Contender("obstore", _OBSTORE, "obstore"),
    Contender("TensorStore, zarr3", _TENSORSTORE, "tensorstore"),
    Contender("boto3", _BOTO3, "boto3"),
)


@dataclass(frozen=True)
class Took:
    """What one process took, in seconds; the last two of its first contact, where it says so."""

    wall_s: float
    cpu_s: float
    contact_wall_s: float | None = None
    contact_cpu_s: float | None = None


def run(python: str, code: str, environment: Mapping[str, str]) -> Took:
    """Run a program in a new process and return what it took."""
    start = time.perf_counter()
    process = subprocess.Popen([python, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"a contender failed: {python}\n{code}")
    contact = json.loads(said) if said else (None, None)
    return Took(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, *contact)


def interpreter_for(needs: str, candidates: Sequence[str]) -> str | None:
    """Return the first interpreter that can import `needs`; None if none can."""
    for python in candidates:
        found = subprocess.run([python, "-c", f"import {needs}"], check=False, stderr=subprocess.DEVNULL)
        if found.returncode == 0:
            return python
    return None


@contextmanager
def giver_of_keys(key: str, secret: str) -> Iterator[str]:
    """Run what gives a container the keys of its role; yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
            expiration = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
            keys = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": "", "Expiration": expiration}
            body = json.dumps(keys).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def environments(server: Minio, giver: str, directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of processes with keys of their own, and of those with a role."""
    place = server.place
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHONDONT"))}
    # Compiled modules for everybody, wherever packages are installed.
    bare["PYTHONPYCACHEPREFIX"] = str(directory / "compiled")
    bare |= {"AWS_ENDPOINT_URL": place.endpoint, "AWS_DEFAULT_REGION": place.region}
    bare |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    keys = {"AWS_ACCESS_KEY_ID": place.key, "AWS_SECRET_ACCESS_KEY": place.secret}
    return bare | keys, bare | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": giver}


def save(server: Minio) -> None:
    """Save a checkpoint of twenty tensors."""
    place = server.place
    options = {"key": place.key, "secret": place.secret, "endpoint_url": place.endpoint}
    values = {f"layer_{number:03}/w": np.full(_SHAPE, number, np.float32) for number in range(20)}
    ck.Saver().save(values, f"s3://{_KEY_FILES}/model", global_step=7, storage_options=options)


def gcs(directory: Path) -> GcsServer | None:
    """Return a server of Google's kind, not started, as strict as the service; None if it was not built."""
    return strict_gcs(directory / "gcs")


def save_in(server: GcsServer, directory: Path) -> None:
    """Put the same checkpoint into `server`, by way of a directory: writers need gcsfs, readers do not."""
    values = {f"layer_{number:03}/w": np.full(_SHAPE, number, np.float32) for number in range(20)}
    ck.Saver().save(values, directory / "run" / "model", global_step=7)
    server.make_bucket(BUCKET)
    for path in (directory / "run").iterdir():
        server.put(BUCKET, f"run/{path.name}", path.read_bytes())


def table(took: Mapping[str, Sequence[Took]], reference: str) -> str:
    """Return what all rounds took as a table; ratios are round by round."""
    heads = ("contender", "CPU s", "wall s", "first contact, CPU s", "wall s", "CPU, TensorStore = 1", "wall")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    of = took.get(reference, ())
    for name, rounds in took.items():
        figures = (
            [one.cpu_s for one in rounds],
            [one.wall_s for one in rounds],
            [one.contact_cpu_s for one in rounds if one.contact_cpu_s is not None],
            [one.contact_wall_s for one in rounds if one.contact_wall_s is not None],
            _against([one.cpu_s for one in rounds], [one.cpu_s for one in of]),
            _against([one.wall_s for one in rounds], [one.wall_s for one in of]),
        )
        cells = [_cell(spread(each)) if each else "" for each in figures]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(values: Sequence[float], of: Sequence[float]) -> Sequence[float]:
    return ratios(dict(enumerate(values)), dict(enumerate(of))) if of else ()


def _cell(found: Spread) -> str:
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--python", action="append", default=[], help="an interpreter to look in first")
    given = parser.parse_args()
    ready = sorted(map(str, Path(".cache").glob("venv-bench*/bin/python")))
    # That of development, the last one, has gcsfs.
    candidates = [*given.python, sys.executable, *ready, ".venv/bin/python"]
    chosen = {one: interpreter_for(one.needs, candidates) for one in CONTENDERS}
    with (
        tempfile.TemporaryDirectory() as directory,
        minio(Path(directory), tls=False) as server,
        giver_of_keys(server.place.key, server.place.secret) as giver,
        ExitStack() as running,
    ):
        keys, role = environments(server, giver, Path(directory))
        save(server)
        store = gcs(Path(directory))
        if store is None:
            chosen = {one: None if one.gcs else python for one, python in chosen.items()}
        else:
            running.callback(store.stop)
            store.start()
            save_in(store, Path(directory))
            keys |= store.environment
        for one, python in chosen.items():
            if python and one.needs == "tensorstore":
                run(python, _ZARR_WRITER, keys)
        took: dict[str, list[Took]] = {one.name: [] for one, python in chosen.items() if python}
        # The first round compiles modules and fills the page cache.
        for number in range(given.rounds + 1):
            for one, python in chosen.items():
                if python:
                    cost = run(python, one.code, role if one.role else keys)
                    if number:
                        took[one.name].append(cost)
        print(table(took, "TensorStore, zarr3"))
    for one, python in chosen.items():
        if python is None:
            print(f"{one.name}: no interpreter has {one.needs}, or its server is not built")


if __name__ == "__main__":
    main()
