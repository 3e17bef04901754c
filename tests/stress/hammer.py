"""Proof by violence that nothing is lost and nothing doubled.

    make hammer   or   python -m tests.stress.hammer [--turns N] [--consumer-kills N] [--enqueuer-kills N] [--seed N]

    4 enqueuers ──▶ ledger.db ──▶ 2 huey_consumers of 4 threads ──▶ lean receiver, a fifth of whose answers are faults
         ▲                             ▲
         └───────── SIGKILL ───────────┘            at random instants, each with POSTs under way; all start anew

A consumer is stopped (SIGSTOP) before it is killed, so that what it had in flight can be read from the receiver and
from the ledger: this is what makes the bound on sends exact. Linux only, because /proc tells whose a connection is.
What must hold in the end is `Verdict`; exit code 1 when anything does not.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from app.runtime.liveness import present
from tests.stress.enqueuing import Enqueuer
from tests.stress.hammer_verdict import Ends, Verdict, judge, orphans
from tests.support.lean_receiver import LeanProcess, lean_process
from tests.support.processes import Station, start_consumer

CONSUMERS = 2
THREADS = 4
TURNS_PER_SESSION = 10
SESSIONS_AT_WORK = 16
FAULTY = 0.2
USUAL_S = (0.02, 0.12)
"""How long the receiver takes when nothing is wrong: long enough that POSTs are under way at any instant."""
TWICE = 0.1
"""Of the snapshots, so many are shown to a second enqueuer as well, at the same time or later."""
BACKLOG_MIN = 8
BACKLOG_MAX = 200
"""Jobs that may wait: the enqueuers hold back, so that they are still at work while the consumers die."""
AHEAD = 0.05
"""How far the enqueuers' share of the work may be ahead of the killers' share, and the other way round."""
CHECK_EVERY_KILLS = 10
LIFE_S = (0.0, 0.6)
"""Between two kills."""
QUIET_S_MAX = 120.0
"""Without any progress in so long, it will not come any more."""

SETTINGS = {
    "OPENCODE_HELICONE_MAX_RETRIES": "50",
    "OPENCODE_HELICONE_RETRY_BASE_DELAY": "20",
    "OPENCODE_HELICONE_FLUSH_INTERVAL": "50",
}


@dataclass(frozen=True, slots=True)
class Plan:
    turns: int = 5_000
    consumer_kills: int = 220
    enqueuer_kills: int = 55
    enqueuers: int = 4
    seed: int = 0

    def sessions(self) -> dict[int, int]:
        """How many turns each has in the end."""
        whole, rest = divmod(self.turns, TURNS_PER_SESSION)
        found = dict.fromkeys(range(whole), TURNS_PER_SESSION)
        return {**found, whole: rest} if rest else found

    def steps(self) -> list[tuple[int, int]]:
        """(session, turns so far): one for each turn. Some sessions are at work at any time."""
        dice = random.Random(self.seed)  # noqa: S311 - nothing to protect
        waiting = list(self.sessions().items())
        at_work: list[tuple[int, int, int]] = []
        found = []
        while waiting or at_work:
            while waiting and len(at_work) < SESSIONS_AT_WORK:
                at_work.append((*waiting.pop(0), 1))
            session, turns, next_turn = at_work.pop(dice.randrange(len(at_work)))
            found.append((session, next_turn))
            if next_turn < turns:
                at_work.append((session, turns, next_turn + 1))
        return found


# --- the victims -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Consumer:
    process: subprocess.Popen[bytes]

    def links(self) -> list[str]:
        """What its file descriptors are."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        found = []
        with suppress(OSError):
            for path in folder.iterdir():
                with suppress(OSError):
                    found.append(str(path.readlink()))
        return found

    @property
    def name(self) -> str | None:
        """As the ledger knows it, by the lock file that it holds; None before it has one."""
        locks = [Path(link) for link in self.links() if link.endswith(".lock") and "/workers/" in link]
        return locks[0].stem if locks else None

    def ports(self) -> set[int]:
        """Local ones, of its connections."""
        inodes = {link[8:-1] for link in self.links() if link.startswith("socket:[")}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
        return {int(row[1].split(":")[1], 16) for row in rows if row[9] in inodes}

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still, between whichever two instructions of its threads."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


# --- the hammer ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Struck:
    """What the kills did so far."""

    consumers: int = 0
    enqueuers: int = 0
    under_way: int = 0
    """POSTs under way at the kills, in all."""
    in_flight: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(request id, digest): kills of a consumer that was about to post this record, or had and had not noted it."""
    checks: int = 0
    descriptors_max: int = 0
    zombies: int = 0
    problems: list[str] = field(default_factory=list)


class Hammer:
    """One run in `folder`."""

    def __init__(self, plan: Plan, folder: Path, receiver: LeanProcess, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._dice = random.Random(plan.seed)  # noqa: S311 - nothing to protect
        self._receiver = receiver
        self.station = Station(folder / "home", receiver.url, variables=SETTINGS)
        self.station.home.mkdir()
        self._output = self.station.home / "output.log"
        """Where the processes' own words go."""
        self.over = threading.Event()
        self.struck = Struck()
        steps = plan.steps()
        shares: list[list[tuple[int, int]]] = [[] for _ in range(plan.enqueuers)]
        for step in steps:
            # One enqueuer brings a session's snapshots in order; another may come later with an older one.
            shares[step[0] % plan.enqueuers].append(step)
            if self._dice.random() < TWICE:
                shares[(step[0] + 1) % plan.enqueuers].append(step)
        self._steps = sum(len(share) for share in shares)
        with self.station.ledger() as db:
            self._pending = pending(db)
        self.enqueuers = [Enqueuer(self.station, share, self._output, self.may_enqueue, self.over) for share in shares]
        self.consumers = [self._start() for _ in range(CONSUMERS)]

    def _start(self) -> Consumer:
        return Consumer(start_consumer(self.station, THREADS, self._output))

    @property
    def share_stored(self) -> float:
        return sum(enqueuer.stored for enqueuer in self.enqueuers) / self._steps

    @property
    def _share_killed(self) -> float:
        return self.struck.consumers / self._plan.consumer_kills if self._plan.consumer_kills else 1.0

    def may_enqueue(self) -> bool:
        # Without jobs there would be no POSTs under way, and no kill to wait for.
        is_paced = self.share_stored <= self._share_killed + AHEAD
        return self._pending < (BACKLOG_MAX if is_paced else BACKLOG_MIN)

    def run(self) -> Ends:
        """Until everything is stored, killed and delivered, or nothing moves any more."""
        for enqueuer in self.enqueuers:
            enqueuer.thread.start()
        try:
            with self.station.ledger() as db:
                self._strike_until_done(db)
            return self._end()
        finally:
            self.over.set()
            for enqueuer in self.enqueuers:
                enqueuer.end()
                enqueuer.thread.join(60)
                enqueuer.end()
            for consumer in self.consumers:
                consumer.process.kill()
                consumer.process.wait()

    def _strike_until_done(self, db: sqlite3.Connection) -> None:
        moved_s = time.monotonic()
        seen: object = None
        while True:
            self._pending = pending(db)
            if self._strike(db) and self.struck.consumers % CHECK_EVERY_KILLS == 0:
                self._check(db)
            if self.struck.enqueuers < self._plan.enqueuer_kills * min(1.0, self.share_stored + AHEAD):
                self._strike_enqueuer()
            if self.share_stored == 1 and not self._pending:
                return
            now = (self.share_stored, self._pending, self.struck.consumers)
            if now != seen:
                seen, moved_s = now, time.monotonic()
            elif time.monotonic() - moved_s > QUIET_S_MAX:
                self.struck.problems.append(f"nothing moved for {QUIET_S_MAX:.0f} s: {self._pending} jobs wait")
                return
            time.sleep(self._dice.uniform(*LIFE_S) if self._is_time_to_kill() else 0.05)

    def _is_time_to_kill(self) -> bool:
        return self._share_killed < 1 and self._share_killed <= self.share_stored + AHEAD

    def _strike(self, db: sqlite3.Connection) -> bool:
        """Kill a consumer when it is time for it and POSTs of its own are under way; whether it came to that."""
        if not self._is_time_to_kill():
            return False
        at = self._dice.randrange(CONSUMERS)
        victim = self.consumers[at]
        known = victim.name
        if known is None:
            return False
        with victim.stopped():
            ports = victim.ports()
            under_way = sum(port in ports for port in self._receiver.under_way())
            if not under_way:
                return False
            self._note_what_dies(db, victim, known, under_way)
            victim.process.kill()
        if victim.process.wait() != -signal.SIGKILL:
            self.struck.problems.append(f"a consumer had ended by itself: {victim.process.returncode}")
        self.consumers[at] = self._start()
        return True

    def _note_what_dies(self, db: sqlite3.Connection, victim: Consumer, known: str, under_way: int) -> None:
        struck = self.struck
        struck.consumers += 1
        struck.under_way += under_way
        struck.descriptors_max = max(struck.descriptors_max, len(victim.links()))
        struck.zombies += zombies_of(victim.process.pid)
        # Of each job that it has: the records that it is posting, has posted and not noted, or would post next.
        rows = db.execute(
            "select hex(r.request_id) as id, hex(r.digest) as digest from job j join record r on r.job_id = j.id"
            " where j.worker = ? and not exists (select 1 from acknowledgement a where a.turn_id = j.turn_id"
            "  and a.request_id = r.request_id and a.digest = r.digest)",
            (known,),
        )
        struck.in_flight.update((row["id"].lower(), row["digest"].lower()) for row in rows)

    def _strike_enqueuer(self) -> None:
        """Wherever it is, at work or waiting, while POSTs are under way."""
        alive = [enqueuer for enqueuer in self.enqueuers if enqueuer.thread.is_alive()]
        if alive and self._receiver.under_way():
            self._dice.choice(alive).process.kill()
            self.struck.enqueuers += 1

    def _check(self, db: sqlite3.Connection) -> None:
        self.struck.checks += 1
        self._tell(f"{self.struck.consumers} consumers killed, {self.share_stored:.0%} stored, {self._pending} waiting")
        self.struck.problems += integrity(self.station.spool)
        self.struck.problems += orphans(db)
        locks = len(list((self.station.spool / "workers").iterdir()))
        if locks > 2 * CONSUMERS:
            self.struck.problems.append(f"{locks} files in workers/ for {CONSUMERS} workers")

    def _end(self) -> Ends:
        """All consumers are told to end; what is there then."""
        for consumer in self.consumers:
            consumer.process.terminate()
        codes = []
        for consumer in self.consumers:
            with suppress(subprocess.TimeoutExpired):
                codes.append(consumer.process.wait(60))
        if codes != [0] * CONSUMERS:
            self.struck.problems.append(f"SIGTERM ended consumers with {codes}")
        self.struck.problems += integrity(self.station.spool)
        if present(self.station.spool / "workers") or any((self.station.spool / "workers").iterdir()):
            self.struck.problems.append("files are left in workers/")
        sends, bodies = self._receiver.everything(self.station.home)
        return Ends(self._plan.sessions(), self.struck.in_flight, sends, bodies)


def pending(db: sqlite3.Connection) -> int:
    return int(db.execute("select count(*) from job where state = 'pending'").fetchone()[0])


def integrity(spool: Path) -> list[str]:
    """What SQLite finds wrong with the two files, over connections of its own."""
    found = []
    for file in ("ledger.db", "queue.db"):
        with closing(sqlite3.connect(spool / file, timeout=30)) as db:
            said = [row[0] for row in db.execute("pragma integrity_check")]
            said += [f"foreign key {tuple(row)}" for row in db.execute("pragma foreign_key_check")]
        found += [f"{file}: {line}" for line in said if line != "ok"]
    return found


def zombies_of(pid: int) -> int:
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
            found += state == "Z" and int(parent) == pid
    return found


def run(plan: Plan, tell: Callable[[str], None]) -> Verdict:
    """One whole run, in a folder that is gone afterwards; `tell` hears how far it is."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hammer-") as folder, lean_process(plan.seed, FAULTY, USUAL_S) as receiver:
        hammer = Hammer(plan, Path(folder), receiver, tell)
        ends = hammer.run()
        with hammer.station.ledger() as db:
            verdict = judge(db, ends, hammer.station)
        struck = hammer.struck
        verdict.problems[:0] = struck.problems
        if struck.consumers < plan.consumer_kills or struck.enqueuers < plan.enqueuer_kills:
            verdict.problems.append("fewer kills than planned")
        verdict.facts.update(
            {
                "consumers killed": struck.consumers,
                "  POSTs of theirs under way then": struck.under_way,
                "enqueuers killed, POSTs under way": struck.enqueuers,
                "integrity checks during it": struck.checks,
                "file descriptors of a consumer, most": struck.descriptors_max,
                "zombies": struck.zombies,
                "seconds": round(time.monotonic() - began_s),
            }
        )
        return verdict


def main() -> int:
    defaults = Plan(seed=random.SystemRandom().randrange(1 << 32))
    arguments = argparse.ArgumentParser(description="Proof by violence that nothing is lost and nothing doubled.")
    for option in ("turns", "consumer_kills", "enqueuer_kills", "enqueuers", "seed"):
        arguments.add_argument(f"--{option.replace('_', '-')}", type=int, default=getattr(defaults, option))
    plan = Plan(**vars(arguments.parse_args()))
    tell = functools.partial(print, flush=True)
    tell(f"SQLite {sqlite3.sqlite_version}, seed {plan.seed}")
    verdict = run(plan, tell)
    for fact, value in verdict.facts.items():
        tell(f"{fact:<60} {value}")
    for problem in verdict.problems:
        tell(f"VIOLATED: {problem}")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
