"""The worker as a process: a real `huey_consumer`, a real ledger, a real HTTP server on loopback."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from app.delivery.lifetime import IDLE_MS
from app.ledger import counts, destinations
from app.queue import Queue
from app.runtime import clock
from app.runtime.liveness import ExclusiveLock, is_taken, present
from app.settings.lookup import unattended
from app.worker import Worker
from tests.support.processes import HookProcess, Station, catches, end_automatic_workers, hook, let_leases_last, worker
from tests.support.recorded import EMAILS, SECRETS, export
from tests.support.servers import Exchange, Receiver, answer, api_key, ok, receiving, scripted, whole
from tests.support.waiting import wait_until

SIMPLE = "a_simple"
RECORDS = 3
"""Of that recording: session, user message, answer; the session's is a job of its own."""
JOBS = 2


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url)


def captured(station: Station, *names: str) -> None:
    """Put recordings into the ledger through a real hook."""
    with hook(station) as process:
        for name in names:
            process.show(export(name))
        assert process.end() == 0


def test_what_the_hook_captured_is_delivered_by_huey_consumer(station: Station, receiver: Receiver) -> None:
    with worker(station):
        captured(station, SIMPLE)
        wait_until(lambda: station.delivered(JOBS))
    assert sorted(row.log.provider for row in receiver.rows()) == ["CUSTOM"] * RECORDS
    assert all(row.sends == 1 for row in receiver.rows())


def test_a_worker_that_starts_later_finds_what_waits_also_without_its_rings(
    station: Station, receiver: Receiver
) -> None:
    captured(station, SIMPLE, "b_tools")
    for path in station.spool.glob("queue.db*"):
        path.unlink()
    with worker(station):
        wait_until(lambda: station.delivered(2 * JOBS))
    assert all(row.sends == 1 for row in receiver.rows())


def test_a_worker_killed_in_the_middle_of_a_post_is_replaced_and_the_record_arrives_unchanged(
    station: Station, receiver: Receiver
) -> None:
    captured(station, SIMPLE)
    receiver.fault({"delay_ms": 60_000, "times": 1})
    with worker(station) as first:
        wait_until(receiver.sends)
        let_leases_last(station)
        first.send_signal(signal.SIGKILL)
        first.wait()
    with worker(station):
        # Nobody waits for the lease to run out: the dead worker's lock is free, and that is enough.
        wait_until(lambda: station.delivered(JOBS))
    interrupted = receiver.sends()[0]
    again = [send for send in receiver.sends()[1:] if send.request_id == interrupted.request_id]
    assert [send.sha256 for send in again] == [interrupted.sha256]
    assert len({row.log.request_id for row in receiver.rows()}) == len(receiver.rows()) == RECORDS


def test_sigterm_lets_the_post_finish(station: Station, receiver: Receiver) -> None:
    captured(station, SIMPLE)
    receiver.fault({"delay_ms": 1_500, "times": 1})
    with worker(station) as process:
        wait_until(receiver.sends)
        # Huey's threads are at work before it has set its signal handlers.
        wait_until(lambda: catches(process, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    first = receiver.sends()[0]
    assert first.status == 200
    with station.ledger() as db:
        rows = db.execute("select state, attempt, failures, kills, lease_until_ms from job").fetchall()
    assert all((row["failures"], row["kills"], row["lease_until_ms"]) == (0, 0, None) for row in rows)
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
    assert all(row.sends == 1 for row in receiver.rows())


def test_a_job_refused_twice_is_delivered_by_its_third_attempt(station: Station, receiver: Receiver) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "50"})
    captured(station, SIMPLE)
    receiver.fault({"status": 503, "times": 1}, {"status": 500, "times": 1})
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
    # The other job of the session does not wait behind the one in backoff.
    answers = [(send.request_id, send.status) for send in receiver.sends()]
    failed = [request_id for request_id, status in answers if status != 200]
    assert len(failed) == 2
    assert all((request_id, 200) in answers for request_id in failed)


def test_an_answer_of_400_is_a_dead_letter_at_once(station: Station, receiver: Receiver) -> None:
    captured(station, SIMPLE)
    receiver.fault({"status": 400, "body": '{"error":"Invalid body"}', "times": 1_000})
    with worker(station):
        wait_until(lambda: station.counts().dead == JOBS)
    # One attempt on each of the two routes would be one too many: the path was right.
    assert len(receiver.sends()) == JOBS


def test_a_record_that_breaks_the_server_is_dead_after_its_retries_and_all_others_are_delivered(tmp_path: Path) -> None:
    def act(exchange: Exchange) -> None:
        exchange.read_body()
        is_poison = b"/msg-0" in exchange.heard.body and export(SIMPLE)["root"].encode() in exchange.heard.body
        exchange.send(whole(500 if is_poison else 200, b""))

    (tmp_path / "home").mkdir()
    with scripted(act) as server:
        # The only job that is left goes through the whole backoff, which is 300 times this at its end.
        variables = {"OPENCODE_HELICONE_RETRY_BASE_DELAY": "1", "OPENCODE_HELICONE_MAX_RETRIES": "2"}
        station = Station(tmp_path / "home", server.url, variables=variables)
        captured(station, SIMPLE, "b_tools", "c_second_prompt")
        with worker(station):
            wait_until(lambda: station.counts().pending == 0)
    assert station.counts().dead == 1
    with station.ledger() as db:
        (row,) = db.execute("select error, kills from job where state = 'dead'").fetchall()
    assert (row["error"], row["kills"]) == ("500: empty body (after 2 retries)", 0)


def test_an_outage_with_answers_kills_nothing(station: Station, receiver: Receiver) -> None:
    station = replace(station, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "1"})
    captured(station, SIMPLE)
    receiver.fault({"status": 503, "times": 10})
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))


def test_two_workers_and_needless_rings_send_everything_once(station: Station, receiver: Receiver) -> None:
    captured(station, "i_long_session", "b_tools", "g_admin")
    with station.ledger() as db:
        jobs = counts.counts(db).pending
        keys = [row[0] for row in db.execute("select key from job")]
        (target,) = destinations.destinations(db)
    queue = Queue(station.spool, target.id)
    for key in keys * 3:
        queue.wake(key)
    queue.close()
    with worker(station), worker(station):
        wait_until(lambda: station.delivered(jobs))
    assert all(row.sends == 1 for row in receiver.rows())


def test_a_refused_key_pauses_and_charges_nobody_and_a_restart_tries_at_once(
    station: Station, receiver: Receiver
) -> None:
    captured(station, SIMPLE)
    receiver.fault({"status": 401, "times": 1_000})
    with worker(station):
        wait_until(receiver.sends)
        wait_until(lambda: paused(station) is not None)
    with station.ledger() as db:
        assert [tuple(row) for row in db.execute("select failures, kills, state from job")] == [
            (0, 0, "pending")
        ] * JOBS
        # However long the pause would be.
        db.execute("update destination set probe_ms = probe_ms + 3600000")
    receiver.fault()
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
    assert paused(station) is None


def paused(station: Station) -> str | None:
    with station.ledger() as db:
        return destinations.destinations(db)[0].pause_reason


def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with receiving(tmp_path / "store.db") as gone:
        port = int(gone.url.rsplit(":", 1)[1])
    station = Station(tmp_path / "home", gone.url, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "50"})
    captured(station, SIMPLE)
    with worker(station):
        wait_until(lambda: paused(station) is not None)
        with receiving(tmp_path / "store.db", port=port) as back:
            wait_until(lambda: station.delivered(JOBS))
            assert len(back.rows()) == RECORDS


def test_the_route_that_answers_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with scripted(answer(404), ok()) as server:
        station = Station(tmp_path / "home", server.url)
        captured(station, SIMPLE)
        with worker(station):
            wait_until(lambda: station.delivered(JOBS))
        lines = [request.line.split()[1] for request in server.requests]
    assert lines == ["/v1/trace/custom/log", *["/custom/v1/log"] * RECORDS]


def test_without_a_key_jobs_wait_and_the_first_key_takes_them(station: Station, receiver: Receiver) -> None:
    keyless = replace(station, key="")
    captured(keyless, SIMPLE)
    with worker(keyless):
        wait_until(lambda: present(station.spool / "workers"))
    assert receiver.sends() == []
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))


STEPS = ("hook a", "hook b", "worker a", "worker b")
# The other twelve are these with the two projects' names exchanged.
ORDERS = [order for order in permutations(STEPS) if order[0].endswith("a")]
QUICK_ORDERS = (STEPS, ("worker a", "hook b", "worker b", "hook a"))
"""Hooks before workers, and each key with a worker of the other before its hook."""


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, id="-".join(order), marks=[] if order in QUICK_ORDERS else pytest.mark.matrix)
        for order in ORDERS
    ],
)
def test_two_projects_with_two_keys_never_meet(tmp_path: Path, order: tuple[str, ...]) -> None:
    with receiving(tmp_path / "a" / "store.db") as first, receiving(tmp_path / "b" / "store.db") as second:
        (tmp_path / "home").mkdir()
        stations = {
            "a": Station(tmp_path / "home", first.url, api_key("a")),
            "b": Station(tmp_path / "home", second.url, api_key("b")),
        }
        shown = {"a": "b_tools", "b": "f_subagent"}
        running = []
        for step in order:
            what, who = step.split()
            if what == "hook":
                captured(stations[who], shown[who])
            else:
                running.append(worker(stations[who]))
                running[-1].__enter__()
        wait_until(lambda: stations["a"].delivered(2 * JOBS))
        for process in running:
            process.__exit__(None, None, None)
        for name, receiver in (("a", first), ("b", second)):
            expected = export(shown[name])["root"]
            rows = receiver.rows()
            assert {row.log.properties["Helicone-Session-Id"] for row in rows} == {expected}
            assert {row.organisation for row in rows} == {receiver.organisation(stations[name].key)}


def test_no_secret_of_a_recording_goes_over_the_wire_or_stays_in_the_spool(
    station: Station, receiver: Receiver
) -> None:
    emails = json.dumps([r"[\w.]+@example\.com"])
    station = replace(station, variables={"OPENCODE_HELICONE_REDACT_PATTERNS": emails})
    with worker(station):
        captured(station, "j_unicode_secrets")
        wait_until(lambda: station.delivered(JOBS))
        spool = b"".join(path.read_bytes() for path in station.spool.rglob("*") if path.is_file())
    wire = receiver.wire()
    assert b"[REDACTED]" in wire
    for secret in (*SECRETS.values(), *EMAILS):
        assert secret.encode() not in wire
        assert secret.encode() not in spool


# --- the automatic worker --------------------------------------------------------------------------------------------


def automatic(station: Station) -> Station:
    return replace(station, variables={**station.variables, "OPENCODE_HELICONE_WORKER": "auto"})


def test_a_hook_starts_a_worker_that_outlives_it(station: Station, receiver: Receiver) -> None:
    station = automatic(station)
    captured(station, SIMPLE)
    try:
        wait_until(lambda: station.delivered(JOBS))
        assert len(present(station.spool / "workers")) == 1
    finally:
        end_automatic_workers(station)
    assert len(receiver.rows()) == RECORDS


def test_an_external_worker_is_never_doubled_by_a_hook(station: Station) -> None:
    captured(station, SIMPLE)
    assert present(station.spool / "workers") == []
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
        captured(automatic(station), "b_tools")
        wait_until(lambda: station.delivered(2 * JOBS))
        assert len(present(station.spool / "workers")) == 1


def test_fifty_hooks_at_once_start_one_worker_and_leave_no_zombie(station: Station) -> None:
    station = automatic(station)
    snapshot = export(SIMPLE)
    opened: list[HookProcess] = []
    contexts = [hook(station) for _ in range(50)]
    try:
        opened = [context.__enter__() for context in contexts]
        for process in opened:
            process.notice(snapshot["root"], "busy")
        wait_until(lambda: len(present(station.spool / "hooks")) == 50)
        wait_until(lambda: present(station.spool / "workers"))
        opened[0].show(snapshot)
        wait_until(lambda: station.delivered(JOBS))
        assert len(present(station.spool / "workers")) == 1
        assert station.text("worker.log").count("starts") == 1
        hooks = {str(process.process.pid) for process in opened}
        wait_until(lambda: not zombies(hooks))
    finally:
        for context in contexts[: len(opened)]:
            context.__exit__(None, None, None)
        end_automatic_workers(station)


def zombies(parents: set[str]) -> list[str]:
    states = subprocess.run(["ps", "-A", "-o", "ppid=,stat="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in states.splitlines()]
    return [parent for parent, state in found if parent in parents and state.startswith("Z")]


def test_a_hook_with_other_delivery_settings_replaces_the_worker(station: Station) -> None:
    station = automatic(station)
    with hook(station) as first:
        first.show(export(SIMPLE))
        wait_until(lambda: station.delivered(JOBS))
        (before,) = present(station.spool / "workers")
        with hook(station) as second:
            second.show(export("b_tools"), options={"retryBaseDelay": 900})
            wait_until(lambda: [one.name for one in present(station.spool / "workers")] not in ([], [before.name]))
            wait_until(lambda: station.delivered(2 * JOBS))
    end_automatic_workers(station)


def test_an_automatic_worker_ends_when_nobody_needs_it(station: Station) -> None:
    captured(station, SIMPLE)
    only = Worker(unattended(station.environ), automatic=True)

    def next_step(now_ms: int) -> str:
        return only.lifetime.next_step(only.db, clock.Reading(now_ms, 0), is_automatic=True)

    try:
        assert only.lifetime.lock.take()
        # Something can be sent: it stays, however long nobody called.
        assert [next_step(0), next_step(10 * IDLE_MS)] == ["work", "work"]
        with station.ledger() as db:
            db.execute("update job set state = 'dead', due_ms = null, finished_ms = 1")
        assert [next_step(0), next_step(IDLE_MS - 1)] == ["work", "work"]
        assert next_step(IDLE_MS) == "end"
        assert not is_taken(station.spool / "worker-1.lock")
    finally:
        only.close()


def test_a_second_automatic_worker_ends_at_once(station: Station) -> None:
    captured(station, SIMPLE)
    lock = ExclusiveLock(station.spool / "worker-1.lock")
    assert lock.take()
    done = subprocess.run(
        [sys.executable, "-I", "-m", "app", "worker", "--automatic"],
        env=station.environ,
        timeout=300,
        check=False,
        capture_output=True,
    )
    lock.release()
    assert done.returncode == 0
    assert station.counts().pending == JOBS


def test_the_ledger_is_whole_after_all_of_that(station: Station) -> None:
    captured(station, SIMPLE)
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
    with sqlite3.connect(station.spool / "ledger.db") as db:
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
        assert db.execute("select count(*) from record").fetchone()[0] == 0
    db.close()


def test_a_closed_terminal_ends_a_worker_that_was_started_by_hand(station: Station) -> None:
    captured(station, SIMPLE)
    process = subprocess.Popen([sys.executable, "-I", "-m", "app", "worker"], env=station.environ, cwd=station.home)
    try:
        wait_until(lambda: station.delivered(JOBS))
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == 0
        assert present(station.spool / "workers") == []
    finally:
        process.kill()
        process.wait()


def test_a_key_that_nothing_was_captured_for_does_not_stand_in_the_way_of_the_first_one(
    station: Station, receiver: Receiver
) -> None:
    captured(replace(station, key=""), SIMPLE)
    elsewhere = replace(station, key=api_key("z"), endpoint="http://127.0.0.1:9")
    assert elsewhere.run("status").returncode == 0
    with station.ledger() as db:
        destinations.destination(db, "http://127.0.0.1:9", "fingerprint", 1)
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
    assert len(receiver.rows()) == RECORDS


def test_the_watch_survives_a_bug_of_ours(station: Station, receiver: Receiver) -> None:
    captured(station, SIMPLE)
    worker_ = Worker(unattended(station.environ))
    look = worker_.poll
    looks: list[int] = []

    def fails_first() -> int:
        looks.append(1)
        if len(looks) < 3:
            raise KeyError("a bug")
        return look()

    worker_.poll = fails_first  # type: ignore[method-assign]
    assert worker_.run_until(lambda: station.delivered(JOBS))
    assert "KeyError at test_worker.py" in station.text("worker.log")
    assert len(receiver.rows()) == RECORDS


def test_a_queue_damaged_under_a_running_consumer_is_made_anew_and_rings_arrive_again(
    station: Station, receiver: Receiver
) -> None:
    with worker(station):
        captured(station, SIMPLE)
        wait_until(lambda: station.delivered(JOBS))
        for name in ("queue.db", "queue.db-wal"):
            (station.spool / name).write_bytes(b"no database " * 1_000)
        # Whoever has its pages in memory does not see it: the hook does.
        captured(station, "b_tools")
        wait_until(lambda: "the queue was damaged or deleted and is made anew" in station.text("worker.log"))
        queue = Queue(station.spool, 1)
        queue.wake("0" * 64)
        wait_until(lambda: queue.huey.pending_count() == 0)
        queue.close()
        wait_until(lambda: station.delivered(2 * JOBS))
    assert all(row.sends == 1 for row in receiver.rows())


def test_a_ledger_damaged_under_a_live_hook_and_a_live_worker_is_recovered_and_both_go_on(
    station: Station,
) -> None:
    with worker(station), hook(station) as process:
        process.show(export(SIMPLE))
        wait_until(lambda: station.delivered(JOBS))
        ledger_file = station.spool / "ledger.db"
        before = ledger_file.stat().st_ino
        with ledger_file.open("r+b") as file:  # this process has no connection to it
            file.truncate(3 * 4096)
        (station.spool / "ledger.db-wal").write_bytes(b"")
        process.show(export("b_tools"))
        wait_until(lambda: ledger_file.exists() and ledger_file.stat().st_ino != before)
        process.show(export("c_second_prompt"))
        wait_until(lambda: station.counts().delivered >= JOBS and station.counts().pending == 0)
        assert process.end() == 0
    assert "damaged, set aside and recovered" in station.run("status", "-v").stdout
