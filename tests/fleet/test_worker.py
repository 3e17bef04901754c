"""One worker of the centre in this process, its threads with it: what it says while it ends, and after it was away."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError
from app.delivery.sender import Sender
from app.exporters.client import Client
from app.exporters.connect import connect
from app.exporters.outcome import Outcome
from app.fleet import presence, tenants
from app.fleet import worker as module
from app.fleet.tenants import Changes
from app.fleet.worker import CentralWorker
from app.ledger import claims, counts, destinations, flow, maintenance, versions
from app.ledger.job import Accepted, Body, Claim, Version
from app.settings.lookup import typed
from app.settings.names import DATABASE_URL
from tests.support.intake import envelope
from tests.support.postgres import Server
from tests.support.processes import Station, catches, start_consumer
from tests.support.servers import api_key, receiving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgres

LEASE_MS = 60_000
ONE = "0f1ed2fd-0000-4000-8000-000000000001"


@pytest.fixture
def ledger(postgres_server: Server) -> Iterator[PostgresLedger]:
    with closing(postgres_server.emptied()) as db:
        yield db


class Posts:
    """POSTs that are answered when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.times = 0

    def post(self, _: Body) -> Outcome:
        self.times += 1
        self.begun.set()
        assert self.may_end.wait(60)
        return Outcome("accepted", "ok", status=200)


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    made = Posts()
    monkeypatch.setattr(Sender, "post", lambda _, _claim, body: made.post(body))
    yield made
    made.may_end.set()


class Running:
    """A worker with Huey's own threads; its main thread is the test's."""

    def __init__(self, server: Server, folder: Path) -> None:
        station = Station(folder, "http://127.0.0.1:9")
        self.worker = CentralWorker(typed(station.environ, folder), server.url, server.url)
        self.consumer: Any = self.worker.huey.create_consumer(workers=2, periodic=False)
        self.consumer._set_signal_handlers = lambda: None  # the test's own stay
        self.name = self.worker._name

    def stop(self) -> None:
        self.consumer.stop_flag.set()

    def end(self) -> None:
        self.stop()
        if self.worker._is_first_thread.locked():
            self.consumer.stop(graceful=True)
        for thread in threading.enumerate():
            if thread.name in {"poller", "listener", "confirm"}:
                thread.join(60)
        self.worker.queue.close()
        self.worker.leave()


@pytest.fixture
def running(
    postgres_server: Server, ledger: PostgresLedger, posts: Posts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    assert ledger.is_current()
    monkeypatch.setattr(presence, "BEAT_MS", 50)
    made = Running(postgres_server, tmp_path)
    yield made
    posts.may_end.set()
    made.end()


def put(db: PostgresLedger, number: int = 0, destination_id: int | None = None) -> int:
    if destination_id is None:
        (destination_id,) = db.execute("select id from destination").fetchone()
    version = Version(f"ses_{number}", f"ses_{number}", "t", f"{number:064x}", 0, "", "")
    versions.insert(db, destination_id, version, [Body(uuid.uuid4(), b"{}")], now_ms=presence.server_ms(db))
    return destination_id


def seen_ms(db: PostgresLedger, name: str) -> int | None:
    row = db.execute("select seen_ms from worker where name = ?", (name,)).fetchone()
    return None if row is None else int(row["seen_ms"])


def test_a_worker_that_ends_lives_until_its_last_post_is_answered(
    ledger: PostgresLedger, running: Running, posts: Posts
) -> None:
    put(ledger)
    running.consumer.start()
    assert posts.begun.wait(60)
    running.stop()
    stopped_ms = presence.server_ms(ledger)
    wait_until(lambda: (seen_ms(ledger, running.name) or 0) > stopped_ms)
    assert presence.dead(ledger, maintenance.leasing_workers(ledger)) == []
    posts.may_end.set()
    running.end()
    assert seen_ms(ledger, running.name) is None
    row = ledger.execute("select state, attempt, kills from job").fetchone()
    assert (tuple(row), posts.times) == (("delivered", 1, 0), 1)


def test_what_could_not_be_written_is_released_when_the_worker_ends(ledger: PostgresLedger, running: Running) -> None:
    presence.beat(ledger, running.name, {})
    running.worker._threads.join()
    running.worker._unfinished.append(leased(ledger, running.name))
    running.stop()
    running.worker._end()
    assert seen_ms(ledger, running.name) is None
    assert tuple(ledger.execute("select state, worker, kills from job").fetchone()) == ("pending", None, 0)


def leased(db: PostgresLedger, worker: str) -> Claim:
    destination_id = put(db)
    found = claims.claim(
        db, destination_id, f"{0:064x}", worker=worker, now_ms=presence.server_ms(db), lease_ms=LEASE_MS
    )
    assert found is not None
    return found


def test_a_probe_that_is_let_go_may_be_followed_by_another_one(ledger: PostgresLedger, running: Running) -> None:
    destination_id = put(ledger)
    now_ms = presence.server_ms(ledger)
    flow.pause(ledger, destination_id, health="down", reason="-", count=1, probe_ms=now_ms, now_ms=now_ms)
    found = claims.claim(ledger, destination_id, f"{0:064x}", worker=running.name, now_ms=now_ms, lease_ms=LEASE_MS)
    assert found is not None
    assert found.is_probe
    running.worker._interrupted()
    probe_ms = destinations.by_id(ledger, destination_id).probe_ms
    assert probe_ms is not None
    assert probe_ms < now_ms + LEASE_MS


def test_who_was_away_itself_takes_nobody_for_dead(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the network was away for all of them, and this one is back first."""
    monkeypatch.setattr(presence, "is_starting", lambda _: False)
    leased(ledger, "another")
    tick = tick_of(running)
    tick()
    assert held(ledger) == "another"
    running.worker._steady_since_ms -= presence.MISSING_MS
    running.worker._beaten_ms -= presence.SILENT_MS
    tick()
    assert held(ledger) == "another"
    running.worker._steady_since_ms -= presence.MISSING_MS
    tick()
    assert held(ledger) is None


def tick_of(running: Running) -> Callable[[], int]:
    return running.worker._tick


def held(db: PostgresLedger) -> str | None:
    found: str | None = db.execute("select worker from job").fetchone()["worker"]
    return found


def test_a_restart_of_the_server_is_seen_through_a_connection_that_outlived_it(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pooler's does."""
    leased(ledger, "another")
    started = [False]
    monkeypatch.setattr(presence, "is_starting", lambda _: started[0])
    tick = tick_of(running)
    ledger.execute("update job set worker = 'a third'")
    presence.beat(ledger, "a third", {})
    tick()
    running.worker._steady_since_ms -= presence.MISSING_MS
    tick()
    assert held(ledger) == "a third"
    started[0] = True
    presence.withdraw(ledger, "a third")
    tick()
    assert held(ledger) == "a third"


def test_a_worker_lives_before_its_threads_claim_anything(ledger: PostgresLedger, running: Running) -> None:
    assert presence.dead(ledger, [running.name]) == []


@pytest.mark.parametrize("newer", [False, True])
def test_a_worker_that_seems_dead_or_is_too_old_claims_nothing(
    ledger: PostgresLedger, running: Running, posts: Posts, *, newer: bool
) -> None:
    """It may be that others take back at once what it claims."""
    destination_id = put(ledger)
    tick = tick_of(running)
    tick()
    if newer:
        (schema,) = ledger.execute("select value from meta where name = 'schema'").fetchone()
        ledger.execute("update meta set value = '99999' where name = 'schema'")
        with pytest.raises(SchemaError, match="99999"):
            tick()
        ledger.execute("update meta set value = ? where name = 'schema'", (schema,))
    else:
        running.worker._beaten_ms -= presence.MISSING_MS
    running.worker._handle_wake(destination_id, f"{0:064x}")
    assert posts.times == 0
    tick()
    posts.may_end.set()
    running.worker._handle_wake(destination_id, f"{0:064x}")
    assert posts.times == 1


def test_a_worker_beats_between_the_steps_of_a_slow_tick(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ledger)  # at the destination of its settings, the only one yet
    one = tenants.add_tenant(ledger, "one", endpoint="https://helicone.test", key=api_key())
    put(ledger, 1, one.destination_id)
    was_silent: list[bool] = []

    def wake_slowly(*_: object) -> int:
        was_silent.append(running.worker._is_silent())
        running.worker._beaten_ms -= presence.MISSING_MS
        return 0

    monkeypatch.setattr(running.worker, "_wake_due", wake_slowly)
    tick_of(running)()
    assert was_silent == [False, False]


def test_a_tenant_whose_key_is_none_stops_nobody_else(
    ledger: PostgresLedger, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "no\nkey"
    bad = tenants.add_tenant(ledger, "bad", endpoint="https://helicone.test", key=wrong)
    good = tenants.add_tenant(ledger, "good", endpoint="https://helicone.test", key=api_key())
    for _ in range(2):
        tick_of(running)()
    assert good.destination_id in running.worker._sinks
    assert bad.destination_id not in running.worker._sinks
    assert [one.message.partition(":")[0] for one in caplog.records] == ["tenant bad is delivered nothing"]
    assert "key" not in caplog.text.replace("API key", "")


def test_what_was_taken_from_a_machine_is_never_too_old(ledger: PostgresLedger, running: Running) -> None:
    put(ledger)
    ledger.execute("update job set enqueued_ms = 0, attempted_ms = 1, attempt = 1")
    running.worker._maintain(presence.server_ms(ledger))
    assert ledger.execute("select state from job").fetchone()["state"] == "pending"


def test_what_nobody_reads_back_is_not_kept_for_ever(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.worker, "_sinks", {})  # of the destination of its settings nothing is read back
    found = leased(ledger, running.name)
    (body,) = claims.unacknowledged(ledger, found)
    now_ms = presence.server_ms(ledger)
    accepted = [Accepted(body.request_id, body.digest, now_ms, None)]
    assert claims.complete(ledger, found, now_ms, accepted=accepted, confirm_ms=now_ms)
    running.worker._maintain(now_ms)
    assert ledger.execute("select body_bytes > 0 from job").fetchone()[0] == 1
    ledger.execute("update job set finished_ms = 0, confirm_ms = 0, enqueued_ms = 0")
    running.worker._maintain(now_ms)
    assert ledger.execute("select body_bytes, confirm_ms from job").fetchone()[0] == 0


def test_a_consumer_whose_listener_is_away_delivers_all_the_same(
    ledger: PostgresLedger, running: Running, posts: Posts, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()
    monkeypatch.setattr(running.worker, "_listen", lambda: heard.wait(60) and 0)
    running.consumer.start()
    wait_until(lambda: running.worker.queue._storage._is_empty_at >= 0)
    put(ledger)
    assert posts.begun.wait(60)
    heard.set()


def test_what_waits_under_a_key_that_is_refused_goes_out_under_the_next_one(
    ledger: PostgresLedger, postgres_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the worker that was at it, on the wire."""
    monkeypatch.setattr(presence, "BEAT_MS", 50)
    clients: list[Client] = []

    def kept(*given: Any) -> Client:
        clients.append(connect(*given))
        return clients[-1]

    monkeypatch.setattr(module, "connect", kept)
    old, new = api_key("a"), api_key("b")
    with receiving(tmp_path / "store", keys=frozenset({new})) as receiver:
        tenant = tenants.add_tenant(ledger, "acme", endpoint=receiver.url, key=old)
        body = Body(uuid.UUID(ONE), envelope(ONE))
        version = Version("ses_1", "ses_1", ONE, "0" * 64, 0, "", "")
        versions.insert(ledger, tenant.destination_id, version, [body], now_ms=presence.server_ms(ledger))
        running = Running(postgres_server, tmp_path)
        try:
            running.consumer.start()
            wait_until(lambda: destinations.by_id(ledger, tenant.destination_id).health == "refused")
            # Longer than anybody waits here: as it would be after a night.
            ledger.execute("update destination set probe_ms = probe_ms + 3600000")
            tenants.change(ledger, "acme", Changes(key=new))
            wait_until(lambda: counts.counts(ledger, tenant.destination_id).delivered == 1)
        finally:
            running.end()
            for client in clients:
                client.close()
        assert [row.log.request_id for row in receiver.rows()] == [ONE]
    assert destinations.by_id(ledger, tenant.destination_id).health == "fine"


def test_a_destination_that_is_slow_leaves_threads_to_the_others(
    ledger: PostgresLedger, running: Running, posts: Posts, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = (
        tenants.add_tenant(ledger, name, endpoint="https://helicone.test", key=api_key(name[0])).destination_id
        for name in ("slow", "other")
    )
    answered = threading.Event()

    def post(sender: Sender, _: Claim, body: Body) -> Outcome:
        if sender._place.destination.id == slow:
            return posts.post(body)
        answered.set()
        return Outcome("accepted", "ok", status=200)

    monkeypatch.setattr(Sender, "post", post)
    for number in range(4):
        put(ledger, number, slow)
    running.consumer.start()
    assert posts.begun.wait(60)
    put(ledger, 4, other)
    assert answered.wait(60)
    assert posts.times == 1
    posts.may_end.set()
    wait_until(lambda: counts.counts(ledger).delivered == 5)


def test_a_thread_that_fails_is_free_again(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = running.worker
    for _ in range(2):
        worker._threads.join()
    destination_id = put(ledger)

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("away")

    monkeypatch.setattr(worker, "_deliver", fail)
    for _ in range(3):
        worker._handle_wake(destination_id, f"{0:064x}")
    assert worker._threads.take(destination_id, "a key", is_only_one=False)


def test_a_destination_that_is_refused_is_logged_once_and_that_it_is_fine_again(
    ledger: PostgresLedger, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    acme = tenants.add_tenant(ledger, "acme", endpoint="https://helicone.test", key=api_key("a")).destination_id
    worker = running.worker
    worker._refresh()
    worker._maintain(presence.server_ms(ledger))
    reason = "401: error Unauthorized"
    flow.pause(ledger, acme, health="refused", reason=reason, count=1, probe_ms=2**60, now_ms=1)
    for _ in range(2):
        worker._maintain(presence.server_ms(ledger))
    ledger.execute("update destination set health = 'fine', pause_reason = null, probe_ms = null")
    for _ in range(2):
        worker._maintain(presence.server_ms(ledger))
    told = [one.getMessage() for one in caplog.records if "tenant" in one.getMessage()]
    assert [one.split(";")[0] for one in told] == ["tenant acme: refused", "tenant acme: fine"]


def test_at_its_start_it_says_which_database_it_serves_and_under_a_newer_schema_that_once(
    postgres_server: Server,
    ledger: PostgresLedger,
    running: Running,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    running.consumer.start()
    wait_until(lambda: "delivers from the database" in caplog.text)
    (line,) = (one for one in caplog.messages if "delivers from" in one)
    assert line == f"delivers from the database {ledger.place}, as {DATABASE_URL} names it"
    assert "postgresql://" not in line
    assert postgres_server.url not in line
    failed, times = running.worker._failures.failed, Counter[str]()

    def count(what: str, why: str) -> None:
        times[what] += 1
        failed(what, why)

    monkeypatch.setattr(running.worker._failures, "failed", count)
    (schema,) = ledger.execute("select value from meta where name = 'schema'").fetchone()
    ledger.execute("update meta set value = '9999' where name = 'schema'")
    wait_until(lambda: times["poller"] >= 3)
    running.end()
    ledger.execute("update meta set value = ? where name = 'schema'", (schema,))
    assert len([one for one in caplog.messages if one.startswith("poller: ")]) == 1
    assert not [one for one in caplog.messages if "shutdown hook" in one or "works again" in one]


def test_what_waits_for_its_turn_is_claimed_so_that_nobody_else_is_woken_for_it(
    ledger: PostgresLedger, running: Running, posts: Posts, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = tenants.add_tenant(
        ledger, "limited", endpoint="https://helicone.test", key=api_key("l"), rate_per_minute=60
    ).destination_id
    slept: list[tuple[int, bool]] = []

    def sleep(_: float) -> None:
        (leased,) = running.worker.db.execute("select count(lease_until_ms) from job").fetchone()
        slept.append((leased, posts.begun.is_set()))

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    put(ledger, 0, limited)
    running.consumer.start()
    assert posts.begun.wait(60)
    assert slept == [(1, False)]


def test_the_leader_looks_again_when_it_is_worth_while(
    ledger: PostgresLedger, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "BEAT_MS", 5_000)
    tick_of(running)()
    now_ms = presence.server_ms(ledger) + 60_000

    def next_ms() -> int:
        return running.worker._wake_all(now_ms) - now_ms

    assert next_ms() == 5_000
    for number in range(2):
        put(ledger, number)
    assert next_ms() == 5_000
    ledger.execute("update job set kills = 2")
    assert next_ms() == module.SOON_MS
    ledger.execute("update job set kills = 0, due_ms = ?", (now_ms + 3,))
    assert next_ms() == 3
    ledger.execute("update job set due_ms = 0")
    monkeypatch.setattr(module, "WAKES_MAX", 1)
    monkeypatch.setattr(running.worker.queue, "woken", lambda _: set())
    assert next_ms() == module.SOON_MS


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_told_to_end_is_not_among_those_who_are_silent(
    ledger: PostgresLedger, postgres_server: Server, tmp_path: Path, signum: signal.Signals
) -> None:
    station = Station(tmp_path, "http://127.0.0.1:9", variables={DATABASE_URL: postgres_server.url})
    process = start_consumer(station, 2, tmp_path / "output.log")
    try:
        wait_until(lambda: any(one.leads for one in presence.workers(ledger)) and catches(process, signum))
        process.send_signal(signum)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert presence.workers(ledger) == []
