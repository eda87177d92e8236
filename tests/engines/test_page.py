"""The blocks of docs/distributed.md, run by four processes under the launcher of each engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

import ckptstore
from tests.meta.source import ROOT
from tests.servers.process import free_port

SIZE = 4
_BEGIN = """
import os, sys
import numpy as np
import ckptstore
directory, address, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
process = number
"""
_ROWS = "rows = np.full((4, 8), float(rank), np.float32)\n"
_END = """
coordinator.close()
print("saved by", rank, flush=True)
os._exit(0)
"""
_RAY = f"""
import sys
import ray
ray.init(num_cpus={SIZE}, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20,
         runtime_env={{"env_vars": {{"PYTHONPATH": {str(ROOT)!r}}}}})

@ray.remote(num_cpus=1)
def rank(directory, number):
    import numpy as np
    import ckptstore
    import sys
    sys.argv[1:] = [directory, "", str(number)]
    text = open(directory + "/job.py").read()
    exec(compile(text.replace("os._exit(0)", ""), "job.py", "exec"), {{}})
    return number

ray.get([rank.remote(sys.argv[1], number) for number in range({SIZE})])
ray.shutdown()
"""


def block(name: str) -> str:
    page = (ROOT / "docs" / "distributed.md").read_text()
    (found,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```\n", page, re.DOTALL)
    return str(found)


def _commands(engine: str, job: Path, directory: Path) -> list[list[str]]:
    bin_ = Path(sys.executable).parent
    address = f"127.0.0.1:{free_port()}"
    arguments = [str(job), str(directory), address]
    if engine == "torch":
        torchrun = ["--nproc-per-node", str(SIZE), "--master-port", str(free_port())]
        return [[str(bin_ / "torchrun"), *torchrun, *arguments, "0"]]
    if engine == "mpi":
        mpiexec = shutil.which("mpiexec", path=str(bin_))
        assert mpiexec is not None, "mpich is not installed in this environment"
        return [[mpiexec, "-n", str(SIZE), sys.executable, *arguments, "0"]]
    if engine == "ray":
        (directory / "driver.py").write_text(_RAY)
        return [[sys.executable, str(directory / "driver.py"), str(directory)]]
    return [[sys.executable, *arguments, str(number)] for number in range(SIZE)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["torch", "jax", "mpi", "ray", "store"])
def test_the_lines_of_the_page_save_one_checkpoint(tmp_path: Path, engine: str) -> None:
    lines = block(engine)
    assert len(lines.splitlines()) <= 6
    assert len(block("job").splitlines()) <= 6
    job = tmp_path / "job.py"
    # Whoever leaves MPI without its own end is taken for dead, and the others are ended.
    end = _END.replace("os._exit(0)\n", "") if engine == "mpi" else _END
    job.write_text(_BEGIN + lines + _ROWS + block("job") + end)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    for launch in range(2):
        # The second start resumes from what the first one has saved.
        if engine == "store" and launch:
            job.write_text(job.read_text().replace('attempt="first"', 'attempt="second"'))
        with ExitStack() as stack:
            processes = [
                stack.enter_context(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                    )
                )
                for command in _commands(engine, job, tmp_path)
            ]
            alarm = Timer(400, lambda started=processes: [one.kill() for one in started])
            alarm.start()
            stack.callback(alarm.cancel)
            outputs = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    assert ckptstore.latest_checkpoint(tmp_path) == f"{tmp_path}/model-7"
    with ckptstore.open_checkpoint(f"{tmp_path}/model-7") as checkpoint:
        expected = np.repeat(np.arange(SIZE, dtype=np.float32), 4)[:, None] * np.ones(8, np.float32)
        np.testing.assert_array_equal(checkpoint["w"], expected)
        assert checkpoint.specs()["w"].shards == tuple(range(SIZE))
        assert checkpoint["step"] == 7
