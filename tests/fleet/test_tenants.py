"""Turns where a tenant has a rate: of many threads on a real server, by the moments that they were given."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from app.database.postgres import PostgresLedger
from app.fleet import tenants
from app.fleet.presence import server_ms
from app.fleet.tenants import Tenant
from tests.support.postgres import Server

pytestmark = pytest.mark.postgres

RATE_PER_MINUTE = 1_700
EVERY_MS = 38
"""A minute and a twentieth of one, of so many; rounded up."""


@pytest.fixture
def ledger(postgres_server: Server) -> Iterator[PostgresLedger]:
    with closing(postgres_server.emptied()) as db:
        yield db


@pytest.fixture
def tenant(ledger: PostgresLedger) -> Tenant:
    key = "a key"
    return tenants.add_tenant(ledger, "one", endpoint="https://helicone.test", key=key, rate_per_minute=RATE_PER_MINUTE)


def test_no_two_turns_are_nearer_than_the_rate_says(postgres_server: Server, tenant: Tenant) -> None:
    given: list[int | None] = []

    def take() -> None:
        with closing(PostgresLedger(postgres_server.url)) as db:
            given.extend(tenants.take_turn(db, tenant.destination_id, RATE_PER_MINUTE) for _ in range(50))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    at_ms = sorted(one for one in given if one is not None)
    assert len(at_ms) > tenants.AHEAD_MS_MAX // EVERY_MS
    assert None in given
    assert min(later - one for one, later in itertools.pairwise(at_ms)) >= EVERY_MS


def test_nobody_sleeps_for_long(ledger: PostgresLedger, tenant: Tenant) -> None:
    """However many want a turn: threads that sleep deliver for nobody else."""
    for _ in range(100):
        at_ms = tenants.take_turn(ledger, tenant.destination_id, RATE_PER_MINUTE)
        assert at_ms is None or at_ms <= server_ms(ledger) + tenants.AHEAD_MS_MAX


def test_a_clock_that_was_wrong_holds_nobody_back(ledger: PostgresLedger, tenant: Tenant) -> None:
    ledger.execute("update tenant set next_ms = next_ms + ?", (server_ms(ledger) + 10 * 365 * 86_400_000,))
    at_ms = tenants.take_turn(ledger, tenant.destination_id, RATE_PER_MINUTE)
    assert at_ms is not None
    assert at_ms <= server_ms(ledger)
    following = tenants.take_turn(ledger, tenant.destination_id, RATE_PER_MINUTE)
    assert following is not None
    assert following >= at_ms + EVERY_MS
