"""ckptstore in the terminal, second part: a host serves what a job saves, through damage and an outage.

Every step checks its claims; if one does not hold, the exit code is 1. Files go to ./demo-run. The
checkpoints are in MinIO where that was built (`make servers`), otherwise on the local disk.
"""

from __future__ import annotations

import io
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import network
import numpy as np
from run import MARK, RUN, ClaimError, claim, screen

import ckptstore
from tests.servers import s3

EVERY_S = 0.5
SAVE_EVERY = 60
READERS = 4
SWITCHES = 5
TIMEOUT_S = 60.0


class LocalStore:
    """A directory; when it is away it has another name."""

    name = "the local disk"

    def __init__(self) -> None:
        self.url = str(RUN / "bucket")
        self.options: dict[str, Any] | None = None
        Path(self.url).mkdir()

    def go_away(self) -> None:
        """Make it unreachable."""
        Path(self.url).rename(f"{self.url}-away")

    def come_back(self) -> None:
        """Make it reachable again."""
        Path(f"{self.url}-away").rename(self.url)

    def flip_a_bit(self, name: str) -> None:
        """Change one bit in the middle of a file."""
        path = Path(self.url, name)
        path.write_bytes(flipped(path.read_bytes()))


class MinioStore:
    """An object store; when it is away its process is dead."""

    name = "MinIO"

    def __init__(self, server: s3.S3Server) -> None:
        self._server = server
        self._bucket = server.make_bucket("checkpoints")
        self.url = f"s3://{self._bucket}/run"
        self.options: dict[str, Any] | None = server.options

    def go_away(self) -> None:
        """Kill the server."""
        self._server.process.kill()

    def come_back(self) -> None:
        """Start it again, on the same port."""
        self._server.process.start()

    def flip_a_bit(self, name: str) -> None:
        """Change one bit in the middle of an object."""
        data = self._server.get(self._bucket, f"run/{name}")
        assert data is not None
        self._server.put(self._bucket, f"run/{name}", flipped(data))


def flipped(data: bytes) -> bytes:
    """Return `data` with one bit changed, in the middle."""
    content = bytearray(data)
    content[len(content) // 2] ^= 1 << 4
    return bytes(content)


def open_store(stack: ExitStack) -> LocalStore | MinioStore:
    """Return MinIO, running, or the local disk where it was not built."""
    server = s3.minio(RUN / "minio")
    if server is None:
        return LocalStore()
    stack.enter_context(server.process)
    return MinioStore(server)


class Job:
    """The training job."""

    def __init__(self, store: LocalStore | MinioStore) -> None:
        self.values = network.new_values()
        self.loss = 0.0
        self._store = store
        self._years = network.load_years()
        self._saver = ckptstore.Saver(max_to_keep=None, storage_options=store.options)

    @property
    def step(self) -> int:
        """How far it is."""
        return int(self.values["global_step"])

    def train(self) -> None:
        """Train, up to the next save."""
        for _ in range(SAVE_EVERY):
            self.loss = network.train_step(self.values, *self._years)

    def save(self, **options: Any) -> str:
        """Save, and return the prefix."""
        prefix = self._saver.save(self.values, f"{self._store.url}/model", self.step, **options)
        assert prefix is not None
        return prefix


class Host:
    """Serves forecasts of the newest good step; several threads ask for them all the time."""

    def __init__(self, store: LocalStore | MinioStore) -> None:
        self.live = ckptstore.Live(load, store.url, every_s=EVERY_S, storage_options=store.options)
        self.answers = 0
        self.forecasts: dict[int, set[float]] = {}
        self.failures: list[str] = []
        self._inputs = network.load_years()[0][-1:]
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._readers = [threading.Thread(target=self._ask, daemon=True) for _ in range(READERS)]

    def start(self) -> None:
        """Let everybody ask."""
        for reader in self._readers:
            reader.start()

    def _ask(self) -> None:
        try:
            while not self._stop.wait(0.001):
                with self.live.use() as values:
                    step = int(values["global_step"])
                    number = float(network.forecast(values, self._inputs)[-1][0, 0]) * network.SCALE
                with self._lock:
                    self.answers += 1
                    self.forecasts.setdefault(step, set()).add(round(number, 4))
        except Exception as error:  # noqa: BLE001 - of a thread; a claim tells of it
            self.failures.append(f"{type(error).__name__}: {error}")

    def waits_for(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds, and return whether it does."""
        ends_s = time.monotonic() + TIMEOUT_S
        while not holds() and time.monotonic() < ends_s and not self.failures:
            time.sleep(0.005)
        return holds()

    def serves(self, step: int) -> bool:
        """Wait until `step` is served and has answered somebody."""
        return self.waits_for(lambda: step in self.forecasts)

    def close(self) -> None:
        """End everything."""
        self._stop.set()
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        self.live.close()


def load(checkpoint: ckptstore.OpenCheckpoint, previous: object) -> dict[str, np.ndarray]:
    """Return what is served of a checkpoint: the weights, without what only the training needs."""
    names = [name for name in checkpoint if "adam" not in name]
    return checkpoint.restore(names=names).restored


def begin() -> None:
    """Show what this is about; make its directory."""
    if RUN.exists():
        if any(RUN.iterdir()) and not (RUN / MARK).exists():
            raise SystemExit(f"{RUN} was not made by this demo: move it away first")
        shutil.rmtree(RUN)
    RUN.mkdir()
    (RUN / MARK).write_text("Made by `make demo-serving`, and removed by the next one.\n")
    screen.title(
        "ckptstore: a host that serves",
        "A job trains the sunspot network and saves. A host follows the directory, loads each step beside "
        "the one that it serves, verifies it, and switches with one assignment, while "
        f"{READERS} threads ask for forecasts all the time.",
    )


def switch(job: Job, host: Host, store: LocalStore | MinioStore) -> None:
    """Save a few steps and watch them being served."""
    screen.step(
        "The host follows",
        f"The job saves to {store.url} ({store.name}); the host looks every {EVERY_S:g} s, with one "
        "conditional request.",
    )
    job.train()
    job.save()
    claim("the host is ready after the first save", host.live.wait_ready(TIMEOUT_S))
    host.start()
    rows = []
    for _ in range(SWITCHES):
        job.train()
        job.save()
        committed_s = time.monotonic()
        if not host.serves(job.step):
            claim(f"step {job.step} is served", False)
        seconds = f"{time.monotonic() - committed_s:.2f} s"
        (number,) = host.forecasts[job.step]
        rows.append((str(job.step), f"{job.loss:.5f}", f"{number:.1f}", seconds, f"{host.answers:,}"))
    screen.table(("step", "loss", "forecast", "saved → served", "answers so far"), rows)
    claim("every step that was saved was served", len(host.forecasts) == 1 + SWITCHES)


def damage(job: Job, host: Host, store: LocalStore | MinioStore) -> None:
    """Save a step that rots before the host sees it."""
    good = job.step
    job.train()
    screen.step(
        "A step is damaged",
        f"One bit of the data file of step {job.step} is flipped before the record names it.",
    )
    prefix = job.save(write_state=False)
    name = prefix.rpartition("/")[2]
    store.flip_a_bit(f"{name}.data-00000-of-00001")
    state = ckptstore.get_checkpoint_state(store.url, storage_options=store.options)
    assert state is not None
    kept = list(state.all_model_checkpoint_paths)
    ckptstore.update_checkpoint_state(store.url, prefix, [*kept, prefix], storage_options=store.options)
    bad, before = job.step, host.answers
    is_refused = host.waits_for(lambda: host.live.health().failed is not None)
    health = host.live.health()
    screen.say(f"\n  live.health().error: {str(health.error).replace(store.url, '…')}\n")
    claim("it is refused, and the error names tensor and file", is_refused and name in str(health.error))
    claim(f"step {good} answers on", host.waits_for(lambda: host.answers > before + 100))
    job.train()
    job.save()
    claim(f"the next one, step {job.step}, is served", host.serves(job.step))
    claim(f"nobody ever got an answer of step {bad}", bad not in host.forecasts)


def outage(job: Job, host: Host, store: LocalStore | MinioStore) -> None:
    """Take the store away for a while."""
    screen.step(
        "The store is away",
        f"{store.name[0].upper()}{store.name[1:]} goes away for some seconds, without a word.",
    )
    served = job.step
    store.go_away()
    rows = []
    started_s = time.monotonic()
    while True:
        time.sleep(0.7)
        gone_s = time.monotonic() - started_s
        health = host.live.health().watch
        rows.append(
            (
                f"{gone_s:.1f} s",
                str(host.live.step.step if host.live.step else "none"),
                f"{host.answers:,}",
                str(health.failures_in_a_row),
                "stale" if health.is_stale else "fresh",
            )
        )
        if (health.is_stale and health.failures_in_a_row >= 2) or gone_s > TIMEOUT_S:
            break
    screen.table(("away for", "step served", "answers so far", "failed looks", "health()"), rows)
    claim(f"step {served} answers on, and the host says that it may be old", health.is_stale)
    store.come_back()
    job.train()
    job.save()
    claim(f"the store is back, and step {job.step} is served", host.serves(job.step))
    claim("the host is fresh again", not host.live.health().watch.is_stale)


def end(host: Host) -> None:
    """Sum up."""
    screen.step("Afterwards", f"{READERS} threads have asked all the time.")
    claim(f"{host.answers:,} answers, no failure", not host.failures)
    alike = all(len(numbers) == 1 for numbers in host.forecasts.values())
    claim("every answer of one step is the same number: no mixed weights", alike)


def main() -> int:
    """Run all steps; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without check marks must not make it fail
    logging.getLogger("ckptstore").addHandler(logging.NullHandler())
    logging.getLogger("ckptstore").propagate = False
    started_s = time.monotonic()
    begin()
    with ExitStack() as stack:
        store = open_store(stack)
        job, host = Job(store), Host(store)
        stack.callback(host.close)
        try:
            switch(job, host, store)
            damage(job, host, store)
            outage(job, host, store)
            end(host)
        except ClaimError as failure:
            said = f" {host.failures[0]}" if host.failures else ""
            screen.end(f"Not as claimed: {failure}.{said} The files are in {RUN}.", good=False)
            return 1
    screen.end(f"Everything came out as claimed, in {time.monotonic() - started_s:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
