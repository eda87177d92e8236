"""ckptstore in the terminal: train, be killed, resume, inspect, damage, recover; then many ranks.

Every step checks its claims; if one does not hold, the exit code is 1. Files go to ./demo-run.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import network
import train
from screen import bars, open_screen

import ckptstore

RUN = Path("demo-run").absolute()
JOB = Path(__file__).with_name("train.py").resolve()
MARK = "made-by-make-demo.txt"
CHECKPOINTS = "checkpoints"
RANKS_JOB = JOB.with_name("train_ranks.py")
RANKS_CHECKPOINTS = "ranks"
KILLED_RANK, RANKS_KILLED_AT, RANKS_ENDED_AT = 2, 150, 250
KILLED_AT, TRAINED_TO, ENDED_AT = 400, 800, 850
BEFORE_KILL = KILLED_AT - train.SAVE_EVERY
TIMEOUT_S = 120

screen = open_screen()


class ClaimError(Exception):
    """A claim of the demo does not hold."""


def claim(text: str, holds: object) -> None:
    """Show a statement and whether it holds; stop if it does not."""
    screen.claim(text, bool(holds))
    if not holds:
        raise ClaimError(text)


# ------------------------------------------------------------------------------------------ the training job


def start_training(steps: int, *options: str) -> subprocess.Popen[str]:
    """Start the training job as a process of its own."""
    return subprocess.Popen(
        [sys.executable, JOB, CHECKPOINTS, "--steps", str(steps), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(job: subprocess.Popen[str]) -> list[str]:
    """Return the output of a training job that succeeded."""
    output, _ = job.communicate(timeout=TIMEOUT_S)
    if job.returncode:
        screen.command("python demo/train.py", output, job.returncode)
        raise ClaimError("the training job ends without a failure")
    return output.splitlines()


def show_training(steps: int, lines: list[str], exit_code: int | None) -> None:
    """Show the output of a training job, with fewer digits."""
    text = re.sub(r"loss (\S+)", lambda match: f"loss {float(match[1]):.6f}", "\n".join(lines))
    screen.command(f"python demo/train.py {CHECKPOINTS} --steps {steps}", text, exit_code)


def losses_in(lines: list[str]) -> dict[int, float]:
    """Return step → loss."""
    found = (re.fullmatch(r"saved step (\d+) loss (\S+)", line) for line in lines)
    return {int(match[1]): float(match[2]) for match in found if match}


def uninterrupted_losses() -> dict[int, float]:
    """Return the losses of the same training in one go, without any checkpoint."""
    inputs, targets = network.load_years()
    values = network.new_values()
    losses = [network.train_step(values, inputs, targets) for _ in range(ENDED_AT)]
    return {step: losses[step - 1] for step in range(train.SAVE_EVERY, ENDED_AT + 1, train.SAVE_EVERY)}


# ------------------------------------------------------------------------------------------ the directory


def prefix(step: int) -> str:
    """Return the prefix of the checkpoint of `step`."""
    return f"{CHECKPOINTS}/{train.PREFIX}-{step}"


def data_file(step: int) -> Path:
    """Return its data file, as the first save of a prefix names it."""
    return Path(f"{prefix(step)}.data-00000-of-00001")


def steps_on_disk() -> list[int]:
    """Return the steps that have an index, ascending."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in Path(CHECKPOINTS).glob("*.index"))


def leftovers() -> dict[str, int]:
    """Return name and size of the files that a killed writer left."""
    return {path.name: path.stat().st_size for path in Path(CHECKPOINTS).glob("*.tmp-*")}


def shell(*arguments: str) -> tuple[str, int]:
    """Run ``ckptstore`` with these arguments and show it."""
    done = subprocess.run(
        [sys.executable, "-m", "ckptstore", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    screen.command(" ".join(["ckptstore", *arguments]), done.stdout, done.returncode)
    return done.stdout, done.returncode


def python(*lines: str) -> dict[str, Any]:
    """Run lines as the interactive interpreter would, show them, and return the names that they made."""
    space: dict[str, Any] = {}
    shown = []
    for line in lines:
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(line, "<demo>", "single"), space)
        shown.append((line, output.getvalue().rstrip()))
    screen.session(shown)
    return space


# ------------------------------------------------------------------------------------------ the story


def begin() -> None:
    """Show what the demo does; make its directory."""
    screen.title(
        "ckptstore",
        "A small network learns to forecast sunspot numbers from 309 years of them (demo/sunspots.csv). "
        f"Its training job saves every {train.SAVE_EVERY} steps, keeps the last {train.MAX_TO_KEEP} "
        f"checkpoints and one every {train.KEEP_EVERY_HOURS} hours. The clock is fast: "
        f"{train.STEPS_AN_HOUR} steps are an hour. The files, in ./{RUN.name}, are of TensorFlow's own "
        "format; TensorFlow is not needed.",
    )
    if RUN.exists():
        if any(RUN.iterdir()) and not (RUN / MARK).exists():
            raise SystemExit(f"{RUN} was not made by this demo: move it away first")
        shutil.rmtree(RUN)
    RUN.mkdir()
    (RUN / MARK).write_text("Made by `make demo`, and removed by the next one.\n")
    os.chdir(RUN)


def train_and_kill() -> dict[int, float]:
    """Kill a training job while it writes a data file; return the losses that it printed."""
    screen.step(
        "A job trains, saves, and is killed in the middle of a save",
        f"The save of step {KILLED_AT} goes to a disk that was slowed down, so that there is time to send "
        "SIGKILL while its data file is being written.",
    )
    lines: list[str] = []
    with start_training(TRAINED_TO, "--slow-save", str(KILLED_AT)) as job:
        try:
            assert job.stdout is not None
            for line in job.stdout:
                lines.append(line.rstrip())
                if line.startswith(f"saved step {BEFORE_KILL} "):
                    wait_for_half_a_file(job)
                    break
        finally:
            job.kill()
    was_killed = job.returncode == -signal.SIGKILL
    show_training(TRAINED_TO, [*lines, "Killed"] if was_killed else lines, None)
    claim("the job was ended by SIGKILL", was_killed)

    complete = data_file(BEFORE_KILL).stat().st_size
    for name, size in leftovers().items():
        screen.say(f"  Left behind: {name}\n               {size:,} of {complete:,} bytes")
    claim("one half-written data file is left", [size < complete for size in leftovers().values()] == [True])
    claim(
        f"there is no {train.PREFIX}-{KILLED_AT}.index: for every reader this save never happened",
        KILLED_AT not in steps_on_disk(),
    )
    shell("ls", CHECKPOINTS)
    claim(
        "kept: the last three, and 200 as the one of its three hours", steps_on_disk() == [200, 250, 300, 350]
    )
    newest = ckptstore.latest_checkpoint(CHECKPOINTS)
    claim(f"the latest checkpoint is {prefix(BEFORE_KILL)}", newest == prefix(BEFORE_KILL))
    return losses_in(lines)


def wait_for_half_a_file(job: subprocess.Popen[str]) -> None:
    """Return when half of a data file is written, or the job is over."""
    half = data_file(BEFORE_KILL).stat().st_size / 2
    deadline = time.monotonic() + TIMEOUT_S
    while job.poll() is None and time.monotonic() < deadline:
        if any(size >= half for size in leftovers().values()):
            return
        time.sleep(0.005)


def resume(first: dict[int, float], reference: dict[int, float]) -> None:
    """Let a new process go on, and compare."""
    screen.step(
        "A new process resumes",
        "It finds the newest good checkpoint by itself: weights, the state of the optimizer and the step all "
        "come from there. Beside it, the same training in one go and without checkpoints.",
    )
    lines = finished(start_training(TRAINED_TO))
    second = losses_in(lines)
    show_training(TRAINED_TO, [lines[0], lines[1], "…", lines[-1]], 0)

    def cell(losses: dict[int, float], step: int, otherwise: str = "") -> str:
        return f"{losses[step]:.6f}" if step in losses else otherwise

    screen.table(
        ("step", "loss, first process", "second process", "never interrupted"),
        [
            (
                str(step),
                cell(first, step, "killed" if step == KILLED_AT else ""),
                cell(second, step),
                cell(reference, step),
            )
            for step in range(300, 551, train.SAVE_EVERY)
        ],
    )
    # Without the steep beginning, which would make everything after it flat.
    drawn = {step: loss for step, loss in (first | second).items() if step > 100}
    low, high = min(drawn.values()), max(drawn.values())
    before = bars([loss for step, loss in drawn.items() if step in first], low, high)
    after = bars([loss for step, loss in drawn.items() if step in second], low, high)
    screen.say(f"  first process   {before}✂\n  second process  {' ' * len(before)}{after}\n")

    claim(f"it resumed from {prefix(BEFORE_KILL)}", lines[0] == f"resumed from {prefix(BEFORE_KILL)}")
    again = range(KILLED_AT, TRAINED_TO + 1, train.SAVE_EVERY)
    claim(f"it saved every checkpoint from {KILLED_AT} to {TRAINED_TO}", list(second) == list(again))
    gap = max(abs(loss - reference[step]) for step, loss in (first | second).items())
    claim(f"the loss goes on where it was; largest difference to the run in one go: {gap:.1g}", gap < 1e-6)
    claim("the half-written file is gone: its writer was provably dead", not leftovers())
    claim(
        "the three-hour clock ran on through the kill: 200, 350, 500 and 650 stay",
        steps_on_disk() == [200, 350, 500, 650, 700, 750, 800],
    )


def look_up_graph() -> None:
    """Ask the graph for a placeholder, a constant, a variable and an operation."""
    screen.step(
        "The network, asked by name",
        "The .meta file holds the graph. From the files alone, inputs, variables, constants and "
        "results by their names, as with TensorFlow's import_meta_graph.",
    )
    found = python(
        "import ckptstore",
        f'saver = ckptstore.import_meta_graph("{prefix(TRAINED_TO)}.meta")',
        'saver.graph.get_tensor_by_name("years:0")  # a placeholder',
        'saver.graph.get_tensor_by_name("scale:0").value  # a constant',
        'saver.graph.get_tensor_by_name("hidden1/w:0")  # a variable',
        "values = {}",
        f'saver.restore(values, "{prefix(TRAINED_TO)}")',
        'float(values["hidden1/w"].std())  # its value, from the checkpoint',
        '[tensor.name for tensor in saver.graph.get_operation_by_name("forecast").inputs]',
    )
    graph, values = found["saver"].graph, found["values"]
    inputs = [(tensor.name, tensor.shape) for tensor in graph.placeholders]
    claim("the placeholder takes rows of 22 years", inputs == [("years:0", (None, network.WINDOW))])
    claim("the constant has its value", graph.get_tensor_by_name("scale:0").value == network.SCALE)
    shapes = {variable.op.name: variable.shape for variable in graph.variables}
    stored = {name: value.shape for name, value in values.items()}
    claim(f"the {len(shapes)} variables are the tensors of the checkpoint, shape by shape", shapes == stored)


def damage() -> None:
    """Flip a bit of the newest checkpoint and let ``verify`` find it."""
    screen.step(
        "One bit is flipped",
        f"On purpose, as a failing disk would: in the tensor hidden2/w of step {TRAINED_TO}, the newest.",
    )
    path = data_file(TRAINED_TO)
    with ckptstore.open_checkpoint(prefix(TRAINED_TO)) as checkpoint:
        tensor = checkpoint["hidden2/w"].tobytes()
    content = bytearray(path.read_bytes())
    position = content.index(tensor) + len(tensor) // 2
    content[position] ^= 1 << 4
    path.write_bytes(content)
    screen.say(f"\n  Flipped bit 4 of byte {position} of {path}")
    output, code = shell("verify", CHECKPOINTS)
    claim("verify names the tensor and the file", "'hidden2/w'" in output and path.name in output)
    good = re.findall(rf"^ok\s+{train.PREFIX}-(\d+)", output, re.MULTILINE)
    claim("it finds all the others good", [int(step) for step in good] == steps_on_disk()[:-1])
    claim("its exit code for scripts is 4: corrupt or incomplete", code == 4)


def fall_back(reference: dict[int, float]) -> None:
    """Start the job on a directory whose newest checkpoint is damaged."""
    screen.step(
        "The job starts once more",
        "Every byte is verified on restore, so damage is an error and never a number in the weights. The job "
        "takes the checkpoint before it, and saves the damaged step anew.",
    )
    lines = finished(start_training(ENDED_AT))
    show_training(ENDED_AT, lines, 0)
    claim("the damaged checkpoint was refused, with a ChecksumError", "ChecksumError" in lines[1])
    claim(f"the one before it was taken: {prefix(750)}", f"resumed from {prefix(750)}" in lines)
    gap = max(abs(loss - reference[step]) for step, loss in losses_in(lines).items())
    claim(f"and the training is still the same; largest difference: {gap:.1g}", gap < 1e-6)


def final_look() -> None:
    """Show the directory, and that it is in order."""
    screen.step(
        "The directory at the end",
        "Those listed in the record are counted by retention; the others stay for good, one every three "
        "hours. The star is where the next job would resume.",
    )
    output, code = shell("ls", CHECKPOINTS)
    claim("every checkpoint is complete", code == 0 and output.count(" complete ") == len(steps_on_disk()))
    newest = ckptstore.latest_checkpoint(CHECKPOINTS)
    claim(f"the latest checkpoint is {prefix(ENDED_AT)}", newest == prefix(ENDED_AT))
    output, code = shell("verify", CHECKPOINTS)
    claim("and every byte is what was written", code == 0 and "all good" in output)


def start_ranks(size: int, attempt: str, *, slow_rank: int | None = None) -> list[subprocess.Popen[str]]:
    """Start the processes of a job that saves one checkpoint together."""
    jobs = []
    for rank in range(size):
        options = ["--rank", str(rank), "--size", str(size), "--attempt", attempt]
        if rank == slow_rank:
            options += ["--slow-save", str(RANKS_KILLED_AT)]
        jobs.append(
            subprocess.Popen(
                [sys.executable, RANKS_JOB, RANKS_CHECKPOINTS, "--steps", str(RANKS_ENDED_AT), *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return jobs


def outputs_of(jobs: list[subprocess.Popen[str]]) -> list[list[str]]:
    """Return what each job printed, when all are over."""
    try:
        return [job.communicate(timeout=TIMEOUT_S)[0].splitlines() for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def many_ranks(reference: dict[int, float]) -> None:
    """Kill one of four processes that save together, and let three go on."""
    before = RANKS_KILLED_AT - train.SAVE_EVERY
    screen.step(
        "Four processes, one checkpoint; one of them is killed",
        "Each of four processes holds a quarter of the rows of every array, and they save one checkpoint: a "
        f"data file each, one index. Process {KILLED_RANK} gets SIGKILL while it writes its part of step "
        f"{RANKS_KILLED_AT}.",
    )
    jobs = start_ranks(4, "first", slow_rank=KILLED_RANK)
    part = f"{train.PREFIX}-{RANKS_KILLED_AT}.data-0000{KILLED_RANK}-of-00004.tmp-*"
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and all(job.poll() is None for job in jobs):
        if any(path.stat().st_size for path in Path(RANKS_CHECKPOINTS).glob(part)):
            break
        time.sleep(0.005)
    jobs[KILLED_RANK].kill()
    outputs = outputs_of(jobs)
    screen.command(
        "python demo/train_ranks.py …   (process 0 of 4)", "\n".join(outputs[0]), jobs[0].returncode
    )
    others = [lines for rank, lines in enumerate(outputs) if rank != KILLED_RANK]
    claim("process 2 was ended by SIGKILL", jobs[KILLED_RANK].returncode == -signal.SIGKILL)
    claim(
        "every other process names it and stops",
        all("RanksMissingError" in lines[-1] and f"rank {KILLED_RANK}" in lines[-1] for lines in others),
    )
    newest = ckptstore.latest_checkpoint(RANKS_CHECKPOINTS)
    good = f"{RANKS_CHECKPOINTS}/{train.PREFIX}-{before}"
    claim(f"the latest checkpoint is that of the last step that all had saved: {good}", newest == good)
    outputs = outputs_of(start_ranks(3, "second"))
    screen.command("python demo/train_ranks.py …   (process 0 of 3)", "\n".join(outputs[0]), 0)
    claim("three processes go on from there", all(lines[0] == f"resumed from {good}" for lines in outputs))
    losses = losses_in(outputs[0])
    gap = max((abs(loss - reference[step]) for step, loss in losses.items()), default=1.0)
    claim(f"the training is the same; largest difference: {gap:.1g}", gap < 1e-6 and RANKS_ENDED_AT in losses)
    output, code = shell("ls", RANKS_CHECKPOINTS)
    claim("and every checkpoint is complete", code == 0 and output.count(" complete ") == 5)
    with ckptstore.open_checkpoint(f"{RANKS_CHECKPOINTS}/{train.PREFIX}-{RANKS_ENDED_AT}") as checkpoint:
        shards = checkpoint.specs()["hidden2/w"].shards
    claim("the last ones have a data file of each of the three", shards == (0, 1, 2))


def main() -> int:
    """Run all steps; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without check marks must not make it fail
    started_s = time.monotonic()
    begin()
    try:
        reference = uninterrupted_losses()
        first = train_and_kill()
        resume(first, reference)
        look_up_graph()
        damage()
        fall_back(reference)
        final_look()
        many_ranks(reference)
    except ClaimError as failure:
        screen.end(f"Not as claimed: {failure}. The files are in {RUN}.", good=False)
        return 1
    tool = os.path.relpath(Path(sys.executable).with_name("ckptstore"), RUN.parent)
    screen.end(
        f"Everything came out as claimed, in {time.monotonic() - started_s:.0f} seconds. To look around: "
        f"{tool} inspect {RUN.name}/{prefix(ENDED_AT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
