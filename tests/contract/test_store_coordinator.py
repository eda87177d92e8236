"""The coordinator contract through objects in a storage: local disk, MinIO and the GCS server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ckptstore.testing import CoordinatorContract
from ckptstore.testing.coordinator_contract import StartRanks
from tests.rank_processes import PROGRAM, running
from tests.servers.gcs import GcsServer
from tests.servers.s3 import S3Server


def starting(url: str, options: dict[str, Any], variables: dict[str, str] | None = None) -> StartRanks:
    environment = {
        **os.environ,
        **(variables or {}),
        "STORE_URL": url,
        "STORE_OPTIONS": json.dumps(options),
    }

    @contextmanager
    def start_ranks(size: int, address: str) -> Iterator[None]:
        commands = [(*PROGRAM, address, str(rank), str(size)) for rank in range(size)]
        with running(commands, environment):
            yield

    return start_ranks


class TestThroughLocalDisk(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls, tmp_path_factory: pytest.TempPathFactory) -> StartRanks:
        return starting(str(tmp_path_factory.mktemp("store")), {})


class TestThroughMinio(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls, minio: S3Server) -> StartRanks:
        return starting(f"s3://{minio.make_bucket()}/run", minio.options)


class TestThroughGcs(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls, gcs_server: GcsServer) -> StartRanks:
        return starting(f"gs://{gcs_server.make_bucket()}/run", gcs_server.options)
