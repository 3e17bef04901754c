"""Where many write at once: one connection's transaction is open while another one runs into it.

SQLite has one writer at a time, so all of this is about PostgreSQL (`--postgres`).
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import pytest

from app.database import derived
from app.database.connection import transaction
from app.database.postgres import PostgresLedger
from app.ledger import (
    adoption,
    claims,
    confirmations,
    counters,
    dead_letters,
    destinations,
    eviction,
    flow,
    maintenance,
    policy_enforcement,
    pruning,
)
from app.ledger.claims import ISOLATED_KILLS
from app.ledger.dead_letters import Choice
from app.ledger.decision import RECALL, Decision
from app.ledger.eviction import Recaptured
from app.ledger.job import FailedAttempt
from tests.support.ledger_bench import LEASE_MS, LedgerBench, bodies, version
from tests.support.postgres import Server

pytestmark = pytest.mark.postgres

T = TypeVar("T")
U = TypeVar("U")
DEADLOCK_S = 60
"""Longer than any of it takes."""


class Paused(PostgresLedger):
    """Its transactions end only when they may."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.is_done = threading.Event()
        """All but the commit."""
        self.may_end = threading.Event()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
            self.execute("set constraints all immediate")
            self.pause()

    def pause(self) -> None:
        self.is_done.set()
        assert self.may_end.wait(DEADLOCK_S)


def on_server(bench: LedgerBench) -> PostgresLedger:
    return cast("PostgresLedger", bench.db)


class Race:
    def __init__(self, bench: LedgerBench, url: str) -> None:
        self.bench = bench
        self.destination = bench.destination
        self.has_waited = False
        """The second one, for the first."""
        self._url = url

    def run(self, first: Callable[[LedgerBench], T], second: Callable[[LedgerBench], U]) -> tuple[T, U]:
        """The second one begins when the first one has done all but its commit, and runs until it ends or waits."""
        with ExitStack() as opened:
            one, other = (opened.enter_context(closing(kind(self._url))) for kind in (Paused, PostgresLedger))
            threads = opened.enter_context(ThreadPoolExecutor(2))
            assert isinstance(one, Paused)
            opened.callback(one.may_end.set)
            begun = threads.submit(first, self._at(one))
            begun.add_done_callback(lambda _: one.is_done.set())
            assert one.is_done.wait(DEADLOCK_S)
            (process,) = other.execute("select pg_backend_pid()").fetchone()
            following = threads.submit(second, self._at(other))
            while not (following.done() or self._waits(process)):
                time.sleep(0.001)
            self.has_waited = not following.done()
            one.may_end.set()
            return _result(begun), _result(following)

    def _at(self, db: PostgresLedger) -> LedgerBench:
        bench = LedgerBench(db)
        bench.now_ms = self.bench.now_ms
        return bench

    def _waits(self, process: int) -> bool:
        (waits,) = self.bench.db.execute(
            "select count(*) from pg_stat_activity where pid = ? and wait_event_type = 'Lock'", (process,)
        ).fetchone()
        return bool(waits)


def _result(future: Future[T]) -> T:
    return future.result(DEADLOCK_S)


@pytest.fixture
def race(bench: LedgerBench, request: pytest.FixtureRequest) -> Iterator[Race]:
    server: Server = request.getfixturevalue("postgres_server")
    yield Race(bench, server.url)
    assert_derived(bench)


def assert_derived(bench: LedgerBench) -> None:
    for table in derived.TABLES:
        for one, other in ((table, f"{table}_of_jobs"), (f"{table}_of_jobs", table)):
            rows = bench.db.execute(f"select * from {one} except select * from {other}").fetchall()  # noqa: S608 - names from above
            assert rows == [], f"{one} has what {other} has not"


def in_transaction(sql: str) -> Callable[[LedgerBench], None]:
    def run(bench: LedgerBench) -> None:
        with on_server(bench).transaction():
            bench.db.execute(sql)

    return run


# --- claims


def test_of_two_claims_of_one_session_one_gets_it(race: Race) -> None:
    race.bench.put(version("t1"))
    first, second = race.run(LedgerBench.claim, LedgerBench.claim)
    assert (first is not None, second) == (True, None)
    assert race.bench.row()["attempt"] == 1


def test_of_two_claims_of_different_jobs_of_one_session_one_gets_it(race: Race) -> None:
    race.bench.put(version("t1"))

    def claim_another(bench: LedgerBench) -> object:
        # Older than the first by its place in the queue: it is the candidate, and nobody has touched its row.
        return bench.claim(version("t2"))

    def claim_newest(bench: LedgerBench) -> object:
        with on_server(bench).transaction():
            (job,) = bench.db.execute("select id from job order by id desc limit 1").fetchone()
            bench.db.execute(
                "update job set lease_until_ms = ?, worker = 'another', attempt = attempt + 1 where id = ?",
                (bench.now_ms + LEASE_MS, job),
            )
        return job

    race.bench.put(version("t2"))
    _, second = race.run(claim_newest, claim_another)
    assert second is None
    (leased,) = race.bench.db.execute("select count(*) from job where lease_until_ms is not null").fetchone()
    assert leased == 1


def test_only_the_index_of_leases_means_nothing_to_claim(race: Race) -> None:
    race.bench.put(version())
    race.bench.db.execute("insert into attempt (job_id, number, started_ms) select id, attempt + 1, 0 from job")
    with pytest.raises(sqlite3.IntegrityError):
        race.bench.claim()


@pytest.mark.parametrize(
    "meanwhile",
    [
        "update job set due_ms = due_ms + 60000, setbacks = 1",
        "update job set destination_id = (select max(id) from destination)",
    ],
)
def test_claim_takes_nothing_that_was_put_off_or_adopted_meanwhile(race: Race, meanwhile: str) -> None:
    destinations.destination(race.bench.db, "https://other.invalid", "another", 0)
    race.bench.put(version())
    assert race.run(in_transaction(meanwhile), LedgerBench.claim)[1] is None


def test_of_two_probes_of_a_paused_destination_one_goes(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session))
    race.bench.db.execute("update job set attempted_ms = 1 where key = ?", (version(session="ses_1").key,))
    race.bench.pause(probe_ms=race.bench.now_ms)

    def probe_with_another(bench: LedgerBench) -> object:
        bench.put(version(session="ses_3"))  # the newest now, and so the candidate
        return bench.claim(version(session="ses_3"))

    first, second = race.run(lambda bench: bench.claim(version(session="ses_2")), probe_with_another)
    assert (first is not None, second) == (True, None)


def test_after_a_pause_no_more_are_claimed_than_may_be_in_flight(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session))
    race.bench.pause(probe_ms=race.bench.now_ms)
    flow.resume(race.bench.db, race.destination)
    first, second = race.run(
        lambda bench: bench.claim(version(session="ses_1")), lambda bench: bench.claim(version(session="ses_2"))
    )
    assert (first is not None, second) == (True, None)


def test_of_two_isolated_jobs_one_is_in_flight(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session))
    race.bench.db.execute("update job set kills = ?", (ISOLATED_KILLS,))
    first, second = race.run(
        lambda bench: bench.claim(version(session="ses_1")), lambda bench: bench.claim(version(session="ses_2"))
    )
    assert (first is not None, second) == (True, None)


# --- whoever looks after all: what was chosen may be another thing by the time that it is locked


@pytest.mark.parametrize("kills", [0, maintenance.KILLS_MAX - 1])
def test_of_two_watches_one_takes_a_lease_back_and_a_new_lease_stays(race: Race, kills: int) -> None:
    race.bench.put(version())
    race.bench.claimed()
    race.bench.db.execute("update job set kills = ?", (kills,))
    race.bench.now_ms += LEASE_MS

    def free_and_claim(bench: LedgerBench) -> None:
        with on_server(bench).transaction():
            bench.db.execute(
                "update job set lease_until_ms = ?, worker = 'new', attempt = 2", (bench.now_ms + LEASE_MS,)
            )

    assert race.run(free_and_claim, lambda bench: maintenance.recover(bench.db, bench.now_ms))[1] == 0
    row = race.bench.row()
    assert (row["state"], row["worker"], row["kills"]) == ("pending", "new", kills)


def test_of_two_watches_one_charges_the_death(race: Race) -> None:
    race.bench.put(version())
    race.bench.claimed()
    race.bench.now_ms += LEASE_MS
    recover = lambda bench: maintenance.recover(bench.db, bench.now_ms)  # noqa: E731
    assert race.run(recover, recover) == (1, 0)
    assert race.bench.row()["kills"] == 1


CLAIMED = "update job set lease_until_ms = 61000, worker = 'new', attempt = attempt + 1"
Change: TypeAlias = Callable[[LedgerBench], object]


def died(bench: LedgerBench) -> None:
    bench.put(version())
    bench.dead_letter(bench.claimed())


def waits(bench: LedgerBench) -> None:
    bench.put(version())


def delivered(bench: LedgerBench) -> None:
    bench.put(version())
    bench.deliver(version())


def to_be_confirmed(bench: LedgerBench) -> None:
    bench.put(version())
    claimed = bench.claimed()
    bench.acknowledge(claimed, bench.left(claimed)[0])
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms)


RETRIED = (
    "update job set state = 'pending', due_ms = 1000, finished_ms = null, lease_until_ms = 61000, worker = 'new',"
    " attempt = attempt + 1"
)
SENT_AGAIN = "update job set state = 'pending', due_ms = 1000, finished_ms = null, confirm_ms = null"
ROWS: dict[str, tuple[Change, str, Change]] = {
    "hold_folder": (
        waits,
        CLAIMED,
        lambda bench: policy_enforcement.hold_folder(bench.db, bench.destination, "", due_ms=9_000, reason="no"),
    ),
    "drop_looser": (
        waits,
        CLAIMED,
        lambda bench: policy_enforcement.drop_looser(bench.db, bench.destination, "", "", bench.now_ms),
    ),
    "drop_looser, retried": (
        died,
        RETRIED,
        lambda bench: policy_enforcement.drop_looser(bench.db, bench.destination, "", "", bench.now_ms),
    ),
    "drop_oversize": (waits, CLAIMED, lambda bench: pruning.drop_oversize(bench.db, bench.now_ms, 0)),
    "drop_oversize of a folder": (
        waits,
        CLAIMED,
        lambda bench: pruning.drop_oversize(bench.db, bench.now_ms, 1 << 30, {"": 0}),
    ),
    "drop_aged": (
        lambda bench: (bench.put(version()), bench.db.execute("update job set attempted_ms = 2000")),
        CLAIMED,
        lambda bench: pruning.drop_aged(bench.db, 3_000, 1),
    ),
    "drop_session, a recall": (
        waits,
        "update job set is_recall = 1",
        lambda bench: pruning.drop_session(bench.db, bench.destination, "ses_1", bench.now_ms),
    ),
    "adoption.give_up": (
        waits,
        CLAIMED,
        lambda bench: adoption.give_up(bench.db, bench.destination, bench.now_ms),
    ),
    "give_up_bodies": (
        waits,
        CLAIMED,
        lambda bench: eviction.give_up_bodies(bench.db, [bench.row()["id"]], "store"),
    ),
    "look_back": (
        delivered,
        "update job set confirmed_ms = 1000",
        lambda bench: confirmations.look_back(bench.db, bench.destination, bench.now_ms),
    ),
    "give_up_confirmation": (
        to_be_confirmed,
        SENT_AGAIN,
        lambda bench: confirmations.give_up_confirmation(bench.db, bench.destination),
    ),
    "retry_dead": (died, RETRIED, lambda bench: len(dead_letters.retry_dead(bench.db, Choice(), bench.now_ms))),
    "purge_dead": (died, RETRIED, lambda bench: dead_letters.purge_dead(bench.db, Choice(), bench.now_ms)),
    "reset_future_times": (
        lambda bench: (
            bench.put(version()),
            bench.db.execute("update job set due_ms = due_ms + ?", (3 * maintenance.AHEAD_MS_MAX,)),
        ),
        "update job set state = 'dead', due_ms = null, finished_ms = 1000",
        lambda bench: maintenance.reset_future_times(bench.db, bench.now_ms),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_changed_between_the_look_and_the_lock_is_left_alone(race: Race, name: str) -> None:
    begin, meanwhile, change = ROWS[name]
    begin(race.bench)
    before = dict(race.bench.row())
    assert race.run(in_transaction(meanwhile), change)[1] == 0
    after = dict(race.bench.row())
    changed = {column for column in after if after[column] != before[column]}
    words = meanwhile.replace("=", " ").split()
    computed = {"counted_as", "counted_hold", "is_retrying", "is_evicted"}
    assert changed - computed <= set(words), "only what the first one changed is changed"


def test_two_dead_letters_are_retried_and_purged_by_one(race: Race) -> None:
    died(race.bench)
    retried, purged = race.run(
        lambda bench: len(dead_letters.retry_dead(bench.db, Choice(), bench.now_ms)),
        lambda bench: dead_letters.purge_dead(bench.db, Choice(), bench.now_ms),
    )
    assert (retried, purged, race.bench.state()) == (1, 0, "pending")


# --- versions


def test_newer_version_stays_the_current_one_whoever_comes_first(race: Race) -> None:
    newer, older = version(content="b", last_event_ms=200), version(content="a", last_event_ms=100)
    assert race.run(lambda bench: bench.put(newer), lambda bench: bench.put(older)) == (
        Decision.NEW,
        Decision.SUPERSEDED,
    )
    assert (race.bench.state(newer), race.bench.state(older)) == ("pending", "superseded")


def test_the_same_version_twice_at_once_is_one_job_with_one_attempt(race: Race) -> None:
    put = lambda bench: bench.put(version())  # noqa: E731
    assert race.run(put, put) == (Decision.NEW, Decision.KNOWN)
    assert race.bench.row()["attempt"] == 0


def test_version_that_is_claimed_as_it_is_reopened_is_known(race: Race) -> None:
    race.bench.put(version())
    asked = replace(version(), is_recall=True)
    claimed, decision = race.run(LedgerBench.claim, lambda bench: bench.put(asked, reopen=RECALL))
    assert (claimed is not None, decision) == (True, Decision.KNOWN)


def test_what_is_delivered_unseen_as_a_newer_version_comes_is_posted_again(race: Race) -> None:
    newer = version(content="b", last_event_ms=200)
    race.bench.put(version(), text="same")
    claimed = race.bench.claimed()
    race.bench.acknowledge(claimed, race.bench.left(claimed)[0])
    race.run(
        lambda bench: claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms + 1),
        lambda bench: bench.put(newer, text="same"),
    )
    assert len(race.bench.left(race.bench.claimed(newer))) == 1


def test_session_that_is_captured_as_it_is_adopted_is_there_once(race: Race) -> None:
    other = destinations.destination(race.bench.db, "https://other.invalid", "another", 0).id
    race.bench.put(version())

    def capture_there(bench: LedgerBench) -> Decision:
        bench.destination = other
        return bench.put(version())

    race.run(capture_there, lambda bench: adoption.adopt(bench.db, race.destination, other, now_ms=bench.now_ms))
    rows = race.bench.db.execute("select destination_id, state from job order by destination_id").fetchall()
    assert [tuple(row) for row in rows] == [(race.destination, "superseded"), (other, "pending")]


def test_records_of_a_job_are_not_made_again_once_a_newer_version_took_its_place(race: Race) -> None:
    race.bench.put(version())
    eviction.give_up_bodies(race.bench.db, [race.bench.row()["id"]], "store")
    claimed = race.bench.claimed()
    made = Recaptured(version().key, tuple(bodies("ses_1 t1", 2, "otherwise")), "")
    newer = version(content="b", last_event_ms=200)
    _, taken = race.run(lambda bench: bench.put(newer), lambda bench: eviction.take_recaptured(bench.db, claimed, made))
    assert (taken, race.bench.records(version()), race.bench.state()) == (False, 0, "superseded")


# --- what is derived, and what many count


def test_job_that_comes_as_another_of_its_session_ends_is_among_what_waits(race: Race) -> None:
    race.bench.put(version("t1"))
    claimed = race.bench.claimed(version("t1"))
    race.bench.acknowledge(claimed, race.bench.left(claimed)[0])
    race.run(lambda bench: claims.complete(bench.db, claimed, bench.now_ms), lambda bench: bench.put(version("t2")))
    assert race.bench.wake() == [version("t2").key]


def test_job_that_ends_as_another_of_its_session_comes_is_not_among_what_waits(race: Race) -> None:
    race.bench.put(version("t1"))
    claimed = race.bench.claimed(version("t1"))
    race.bench.acknowledge(claimed, race.bench.left(claimed)[0])
    race.run(lambda bench: bench.put(version("t2")), lambda bench: claims.complete(bench.db, claimed, bench.now_ms))
    assert race.bench.wake() == [version("t2").key]


def test_two_that_change_the_same_jobs_of_a_session_do_not_wait_in_a_circle(race: Race) -> None:
    for turn in ("t1", "t2"):
        race.bench.put(version(turn))

    def put_off(bench: LedgerBench, turn: str) -> int:
        sql = "update job set due_ms = due_ms + 1 where key = ?"
        return bench.db.execute(sql, (version(turn).key,)).rowcount

    def put_both_off(bench: LedgerBench) -> int:
        db = cast("Paused", bench.db)
        with PostgresLedger.transaction(db):
            changed = put_off(bench, "t1")
            db.pause()
            return changed + put_off(bench, "t2")

    assert race.run(put_both_off, lambda bench: put_off(bench, "t2")) == (2, 1)


def test_record_accepted_as_another_fails_says_that_the_destination_is_there(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session), records=2)
    one, other = (race.bench.claimed(version(session=session)) for session in ("ses_1", "ses_2"))
    race.run(
        lambda bench: bench.acknowledge(one, race.bench.left(one)[0]),
        lambda bench: bench.acknowledge(other, bench.left(other)[0]),
    )
    (passes,) = race.bench.db.execute("select passes from destination").fetchone()
    assert passes == 2
    assert flow.evidence(race.bench.db, race.destination, other.job_id).peers == "succeed"


def test_pause_and_delivery_of_two_jobs_do_not_wait_in_a_circle(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session))
    one, other = (race.bench.claimed(version(session=session)) for session in ("ses_1", "ses_2"))
    race.bench.acknowledge(one, race.bench.left(one)[0])
    failed = FailedAttempt(race.bench.now_ms, "ConnectError")
    done = race.run(
        lambda bench: claims.complete(bench.db, one, bench.now_ms),
        lambda bench: claims.pause(bench.db, other, failed, health="down", count=1, delay_ms=1_000, is_charged=True),
    )
    assert done == (True, True)


def test_two_sessions_are_delivered_and_counted_without_waiting_for_each_other(race: Race) -> None:
    for session in ("ses_1", "ses_2"):
        race.bench.put(version(session=session))
    one, other = (race.bench.claimed(version(session=session)) for session in ("ses_1", "ses_2"))
    for claimed in (one, other):
        assert race.bench.acknowledge(claimed, race.bench.left(claimed)[0])
    race.run(lambda bench: bench.complete(one), lambda bench: bench.complete(other))
    assert not race.has_waited
    for _ in range(2):
        (counter,) = counters.counters(race.bench.db, 0)
        assert (counter.kind, counter.count) == ("delivered", 2)
        derived.sum_up(on_server(race.bench))
    assert race.bench.db.execute("select count(*) from counter").fetchone()[0] == 1


def test_transaction_within_a_transaction_is_refused(race: Race) -> None:
    with (
        pytest.raises(sqlite3.OperationalError, match="within a transaction"),
        transaction(race.bench.db),
        transaction(race.bench.db),
    ):
        pass


# --- many processes

RIVAL = """
import os, random, sys
from app.ledger import versions
from tests.support.ledger_bench import bodies, version
from tests.support.postgres import open_either
db = open_either(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in random.Random(os.getpid()).sample(range(120), 120):
    turn, content = f"t{number % 20}", number // 20
    one = version(turn, f"{number // 20}", 100 + content)
    versions.insert(db, 1, one, bodies(turn, 1, one.key), now_ms=1_000)
db.close()
"""


@pytest.mark.slow
def test_eight_processes_that_insert_rival_versions_leave_the_newest_of_each_turn(
    bench: LedgerBench, ledger_place: str, at_once: Callable[[str, int, list[str]], None]
) -> None:
    at_once(RIVAL, 8, [ledger_place])
    current = bench.db.execute("select facts_ms, state, attempt from job where state <> 'superseded'").fetchall()
    assert [tuple(row) for row in current] == [(105, "pending", 0)] * 20
    assert bench.db.execute("select count(*) from record").fetchone()[0] == 20


STORM = """
import json, os, random, sqlite3, sys
from pathlib import Path
from app.ledger import (
    adoption, claims, confirmations, dead_letters, eviction, flow, maintenance, policy_enforcement, pruning, versions,
)
from app.ledger.dead_letters import Choice
from app.ledger.job import FailedAttempt, LedgerError
from tests.support.ledger_bench import accepted, bodies, version
from tests.support.postgres import open_either
db = open_either(sys.argv[1])
dice, worker = random.Random(os.getpid()), f"w{os.getpid()}"
delivered, seen, now_ms = [], {}, 1_000

def pick():
    content = dice.randrange(6)
    return version(f"t{dice.randrange(9)}", f"{content}", 100 + content, f"ses_{dice.randrange(4)}")

def insert():
    one = pick()
    versions.insert(db, 1, one, bodies(f"{one.session} {one.turn}", 2, one.key), now_ms=now_ms)

def deliver():
    key = (maintenance.to_wake(db, 1, now_ms, 1) or [pick().key])[0]
    claimed = claims.claim(db, dice.choice([1, 1, 2]), key, worker=worker, now_ms=now_ms, lease_ms=20)
    if claimed is None:
        return
    failed = FailedAttempt(now_ms, "500", 500)
    how = dice.randrange(20)
    if how == 0:
        return  # it dies, or hangs
    if how == 1:
        claims.retry_later(db, claimed, failed, delay_ms=dice.randrange(9), is_charged=True)
    elif how == 2:
        claims.dead_letter(db, claimed, failed)
    elif how == 3:
        policy_enforcement.hold(db, claimed, due_ms=now_ms, reason="no")
    elif how == 4:
        claims.pause(db, claimed, failed, health="down", count=1, delay_ms=1, is_charged=False)
    else:
        if eviction.is_evicted(db, claimed):
            claims.drop(db, claimed, "size", now_ms)
            return
        try:
            for body in claims.unacknowledged(db, claimed):
                claims.acknowledge(db, claimed, [accepted(db, claimed, body, now_ms)], now_ms=now_ms, lease_ms=20)
        except LedgerError:
            if claims.is_current(db, claimed):
                raise
            return
        to_confirm = now_ms if dice.random() < 0.3 else None
        if claims.complete(db, claimed, now_ms, confirm_ms=to_confirm):
            delivered.append([claimed.job_id, claimed.attempt])

def confirm():
    for one in confirmations.due_for_confirmation(db, 1, now_ms, 2):
        confirmations.confirmed(db, one, now_ms, has_body=True)

def give_up_bodies():
    found = eviction.candidates(db, None, limit=3)
    eviction.give_up_bodies(db, [one.job_id for one in found], "store")

STEPS = [insert] * 6 + [deliver] * 10 + [lambda: flow.resume(db, 1)] * 3 + [confirm] * 2 + [give_up_bodies] + [
    lambda: maintenance.recover(db, now_ms),
    lambda: policy_enforcement.hold_folder(db, 1, "", due_ms=now_ms, reason=dice.choice([None, 'no'])),
    lambda: pruning.drop_oversize(db, now_ms, 10_000) if dice.random() < 0.2 else None,
    lambda: pruning.drop_session(db, 1, f"ses_{dice.randrange(4)}", now_ms) if dice.random() < 0.05 else None,
    lambda: dead_letters.retry_dead(db, Choice(), now_ms),
    lambda: dead_letters.purge_dead(db, Choice(), now_ms) if dice.random() < 0.2 else None,
    lambda: adoption.adopt(db, 1, 2, now_ms=now_ms, session=f"ses_{dice.randrange(4)}"),
    lambda: confirmations.look_back(db, 1, now_ms),
]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    now_ms += 1
    try:
        dice.choice(STEPS)()
    except sqlite3.OperationalError as error:
        seen[str(error)] = seen.get(str(error), 0) + 1
Path(sys.argv[2], str(os.getpid())).write_text(json.dumps([delivered, seen]))
db.close()
"""


@pytest.mark.slow
def test_storm_of_eight_processes_loses_and_doubles_nothing(
    race: Race, ledger_place: str, at_once: Callable[[str, int, list[str]], None], tmp_path: Path
) -> None:
    db = race.bench.db
    destinations.destination(db, "https://other.invalid", "another", 0)
    (tmp_path / "told").mkdir()
    at_once(STORM, 8, [ledger_place, str(tmp_path / "told"), "120"])
    told = [json.loads(path.read_text()) for path in (tmp_path / "told").iterdir()]
    delivered = [tuple(one) for of_process, _ in told for one in of_process]
    refused = Counter[str]()
    for _, seen in told:
        refused.update(seen)
    assert delivered
    assert len(delivered) == len(set(delivered)), "one attempt delivered a job twice"
    assert all("(40P01)" in error or "(40001)" in error for error in refused), refused
    for sql in (
        "select 1 from job where lease_until_ms is not null group by session_id having count(*) > 1",
        "select 1 from job where state <> 'superseded' group by turn_id having count(*) > 1",
        # What waits has all of its records, and has bodies or can have them made again.
        "select 1 from job j where state in ('pending', 'dead')"  # noqa: ISC004
        " and record_count <> (select count(*) from record where job_id = j.id)",
        "select 1 from job where body_bytes > 0 and not exists (select 1 from bundle b where b.job_id = job.id)",
        "select 1 from job where body_bytes = 0 and exists (select 1 from bundle b where b.job_id = job.id)",
    ):
        assert db.execute(sql).fetchall() == [], sql
