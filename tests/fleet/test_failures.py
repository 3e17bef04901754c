"""An outage of the database is logged once, and its end."""

from __future__ import annotations

import logging

import pytest

from app.fleet.failures import DatabaseFailures


def test_what_many_threads_meet_again_and_again_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    failures = DatabaseFailures(logging.getLogger("test"))
    failures.works("ledger", "poller")
    for _ in range(20):
        failures.failed("ledger", "it is away")
        failures.failed("poller", "it is away")
        failures.failed("poller", "it is starting")
        failures.failed("listener", "it has no room")
    for _ in range(2):
        failures.works("ledger", "poller")
    failures.failed("listener", "it has no room")
    failures.failed("ledger", "it is away")
    assert [one.getMessage() for one in caplog.records] == [
        "ledger: it is away",
        "poller: it is away",
        "poller: it is starting",
        "listener: it has no room",
        "ledger, poller: the database works again",
        "ledger: it is away",
    ]
