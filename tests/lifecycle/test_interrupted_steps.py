"""Ctrl-C at every step of the beginning of a save: the Saver can save afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.child import run

pytestmark = pytest.mark.timeout(120)

# Calls `step` in the main thread at every line that it reaches for the first time, as a handler may be.
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
    within = lambda code: code.co_name in BEGIN
    places = at_every_line(lambda: begin(saver, base, 1), lambda place: None, within)
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
