"""Each process killed at each step of its work: what the ledger says then, and that nothing is lost or doubled after.

A process comes to its point and dies; the ledger is looked at; a new worker goes on, and before it a new hook where
the old one died with a snapshot that the ledger does not have.
"""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from app.capture.config import capture
from app.capture.enqueue import Place, enqueue
from app.capture.targets import target
from app.delivery.deliver import LEASE_MS, UNNOTED_MS_MAX
from app.ledger import claims, notices
from app.ledger.maintenance import KILLS_MAX
from app.runtime import clock
from app.runtime.failpoint import POINTS, VARIABLE
from app.runtime.filesystem import private_directory
from app.runtime.spool import Spool
from app.settings.lookup import unattended
from app.sources.opencode.store import store_file
from app.transcript.parse import parse
from tests.support.checkout import ROOT
from tests.support.enqueuer import growing, records
from tests.support.lean_receiver import LeanReceiver, lean_receiver
from tests.support.processes import PROJECT, Station, catches, hook, procfile_command
from tests.support.stores import put
from tests.support.waiting import wait_until
from tests.system.test_erasure import KILLED_AT

AT_A_TIME = 3
RECOVERED_S = 10.0
DIED_S = 60.0
JOBS = 2
RECORDS = 3
"""Of a session with one turn: its own record is one job, the question and the answer are the other."""


@dataclass(frozen=True, slots=True)
class State:
    """What stands in the ledger, and what had been sent."""

    pending: int = 0
    delivered: int = 0
    leased: int = 0
    records: int = 0
    acknowledged: int = 0
    sends: int = 0


WAITING = State(pending=2, records=3)
CLAIMED = replace(WAITING, leased=1)
HALF_CLAIMED = State(pending=1, delivered=1, leased=1, records=2, acknowledged=1)
"""The session's own record is delivered, its turn under way."""
DONE = State(delivered=2, acknowledged=3, sends=3)
QUESTION = 1
"""Which of the records is the turn's first."""
SLOW_S = UNNOTED_MS_MAX / 1000 + 0.2


def state(station: Station, receiver: LeanReceiver) -> State:
    """Read without `open_ledger`, which would migrate what the crash has left."""
    with closing(sqlite3.connect(station.spool / "ledger.db")) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert db.execute("pragma foreign_key_check").fetchall() == []
        if not db.execute("select 1 from sqlite_master").fetchone():
            return State()
        row = db.execute(
            "select count(*) filter (where state = 'pending'), count(*) filter (where state = 'delivered'),"
            " count(lease_until_ms), (select count(*) from record), (select count(*) from acknowledgement)"
            " from job"
        ).fetchone()
    return replace(State(*row), sends=len(receiver.sends))


# --- how a process comes to its point


def nothing(_: Station) -> None:
    pass


def stored(station: Station, sessions: int = 1) -> None:
    """Sessions of one turn, put into the ledger, and nobody woken."""
    settings = unattended(station.environ).load()
    with station.ledger() as db:
        place = Place(target(db, settings, clock.now_ms()).id, "")
        for session in range(sessions):
            transcript = parse(growing(session, 1))
            capturing = capture(settings, ())
            enqueue(db, transcript, capturing, place, now_ms=clock.now_ms(), wake=lambda _: None)


def held_by_a_dead_worker(station: Station) -> None:
    stored(station)
    with station.ledger() as db:
        key = db.execute("select key from job order by id limit 1").fetchone()[0]
        assert claims.claim(db, 1, key, worker="gone", now_ms=clock.now_ms(), lease_ms=LEASE_MS)


def stored_for_later(station: Station) -> None:
    """Not due, so that nothing is on its way while the spool is bounded."""
    stored(station)
    set_due(station, clock.now_ms() + 3_600_000)


def set_due(station: Station, due_ms: int) -> None:
    with station.ledger() as db:
        db.execute("update job set due_ms = ?", (due_ms,))


def consumer(station: Station) -> subprocess.Popen[bytes]:
    return started(station, procfile_command())


def hook_with_a_notice(station: Station) -> subprocess.Popen[bytes]:
    """OpenCode has written a session to its store, and lives on."""
    process = started(station, [sys.executable, "-I", "-m", "app", "hook"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    session = growing(0, 1)["root"]
    put(store_file(station.environ), growing(0, 1))
    said = {"type": "notice", "session": session, "why": "idle", "directory": PROJECT, "options": {}}
    process.stdin.write(json.dumps({"v": 2, "n": 1, **said}).encode() + b"\n")
    process.stdin.flush()
    return process


def worker_told_to_end(station: Station) -> subprocess.Popen[bytes]:
    process = started(station, [sys.executable, "-m", "app", "worker"])
    wait_until(lambda: station.delivered(JOBS) and catches(process, signal.SIGTERM), DIED_S)
    process.terminate()
    return process


def started(station: Station, command: list[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    with (station.home / "output.log").open("ab") as output:
        return subprocess.Popen(
            command, env=station.environ, cwd=station.home, stdin=stdin, stdout=output, stderr=output
        )


# --- how it goes on


def as_it_is(_: Station) -> None:
    """A new worker is all that is needed."""


def found_in_the_store(station: Station) -> None:
    """Another OpenCode works in the folder, in another session: its hook finds what the dead one has left."""
    with hook(station) as process:
        process.notice("ses_other", "busy")
        assert process.end() == 0
    with station.ledger() as db:
        assert notices.unread(db) == []


def said_again(station: Station) -> None:
    """The plugin says to the next hook what the dead one had not acknowledged."""
    with hook(station) as process:
        process.wait_for_ack(process.notice(growing(0, 1)["root"]))
        assert process.end() == 0


def due_now(station: Station) -> None:
    set_due(station, clock.now_ms())


@dataclass(frozen=True, slots=True)
class Case:
    at: str
    """As the variable has it."""
    left: State
    """What the crash leaves."""
    ready: Callable[[Station], None] = stored
    process: Callable[[Station], subprocess.Popen[bytes]] = consumer
    variables: dict[str, str] = field(default_factory=dict)
    then: Callable[[Station], None] = as_it_is
    twice: int = 0
    """Records that are sent a second time."""
    slow: int | None = None
    """Which record is answered late."""


CASES = (
    Case("notice.noted", State(), nothing, hook_with_a_notice, then=found_in_the_store),
    Case("notice.read", State(), nothing, hook_with_a_notice, then=found_in_the_store),
    Case("notice.settling", WAITING, nothing, hook_with_a_notice, then=found_in_the_store),
    Case("enqueue.inserting", State(), nothing, hook_with_a_notice, then=found_in_the_store),
    Case("enqueue.inserting:2", State(pending=1, records=1), nothing, hook_with_a_notice, then=found_in_the_store),
    Case("enqueue.committed", WAITING, nothing, hook_with_a_notice, then=found_in_the_store),
    Case("claim.committed", CLAIMED),
    Case("post.sending", CLAIMED),
    # Those at which Helicone has said yes and the ledger does not know: no order of steps can do without.
    Case("post.answered", replace(CLAIMED, sends=1), twice=1),
    Case("post.answered:3", replace(HALF_CLAIMED, sends=3), twice=2),
    Case("complete.noting", replace(CLAIMED, sends=1), twice=1),
    Case("complete.finishing", replace(CLAIMED, sends=1), twice=1),
    Case("complete.finishing:2", replace(HALF_CLAIMED, sends=3), twice=2),
    Case("complete.committed", State(pending=1, delivered=1, records=2, acknowledged=1, sends=1)),
    # What took long is noted before the job's end.
    Case("acknowledge.noting", replace(HALF_CLAIMED, sends=2), twice=1, slow=QUESTION),
    Case("acknowledge.committed", replace(HALF_CLAIMED, acknowledged=2, sends=2), slow=QUESTION),
    Case("recover.freeing", CLAIMED, held_by_a_dead_worker),
    Case("poller.waking", WAITING),
    Case(
        "prune.dropping",
        WAITING,
        stored_for_later,
        variables={"OPENCODE_HELICONE_MAX_SPOOL_SIZE": "1"},
        then=due_now,
    ),
    Case("migrate.applying", State(), nothing, hook_with_a_notice, then=said_again),
    Case("worker.ending", DONE, process=worker_told_to_end),
)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a case."""

    exit_code: int
    left: State
    ended: State
    times_sent: list[int]
    """Of each record, ascending."""


def play(case: Case, station: Station, receiver: LeanReceiver) -> Played:
    case.ready(station)
    if case.slow is not None:
        made = [request_id for request_id, _ in records(0, 1, capture(unattended(station.environ).load(), ()))]
        receiver.pauses_s[made[case.slow]] = SLOW_S
    process = case.process(replace(station, variables={VARIABLE: case.at, **case.variables}))
    with process:
        try:
            exit_code = process.wait(DIED_S)
        finally:
            process.kill()
    left = state(station, receiver)
    case.then(station)
    folder = private_directory(Spool(station.spool).workers)
    before = set(folder.iterdir())
    with consumer(station) as process:
        try:
            # From here on it counts: how long an interpreter takes to start says nothing about us.
            wait_until(lambda: set(folder.iterdir()) - before, DIED_S)
            wait_until(lambda: station.delivered(JOBS), RECOVERED_S)
            # What the dead one left is gone.
            wait_until(lambda: not set(folder.iterdir()) & before, RECOVERED_S)
        finally:
            process.kill()
    return Played(exit_code, left, state(station, receiver), sorted(receiver.times_sent().values()))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Played]]]:
    """All cases, a few at a time: most of it is waiting for interpreters to start."""
    with ExitStack() as stack:
        receivers = {case.at: stack.enter_context(lean_receiver()) for case in CASES}
        homes = {case.at: tmp_path_factory.mktemp("home") for case in CASES}
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            yield {
                case.at: pool.submit(play, case, Station(homes[case.at], receivers[case.at].url), receivers[case.at])
                for case in CASES
            }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.at)
def test_crash_leaves_what_is_expected_and_a_restart_delivers_everything(
    case: Case, played: dict[str, Future[Played]]
) -> None:
    result = played[case.at].result()
    assert result.exit_code == -signal.SIGKILL
    assert result.left == case.left
    assert result.ended == replace(DONE, sends=RECORDS + case.twice)
    assert result.times_sent == [1] * (RECORDS - case.twice) + [2] * case.twice


# --- a record that kills


def test_record_that_kills_every_worker_ends_as_a_dead_letter_and_its_neighbours_are_delivered(
    tmp_path: Path,
) -> None:
    sessions = 3
    # The neighbours take longer than the killer: they are under way whenever it strikes.
    with lean_receiver(usual_s=(0.4, 0.4)) as receiver:
        station = Station(tmp_path, receiver.url)
        stored(station, sessions)
        poison, *_ = [request_id for request_id, _ in records(1, 1, capture(unattended(station.environ).load(), ()))]
        receiver.pauses_s[poison] = 0.15
        with station.ledger() as db:
            # All of them have died together often enough: nobody can tell which one it is.
            db.execute("update job set kills = ?", (KILLS_MAX - 3,))
        deaths = 0
        while station.counts().pending and deaths < KILLS_MAX:
            with consumer(replace(station, variables={VARIABLE: f"post.answered@{poison}"})) as process:
                try:
                    wait_until(lambda: process.poll() is not None or not station.counts().pending, DIED_S)
                    deaths += process.poll() is not None
                finally:
                    process.kill()
        counts = station.counts()
        with station.ledger() as db:
            dead = db.execute(
                "select s.name, j.error from job j join session s on s.id = j.session_id where j.state = 'dead'"
            ).fetchall()
    assert [row["name"] for row in dead] == ["ses_hammer1"]
    assert dead[0]["error"] == f"its worker died or hung {KILLS_MAX} times"
    assert (counts.dead, counts.delivered, counts.pending) == (1, JOBS * sessions - 1, 0)
    assert receiver.times_sent()[poison] == deaths < KILLS_MAX


# --- the points themselves


OF_THE_CENTRE = ("intake.committed",)
"""Killed at in `tests/fleet`, on a server."""


def test_every_point_in_the_code_is_in_the_list_and_the_other_way_round() -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / "app").rglob("*.py")]
    reached = [point for text in texts for point in re.findall(r'failpoint\.reach\(\s*"([^"]+)"', text)]
    assert sorted(reached) == sorted(POINTS)


def test_every_point_has_a_case() -> None:
    elsewhere = {*KILLED_AT, *OF_THE_CENTRE}
    assert {case.at.partition(":")[0] for case in CASES} | elsewhere == set(POINTS)


INERT = """
import sys
from app.runtime import failpoint
for point in failpoint.POINTS:
    failpoint.reach(point)
failpoint.reach("post.sending", "another")
print("alive")
"""


def reaching(at: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", INERT], env={VARIABLE: at}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_points_do_nothing_unless_one_is_named() -> None:
    assert reaching("").stdout == "alive\n"
    # Another subject, or fewer passes than it takes.
    assert reaching("post.sending@this").stdout == "alive\n"
    assert reaching("claim.committed:2").stdout == "alive\n"


def test_named_point_kills_at_the_pass_that_is_named() -> None:
    assert reaching("claim.committed").returncode == -signal.SIGKILL
    assert reaching("post.sending:2").returncode == -signal.SIGKILL
    assert reaching("post.sending@another").returncode == -signal.SIGKILL


def test_misspelt_point_is_refused() -> None:
    assert "names no crash point" in reaching("claim.comitted").stderr
