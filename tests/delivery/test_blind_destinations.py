"""Helicones that show less than they store, or store nothing: the real receiver, on a clock that the test sets."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from app.cli import render_status
from app.database.connection import Ledger, connect
from app.database.open import open_ledger
from app.database.schema import migrate, migrations
from app.delivery import confirm
from app.delivery.backoff import RetryPolicy
from app.delivery.confirm import CONTROL_MS, Allowance, Unread
from app.delivery.deliver import DeliveryContext, deliver
from app.exporters.client import ReadBackError
from app.exporters.helicone import traits
from app.exporters.helicone.body import Log, encode
from app.exporters.helicone.client import Client
from app.exporters.helicone.traits import NOT_STORED_CAUSES
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.ledger import dead_letters, destinations, maintenance, readback, versions
from app.ledger.job import Body, IdentityFields, Version
from app.operations.doctor import examine
from app.operations.finding import Finding
from app.operations.status import Confirmation, Status, read_status
from app.privacy.policy import Post
from app.settings.lookup import Sources
from app.settings.model import Settings
from tests.support.ledger_bench import LedgerBench, key, version
from tests.support.servers import Receiver, api_key, receiving

SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000
FIRST_MS = 1_795_000_000_123
FOR_EVER = 1_000_000
BLIND = {"route": "read", "blind": True, "times": FOR_EVER}
CUT_SINCE = {"route": "read", "cut_since": True, "times": FOR_EVER}
STORES_NOTHING = {"unstored": True, "times": FOR_EVER}
CONNECTION_ERROR = {"status": 401, "body": {"error": "connect ECONNREFUSED 127.0.0.1:5432"}, "times": FOR_EVER}


class Person:
    """One person's ledger and worker, at a time that only the test moves."""

    def __init__(self, db: Ledger, receiver: Receiver, client: Client) -> None:
        self.db, self.receiver, self.client = db, receiver, client
        self.spool = db.path.parent
        self.now_ms = FIRST_MS
        self.plan = traits.read_back("auto", receiver.url, "", None)
        self.allowance = Allowance(FOR_EVER, FOR_EVER, self.now_ms)
        self.destination = destinations.destination(db, receiver.url, "fingerprint", self.now_ms).id

    def capture(self, turn: str) -> None:
        """A turn of two records that ended just now, in a session of its own."""
        made = []
        for n in range(2):
            request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{turn} {n}")
            meta = {"Helicone-Request-Id": str(request_id), "Helicone-Session-Id": f"ses_{turn}"}
            said = {"model": "acme/one", "content": turn}
            body = encode(Log(dict(said), dict(said), 200, meta, self.now_ms, self.now_ms, None))
            made.append(Body(request_id, body, IdentityFields("CUSTOM", "acme/one", self.now_ms, turn, f"/{turn}")))
        made_of = Version(f"ses_{turn}", f"ses_{turn}", turn, key(turn), self.now_ms, "", "")
        versions.insert(self.db, self.destination, made_of, made, now_ms=self.now_ms)

    def work(self) -> None:
        """Deliver what is due, and read back what is due."""
        maintenance.reset_future_times(self.db, self.now_ms)
        for wake in maintenance.to_wake(self.db, self.destination, self.now_ms, 100):
            following: str | None = wake
            while following is not None:
                following = deliver(self.db, following, self.context)
        confirm.confirm(
            self.db,
            self.destination,
            self.stored,
            self.now_ms,
            traits=traits_of("helicone"),
            allowance=self.allowance,
            dice=lambda: 1.0,
        )

    def live(self, for_ms: int) -> None:
        """Let so much time pass, second by second as far as anything is to be done."""
        end_ms = self.now_ms + for_ms
        while self.now_ms < end_ms:
            (pause_ms,) = self.db.execute("select coalesce(max(retry_ms), 0) from confirmation").fetchone()
            rows = self.db.execute("select max(confirm_ms, ?) from job where confirm_ms > 0", (pause_ms,)).fetchall()
            rows += self.db.execute("select due_ms from job where due_ms > 0").fetchall()
            next_ms = min([row[0] for row in rows], default=end_ms)
            self.now_ms = min(end_ms, max(next_ms, self.now_ms + SECOND_MS))
            self.work()

    @property
    def context(self) -> DeliveryContext:
        return DeliveryContext(
            destination_id=self.destination,
            worker="worker",
            policy=RetryPolicy.of(5, 1_000),
            permit=lambda _: Post(),
            post=self.post,
            clock=lambda: self.now_ms,
            dice=lambda: 1.0,
            stopping=lambda: False,
            when_to_confirm=lambda: confirm.when(
                self.db, self.destination, self.plan, traits_of("helicone"), self.now_ms
            ),
        )

    def post(self, _: object, body: Body) -> Outcome:
        url = f"{self.receiver.url}/v1/trace/custom/log"
        destinations.remember_route(self.db, self.destination, url)
        return self.client.post(url, body.body, str(body.request_id), self.now_ms)

    def stored(self, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool] | Unread:
        assert self.plan.url is not None
        try:
            return self.client.stored(self.plan.url, start_ms=start_ms, request_ids=request_ids)
        except ReadBackError as error:
            return Unread(str(error))

    def states(self) -> dict[str, int]:
        """Jobs by state; `unconfirmed` ones are delivered and were not found so far."""
        rows = self.db.execute("select iif(confirm_ms is null, state, 'unconfirmed') from job").fetchall()
        return dict(Counter(row[0] for row in rows))

    def sends(self) -> dict[str | None, int]:
        """How often each request id was posted."""
        return dict(Counter(send.request_id for send in self.receiver.sends()))

    def status(self) -> Status:
        return read_status(Settings(spool_directory=self.spool), self.now_ms)

    def doctor(self) -> list[Finding]:
        environ = {"HOME": str(self.spool.parent), "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool)}
        return list(examine(Sources(environ, self.spool.parent, self.spool.parent), self.spool.parent, self.now_ms))

    def confirmation(self) -> Confirmation:
        (one,) = [one for one in self.status().destinations if one.id is not None]
        return one.confirmation

    def first_line(self) -> str:
        return next(render_status.status_lines(self.status(), self.now_ms))


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with (
        receiving(tmp_path / "store.db") as receiver,
        closing(Client(api_key())) as client,
        closing(open_ledger(tmp_path / "spool")) as db,
    ):
        db.execute("pragma synchronous = off")  # nobody cuts the power here
        yield Person(db, receiver, client)


def confirm_one(person: Person) -> None:
    person.capture("before")
    person.live(10 * SECOND_MS)
    assert person.states() == {"delivered": 1}


# --- blind -----------------------------------------------------------------------------------------------------------


def test_half_an_hour_of_blindness_buries_nothing_and_sends_nothing_again(person: Person) -> None:
    confirm_one(person)
    person.receiver.fault(BLIND)
    for n in range(30):
        person.capture(f"turn {n}")
        person.live(MINUTE_MS)
    assert person.states() == {"delivered": 1, "unconfirmed": 30}
    assert readback.BLIND in person.confirmation().notes
    person.receiver.fault()
    person.live(HOUR_MS)
    assert person.states() == {"delivered": 31}
    assert set(person.sends().values()) == {1}
    assert person.confirmation().notes == ()


@pytest.mark.slow
def test_what_was_not_stored_meanwhile_is_sent_again_once_helicone_is_there_again(person: Person) -> None:
    # ClickHouse is down: nothing is stored, nothing is shown, and every answer is a 200.
    confirm_one(person)
    person.receiver.fault(STORES_NOTHING, BLIND)
    for n in range(30):
        person.capture(f"turn {n}")
        person.live(MINUTE_MS)
    assert person.states() == {"delivered": 1, "unconfirmed": 30}
    person.receiver.fault()
    person.live(2 * HOUR_MS)
    assert person.states() == {"delivered": 31}
    assert len(person.receiver.rows()) == 62
    assert max(person.sends().values()) == 2


def test_a_blind_look_is_paced_and_is_repeated_after_the_next_delivery(person: Person) -> None:
    confirm_one(person)
    person.receiver.fault(BLIND)
    person.capture("a turn")
    person.live(12 * HOUR_MS)
    told = readback.confirmations(person.db, person.destination)
    assert told.failures < 30
    assert (told.retry_ms or 0) > person.now_ms + 20 * MINUTE_MS
    person.receiver.fault()
    person.capture("another")
    person.live(3 * SECOND_MS)
    assert person.states() == {"delivered": 3}


def test_a_control_that_somebody_deleted_blinds_until_something_else_is_found(person: Person) -> None:
    confirm_one(person)
    with closing(sqlite3.connect(person.receiver.store)) as store, store:
        store.execute("delete from log")
    person.receiver.fault({"unstored": True, "times": 2})  # of the two turns the one that is posted first
    person.capture("lost")
    person.capture("kept")
    person.live(10 * MINUTE_MS)
    assert person.states() == {"delivered": 3}
    assert sorted(person.sends().values()) == [1, 1, 1, 1, 2, 2]


# --- unproven --------------------------------------------------------------------------------------------------------


def test_where_nothing_was_found_for_a_day_nobody_is_charged_and_status_says_so(person: Person) -> None:
    confirm_one(person)
    person.live(CONTROL_MS + HOUR_MS)
    person.receiver.fault(STORES_NOTHING)
    person.capture("monday")
    person.live(12 * HOUR_MS)
    assert person.states() == {"delivered": 1, "unconfirmed": 1}
    assert "unproven" in person.first_line()
    assert set(person.sends().values()) == {1}
    # The next turn that is found proves that one can see, and that the other one is not there.
    person.receiver.fault()
    person.capture("tuesday")
    person.live(10 * MINUTE_MS)
    assert person.states() == {"delivered": 3}
    assert "unproven" not in person.first_line()
    assert sorted(person.sends().values()) == [1, 1, 1, 1, 2, 2]


def test_a_row_that_was_found_by_a_clock_far_ahead_does_not_count_as_fresh_for_ever(person: Person) -> None:
    person.now_ms += 365 * 24 * HOUR_MS
    confirm_one(person)
    person.now_ms -= 365 * 24 * HOUR_MS
    person.receiver.fault(STORES_NOTHING)
    person.capture("a turn")
    person.live(HOUR_MS)
    assert person.states() == {"delivered": 1, "unconfirmed": 1}
    person.receiver.fault()
    person.capture("another")
    person.live(10 * MINUTE_MS)
    assert person.states() == {"delivered": 3}


def test_a_ledger_that_confirmed_before_controls_were_kept_is_unproven_until_something_is_found(tmp_path: Path) -> None:
    (before,) = [number for number, sql in migrations() if "found_ms" in sql]
    with closing(connect(tmp_path / "ledger.db")) as db:
        migrate(db, [(number, sql) for number, sql in migrations() if number < before])
        ours = "kind text not null default 'helicone'", "name text not null default ''"  # for today's program
        for column in ours:
            db.execute(f"alter table destination add column {column}")
        bench = LedgerBench(db)
        later = ("known_marks text", "record_bytes integer", "redactions integer")  # for today's program
        for column in later:
            db.execute(f"alter table job add column {column}")
        db.execute("create table counter (day, kind, name, count, primary key (day, kind, name))")
        bench.put(version())
        bench.deliver(version())
        db.execute("update job set confirmed_ms = 7")
        for column in later:
            db.execute(f"alter table job drop column {column.split()[0]}")
        for column in ours:
            db.execute(f"alter table destination drop column {column.split()[0]}")
        db.execute("drop table counter")
        migrate(db, migrations())
        assert readback.control(db, bench.destination) == readback.Control(None, 0, 7)


# --- never stores ----------------------------------------------------------------------------------------------------


def test_a_helicone_that_never_stores_is_named_at_the_first_look_and_its_turns_die(person: Person) -> None:
    assert "accepted" not in person.first_line()
    person.receiver.fault(STORES_NOTHING)
    person.capture("a turn")
    person.live(3 * SECOND_MS)
    assert person.states() == {"unconfirmed": 1}
    first = person.first_line()
    assert "accepted, never found" in first
    assert first in [one.found for one in person.doctor() if one.check == "read back"]
    assert all(cause in first for cause in NOT_STORED_CAUSES)
    person.live(HOUR_MS)
    assert person.states() == {"dead": 1}
    assert set(person.sends().values()) == {3}
    person.receiver.fault()
    person.capture("another")
    person.live(MINUTE_MS)
    assert person.states() == {"dead": 1, "delivered": 1}
    assert "accepted" not in person.first_line()


def test_a_helicone_that_stops_storing_and_shows_what_it_had_charges_as_ever(person: Person) -> None:
    confirm_one(person)
    person.receiver.fault(STORES_NOTHING)
    person.capture("a turn")
    person.live(HOUR_MS)
    assert person.states() == {"delivered": 1, "dead": 1}
    assert "accepted, never found" not in person.first_line()


def test_a_letter_that_was_accepted_each_time_does_not_say_that_its_workers_died(person: Person) -> None:
    person.receiver.fault(STORES_NOTHING)
    person.capture("a turn")
    person.live(HOUR_MS)
    (letter,) = dead_letters.dead_letters(person.db)
    attempts = dead_letters.attempts(person.db, letter.job_id)
    assert [(one.status, one.error, one.ended_ms is not None) for one in attempts] == 3 * [(200, "accepted", True)]


# --- whole seconds ---------------------------------------------------------------------------------------------------


def test_where_the_time_is_cut_to_seconds_everything_is_found_and_sent_once(person: Person) -> None:
    person.receiver.fault(CUT_SINCE)
    for n in range(20):
        person.capture(f"turn {n}")
        person.live(7_777)
    person.live(HOUR_MS)
    assert person.states() == {"delivered": 20}
    assert list(person.sends().values()) == 40 * [1]


# --- pauses ----------------------------------------------------------------------------------------------------------


def test_the_pause_of_a_failed_reading_back_ends_with_the_next_delivery(person: Person) -> None:
    person.receiver.fault({"route": "read", "status": 500, "times": FOR_EVER})
    person.capture("a turn")
    person.live(6 * HOUR_MS)
    assert person.states() == {"unconfirmed": 1}
    person.receiver.fault()
    person.capture("another")
    person.live(3 * SECOND_MS)
    assert person.states() == {"delivered": 2}


@pytest.mark.parametrize("route", ["jawn", "read"])
def test_a_database_that_is_down_behind_a_401_is_no_refused_key(person: Person, route: str) -> None:
    person.receiver.fault({**CONNECTION_ERROR, "route": route})
    person.capture("a turn")
    person.live(MINUTE_MS)
    (one,) = [one for one in person.status().destinations if one.id is not None]
    assert one.health == ("down" if route == "jawn" else "fine")
    person.receiver.fault()
    person.capture("another")
    person.live(10 * MINUTE_MS)
    assert person.states() == {"delivered": 2}
    assert set(person.sends().values()) <= ({1} if route == "read" else set(range(20)))
