"""Peak memory of a save, beyond the arrays themselves: the budget, and room for the program around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.lifecycle.child import run

pytestmark = pytest.mark.slow

MIB = 1 << 20
BUDGET = 32 * MIB

# Ten times the budget, every page of it touched.
PROGRAM = """
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

how, kind, url = sys.argv[1:4]
if kind == "strided":
    arrays = {f"w{number}": np.full((1024, 4096), float(number)).T for number in range(10)}
else:
    arrays = {f"w{number}": np.full((4096, 1024), float(number)) for number in range(10)}
    arrays["text"] = np.array([b"x" * 100] * 1000, object)

with ck.Saver(memory_budget=budget) as saver:
    # What is loaded and opened the first time does not depend on the size of the checkpoint.
    saver.save_async({"w": np.ones(10)}, url, 0).result()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    if how == "save":
        saver.save(arrays, url, 1)
    else:
        saver.save_async(arrays, url, 1, snapshot=how == "snapshot").result()
    beyond = status("VmHWM") - before
print(beyond)
"""


def beyond(how: str, kind: str, url: str, environment: dict[str, str] | None = None) -> int:
    program = f"budget = {BUDGET}\n{PROGRAM}"
    size = int(run(program, how, kind, url, environment=environment)[0])
    print(f"{how} {kind}: {size / MIB:.0f} MiB beyond the arrays, budget {BUDGET // MIB} MiB")
    return size


@pytest.mark.parametrize("kind", ["plain", "strided"])
@pytest.mark.parametrize("how", ["snapshot", "promise", "save"])
def test_on_a_local_disk(how: str, kind: str, tmp_path: Path) -> None:
    assert beyond(how, kind, f"{tmp_path}/m") <= BUDGET + 64 * MIB
    array = ck.load_variable(tmp_path / "m-1", "w9")
    assert array.shape == (4096, 1024)
    assert np.all(array == 9)


@pytest.mark.parametrize("kind", ["plain", "strided"])
@pytest.mark.parametrize("how", ["snapshot", "promise", "save"])
def test_in_a_bucket(how: str, kind: str, minio: object) -> None:
    bucket = minio.make_bucket()  # type: ignore[attr-defined]
    environment = minio.environment  # type: ignore[attr-defined]
    assert beyond(how, kind, f"s3://{bucket}/run/m", environment) <= BUDGET + 64 * MIB
    assert "run/m-1.index" in minio.keys(bucket)  # type: ignore[attr-defined]


def test_without_a_budget_the_snapshot_shows(tmp_path: Path) -> None:
    program = f"budget = None\n{PROGRAM}"
    assert int(run(program, "snapshot", "plain", f"{tmp_path}/m")[0]) > 300 * MIB
