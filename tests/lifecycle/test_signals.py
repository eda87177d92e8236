"""Signal handlers that save or look, whatever they interrupt; and Ctrl-C at every step of a save."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore as ck
from tests.lifecycle.child import run

pytestmark = pytest.mark.timeout(120)

# Calls `step` in the main thread, as a signal handler, at every line that is reached for the first time.
EVERY_LINE = """
ROOT = os.path.dirname(ck.__file__)

def at_every_line(call, step, within=lambda code: True):
    seen = set()
    def trace(frame, event, argument):
        code = frame.f_code
        is_ours = code.co_filename.startswith(ROOT) or code.co_filename.endswith(("threading.py", "_base.py"))
        if not is_ours or not within(code):
            return None
        def local(frame, event, argument):
            place = frame.f_code, frame.f_lineno
            if event == "line" and place not in seen:
                seen.add(place)
                step(place)
            return local
        return local
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return seen
"""

HANDLER = """
outcomes = {"done": 0, "refused": 0}

def tried(call):
    def step(place):
        try:
            call()
        except ck.UsageError as error:
            assert "signal handler" in str(error) or "within another one" in str(error), error
            outcomes["refused"] += 1
        else:
            outcomes["done"] += 1
    return step
"""

LOOKS = (
    EVERY_LINE
    + HANDLER
    + """
url = sys.argv[1]
values = {f"w{number}": np.full(70_000, float(number)) for number in range(6)} | {"small": np.ones(3)}
saver = ck.Saver(max_to_keep=2)
for step in (1, 2, 3):
    saver.save(values, url + "/m", step)
look = tried(lambda: ck.latest_checkpoint(url))
at_every_line(lambda: saver.save(values, url + "/m", 4), look)
at_every_line(lambda: ck.Saver().restore(values, url + "/m-4"), look)
at_every_line(lambda: saver.save_async(values, url + "/m", 5).result(), look)
at_every_line(saver.close, look)
assert outcomes["done"] and outcomes["refused"], outcomes
assert ck.latest_checkpoint(url) == url + "/m-5"
assert saver.last_checkpoints == [url + "/m-4", url + "/m-5"]
"""
)


def test_a_handler_that_looks_never_waits_for_its_own_thread(tmp_path: Path) -> None:
    run(LOOKS, str(tmp_path / "run"))
    run(LOOKS, "memory://signals/run")


@pytest.mark.parametrize("server", ["minio", "gcs_server"])
def test_a_handler_that_looks_at_a_store(server: str, request: pytest.FixtureRequest) -> None:
    where = request.getfixturevalue(server)
    scheme = "s3" if server == "minio" else "gs"
    run(LOOKS, f"{scheme}://{where.make_bucket()}/run", environment=where.environment)


SAVES = (
    EVERY_LINE
    + HANDLER
    + """
url = sys.argv[1]
saver, other = ck.Saver(run="job"), ck.Saver(run="job")
saver.save(W, url + "/m", 1)
other.save(W, url + "/other/m", 1)

def save():
    other.save(W, url + "/other/m", outcomes["done"])

at_every_line(lambda: saver.save(W, url + "/m", 2), tried(save))
at_every_line(lambda: saver.save_async(W, url + "/m", 3).result(), tried(save))
handles = []
# Of the same Saver, while its save in the background runs.
save_10 = tried(lambda: saver.save(W, url + "/m", 10))
at_every_line(lambda: saver.save_async(W, url + "/m", 4).result(), save_10)
save_11 = tried(lambda: handles.append(saver.save_async(W, url + "/m", 11)))
at_every_line(lambda: saver.close(), save_11)
saver.close()
assert outcomes["done"] and outcomes["refused"], outcomes
saver.save(W, url + "/m", 20)
"""
)


def test_a_handler_that_saves_never_waits_for_its_own_thread(tmp_path: Path) -> None:
    run(SAVES, str(tmp_path))
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-20")
    run(SAVES, "memory://signals/run")


REAL = (
    HANDLER
    + """
url = sys.argv[1]
saver, other = ck.Saver(run="job"), ck.Saver(run="job")
step = tried(lambda: (other.save(W, url + "/other/m", outcomes["done"]), ck.latest_checkpoint(url)))

def handler(number, frame):
    step(None)
    signal.setitimer(signal.ITIMER_REAL, 0.003)

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.003)
for number in range(6):
    saver.save(W, url + "/m", number)
    saver.save_async(W, url + "/m", 100 + number).result()
    saver.restore({}, url + "/m-%d" % number)
signal.setitimer(signal.ITIMER_REAL, 0)
saver.close()
"""
)


@pytest.mark.parametrize("backend", ["local", "memory", "minio", "gcs_server"])
def test_real_signals_again_and_again(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if backend in ("local", "memory"):
        run(REAL, str(tmp_path) if backend == "local" else "memory://signals/run")
        return
    where = request.getfixturevalue(backend)
    scheme = "s3" if backend == "minio" else "gs"
    run(REAL, f"{scheme}://{where.make_bucket()}/run", environment=where.environment)


# At each line of these in turn; each time with a new Saver, which can save afterwards.
INTERRUPTED = (
    EVERY_LINE
    + """
BEGIN = {"submit", "_append", "_begin_work", "enter", "begin_snapshot", "stage", "save", "save_async", "run"}

def interrupted(call, place):
    def step(found):
        if found == place:
            raise KeyboardInterrupt
    try:
        at_every_line(call, step, within=lambda code: code.co_name in BEGIN)
    except KeyboardInterrupt:
        return True
    return False

def check(name, begin):
    base = sys.argv[1] + "/" + name
    saver = ck.Saver()
    is_beginning = lambda code: code.co_name in BEGIN
    places = at_every_line(lambda: begin(saver, base, 1), lambda place: None, is_beginning)
    saver.close()
    hits = 0
    for number, place in enumerate(sorted(places, key=lambda one: (one[0].co_filename, one[1]))):
        saver = ck.Saver(max_to_keep=1)
        hits += interrupted(lambda: begin(saver, base, 2 * number), place)
        try:
            saver.close()
        except ck.CkptStoreError:
            pass
        prefix = saver.save(W, base, 2 * number + 1)
        assert ck.latest_checkpoint(sys.argv[1]) == prefix, place
    assert hits > 20, hits

check("wait", lambda saver, base, step: saver.save(W, base, step))
check("async", lambda saver, base, step: saver.save_async(W, base, step).result())
"""
)


def test_after_ctrl_c_at_any_step_of_the_beginning_the_saver_can_save(tmp_path: Path) -> None:
    run(INTERRUPTED, str(tmp_path))
