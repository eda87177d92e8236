"""What names this machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptstore import config


def test_every_process_of_this_machine_has_one_host_id() -> None:
    script = "from ckptstore.config import host_id; print(host_id())"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert other.stdout.strip() == config.host_id()
    assert re.fullmatch(r"[0-9a-f]{8}", config.host_id())


def test_without_a_boot_id_the_host_name_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="one"))
    one = config.host_id.__wrapped__()
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(nodename="two"))
    assert re.fullmatch(r"[0-9a-f]{8}", one)
    assert config.host_id.__wrapped__() != one
