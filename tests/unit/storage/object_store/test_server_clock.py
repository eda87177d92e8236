"""The server's clock, read from its answers."""

from __future__ import annotations

import datetime
import email.utils
import time

import pytest

from ckptstore.storage.object_store.server_clock import skew_of
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, storage_of


def test_the_difference_is_the_servers_time_less_ours() -> None:
    ahead = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    assert skew_of(email.utils.format_datetime(ahead, usegmt=True), 0.0) == pytest.approx(7200.0, abs=60.0)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_changes_nothing(date: str | None) -> None:
    assert skew_of(date, 5.0) == 5.0


def test_a_storage_tells_the_servers_time() -> None:
    transport = ScriptedTransport()
    transport.skew_s = -3600.0
    assert storage_of(transport).now_s() == pytest.approx(time.time() - 3600.0, abs=60.0)
