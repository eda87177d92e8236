"""What a transfer tells: events, bars, its line in the log; and that telling breaks nothing."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from typing import Any

import pytest

from ckptstore.errors import CkptStoreWarning, TransientError, UsageError
from ckptstore.storage.scope import current_scope
from ckptstore.transfer import progress as progress_module
from ckptstore.transfer.progress import Event, reporter
from ckptstore.transfer.transfer import Transfer
from tests.own_warnings import own_warnings

MIB = 1 << 20


def test_events_tell_the_beginning_the_way_and_the_end() -> None:
    events: list[Event] = []
    with Transfer("save", "memory://x/model-3", step=3, report=events.append) as transfer:
        transfer.expect(64 * MIB)
        for _ in range(64):
            transfer.advance(MIB)
    assert [(event.done_bytes, event.is_over) for event in (events[0], events[-1])] == [
        (0, False),
        (64 * MIB, True),
    ]
    done = [event.done_bytes for event in events]
    assert done == sorted(done)
    assert 10 < len(events) < 80
    assert {(event.kind, event.url, event.step) for event in events} == {("save", "memory://x/model-3", 3)}
    assert [event.total_bytes for event in events[1:]] == [64 * MIB] * (len(events) - 1)
    assert events[-1].error is None


def test_small_steps_are_told_together() -> None:
    events: list[Event] = []
    with Transfer("restore", "x", report=events.append) as transfer:
        transfer.expect(100_000)
        for _ in range(100_000):
            transfer.advance(1)
    assert len(events) < 500
    assert events[-1].done_bytes == 100_000


def test_a_failure_is_the_last_event() -> None:
    events: list[Event] = []
    with pytest.raises(TransientError), Transfer("save", "x", report=events.append):
        raise TransientError("no luck")
    assert events[-1].is_over
    assert events[-1].error == "TransientError: no luck"


@pytest.mark.parametrize("action", ["default", "error"])
def test_a_report_that_raises_is_told_once_and_breaks_nothing(action: Any) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise ZeroDivisionError("in the user's code")

    with own_warnings(action) as caught, Transfer("save", "x", report=broken) as transfer:
        transfer.expect(10)
        transfer.advance(10)
    assert len(calls) == 1
    assert [warning.category for warning in caught] == ([CkptStoreWarning] if action == "default" else [])
    assert transfer.done_bytes == 10


def test_one_line_in_the_log_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ckptstore")
    with Transfer("save", "memory://x/model-3", step=3) as transfer:
        transfer.expect(5_000_000)
        transfer.advance(5_000_000)
        scope = current_scope()
        assert scope is transfer.scope
        scope.count(requests=7, retries=2)
    with pytest.raises(TransientError), Transfer("restore", "memory://x/model"):
        raise TransientError("no luck")
    good, bad = caplog.messages
    assert good.startswith("save of step 3 (memory://x/model-3): 5000000 bytes in ")
    assert good.endswith(" MB/s), 7 requests, 2 retries")
    assert bad.startswith("restore of memory://x/model failed with TransientError: 0 bytes in ")


def test_what_cannot_show_progress_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown value"):
        reporter("loud")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tqdm"):
        reporter("tqdm")


def test_none_is_none_and_a_function_is_itself() -> None:
    assert reporter(None) is None
    assert reporter(print) is print


def test_the_log_says_how_far_it_is_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ckptstore")
    now_s = 0.0
    monkeypatch.setattr(progress_module, "time", types.SimpleNamespace(monotonic=lambda: now_s))
    report = reporter("log")
    assert report is not None
    for now_s in range(0, 26, 5):
        report(Event("save", "memory://x/model-3", now_s, 100, float(now_s)))
    report(Event("save", "memory://x/model-3", 100, 100, 26.0, is_over=True))
    assert caplog.messages == [
        "save model-3: 10 of 100 bytes after 10 s",
        "save model-3: 20 of 100 bytes after 20 s",
    ]


def test_a_bar_is_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("rich")
    caplog.set_level(logging.INFO, "ckptstore")
    for is_terminal in (False, True):
        monkeypatch.setenv("FORCE_COLOR", "1") if is_terminal else monkeypatch.delenv(
            "FORCE_COLOR", raising=False
        )
        with Transfer("save", "memory://x/model-[3]", report=reporter("rich")) as transfer:
            transfer.expect(100)
            transfer.advance(50)
        drawn = capfd.readouterr().err
        assert ("model-[3]" in drawn) == is_terminal
        assert any("not a terminal" in message for message in caplog.messages) != is_terminal
        caplog.clear()


def test_a_name_that_a_terminal_would_obey_is_shown_as_an_escape(
    capfd: pytest.CaptureFixture, monkeypatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Transfer("verify", "memory://x/model\x1b]0;title\x07-ä", report=reporter("rich")) as transfer:
        transfer.expect(100)
    drawn = capfd.readouterr().err
    assert "\x1b]0" not in drawn
    assert "model\\x1b]0;title\\x07-ä" in drawn


@pytest.mark.parametrize("is_notebook", [False, True])
def test_tqdm_gets_the_bytes_and_is_closed(monkeypatch: pytest.MonkeyPatch, is_notebook: bool) -> None:
    class Bar:
        def __init__(self, **options: Any) -> None:
            self.disable = options["disable"]
            self.n = 0
            self.total = options["total"]
            self.is_closed = False
            bars.append(self)

        def update(self, size: int) -> None:
            self.n += size

        def close(self) -> None:
            self.is_closed = True

    bars: list[Bar] = []
    fake = types.ModuleType("tqdm")
    fake.tqdm = Bar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm", fake)
    if is_notebook:
        # A kernel's streams are no terminals; tqdm.auto draws with widgets there.
        monkeypatch.setitem(sys.modules, "tqdm.auto", fake)
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: fake)
    with Transfer("save", "x", report=reporter("tqdm")) as transfer:
        transfer.expect(100)
        transfer.advance(100)
    (bar,) = bars
    assert (bar.n, bar.total, bar.is_closed) == (100, 100, True)
    assert bar.disable is (False if is_notebook else None)
