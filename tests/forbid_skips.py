"""Pytest plugin, ``-p tests.forbid_skips``: a skipped test fails the run.

For the lanes whose whole point is another program (TensorFlow, a server): there a skip means that nothing was
proved, and a green line would hide it.
"""

from __future__ import annotations

import pytest

_skipped: list[str] = []


def _note(report: pytest.CollectReport | pytest.TestReport) -> None:
    # An expected failure is reported as skipped too; it did run.
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        _skipped.append(f"{report.nodeid}: {reason}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.section("skipped, which this lane does not allow", red=True)
        for line in _skipped:
            terminalreporter.line(line)
