"""Who is alive, by the server's own word: real locks, real restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from app.database.postgres import PostgresLedger
from app.fleet import presence
from tests.support.postgres import Server

pytestmark = pytest.mark.postgres


@pytest.fixture
def ledger(postgres_server: Server) -> Iterator[PostgresLedger]:
    with closing(postgres_server.emptied()) as db:
        yield db


@pytest.fixture
def other(postgres_server: Server, ledger: PostgresLedger) -> Iterator[PostgresLedger]:
    """Another connection."""
    assert ledger.is_current()
    with closing(PostgresLedger(postgres_server.url)) as db:
        yield db


def age(db: PostgresLedger, name: str, by_ms: int) -> None:
    db.execute("update worker set seen_ms = seen_ms - ? where name = ?", (by_ms, name))


def test_who_beats_is_alive_and_who_has_no_row_is_dead(ledger: PostgresLedger) -> None:
    presence.beat(ledger, "a", {})
    assert presence.dead(ledger, ["a", "b"]) == ["b"]
    assert presence.dead(ledger, []) == []


def test_a_lock_that_is_gone_makes_the_wait_shorter_and_one_that_is_held_does_not_make_it_endless(
    ledger: PostgresLedger, other: PostgresLedger
) -> None:
    presence.hold(other, "a")
    presence.beat(ledger, "a", {})
    age(ledger, "a", presence.MISSING_MS + 1)
    assert presence.dead(ledger, ["a"]) == []
    other.close()  # as when its process is killed
    ledger.execute("select pg_advisory_lock(hashtextextended('a', 0)), pg_advisory_unlock(hashtextextended('a', 0))")
    assert presence.dead(ledger, ["a"]) == ["a"]
    age(ledger, "a", -presence.MISSING_MS // 2)
    assert presence.dead(ledger, ["a"]) == []


def test_who_is_silent_is_dead_though_its_lock_is_held(ledger: PostgresLedger, other: PostgresLedger) -> None:
    presence.hold(other, "a")
    presence.beat(ledger, "a", {})
    age(ledger, "a", presence.SILENT_MS + 1)
    assert presence.dead(ledger, ["a"]) == ["a"]


def test_a_death_is_noticed_in_time() -> None:
    """The leader looks each BEAT_MS; what it can know is as old as the last beat."""
    assert presence.MISSING_MS + presence.BEAT_MS <= 20_000
    assert presence.SILENT_MS + presence.BEAT_MS <= 40_000
    # A new leader takes the place of one that is dead.
    assert presence.LEADS_MS + presence.BEAT_MS <= 20_000


def test_one_leads_until_its_time_is_over(ledger: PostgresLedger, other: PostgresLedger) -> None:
    assert presence.lead(ledger, "a")
    assert not presence.lead(other, "b")
    assert presence.lead(ledger, "a")
    ledger.execute("update leader set until_ms = until_ms - ?", (presence.LEADS_MS + 1,))
    assert presence.lead(other, "b")
    assert not presence.lead(ledger, "a")
    presence.withdraw(other, "b")
    assert presence.lead(ledger, "a")


def test_a_leader_whose_time_lies_far_ahead_leads_no_more(ledger: PostgresLedger, other: PostgresLedger) -> None:
    """As one has who took his place before the server's clock was set back."""
    assert presence.lead(ledger, "a")
    ledger.execute("update leader set until_ms = until_ms + 86400000")
    assert presence.lead(other, "b")


def test_a_lock_that_an_earlier_connection_still_has_is_not_waited_for(
    ledger: PostgresLedger, other: PostgresLedger
) -> None:
    """The server may think for hours that a machine is there whose cable is out."""
    presence.hold(other, "a")
    ledger.execute("set lock_timeout = 1000")
    presence.hold(ledger, "a")


def test_after_a_restart_of_the_server_nobody_is_taken_for_dead() -> None:
    with Server() as server:
        with closing(server.emptied()) as db:
            assert presence.is_starting(db)
        with closing(PostgresLedger(server.url)) as db:
            # The server's own clock cannot be set: its start is compared with less.
            row = db.execute("select extract(epoch from clock_timestamp() - pg_postmaster_start_time()) * 1000 < 0")
            assert row.fetchone()[0] == 0


def test_the_time_is_the_servers_whatever_this_machine_says(ledger: PostgresLedger) -> None:
    steady_ms = [1_000]
    clock = presence.ServerClock(lambda: steady_ms[0])
    with pytest.raises(RuntimeError):
        clock.now_ms()
    assert clock.set(lambda: 50_000) == 50_000
    steady_ms[0] += 700
    assert clock.now_ms() == 50_700
    now_ms = clock.set(lambda: presence.server_ms(ledger))
    assert abs(presence.beat(ledger, "a", {}) - now_ms) < 60_000


def test_an_intake_is_no_worker(ledger: PostgresLedger) -> None:
    says = {"machine": "m", "process": 1, "version": "1"}
    presence.beat(ledger, "a", says)
    presence.beat(ledger, "b", {**says, "process": 2, **presence.INTAKE})
    assert [one.process for one in presence.workers(ledger)] == [1]
    assert [one.process for one in presence.intakes(ledger)] == [2]
    assert not presence.intakes(ledger)[0].is_silent
    age(ledger, "b", presence.SILENT_MS + 1_000)
    assert presence.intakes(ledger)[0].is_silent
