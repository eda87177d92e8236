"""Peak memory of a restore, beyond the arrays themselves: the budget, and room for the program around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import locate
from tests.lifecycle.child import run
from tests.unit.bundle.helpers import save

pytestmark = pytest.mark.slow

MIB = 1 << 20
BUDGET = 16 * MIB
ROWS, COLUMNS, COUNT = 4096, 1024, 12  # 192 MiB of float32, in tensors as large as the budget

# The arrays are touched, so that only what is beyond them can grow the process.
PROGRAM = """
import numpy as np
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

rows, columns, count = shape
how, prefix, warm_up = sys.argv[1:4]
names = [f"w{number}" for number in range(count)]
make = {
    "plain": lambda: np.full((rows, columns), -1, "f4"),
    "transposed": lambda: np.full((columns, rows), -1, "f4").T,
    "spread": lambda: np.full((rows, columns, 2), -1, "f4")[:, :, 1],
    "other order": lambda: np.full((rows, columns), -1, ">f4"),
    "other shape": lambda: np.full((rows * columns // 64, 128), -1, "f4")[:, ::2],
}
into = {name: make[how]() for name in names} if how in make else {}
if how == "pieces":
    boxes = [(slice(100, 2000), slice(0, columns)), (slice(0, rows), slice(300, 600))]
    memory = np.full((count, rows, columns), -1, "f4")
    pieces = {
        name: [ck.Piece(memory[number][box], (rows, columns), [each.start for each in box])]
        for number, (name, box) in enumerate(zip(names, boxes * count))
    }

def measured(action):
    # What is loaded and opened the first time does not depend on the size of the checkpoint.
    ck.open_checkpoint(warm_up).restore()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = status("VmRSS")
    action()
    return status("VmHWM") - before

def parts(index):
    with ck.open_checkpoint(prefix, memory_budget=budget) as ckpt:
        for name in names:
            assert ckpt.read(name, index).size

actions = {
    "columns": lambda: parts(np.s_[:, 5]),
    "every third": lambda: parts(np.s_[::1024, ::-3]),
    "pieces": lambda: ck.open_checkpoint(prefix, memory_budget=budget).restore(pieces),
    "other shape": lambda: ck.Saver(list(names), reshape=True, memory_budget=budget).restore(into, prefix),
}
restore = lambda: ck.open_checkpoint(prefix, memory_budget=budget).restore(into)
print(measured(actions.get(how, restore)))
for number, name in enumerate(names):
    if name in into:
        ends = into[name].reshape(-1)[[0, -1]].tolist()  # a copy of one tensor at a time
        assert ends == [number * 1000, number * 1000 + 63], (name, ends)
"""


def beyond(how: str, prefix: str, environment: dict[str, str] | None = None) -> int:
    program = f"budget, shape = {BUDGET}, {(ROWS, COLUMNS, COUNT)}\n{PROGRAM}"
    small = prefix.rpartition("/")[0] + "/small"
    size = int(run(program, how, prefix, small, environment=environment)[0])
    print(f"{how} {prefix}: {size / MIB:.0f} MiB beyond the arrays, budget {BUDGET // MIB} MiB")
    return size


def values() -> dict[str, np.ndarray]:
    """Return arrays whose elements repeat with 64, each with a thousand of its own."""
    row = np.arange(COLUMNS, dtype="f4") % 64
    return {f"w{n}": np.broadcast_to(row + n * 1000, (ROWS, COLUMNS)) for n in range(COUNT)}


def put(directory: str, *, is_partitioned: bool) -> str:
    """Save `values` there, in one piece each or in four boxes of columns."""
    prefix = f"{directory}/m"
    save(locate(f"{directory}/small"), {"w": np.ones(10)})
    if not is_partitioned:
        save(locate(prefix), values())
        return prefix
    width = COLUMNS // 4
    save(
        locate(prefix),
        *[
            [
                {
                    "name": name,
                    "array": array[:, part * width : (part + 1) * width],
                    "shape": (ROWS, COLUMNS),
                    "spec": [(0, -1), (part * width, width)],
                }
                for name, array in values().items()
            ]
            for part in range(4)
        ],
    )
    return prefix


LAYOUTS = ["plain", "transposed", "spread", "other order", "other shape", "columns", "every third", "pieces"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ceiling")
    for name in ("whole", "boxes"):
        (directory / name).mkdir()
        put(str(directory / name), is_partitioned=name == "boxes")
    return directory


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("kind", ["whole", "boxes"])
def test_on_a_local_disk(how: str, kind: str, on_disk: Path) -> None:
    assert beyond(how, f"{on_disk}/{kind}/m") <= BUDGET + 64 * MIB


@pytest.fixture(scope="module")
def in_a_bucket(minio, tmp_path_factory: pytest.TempPathFactory):
    """Return the URL of a directory, and the environment that leads there."""
    url = f"s3://{minio.make_bucket()}/run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in minio.environment.items():
            patch.setenv(name, value)
        for name in ("whole", "boxes"):
            put(f"{url}/{name}", is_partitioned=name == "boxes")
    return url, minio.environment


@pytest.mark.parametrize("how", ["plain", "spread", "other order", "columns", "pieces"])
@pytest.mark.parametrize("kind", ["whole", "boxes"])
def test_in_a_bucket(how: str, kind: str, in_a_bucket) -> None:
    url, environment = in_a_bucket
    assert beyond(how, f"{url}/{kind}/m", environment) <= BUDGET + 64 * MIB


def test_a_verification_of_all_stays_within_it_too(on_disk: Path) -> None:
    program = f"budget, shape = {BUDGET}, {(ROWS, COLUMNS, COUNT)}\n" + PROGRAM.replace(
        "print(measured(actions.get(how, restore)))",
        "from ckptstore.bundle.verify.verify import verify_bundle\n"
        "from ckptstore.storage.registry import locate\n"
        "print(measured(lambda: verify_bundle(locate(prefix), memory_budget=budget)))",
    )
    small = f"{on_disk}/whole/small"
    assert int(run(program, "none", f"{on_disk}/whole/m", small)[0]) <= BUDGET + 16 * MIB


def test_without_a_ceiling_it_shows(on_disk: Path) -> None:
    """The measurement can fail: a copy of everything is seen."""
    program = f"budget, shape = {BUDGET}, {(ROWS, COLUMNS, COUNT)}\n" + PROGRAM.replace(
        "print(measured(actions.get(how, restore)))",
        "print(measured(lambda: ck.open_checkpoint(prefix).restore()))",
    )
    size = int(run(program, "none", f"{on_disk}/whole/m", f"{on_disk}/whole/small")[0])
    assert size > ROWS * COLUMNS * 4 * COUNT


def test_the_values_are_those_that_were_saved(on_disk: Path) -> None:
    for kind in ("whole", "boxes"):
        with ck.open_checkpoint(on_disk / kind / "m") as ckpt:
            np.testing.assert_array_equal(ckpt["w3"], values()["w3"])
