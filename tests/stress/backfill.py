"""A backfill that is killed again and again, beside a worker that delivers and an OpenCode that is at work.

    make backfill          or   python -m tests.stress.backfill [--turns N] [--kills N] [--live N] [--seed N]

    OpenCode's store ──▶ backfill ──▶ ledger.db ──▶ huey_consumer ──▶ lean receiver
                            ▲            ▲
              SIGKILL ──────┘            └── a hook, with a turn now and then

The spool is small, so that the backfill has to wait for room as well. In the end every turn of the store must have
arrived, no record twice and nothing dropped; exit code 1 when it is not so. How long a live turn takes is told.
"""

from __future__ import annotations

import argparse
import functools
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.capture.config import capture
from app.database.open import open_ledger
from app.ledger import counts as ledger_counts
from app.settings.lookup import unattended
from tests.sources.opencode.test_store import built
from tests.support.checkout import ROOT
from tests.support.enqueuer import growing, name, records
from tests.support.lean_receiver import LeanProcess, Send, lean_process
from tests.support.processes import HookProcess, Station, hook, worker
from tests.support.waiting import wait_until

LONG_TURNS = 20
USUAL_S = (0.0, 0.01)
EARLY = 0.2
"""Of the kills, so many come while it still looks through the store, or before it does anything."""
EARLY_S_MAX = 2.0
LATE_S_MAX = 0.3
"""How long after a threshold the others come."""
END_S_MAX = 600.0
LOOK_S = 0.05
LIVE_GOAL_MS = 5_000
LIVE = 10_000_000
"""Number of the first session that is live."""
SETTINGS = {"OPENCODE_HELICONE_MAX_SPOOL_SIZE": "4000000"}


@dataclass(frozen=True, slots=True)
class Plan:
    turns: int = 10_000
    kills: int = 20
    live: int = 8
    """Turns that come in the midst of it."""
    seed: int = 0

    def sessions(self) -> dict[int, int]:
        """How many turns each has: most of them stand in long ones, most sessions have one."""
        long = self.turns * 4 // 5 // LONG_TURNS
        short = self.turns - long * LONG_TURNS
        return dict.fromkeys(range(long), LONG_TURNS) | dict.fromkeys(range(long, long + short), 1)


@dataclass(slots=True)
class Told:
    """What a run came to."""

    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """What depends on how fast this machine was."""


class Run:
    """One run at one station."""

    def __init__(self, plan: Plan, folder: Path, receiver: LeanProcess, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._tell = tell
        self._dice = random.Random(plan.seed)  # noqa: S311 - nothing to protect
        self._receiver = receiver
        self.station = Station(folder / "home", receiver.url, variables=SETTINGS)
        self.station.home.mkdir()
        self._store = built(folder / "opencode.db", *(growing(*one) for one in plan.sessions().items()))
        self._jobs = plan.turns + len(plan.sessions())
        self._db = open_ledger(self.station.spool)
        self._live_ms: list[int] = []
        self.kills = 0

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = ["backfill", "--db", str(self._store), "--since", "2000-01-01", "--max-logs", "1000000"]
        with (self.station.home / "backfill.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "app", *arguments],
                env=self.station.environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _count(self, state: str = "%") -> int:
        return int(self._db.execute("select count(*) from job where state like ?", (state,)).fetchone()[0])

    def _moments(self) -> Iterator[int]:
        """At how many jobs it is killed each time; 0: early, whatever is there."""
        early = round(self._plan.kills * EARLY)
        late = self._dice.sample(range(1, self._jobs), self._plan.kills - early)
        places = set(self._dice.sample(range(self._plan.kills), early))
        late.sort(reverse=True)
        for number in range(self._plan.kills):
            yield 0 if number in places else late.pop()

    def _strike(self, opencode: HookProcess) -> None:
        lives = self._dice.sample(range(self._plan.kills), self._plan.live)
        for number, jobs in enumerate(self._moments()):
            process = self._start()
            try:
                self._wait(process, jobs)
                if number in lives:
                    self._work(opencode)
                if process.poll() is None:
                    self.kills += 1
            finally:
                process.kill()
                process.wait()
            if number % 5 == 4:
                self._tell(f"{number + 1} killed, {self._count()} of {self._jobs} jobs queued")

    def _wait(self, process: subprocess.Popen[bytes], jobs: int) -> None:
        if jobs:
            wait_until(lambda: process.poll() is not None or self._count() >= jobs, END_S_MAX, LOOK_S)
        time.sleep(self._dice.uniform(0, LATE_S_MAX if jobs else EARLY_S_MAX))

    def _work(self, opencode: HookProcess) -> None:
        """A turn of a session that is new: how long until it is delivered, its session's record included."""
        number = LIVE + len(self._live_ms)
        self._live_ms.append(0)
        began_s = time.monotonic()
        opencode.show(growing(number, 1))

        def is_delivered() -> bool:
            rows = self._db.execute(
                "select j.state from job j join session s on s.id = j.session_id where s.name = ?", (name(number),)
            ).fetchall()
            return [row["state"] for row in rows] == ["delivered"] * 2

        wait_until(is_delivered, END_S_MAX)
        self._live_ms[-1] = round((time.monotonic() - began_s) * 1000)

    def run(self) -> Told:
        with worker(self.station), hook(self.station) as opencode:
            self._work(opencode)  # until the hook and the worker are up
            self._strike(opencode)
            process = self._start()
            code = process.wait(END_S_MAX)
            wait_until(lambda: self._count("pending") == 0, END_S_MAX, LOOK_S)
        sends, _ = self._receiver.everything(self.station.home)
        return self._judged(code, sends)

    def close(self) -> None:
        self._db.close()

    def _judged(self, code: int, sends: list[Send]) -> Told:
        capturing = capture(unattended(self.station.environ).load(), ())
        sessions = self._plan.sessions() | dict.fromkeys(range(LIVE, LIVE + len(self._live_ms)), 1)
        wanted = {request_id for one in sessions.items() for request_id, _ in records(*one, capturing)}
        arrived = Counter(send.request_id for send in sends)
        counts = ledger_counts.counts(self._db)
        told = Told(
            {
                "turns in the store": self._plan.turns,
                "kills of the backfill": self.kills,
                "jobs delivered": counts.delivered,
                "records that arrived": len(arrived),
                "a live turn until it was delivered, ms": self._live_ms[1:],
            }
        )
        twice = sum(number > 1 for number in arrived.values())
        found = {
            f"the last backfill ended with {code}": code,
            f"{len(wanted - arrived.keys())} records are missing": wanted - arrived.keys(),
            f"{len(arrived.keys() - wanted)} records arrived that nobody knows": arrived.keys() - wanted,
            f"{twice} records arrived twice": twice,
            f"{counts.dropped} jobs dropped, {counts.dead} dead": counts.dropped + counts.dead,
        }
        late = {
            f"{self._plan.kills - self.kills} kills came too late": self._plan.kills - self.kills,
            f"a live turn took {max(self._live_ms[1:])} ms": max(self._live_ms[1:]) > LIVE_GOAL_MS,
        }
        told.problems += [problem for problem, is_so in found.items() if is_so]
        told.late += [problem for problem, is_so in late.items() if is_so]
        return told


def run(plan: Plan, tell: Callable[[str], None]) -> Told:
    """One whole run, in a folder that is gone afterwards; `tell` hears how far it is."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="backfill-") as folder, lean_process(plan.seed, 0.0, USUAL_S) as receiver:
        one = Run(plan, Path(folder), receiver, tell)
        try:
            told = one.run()
        finally:
            one.close()
    told.facts["seconds"] = round(time.monotonic() - began_s)
    return told


def main() -> int:
    defaults = Plan(seed=random.SystemRandom().randrange(1 << 32))
    arguments = argparse.ArgumentParser(description="A backfill that is killed again and again.")
    for option in ("turns", "kills", "live", "seed"):
        arguments.add_argument(f"--{option}", type=int, default=getattr(defaults, option))
    plan = Plan(**vars(arguments.parse_args()))
    tell = functools.partial(print, flush=True)
    tell(f"seed {plan.seed}")
    told = run(plan, tell)
    for fact, value in told.facts.items():
        tell(f"{fact:<45} {value}")
    for problem in told.problems + told.late:
        tell(f"VIOLATED: {problem}")
    return 1 if told.problems + told.late else 0


if __name__ == "__main__":
    sys.exit(main())
