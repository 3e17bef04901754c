"""The centre by violence: eight real `huey_consumer`s on one PostgreSQL ledger, killed at random, the server with them.

    make central   or   python -m tests.stress.central [--jobs N] [--kills N] [--consumers N] [--pooler] [--seed N]

    this process ── versions.insert ──▶ PostgreSQL ◀── 8 huey_consumers, 4 threads ──▶ a receiver here
                                            ▲                  ▲
                        one immediate stop ─┘                  └─ SIGKILL, each with POSTs under way

A consumer is stopped (SIGSTOP) before it is killed, so that what it holds can be read from the ledger: each record of
such a job may be posted once more. In the end every job is delivered, no record was posted more often than that, and
never were two jobs of one session under way. Then the consumers idle, and are counted: connections, statements. Exit
code 1 when anything does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.database import derived
from app.database.postgres import PostgresLedger
from app.database.server import open_postgres
from app.fleet import presence
from app.ledger import counts, destinations, versions
from app.ledger.job import Body, Version
from app.settings.names import DATABASE_URL, LISTEN_URL
from tests.support.lean_receiver import LeanReceiver, Send, lean_receiver
from tests.support.postgres import Server, pooler
from tests.support.processes import Station, start_consumer

SESSIONS = 100
RECORDS = 4
THREADS = 4
LIFE_S = (0.2, 1.5)
"""Between two kills."""
USUAL_S = (0.1, 0.5)
"""How long the receiver takes: so long that something is under way at any instant."""
HELICONE_S = (0.02, 0.12)
AWAY_S = 5.0
"""For so long the server is away."""
QUIET_S_MAX = 180.0
IDLE_S = 30.0


@dataclass(slots=True)
class Watch:
    """What the receiver must never see: two jobs of one session under way."""

    jobs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By request id its session and its job."""
    seen: list[str] = field(default_factory=list)


class Receiver(LeanReceiver):
    watch: Watch

    def arrive(self, port: int, body: bytes, authorization: str = "") -> tuple[Send, float]:
        found = super().arrive(port, body, authorization)
        session, job = self.watch.jobs[found[0].request_id]
        with self._lock:
            others = {self.watch.jobs[one] for one in self.under_way.values()} - {(session, job)}
        self.watch.seen += [f"jobs {job} and {other} of session {of}" for of, other in others if of == session]
        return found


class Central:
    def __init__(
        self, server: Server, url: str, receiver: LeanReceiver, folder: Path, seed: int, consumers: int
    ) -> None:
        self.server = server
        self.is_pooled = url != server.url
        self._dice = random.Random(seed)  # noqa: S311 - nothing to protect
        self._station = Station(folder, receiver.url, variables={DATABASE_URL: url, LISTEN_URL: server.url})
        self._output = folder / "consumers.log"
        self.db = open_postgres(server.url)
        key = destinations.fingerprint(self.db, self._station.key)
        self.destination = destinations.destination(self.db, receiver.url, key, 0).id
        self.consumers = [self.start() for _ in range(consumers)]
        self.allowed: Counter[str] = Counter()
        self.kills = 0

    def start(self) -> subprocess.Popen[bytes]:
        return start_consumer(self._station, THREADS, self._output)

    def kill_one(self) -> None:
        # One that began while the server was away has said so and ended, as it would under a process manager.
        self.consumers = [one if one.poll() is None else self.start() for one in self.consumers]
        rows = self.db.execute("select distinct w.says from worker w join job j on j.worker = w.name")
        at_work = {json.loads(row["says"])["process"] for row in rows}
        choice = [at for at, one in enumerate(self.consumers) if one.pid in at_work]
        if not choice:
            return
        at = self._dice.choice(choice)
        victim = self.consumers[at]
        victim.send_signal(signal.SIGSTOP)
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if victim.poll() is not None:
            return  # by itself, as above
        rows = self.db.execute(
            "select r.request_id from worker w join job j on j.worker = w.name join record r on r.job_id = j.id"
            " where json_extract(w.says, '$.process') = ?",
            (str(victim.pid),),
        )
        held = {str(uuid.UUID(bytes=bytes(row["request_id"]))) for row in rows}
        self.allowed.update(held)
        victim.kill()
        victim.wait()
        self.kills += bool(held)
        self.consumers[at] = self.start()

    def restart_server(self) -> None:
        self.server.stop("immediate")
        time.sleep(AWAY_S)
        self.server.start()
        self.db.close()
        self.db = open_postgres(self.server.url)

    def end(self) -> None:
        for consumer in self.consumers:
            consumer.kill()
            consumer.wait()
        self.db.close()

    def put(self, db: PostgresLedger, watch: Watch, number: int, session: int, records: int = RECORDS) -> list[str]:
        """One job; the ids of its records."""
        name = f"ses_{session}"
        ids = [uuid.uuid5(uuid.NAMESPACE_OID, f"{number} {n}") for n in range(records)]
        watch.jobs.update({str(one): (session, number) for one in ids})
        meta = [{"providerRequest": {"meta": {"Helicone-Request-Id": str(one)}}} for one in ids]
        made = [Body(one, json.dumps(said).encode()) for one, said in zip(ids, meta, strict=True)]
        version = Version(name, name, f"t{number}", f"{number:064x}", number, "", "")
        db.surviving(lambda: versions.insert(db, self.destination, version, made, now_ms=time.time_ns() // 1_000_000))
        return [str(one) for one in ids]

    def put_all(self, db: PostgresLedger, watch: Watch, jobs: int, kills: int) -> None:
        """Session by session in turn, as the kills go on: so that each finds something under way."""
        for number in range(jobs):
            while number > SESSIONS + jobs * (self.kills + 2) / kills:
                time.sleep(0.05)
            self.put(db, watch, number, number % SESSIONS)

    def delivered(self) -> int:
        return counts.counts(self.db, self.destination).delivered


@contextmanager
def receiving(watch: Watch) -> Iterator[LeanReceiver]:
    with lean_receiver(0, 0.0, USUAL_S, Receiver) as receiver:
        assert isinstance(receiver, Receiver)
        receiver.watch = watch
        yield receiver


def noticed(central: Central, receiver: LeanReceiver, watch: Watch, number: int, *, by_lock: bool) -> list[str]:
    """After how many seconds a job of a killed consumer is taken back."""
    receiver.usual_s = (60.0, 60.0)
    db = central.db
    central.put(db, watch, number, number)
    asked = "select worker from job where key = ? and worker is not null"
    while (row := db.execute(asked, (f"{number:064x}",)).fetchone()) is None:
        time.sleep(0.05)
    says = db.execute("select says from worker where name = ?", (row["worker"],)).fetchone()["says"]
    victim = next(one for one in central.consumers if one.pid == json.loads(says)["process"])
    with closing(PostgresLedger(central.server.url)) as pooler:
        victim.kill()
        killed_s = time.monotonic()
        victim.wait()
        if not by_lock:  # as a pooler keeps it
            presence.hold(pooler, row["worker"])
        receiver.usual_s = USUAL_S
        while (now := db.execute(asked, (f"{number:064x}",)).fetchone()) is not None and now == row:
            time.sleep(0.05)
        took_s = time.monotonic() - killed_s
    central.consumers = [one if one is not victim else central.start() for one in central.consumers]
    most_s = 20 if by_lock else 40
    print(f"a death was noticed after {took_s:.1f} s, {'by its lock' if by_lock else 'by its silence'}")
    return [f"a death was noticed after {took_s:.1f} s, and not {most_s}"] if took_s > most_s else []


def commits(central: Central, receiver: LeanReceiver, watch: Watch, number: int) -> list[str]:
    """How many transactions a record costs where a turn has 16, at a destination that answers as Helicone does."""
    receiver.usual_s = HELICONE_S
    db, jobs, records = central.db, 200, 16
    most = 0
    before, began = central.delivered(), db.execute("select pg_current_wal_insert_lsn()").fetchone()[0]
    for n in range(jobs):
        central.put(db, watch, number + n, n % SESSIONS, records)
    while central.delivered() < before + jobs:
        most = max(most, connections(central))
        time.sleep(0.2)
    row = db.execute(
        "select sum(count) as number from pg_get_wal_stats(?, pg_current_wal_flush_lsn(), true)"
        " where \"resource_manager/record_type\" like 'Transaction/COMMIT%'",
        (began,),
    ).fetchone()
    each = row["number"] / (jobs * records)
    print(f"{each:.3f} commits a record, of {records} records a turn; {most} connections at most, of {THREADS} threads")
    return [
        *([f"{each:.3f} commits a record, more than 0.3"] if each > 0.3 else []),
        # A pooler's have the name of whoever used them last.
        *([f"{most} connections of {THREADS} threads"] if most > THREADS + 4 and not central.is_pooled else []),
    ]


def connections(central: Central) -> int:
    """The most that one consumer has now."""
    rows = central.db.execute(
        "select application_name as name, count(*) as number from pg_stat_activity"
        " where application_name like 'opencode-helicone %' group by application_name"
    )
    return max((row["number"] for row in rows if row["name"].split()[-1] != str(os.getpid())), default=0)


def idle(central: Central) -> list[str]:
    """What the consumers cost while nothing happens."""
    db = central.db
    asked = "select sum(calls) from pg_stat_statements where query not like '%pg_stat_%'"
    before = db.execute(asked).fetchone()[0]
    time.sleep(IDLE_S)
    each = float(db.execute(asked).fetchone()[0] - before) / IDLE_S / len(central.consumers)
    print(f"idle: {each:.2f} statements a second and process")
    return [f"{each:.2f} statements a second and process, more than 2"] if each > 2 else []


def run(jobs: int, kills: int, consumers: int, seed: int, *, is_pooled: bool) -> list[str]:
    watch = Watch()
    problems: list[str] = []
    settings = {"fsync": "on", "full_page_writes": "on", "shared_preload_libraries": "pg_stat_statements"}
    with ExitStack() as opened:
        server = opened.enter_context(Server(settings=settings))
        receiver = opened.enter_context(receiving(watch))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        url = opened.enter_context(pooler(server)) if is_pooled else server.url
        central = Central(server, url, receiver, folder, seed, consumers)
        opened.callback(central.end)
        central.db.run("create extension pg_stat_statements; create extension pg_walinspect")
        began_s = time.monotonic()
        with closing(open_postgres(server.url)) as db:
            putting = threading.Thread(target=central.put_all, args=(db, watch, jobs, kills))
            putting.start()
            dice = random.Random(seed)  # noqa: S311 - nothing to protect
            was_away = False
            while central.kills < kills:
                time.sleep(dice.uniform(*LIFE_S))
                central.kill_one()
                if central.kills == kills // 2 and not was_away:
                    was_away = True
                    central.restart_server()
                    print(f"{central.kills} kills, and the server was stopped at once and started again")
                if time.monotonic() - began_s > QUIET_S_MAX * 10:
                    return ["the kills found too little under way"]
            putting.join()
        _await(central, jobs, problems)
        took_s = time.monotonic() - began_s
        sent = receiver.times_sent()
        lost = jobs * RECORDS - len(sent)
        more = {one: times for one, times in sent.items() if times > 1 + central.allowed[one]}
        twice = sum(times > 1 for times in sent.values())
        print(
            f"{jobs} jobs of {RECORDS} records, {central.kills} kills with something under way, {took_s:.0f} s:"
            f" {lost} record(s) lost, {twice} sent more than once, {len(more)} of them more often than its kills"
        )
        problems += [f"{lost} record(s) lost"] if lost else []
        problems += [f"{one}: {times} times, {central.allowed[one]} kill(s)" for one, times in list(more.items())[:10]]
        problems += watch.seen[:10]
        for table in derived.TABLES:
            if not derived.is_right(central.db, table):
                problems.append(f"{table} does not say what the jobs say")
        problems += commits(central, receiver, watch, 2 * jobs)
        problems += noticed(central, receiver, watch, 10 * jobs, by_lock=True)
        problems += noticed(central, receiver, watch, 10 * jobs + 1, by_lock=False)
        problems += idle(central)
        if problems:
            print((folder / "consumers.log").read_text("utf-8")[-4_000:])
    return problems


def _await(central: Central, jobs: int, problems: list[str]) -> None:
    seen, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < QUIET_S_MAX:
        found = counts.counts(central.db, central.destination)
        if found.delivered == jobs:
            return
        if found.delivered != seen:
            seen, since_s = found.delivered, time.monotonic()
        time.sleep(0.5)
    problems.append(f"after {QUIET_S_MAX:.0f} s without progress: {counts.counts(central.db, central.destination)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--consumers", type=int, default=8)
    parser.add_argument("--pooler", action="store_true", help="PgBouncer in transaction mode stands before the server.")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    problems = run(chosen.jobs, chosen.kills, chosen.consumers, chosen.seed, is_pooled=chosen.pooler)
    print("\n".join(problems) or "all holds")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
