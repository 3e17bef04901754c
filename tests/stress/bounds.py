"""The centre's bounds that take their time: each is a phase here, measured on real processes and a real PostgreSQL.

    make bounds   or   python -m tests.stress.bounds [PHASE ...] [--outage-s SECONDS]

    restart      the server is stopped at once and started again while four consumers post: no lease is taken back, no
                 record is posted twice
    clock        a consumer whose clock is two hours ahead (`faketime`) delivers what is due, claims nothing early, and
                 takes back nothing that another one holds
    rate         four consumers deliver to a tenant of 600 a minute: in no ten seconds more than 100 records arrive
    neighbours   one tenant is over its bytes, at a destination that answers after ten seconds: what the others send
                 takes at most twice as long as without it, in 99 of 100 cases, from the POST to their destination
    outage       PostgreSQL is stopped for ten minutes while turns are played on a laptop: none of its jobs is charged
                 or dead, all arrive, and `flush` ends with 0

Exit code 1 when one does not hold. Beside each figure stands the machine's load: on a busy machine they are worth less.
"""

from __future__ import annotations

import argparse
import bisect
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from app.database.server import open_postgres
from app.fleet import presence, tenants
from app.ledger import claims, counts, versions
from app.ledger.job import Body, Version
from app.pages import loopback
from app.settings.names import DATABASE_URL
from tests.stress.enqueuing import Enqueuer
from tests.stress.hammer import Plan
from tests.stress.hammer_verdict import expected_digests
from tests.support.intake import envelope, send, start_intake
from tests.support.lean_receiver import LeanReceiver, Send, lean_receiver
from tests.support.postgres import Server
from tests.support.processes import Station, start_consumer
from tests.support.servers import api_key
from tests.support.waiting import wait_until

HELICONE_S = (0.02, 0.12)
"""How long Helicone takes for an answer."""
AHEAD_S = 7_200
LIB = "libfaketime.so.1"


@dataclass(slots=True)
class Timed(LeanReceiver):
    """It knows when each record came first."""

    arrived_s: dict[str, float] = field(default_factory=dict)

    def arrive(self, port: int, body: bytes, authorization: str = "") -> tuple[Send, float]:
        # Named, because a class with slots is made anew, and `super()` means the one before.
        found = LeanReceiver.arrive(self, port, body, authorization)
        self.arrived_s.setdefault(found[0].request_id, time.monotonic())
        return found


@contextmanager
def timed_receiver(usual_s: tuple[float, float]) -> Iterator[Timed]:
    with lean_receiver(0, 0.0, usual_s, Timed) as receiver:
        assert isinstance(receiver, Timed)
        yield receiver


class Centre:
    """A server, and the processes beside it that a phase starts."""

    def __init__(self, opened: ExitStack) -> None:
        self.server = opened.enter_context(Server(settings={"fsync": "on", "full_page_writes": "on"}))
        self.folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bounds-")))
        self.output = self.folder / "centre.log"
        self.db = open_postgres(self.server.url)
        self.processes: list[subprocess.Popen[bytes]] = []
        opened.callback(self._end)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.db.close()

    def tenant(self, name: str, endpoint: str, bytes_max: int | None = None, rate_per_minute: int | None = None) -> int:
        """Its destination."""
        return tenants.add_tenant(
            self.db,
            name,
            endpoint=endpoint,
            key=api_key(name[0]),
            bytes_max=bytes_max,
            rate_per_minute=rate_per_minute,
        ).destination_id

    def start_consumers(self, number: int, threads: int, variables: Mapping[str, str] | None = None) -> None:
        url = {DATABASE_URL: self.server.url, "HELICONE_API_KEY": ""}
        station = Station(self.folder, "", variables={**url, **(variables or {})})
        self.processes += [start_consumer(station, threads, self.output) for _ in range(number)]

    def start_intake(self, opened: ExitStack) -> str:
        """Its address."""
        bound = opened.enter_context(loopback.listening("127.0.0.1", 0))
        with self.output.open("ab") as output:
            self.processes.append(start_intake(self.server.url, bound, {}, output))
        return loopback.address(bound)

    def put(self, destination_id: int, session: str, bodies: int = 1) -> int:
        """A job; its number in the ledger."""
        ids = [uuid.uuid4() for _ in range(bodies)]
        made = [Body(one, envelope(str(one), session=session)) for one in ids]
        version = Version(session, session, "t", uuid.uuid4().hex * 2, 0, "", "")
        versions.insert(self.db, destination_id, version, made, now_ms=presence.server_ms(self.db))
        (job_id,) = self.db.execute("select id from job where key = ?", (version.key,)).fetchone()
        return int(job_id)

    def restart_server(self, away_s: float) -> None:
        self.server.stop("immediate")
        time.sleep(away_s)
        self.server.start()
        self.db.close()
        self.db = open_postgres(self.server.url)

    def said(self) -> str:
        return self.output.read_text("utf-8")[-3_000:] if self.output.exists() else ""


def tell(what: str) -> None:
    print(f"{what} (load {os.getloadavg()[0]:.1f})", flush=True)


# --- restart ---------------------------------------------------------------------------------------------------------


def restart(opened: ExitStack) -> list[str]:
    """What posts for 20 s and more is under way as the server goes, and answered when it is there again."""
    centre = Centre(opened)
    receiver = opened.enter_context(timed_receiver((18.0, 25.0)))
    destination_id = centre.tenant("alpha", receiver.url)
    centre.start_consumers(4, 4)
    for number in range(16):
        centre.put(destination_id, f"ses_{number}")
    wait_until(lambda: len(receiver.under_way) >= 8)
    time.sleep(3)
    under_way = len(receiver.under_way)
    centre.restart_server(5.0)
    wait_until(lambda: counts.counts(centre.db).delivered == 16)
    row = centre.db.execute("select sum(kills) as kills, max(attempt) as attempts from job").fetchone()
    twice = sum(times > 1 for times in receiver.times_sent().values())
    tell(
        f"restart: {under_way} records were under way as the server was stopped; {row['kills']} leases taken back,"
        f" {twice} records posted twice"
    )
    return [f"{row['kills']} live leases taken back, {twice} records posted twice"] if row["kills"] or twice else []


# --- clock -----------------------------------------------------------------------------------------------------------


def wrong_clock() -> dict[str, str]:
    """The variables of a process whose wall clock is ahead; its steady clock goes on as the machine's does."""
    folders = [Path(path) for path in Path("/usr/lib").glob("*/faketime")]
    (library, *_) = [folder / LIB for folder in folders if (folder / LIB).exists()]
    return {"LD_PRELOAD": str(library), "FAKETIME": f"+{AHEAD_S}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def clock(opened: ExitStack) -> list[str]:
    if shutil.which("faketime") is None:
        return ["faketime is needed: apt-get install faketime"]
    variables = wrong_clock()
    asked = [sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(asked, env={**os.environ, **variables}, check=True, capture_output=True, text=True)
    ahead_s = float(said.stdout) - time.time()
    centre = Centre(opened)
    receiver = opened.enter_context(timed_receiver((3.0, 3.0)))
    destination_id = centre.tenant("alpha", receiver.url)
    now, later, held = (centre.put(destination_id, f"ses_{name}") for name in ("now", "later", "held"))
    in_an_hour_ms = presence.server_ms(centre.db) + 3_600_000
    centre.db.execute("update job set due_ms = ? where id = ?", (in_an_hour_ms, later))
    centre.db.execute("update job set enqueued_ms = enqueued_ms - 60000 where id = ?", (later,))
    (key,) = centre.db.execute("select key from job where id = ?", (held,)).fetchone()
    now_ms = presence.server_ms(centre.db)
    assert claims.claim(centre.db, destination_id, key, worker="another", now_ms=now_ms, lease_ms=300_000)
    centre.start_consumers(1, 4, variables)
    longest_ms = 0
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        presence.beat(centre.db, "another", {"machine": "-", "process": 0, "version": "-"})
        row = centre.db.execute("select lease_until_ms from job where id = ?", (now,)).fetchone()
        if row["lease_until_ms"] is not None:
            longest_ms = max(longest_ms, row["lease_until_ms"] - presence.server_ms(centre.db))
        time.sleep(0.5)
    rows = {row["id"]: row for row in centre.db.execute("select id, state, attempt, worker, kills, due_ms from job")}
    problems = [
        *([f"the clock is {ahead_s:.0f} s ahead"] if ahead_s < AHEAD_S - 60 else []),
        *([f"what was due is {rows[now]['state']}"] if rows[now]["state"] != "delivered" else []),
        *(["what is due in an hour was claimed"] if rows[later]["attempt"] else []),
        *(["what is due in an hour is due at another time"] if rows[later]["due_ms"] != in_an_hour_ms else []),
        *(["what another one holds was taken back"] if rows[held]["worker"] != "another" else []),
        *([f"a lease of {longest_ms} ms"] if not 0 < longest_ms <= 60_000 else []),
    ]
    tell(
        f"clock: {ahead_s:.0f} s ahead, for a minute: what was due is {rows[now]['state']}, its lease was"
        f" {longest_ms / 1000:.0f} s at the most; what is due in an hour has {rows[later]['attempt']} attempts, what"
        f" another one holds {rows[held]['kills']} kills"
    )
    return problems


# --- rate ------------------------------------------------------------------------------------------------------------


def rate(opened: ExitStack) -> list[str]:
    per_minute, window_s, lasts_s = 600, 10.0, 60.0
    centre = Centre(opened)
    receiver = opened.enter_context(timed_receiver(HELICONE_S))
    destination_id = centre.tenant("alpha", receiver.url, rate_per_minute=per_minute)
    for number in range(int(per_minute * lasts_s / 60) + 200):
        centre.put(destination_id, f"ses_{number}")
    centre.start_consumers(4, 12)
    wait_until(lambda: receiver.arrived_s)
    time.sleep(lasts_s)
    at_s = sorted(receiver.arrived_s.values())
    most = max(bisect.bisect_left(at_s, one + window_s) - place for place, one in enumerate(at_s))
    allowed = per_minute * window_s / 60
    average = (len(at_s) - 1) / (at_s[-1] - at_s[0]) * 60
    tell(f"rate: of {per_minute} a minute {average:.0f} arrived, {most} of {allowed:.0f} at most in {window_s:.0f} s")
    return [f"{most} records in {window_s:.0f} s, where {allowed:.0f} are allowed"] if most > allowed else []


# --- neighbours ------------------------------------------------------------------------------------------------------


PER_S = 20


@dataclass(frozen=True, slots=True)
class Others:
    """Machines of several tenants."""

    url: str
    tokens: Sequence[str]
    receiver: Timed
    pool: ThreadPoolExecutor

    def play(self, lasts_s: float) -> list[float]:
        """Send PER_S records a second, whatever becomes of them; of each the seconds until it was where it goes."""
        sent_s: dict[str, float] = {}
        answers: Counter[int] = Counter()

        def one(token: str, request_id: str, session: str) -> None:
            sent_s[request_id] = time.monotonic()
            answers[send(self.url, token, envelope(request_id, session=session))[0]] += 1

        began_s = time.monotonic()
        dice = random.Random(1)  # noqa: S311 - nothing to protect
        for number in range(int(PER_S * lasts_s)):
            time.sleep(max(0.0, began_s + number / PER_S - time.monotonic()))
            token = self.tokens[number % len(self.tokens)]
            self.pool.submit(one, token, str(uuid.uuid4()), f"ses_{dice.randrange(200)}")
        wait_until(lambda: answers.total() == int(PER_S * lasts_s))
        assert set(answers) == {200}, answers
        wait_until(lambda: self.receiver.arrived_s.keys() >= sent_s.keys())
        return [self.receiver.arrived_s[request_id] - at_s for request_id, at_s in sent_s.items()]


@dataclass(slots=True)
class Insistent:
    """A machine of a tenant that is full; it does not wait as it is told."""

    url: str
    token: str
    over: threading.Event = field(default_factory=threading.Event)
    refused: int = 0

    def send_all(self) -> None:
        while not self.over.is_set():
            status = send(self.url, self.token, envelope(str(uuid.uuid4()), session=str(uuid.uuid4())))[0]
            self.refused += status == 429
            self.over.wait(0.0 if status == 200 else 0.25)


def neighbours(opened: ExitStack) -> list[str]:
    centre = Centre(opened)
    receiver = opened.enter_context(timed_receiver(HELICONE_S))
    slow = opened.enter_context(timed_receiver((10.0, 10.0)))
    names = ["alpha", "beta", "gamma", "delta"]
    for name in names:
        centre.tenant(name, receiver.url)
    full = centre.tenant("full", slow.url, bytes_max=100_000)
    tokens = [tenants.add_token(centre.db, name, "laptop") for name in names]
    url = centre.start_intake(opened)
    centre.start_consumers(2, 12)
    wait_until(partial(_answers, url))
    others = Others(url, tokens, receiver, opened.enter_context(ThreadPoolExecutor(16)))
    insistent = Insistent(url, tenants.add_token(centre.db, "full", "laptop"))
    machine = threading.Thread(target=insistent.send_all)
    opened.callback(insistent.over.set)
    others.play(10.0)  # what is slow once
    alone_s = others.play(45.0)
    _tell_times("alone", alone_s)
    machine.start()
    wait_until(lambda: insistent.refused and slow.under_way)
    time.sleep(15)
    beside_s = others.play(45.0)
    held = counts.counts(centre.db, full).pending
    print(f"of the full one {held} wait, {len(slow.under_way)} are under way, {insistent.refused} were refused")
    beside = _tell_times("beside the full one", beside_s)
    insistent.over.set()
    machine.join(60)
    # Once more, for what else the machine does: that may be more by now.
    slow.usual_s = (0.0, 0.0)
    wait_until(lambda: not counts.counts(centre.db, full).pending)
    alone = _tell_times("alone, before and after", [*alone_s, *others.play(45.0)])
    return [
        *([f"99 of 100 take {beside:.2f} s beside a full tenant, {alone:.2f} s alone"] if beside > 2 * alone else []),
        *(["the full tenant was not full"] if not insistent.refused or not held else []),
    ]


def _answers(url: str) -> bool:
    with suppress(OSError):
        return send(url, None, b"")[0] == 401
    return False


def _tell_times(when: str, took_s: Sequence[float]) -> float:
    """The 99th percentile."""
    ordered = sorted(took_s)
    half, most = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    tell(f"neighbours, {when}: {len(ordered)} records, half within {half:.3f} s, 99 of 100 within {most:.3f} s")
    return most


# --- outage ----------------------------------------------------------------------------------------------------------


def outage(opened: ExitStack, away_s: float) -> list[str]:
    before_s, after_s, every_s = 20.0, 20.0, 2.0
    centre = Centre(opened)
    receiver = opened.enter_context(timed_receiver(HELICONE_S))
    centre.tenant("alpha", receiver.url)
    url = centre.start_intake(opened)
    centre.start_consumers(2, 4)
    home = centre.folder / "laptop"
    home.mkdir()
    laptop = Station(home, url, key=tenants.add_token(centre.db, "alpha", "laptop"))
    plan = Plan(turns=int((before_s + away_s + after_s) / every_s), consumer_kills=0, enqueuer_kills=0, seed=1)
    began_s = time.monotonic()
    over = threading.Event()
    played: list[Enqueuer] = []

    def is_time() -> bool:
        return time.monotonic() - began_s > played[0].stored * every_s

    played.append(Enqueuer(laptop, plan.steps(), home / "output.log", is_time, over))
    opened.callback(played[0].end)
    opened.callback(over.set)
    centre.processes.append(start_consumer(laptop, 12, home / "output.log"))
    worst = Worst()
    watching = threading.Thread(target=worst.watch, args=(laptop, over))
    played[0].thread.start()
    watching.start()
    time.sleep(before_s)
    before = counts_of(laptop)
    under_way = set(receiver.under_way.values())
    centre.server.stop("immediate")
    stopped_s = time.monotonic()
    time.sleep(away_s)
    waiting = counts_of(laptop)
    centre.server.start()
    started_s = time.monotonic()
    tell(
        f"outage: {before['delivered']} delivered before; after {started_s - stopped_s:.0f} s without the database"
        f" {waiting} at the laptop"
    )
    played[0].thread.join(after_s + 120)
    flushed = laptop.run("flush", "--timeout", "240", timeout_s=300)
    tell(
        f"outage: flush ended with {flushed.returncode}, {time.monotonic() - started_s:.0f} s after the server was back"
    )
    over.set()
    watching.join(60)
    centre.db.close()
    centre.db = open_postgres(centre.server.url)
    wait_until(lambda: not counts.counts(centre.db).pending)
    problems = [] if flushed.returncode == 0 else [f"flush: {flushed.stdout}{flushed.stderr}"]
    return problems + _verdict(centre, laptop, plan, receiver, worst, under_way)


def _verdict(
    centre: Centre, laptop: Station, plan: Plan, receiver: Timed, worst: Worst, under_way: set[str]
) -> list[str]:
    expected = expected_digests(plan.sessions(), laptop)
    stored = {one.request_id: one.digest for one in receiver.sends if one.stored}
    lost = [one for one, digest in expected.items() if stored.get(one) != digest]
    sent = Counter((one.request_id, one.digest) for one in receiver.sends)
    twice = [request_id for (request_id, _), times in sent.items() if times > 1]
    unexplained = [one for one in twice if one not in under_way]
    found = counts.counts(centre.db)
    row = centre.db.execute("select max(failures) as failures, max(kills) as kills from job").fetchone()
    with laptop.ledger() as db:
        failed = db.execute("select name, count from counter where kind = 'failed' order by name").fetchall()
    tell(
        f"outage: at the laptop {worst.charged} charged and {worst.dead} dead at any time; at the centre"
        f" {found.dead} dead, {row['failures']} charged, {row['kills']} kills; of {len(expected)} records"
        f" {len(lost)} lost, {len(twice)} posted twice, of which {len(unexplained)} were not under way as the server"
        " was stopped"
    )
    print("the laptop's attempts that failed: " + ", ".join(f"{one['count']} with {one['name']}" for one in failed))
    return [
        *([f"{worst.charged} jobs charged at the laptop"] if worst.charged else []),
        *([f"{worst.dead} jobs dead at the laptop"] if worst.dead else []),
        *([f"{found.dead} jobs dead at the centre"] if found.dead else []),
        *([f"jobs charged at the centre: {dict(row)}"] if row["failures"] or row["kills"] else []),
        *([f"{len(lost)} records lost"] if lost else []),
        *([f"{len(unexplained)} records posted twice"] if unexplained else []),
    ]


def counts_of(laptop: Station) -> dict[str, int]:
    found = laptop.counts()
    return {"pending": found.pending, "delivered": found.delivered, "dead": found.dead}


@dataclass(slots=True)
class Worst:
    """What was seen at a laptop at any time, five times a second."""

    charged: int = 0
    dead: int = 0

    def watch(self, laptop: Station, over: threading.Event) -> None:
        with laptop.ledger() as db:
            while not over.wait(0.2):
                row = db.execute("select coalesce(sum(failures), 0) as charged, sum(state = 'dead') as dead from job")
                found = row.fetchone()
                self.charged = max(self.charged, found["charged"])
                self.dead = max(self.dead, found["dead"] or 0)


PHASES: dict[str, Callable[[ExitStack], list[str]]] = {
    "restart": restart,
    "clock": clock,
    "rate": rate,
    "neighbours": neighbours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("phases", nargs="*", choices=[*PHASES, "outage"], default=[*PHASES, "outage"])
    parser.add_argument("--outage-s", type=float, default=600.0)
    chosen = parser.parse_args()
    known: dict[str, Callable[[ExitStack], list[str]]] = {**PHASES, "outage": partial(outage, away_s=chosen.outage_s)}
    problems: list[str] = []
    for name in chosen.phases:
        with ExitStack() as opened:
            found = known[name](opened)
        problems += [f"{name}: {one}" for one in found]
    print("\n".join(problems) or "all holds")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
