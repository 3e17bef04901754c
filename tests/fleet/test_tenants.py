"""Tenants on a real server: turns where one has a rate, by the moments that threads were given; changes; removal."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from app.database.postgres import PostgresLedger
from app.fleet import tenants
from app.fleet.presence import server_ms
from app.fleet.tenants import Changes, Tenant, TenantError, TenantPolicy
from app.ledger import claims, counts, dead_letters
from app.ledger.dead_letters import Choice
from tests.support.ledger_bench import LedgerBench, accepted, version
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
            given.extend(tenants.reserve_send_time(db, tenant.destination_id, RATE_PER_MINUTE) for _ in range(50))

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
        at_ms = tenants.reserve_send_time(ledger, tenant.destination_id, RATE_PER_MINUTE)
        assert at_ms is None or at_ms <= server_ms(ledger) + tenants.AHEAD_MS_MAX


def test_a_clock_that_was_wrong_holds_nobody_back(ledger: PostgresLedger, tenant: Tenant) -> None:
    ledger.execute("update tenant set next_ms = next_ms + ?", (server_ms(ledger) + 10 * 365 * 86_400_000,))
    at_ms = tenants.reserve_send_time(ledger, tenant.destination_id, RATE_PER_MINUTE)
    assert at_ms is not None
    assert at_ms <= server_ms(ledger)
    following = tenants.reserve_send_time(ledger, tenant.destination_id, RATE_PER_MINUTE)
    assert following is not None
    assert following >= at_ms + EVERY_MS


# --- changed


ELSEWHERE = "https://elsewhere.test"


def test_what_is_named_is_changed_and_the_rest_stays(ledger: PostgresLedger, tenant: Tenant) -> None:
    policy = TenantPolicy("metadata_only", ("a", "b"))
    for changes, changed in (
        (Changes(bytes_max=5), replace(tenant, bytes_max=5)),
        (Changes(rate_per_minute=0), replace(tenant, bytes_max=5, rate_per_minute=None)),
        (
            Changes(export_mode="metadata_only", redact_patterns=("a", "b")),
            replace(tenant, bytes_max=5, rate_per_minute=None, policy=policy),
        ),
        (
            Changes(bytes_max=0, rate_per_minute=1),
            replace(tenant, rate_per_minute=1, policy=policy),
        ),
        (
            Changes(key="another", endpoint=f"{ELSEWHERE}:443/", redact_patterns=()),
            replace(
                tenant,
                rate_per_minute=1,
                key="another",
                endpoint=ELSEWHERE,
                policy=TenantPolicy("metadata_only"),
            ),
        ),
        (Changes(export_mode="full"), replace(tenant, rate_per_minute=1, key="another", endpoint=ELSEWHERE)),
    ):
        assert tenants.change(ledger, "one", changes) == changed == tenants.tenant(ledger, "one")
    with pytest.raises(TenantError):
        tenants.change(ledger, "nobody", Changes(bytes_max=1))


def test_no_tenant_takes_anothers_address(ledger: PostgresLedger, tenant: Tenant) -> None:
    tenants.add_tenant(ledger, "two", endpoint=tenant.endpoint, key="another")
    with pytest.raises(TenantError, match="has this key at this endpoint already"):
        tenants.change(ledger, "one", Changes(key="another", bytes_max=1))
    assert tenants.tenant(ledger, "one") == tenant


def bench_of(ledger: PostgresLedger, tenant: Tenant) -> LedgerBench:
    bench = LedgerBench(ledger)
    bench.destination = tenant.destination_id
    return bench


def to_be_confirmed(bench: LedgerBench) -> int:
    bench.put(version())
    claimed = bench.claimed()
    taken = [accepted(bench.db, claimed, body, 1) for body in bench.left(claimed)]
    claims.complete(bench.db, claimed, 1, accepted=taken, confirm_ms=1)
    return waiting_to_be_confirmed(bench)


def waiting_to_be_confirmed(bench: LedgerBench) -> int:
    (number,) = bench.db.execute("select count(*) from job where confirm_ms is not null and body_bytes > 0").fetchone()
    return int(number)


def test_what_was_delivered_is_looked_for_where_it_was_delivered_or_not_at_all(
    ledger: PostgresLedger, tenant: Tenant
) -> None:
    bench = bench_of(ledger, tenant)
    assert to_be_confirmed(bench) == 1
    tenants.change(ledger, "one", Changes(key="of the same organisation"))
    assert waiting_to_be_confirmed(bench) == 1
    tenants.change(ledger, "one", Changes(endpoint=ELSEWHERE))
    assert waiting_to_be_confirmed(bench) == 0
    assert bench.state() == "delivered"


def test_keys_and_patterns_are_in_nothing_that_is_printed(tenant: Tenant) -> None:
    changes = Changes(key="the key", redact_patterns=("the pattern",))
    policy = TenantPolicy(redact_patterns=("the pattern",))
    for shown in (repr(changes), repr(replace(tenant, key="the key", policy=policy)), repr(policy)):
        assert "the " not in shown


# --- removed


def test_a_tenant_is_removed_once_nobody_needs_it(ledger: PostgresLedger, tenant: Tenant) -> None:
    bench = bench_of(ledger, tenant)
    bench.put(version())
    token = tenants.add_token(ledger, "one", "laptop")
    with pytest.raises(TenantError, match="fleet token revoke one laptop"):
        tenants.remove(ledger, "one")
    tenants.revoke(ledger, "one", "laptop")
    with pytest.raises(TenantError, match=r"1 of its logs still wait: .* fleet tenant set"):
        tenants.remove(ledger, "one")
    bench.dead_letter(bench.claimed())
    with pytest.raises(TenantError, match=r"1 of its logs are dead: fleet dead retry one .* fleet dead purge one"):
        tenants.remove(ledger, "one")
    assert tenants.machines(ledger) != []
    dead_letters.purge_dead(ledger, Choice(), 1)
    tenants.remove(ledger, "one")
    assert (tenants.tenants(ledger), tenants.machines(ledger)) == ([], [])
    assert tenants.admitted(ledger, token) is None
    assert bench.state() == "dropped (purged)"
    with pytest.raises(TenantError, match="no tenant one"):
        tenants.remove(ledger, "one")
    again = tenants.add_tenant(ledger, "again", endpoint=tenant.endpoint, key=tenant.key)
    assert again.destination_id != tenant.destination_id
    assert counts.counts(ledger, again.destination_id).dropped == 0


def test_a_key_that_a_tenant_had_may_be_anothers_once_that_is_removed(ledger: PostgresLedger, tenant: Tenant) -> None:
    other = tenants.add_tenant(ledger, "other", endpoint=tenant.endpoint, key="another")
    with pytest.raises(TenantError, match="tenant other has this key at this endpoint already"):
        tenants.change(ledger, "one", Changes(key=other.key))
    tenants.remove(ledger, "other")
    assert tenants.change(ledger, "one", Changes(key=other.key)).destination_id == tenant.destination_id


def test_no_body_stays_for_a_tenant_that_is_gone(ledger: PostgresLedger, tenant: Tenant) -> None:
    bench = bench_of(ledger, tenant)
    assert to_be_confirmed(bench) == 1
    tenants.remove(ledger, "one")
    assert waiting_to_be_confirmed(bench) == 0
    assert ledger.execute("select count(*) from bundle").fetchone()[0] == 0
