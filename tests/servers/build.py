"""Build the object stores that the tests run against, once: `python -m tests.servers.build`.

Pinned versions, from the Go module proxy, into ``.cache/servers``. What is there in the right version stays.
Only the binaries are kept: as a cache of continuous integration the directory is one key, `versions()`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DIRECTORY", "PROGRAMS", "Program", "binary", "build", "versions"]

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".cache" / "servers"


@dataclass(frozen=True)
class Program:
    """One server: its name here, module and version for `go install`, and what it is linked with."""

    name: str
    module: str
    version: str
    flags: tuple[str, ...] = field(default=())

    @property
    def built_name(self) -> str:
        """What `go install` calls the file."""
        return self.module.rpartition("/")[2]


_MINIO = "github.com/minio/minio/cmd"


def _minio(name: str, version: str, release: str, time: str) -> Program:
    # Without these flags the server calls itself a development build.
    flags = f"-s -w -X {_MINIO}.ReleaseTag={release} -X {_MINIO}.Version={time}"
    return Program(name, "github.com/minio/minio", version, ("-ldflags", flags))


PROGRAMS = (
    _minio(
        "minio",
        "v0.0.0-20250907161309-07c3a429bfed",
        "RELEASE.2025-09-07T16-13-09Z",
        "2025-09-07T16:13:09Z",
    ),
    Program("fake-gcs-server", "github.com/fsouza/fake-gcs-server", "v1.56.1"),
    Program("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    Program("toxiproxy-server", "github.com/Shopify/toxiproxy/v2/cmd/server", "v2.5.0"),
    # The last commit of a server that is no longer maintained.
    _minio(
        "minio-last",
        "v0.0.0-20260212201848-7aac2a2c5b7c",
        "DEVELOPMENT.2026-02-12",
        "2026-02-12T20:18:48Z",
    ),
)


def versions() -> str:
    """Return what identifies the whole set."""
    return "\n".join(f"{program.name} {program.module}@{program.version}" for program in PROGRAMS)


def binary(name: str) -> Path | None:
    """Return the built server of that name, None if it was not built."""
    path = DIRECTORY / name
    return path if path.is_file() else None


def _built_version(path: Path, go: str) -> str | None:
    done = subprocess.run([go, "version", "-m", str(path)], check=False, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:1] == ["mod"]:
            return words[2]
    return None


def build(program: Program, go: str) -> None:
    """Build one server if it is not there in this version."""
    target = DIRECTORY / program.name
    if target.is_file() and _built_version(target, go) == program.version:
        print(f"{program.name}: {program.version} is there")
        return
    print(f"{program.name}: building {program.module}@{program.version}", flush=True)
    # A directory of its own: two of them are called "minio", one "server".
    place = DIRECTORY / f"{program.name}.build"
    shutil.rmtree(place, ignore_errors=True)
    environment = os.environ | {"GOBIN": str(place), "GOFLAGS": "-buildvcs=false"}
    subprocess.run(
        [go, "install", *program.flags, f"{program.module}@{program.version}"], env=environment, check=True
    )
    (place / program.built_name).replace(target)
    shutil.rmtree(place)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these servers")
    parser.add_argument("--versions", action="store_true", help="print the versions and build nothing")
    options = parser.parse_args(arguments)
    if options.versions:
        print(versions())
        return 0
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        print(
            "Go is not installed, so the object stores cannot be built: the lanes against MinIO, versitygw"
            " and the GCS server do not run. See https://go.dev/dl/ (1.26 or newer).",
            file=sys.stderr,
        )
        return 1 if os.environ.get("CI") else 0
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    known = {program.name: program for program in PROGRAMS}
    for name in options.names or [program.name for program in PROGRAMS]:
        build(known[name], go)
    return 0


if __name__ == "__main__":
    sys.exit(main())
