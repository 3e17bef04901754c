"""The hop by violence: two laptops deliver through two intakes and four workers, all killed at random, the server too.

    make fleet   or   python -m tests.stress.fleet [--turns N] [--kills N] [--seed N]

    enqueuer ─▶ spool ─▶ huey_consumer ─┐                  ┌─▶ 4 huey_consumers ─▶ a receiver here, some of whose
    enqueuer ─▶ spool ─▶ huey_consumer ─┴─▶ 2 intakes ─▶ PostgreSQL                 answers are faults
                        ▲                       ▲              ▲      ▲
                        └───────── SIGKILL ─────┘              │      └─ SIGKILL
                                              one immediate stop

A laptop is as on any desk: its endpoint is the intake, its API key is a machine's token. Half of the sessions are the
same on both, under the same ids: only the key tells whose a record is. In the end all that a laptop has acknowledged is
at the receiver under its tenant's key, nothing is under a token, no laptop has seen a key, and the centre has kept no
token. Then one token is revoked. Exit code 1 when anything does not hold.
"""

from __future__ import annotations

import argparse
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.database import derived
from app.database.server import open_postgres
from app.fleet import tenants
from app.ledger import counts
from app.pages import loopback
from tests.stress.enqueuing import Enqueuer
from tests.stress.hammer import SETTINGS, Plan
from tests.stress.hammer_verdict import expected_digests
from tests.support.intake import envelope, send, start_intake
from tests.support.lean_receiver import LeanReceiver, lean_receiver
from tests.support.postgres import Server
from tests.support.processes import Station, start_consumer
from tests.support.servers import api_key
from tests.support.waiting import wait_until

CONSUMERS = 4
INTAKES = 2
THREADS = 4
FAULTY = 0.1
USUAL_S = (0.02, 0.12)
LIFE_S = (0.5, 2.5)
"""Between two kills."""
AWAY_S = 5.0
"""For so long the server is away."""
AHEAD = 0.05
"""How far the turns may be ahead of the kills."""
QUIET_S_MAX = 240.0
"""For a minute after its start the server's leases stay as they are."""
LATE_SESSION = 10_000


@dataclass(slots=True)
class Process:
    """One that is started anew whenever it has ended, as by a process manager."""

    kind: str
    start: Callable[[], subprocess.Popen[bytes]]
    running: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()

    def revive(self) -> None:
        if self.running.poll() is not None:
            self.running = self.start()


@dataclass(slots=True)
class Laptop:
    """One machine, which knows the intake and its own token alone."""

    name: str
    key: str = field(repr=False)
    """Its tenant's, which it must never see."""
    station: Station
    sessions: dict[int, int]
    enqueuer: Enqueuer

    def output(self) -> Path:
        return self.station.home / "output.log"

    def expected(self) -> dict[str, str]:
        """By request id, the digest of what must be stored."""
        return expected_digests(self.sessions, self.station)

    def acknowledged(self) -> dict[str, str]:
        with self.station.ledger() as db:
            rows = db.execute("select request_id, digest from acknowledgement").fetchall()
        return {str(uuid.UUID(bytes=row["request_id"])): row["digest"].hex() for row in rows}


class Fleet:
    def __init__(self, server: Server, bound: socket.socket, receiver: LeanReceiver, folder: Path, plan: Plan) -> None:
        self.server = server
        self.bound = bound
        self.receiver = receiver
        self.plan = plan
        self.over = threading.Event()
        self.kills: Counter[str] = Counter()
        self.output = folder / "centre.log"
        self.db = open_postgres(server.url)
        centre = {**SETTINGS, "OPENCODE_HELICONE_DATABASE_URL": server.url, "HELICONE_API_KEY": ""}
        self.centre = Station(folder, "", variables=centre)
        self.laptops = [self._laptop(number, name, folder) for number, name in enumerate(("alpha", "beta"))]
        starts: list[tuple[str, Callable[[], subprocess.Popen[bytes]]]] = [
            *[("intake", self._start_intake)] * INTAKES,
            *[("consumer", lambda: start_consumer(self.centre, THREADS, self.output))] * CONSUMERS,
            *[("laptop", self._starter(one)) for one in self.laptops],
        ]
        self.processes = [Process(kind, start, start()) for kind, start in starts]

    def _laptop(self, number: int, name: str, folder: Path) -> Laptop:
        key = api_key(name[0])
        tenants.add_tenant(self.db, name, endpoint=self.receiver.url, key=key)
        home = folder / name
        home.mkdir()
        token = tenants.add_token(self.db, name, "laptop")
        station = Station(home, loopback.address(self.bound), key=token, variables=SETTINGS)
        # Half of the sessions are the same on both.
        first = number * len(self.plan.sessions()) // 2
        sessions = {session + first: turns for session, turns in self.plan.sessions().items()}
        steps = [(session + first, turns) for session, turns in self.plan.steps()]
        enqueuer = Enqueuer(station, steps, home / "output.log", self._is_in_time, self.over)
        return Laptop(name, key, station, sessions, enqueuer)

    def _start_intake(self) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as output:
            return start_intake(self.server.url, self.bound, {}, output)

    @staticmethod
    def _starter(laptop: Laptop) -> Callable[[], subprocess.Popen[bytes]]:
        return lambda: start_consumer(laptop.station, THREADS, laptop.output())

    def _is_in_time(self) -> bool:
        stored = sum(one.enqueuer.stored for one in self.laptops)
        return stored / (2 * self.plan.turns) <= self.kills.total() / self.plan.consumer_kills + AHEAD

    def strike(self) -> None:
        """Turns are played while everything is killed in turn by dice, the server once among them."""
        for one in self.laptops:
            one.enqueuer.thread.start()
        dice = random.Random(self.plan.seed)  # noqa: S311 - nothing to protect
        while self.kills.total() < self.plan.consumer_kills:
            time.sleep(dice.uniform(*LIFE_S))
            for process in self.processes:
                process.revive()
            victim = dice.choice(self.processes)
            victim.kill()
            victim.revive()
            self.kills[victim.kind] += 1
            if self.kills.total() == self.plan.consumer_kills // 2:
                self.server.stop("immediate")
                time.sleep(AWAY_S)
                self.server.start()
                print("the server was stopped at once and started again", flush=True)
        for one in self.laptops:
            one.enqueuer.thread.join(600)
        for process in self.processes:
            process.revive()
        self.db.close()
        self.db = open_postgres(self.server.url)

    def close(self) -> None:
        self.over.set()
        for one in self.laptops:
            one.enqueuer.end()
        for process in self.processes:
            process.kill()
        self.db.close()

    def flush(self) -> list[str]:
        problems = []
        for one in self.laptops:
            done = one.station.run("flush", "--timeout", str(QUIET_S_MAX), timeout_s=QUIET_S_MAX + 60)
            print(f"{one.name}: flush ended with {done.returncode}", flush=True)
            if done.returncode != 0:
                problems.append(f"{one.name}: flush ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return problems

    def wait_for_the_centre(self) -> list[str]:
        seen, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < QUIET_S_MAX:
            found = counts.counts(self.db)
            if not found.pending:
                return [f"the centre has {found.dead} dead job(s)"] if found.dead else []
            if found.delivered != seen:
                seen, since_s = found.delivered, time.monotonic()
            time.sleep(0.5)
        return [f"the centre, after {QUIET_S_MAX:.0f} s without progress: {counts.counts(self.db)}"]

    def stored(self, key: str) -> dict[str, str]:
        """By request id, the digest of what the receiver last stored under this key."""
        with self.receiver._lock:
            sends = list(self.receiver.sends)
        return {one.request_id: one.digest for one in sends if one.stored and one.authorization == f"Bearer {key}"}


def judge(fleet: Fleet) -> list[str]:
    problems = []
    for one in fleet.laptops:
        expected, acknowledged, stored = one.expected(), one.acknowledged(), fleet.stored(one.key)
        lost = [record for record, digest in expected.items() if stored.get(record) != digest]
        unacknowledged = [record for record, digest in expected.items() if acknowledged.get(record) != digest]
        untrue = [record for record, digest in acknowledged.items() if stored.get(record) != digest]
        foreign = stored.keys() - expected.keys()
        print(
            f"{one.name}: {sum(one.sessions.values())} turns, {len(expected)} records, {len(acknowledged)} acknowledged"
            f", {len(stored)} at the receiver under its tenant's key; {len(lost)} lost, {len(untrue)} acknowledged and"
            f" not there, {len(unacknowledged)} not acknowledged, {len(foreign)} of somebody else"
        )
        for what, records in (
            ("lost or stale", lost),
            ("not acknowledged", unacknowledged),
            ("acknowledged, and not there", untrue),
            ("of somebody else", sorted(foreign)),
        ):
            problems += [f"{one.name}: {record} is {what}" for record in records[:10]]
    senders = Counter(one.authorization.removeprefix("Bearer ") for one in fleet.receiver.sends)
    others = senders.keys() - {one.key for one in fleet.laptops}
    print(f"{senders.total()} POSTs at the receiver under {len(senders)} keys, {len(others)} of them no tenant's")
    problems += [f"{len(others)} keys at the receiver are no tenant's"] if others else []
    rows = fleet.db.execute("select state, count(*) as jobs from job group by state order by state").fetchall()
    print("at the centre: " + ", ".join(f"{row['jobs']} {row['state']}" for row in rows))
    for table in derived.TABLES:
        if not derived.is_right(fleet.db, table):
            problems.append(f"{table} does not say what the jobs say")
    return problems


def files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # gone meanwhile, or a socket
            if path.is_file():
                yield path, path.read_bytes()


def leaks(fleet: Fleet) -> list[str]:
    """Keys at a laptop, tokens at the centre, either of them in a log."""
    keys = [one.key.encode() for one in fleet.laptops]
    tokens = [one.station.key.encode() for one in fleet.laptops]
    problems: list[str] = []
    read = 0
    for laptop in fleet.laptops:
        for path, content in files(laptop.station.home):
            read += len(content)
            problems += [f"a key is in {laptop.name}'s {path.name}" for key in keys if key in content]
    for path, content in files(fleet.server.folder):
        read += len(content)
        problems += [f"a token is in the server's {path.name}" for token in tokens if token in content]
    for path in (fleet.output, fleet.server.folder / "log"):
        content = path.read_bytes()
        problems += [f"a key or token is in {path.name}" for secret in (*keys, *tokens) if secret in content]
    for process in fleet.processes:
        about = Path(f"/proc/{process.running.pid}")
        environment = (about / "environ").read_bytes() + (about / "cmdline").read_bytes()
        # A tenant's key is in the database alone.
        problems += [f"a key is in the environment of a {process.kind}" for key in keys if key in environment]
    print(
        f"searched for keys and tokens: {read / 1e6:.0f} MB of files, {len(fleet.processes)} environments:"
        f" {len(problems)} found"
    )
    return problems


def answers(fleet: Fleet) -> list[str]:
    """What whoever asks is told."""
    url, problems = loopback.address(fleet.bound), []
    for token in (fleet.laptops[0].station.key, tenants.new_token(), fleet.laptops[0].key, None):
        status, headers, body = patient(url, token, b"{")
        said = str(headers).encode() + body
        problems += [f"a key is in an answer of {status}" for one in fleet.laptops if one.key.encode() in said]
    return problems


def patient(url: str, token: str | None, body: bytes) -> tuple[int, object, bytes]:
    """An intake that was just killed may have had this request."""
    while True:
        with suppress(urllib.error.URLError, ConnectionError):
            return send(url, token, body)


def revocation(fleet: Fleet) -> list[str]:
    """One machine is refused from its next POST on, and waits visibly; the other one goes on."""
    ours, other = fleet.laptops
    tenants.revoke(fleet.db, ours.name, "laptop")
    status = patient(loopback.address(fleet.bound), ours.station.key, envelope(str(uuid.uuid4())))[0]
    problems = [] if status == 401 else [f"a revoked token is answered with {status}"]
    for one in fleet.laptops:
        late = Enqueuer(one.station, [(LATE_SESSION, 1)], one.output(), lambda: True, threading.Event())
        late.thread.start()
        late.thread.join(60)
        one.sessions[LATE_SESSION] = 1
    wait_until(lambda: fleet.stored(other.key).items() >= other.expected().items(), QUIET_S_MAX)
    wait_until(lambda: "refuse" in ours.station.run("status").stdout, QUIET_S_MAX)
    told = ours.station.run("status")
    pending, dead = ours.station.counts().pending, ours.station.counts().dead
    done = ours.station.run("flush", "--timeout", "5")
    came = expected_digests({LATE_SESSION: 1}, ours.station).keys() & fleet.stored(ours.key).keys()
    print(
        f"{ours.name}'s token was revoked: its POST is answered with {status}, {pending} job(s) wait, flush ends with"
        f" {done.returncode}; {other.name} went on\n--- status of {ours.name}, which ends with {told.returncode}:"
    )
    print(told.stdout)
    problems += [f"{len(came)} record(s) of a revoked machine came through"] if came else []
    problems += [f"{pending} pending and {dead} dead where a turn waits"] if not pending or dead else []
    problems += ["flush says that all is well"] if done.returncode == 0 else []
    return problems


@contextmanager
def running(plan: Plan) -> Iterator[Fleet]:
    with ExitStack() as opened:
        server = opened.enter_context(Server(settings={"fsync": "on", "full_page_writes": "on"}))
        receiver = opened.enter_context(lean_receiver(plan.seed, FAULTY, USUAL_S))
        bound = opened.enter_context(loopback.listening("127.0.0.1", 0))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        with closing(Fleet(server, bound, receiver, folder, plan)) as fleet:
            yield fleet


def run(plan: Plan) -> list[str]:
    with running(plan) as fleet:
        began_s = time.monotonic()
        fleet.strike()
        killed = ", ".join(f"{times} of {kind}s" for kind, times in sorted(fleet.kills.items()))
        print(f"all turns are played, after {time.monotonic() - began_s:.0f} s; kills: {killed}", flush=True)
        problems = [*fleet.flush(), *fleet.wait_for_the_centre()]
        print(f"all is delivered, after {time.monotonic() - began_s:.0f} s", flush=True)
        problems += [*judge(fleet), *leaks(fleet), *answers(fleet)]
        if problems:
            print(fleet.output.read_text("utf-8")[-4_000:])
            return problems
        return revocation(fleet)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=300, help="Of each laptop.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    problems = run(Plan(turns=chosen.turns, consumer_kills=chosen.kills, enqueuer_kills=0, seed=chosen.seed))
    print("\n".join(problems) or "all holds")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
