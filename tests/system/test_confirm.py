"""Stored, not just accepted: a real worker process, and a receiver that lies."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from app.backfill.import_files import import_files
from app.delivery.confirm import RESENDS_MAX, Allowance
from app.exporters.helicone.client import Client
from app.exporters.helicone.traits import NOT_STORED_CAUSES
from app.ledger import readback
from app.operations.status import Confirmation, DestinationStatus, read_status
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File
from app.worker import CONSUMER, Worker
from tests.support.processes import Station, worker
from tests.support.recorded import export, export_files
from tests.support.servers import Receiver, receiving, scripted, silent
from tests.support.waiting import wait_until

RECORDS = 3
"""Of each of these recordings: session, user message, answer; the session's is a job of its own."""
JOBS = 2
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Place:
    """One machine and its receiver; and a recording that no other test there uses."""

    station: Station
    receiver: Receiver
    name: str = ""

    @property
    def sources(self) -> Sources:
        return Sources(self.station.environ, self.station.home, self.station.home)

    @property
    def session(self) -> str:
        return str(export(self.name)["root"])

    def capture(self, name: str = "") -> int:
        """New jobs."""
        files = [File(str(path)) for path in export_files(name or self.name)]
        return sum(one.new for one in import_files(files, self.sources))

    def jobs(self, condition: str) -> int:
        """Of this recording."""
        with self.station.ledger() as db:
            sql = "select count(*) from job where session_id in (select id from session where name = ?) and "
            return int(db.execute(sql + condition, (self.session,)).fetchone()[0])

    def pass_a_day(self) -> None:
        """As if what waits to be confirmed had been delivered so long ago that nothing will still turn up."""
        with self.station.ledger() as db:
            db.execute(
                "update job set finished_ms = finished_ms - 86400000, confirm_ms = 1 where confirm_ms is not null"
            )

    def sends(self) -> list[str]:
        """The request ids of this recording's records, as often as they were posted."""
        with self.station.ledger() as db:
            ours = {
                row[0].hex()
                for row in db.execute(
                    "select a.request_id from acknowledgement a join turn t on t.id = a.turn_id"
                    " join session s on s.id = t.session_id where s.name = ?"
                    " union select r.request_id from record r join job j on j.id = r.job_id"
                    " join session s on s.id = j.session_id where s.name = ?",
                    (self.session, self.session),
                )
            }
        ids = [send.request_id or "" for send in self.receiver.sends()]
        return [request_id for request_id in ids if request_id.replace("-", "") in ours]

    def bodies(self) -> list[bool]:
        """Of each stored row, whether it has its body."""
        rows = [row for row in self.receiver.rows() if row.log.properties["Helicone-Session-Id"] == self.session]
        return [row.log.request_body != "" for row in rows]

    def status(self) -> DestinationStatus:
        return read_status(self.sources.load(), clock.now_ms()).destinations[0]

    def confirmation(self) -> Confirmation:
        return self.status().confirmation


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker as it is by default, at a server that is not the cloud. It takes seconds to start: one for all."""
    folder = tmp_path_factory.mktemp("served")
    with receiving(folder / "store.db") as receiver:
        station = Station(folder, receiver.url, variables={"OPENCODE_HELICONE_CONFIRM": ""})
        place = Place(station, receiver)
        with worker(station):
            yield place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """No process: a test takes a worker's steps."""
    with receiving(tmp_path / "store.db") as receiver:
        station = Station(tmp_path, receiver.url, variables={"OPENCODE_HELICONE_CONFIRM": ""})
        yield Place(station, receiver, "a_simple")


@contextmanager
def working(place: Place) -> Iterator[Worker]:
    made = Worker(place.sources)
    try:
        made.huey.create_consumer(**CONSUMER)
        yield made
    finally:
        made.close()


def deliver(made: Worker) -> None:
    for _ in range(JOBS):
        made._answer(made.db.execute("select key from job where state = 'pending'").fetchone()[0])


def read_back(made: Worker) -> None:
    made._allowance = Allowance(60, 60, clock.now_ms())
    made._confirm()


# --- between processes -----------------------------------------------------------------------------------------------


def test_what_is_stored_is_confirmed_by_itself_and_its_bodies_go(served: Place) -> None:
    place = replace(served, name="a_simple")
    place.receiver.fault()
    assert place.capture() == JOBS
    wait_until(lambda: place.jobs("state = 'delivered' and confirm_ms is not null and body_bytes > 0"))
    wait_until(lambda: place.jobs("confirmed_ms is not null and confirm_ms is null and body_bytes = 0") == JOBS)
    assert len(place.sends()) == len(set(place.sends())) == RECORDS


def test_what_was_accepted_and_not_stored_is_sent_again_under_the_same_ids_and_then_confirmed(served: Place) -> None:
    place = replace(served, name="m_length")
    place.receiver.fault({"unstored": True, "times": RECORDS})
    assert place.capture() == JOBS
    wait_until(lambda: place.jobs("state = 'delivered'") == JOBS)
    assert place.bodies() == []
    place.pass_a_day()
    wait_until(lambda: place.jobs("state = 'delivered' and resends = 1") == JOBS)
    place.pass_a_day()
    wait_until(lambda: place.jobs("confirmed_ms is not null and body_bytes = 0") == JOBS)
    assert (len(place.sends()), len(set(place.sends()))) == (2 * RECORDS, RECORDS)
    assert place.bodies() == [True] * RECORDS


def test_what_is_never_stored_is_dead_and_says_why_that_may_be(served: Place) -> None:
    place = replace(served, name="m_nousage")
    place.receiver.fault({"unstored": True, "times": 1_000})
    assert place.capture() == JOBS
    for resends in range(RESENDS_MAX + 1):
        again = f"confirm_ms > 1 and resends = {resends}"
        wait_until(lambda again=again: place.jobs(again) == JOBS)  # type: ignore[misc]
        place.pass_a_day()
    wait_until(lambda: place.jobs("state = 'dead' and body_bytes > 0") == JOBS)
    assert (len(place.sends()), len(set(place.sends()))) == ((RESENDS_MAX + 1) * RECORDS, RECORDS)
    (failing,) = place.status().errors
    assert (failing.state, failing.jobs) == ("dead", JOBS)
    assert failing.error.startswith("accepted but not stored: ")
    assert len(NOT_STORED_CAUSES) == 4
    assert all(cause in failing.error for cause in NOT_STORED_CAUSES)


def test_beyond_the_quota_logs_go_on_and_turns_are_marked_and_can_be_sent_again(served: Place) -> None:
    place = replace(served, name="m_badargs")
    place.receiver.fault({"over_quota": True, "times": 1_000})
    new = place.capture()
    wait_until(lambda: place.jobs("state = 'delivered'") == new)
    place.pass_a_day()
    wait_until(lambda: place.jobs("body_not_stored and body_bytes = 0") == new)
    assert not any(place.bodies())
    assert place.confirmation().body_not_stored == new
    assert any("quota" in note for note in place.confirmation().notes)
    place.receiver.fault()
    assert place.capture() == new  # somebody imports the session
    wait_until(lambda: place.jobs("state = 'delivered' and not body_not_stored") == new)
    place.pass_a_day()
    wait_until(lambda: place.jobs("confirmed_ms is not null") == new)
    assert place.confirmation().notes == ()
    assert all(place.bodies())
    assert len(place.bodies()) == len(set(place.sends()))
    assert len(place.sends()) == 2 * len(place.bodies())


def test_a_reading_back_that_hangs_delays_no_delivery(place: Place) -> None:
    with scripted(silent()) as mute:
        station = replace(place.station, variables={**place.station.variables, "HELICONE_READBACK_URL": mute.url})
        slow = replace(place, station=station)
        slow.capture()
        made = Worker(slow.sources)
        posts = made._client
        assert posts is not None
        # In this process, so that its client waits for longer than the test does: only the server's end ends the hang.
        made._client = Client(station.key, deadline_s=DAY_S)

        def happens() -> bool:
            wait_until(lambda: slow.jobs("state = 'delivered'") == JOBS)
            slow.pass_a_day()
            wait_until(lambda: mute.requests)
            # After this a wake brings no claim: the poller has to look, too.
            place.receiver.fault({"status": 429, "headers": {"retry-after": "2"}})
            slow.capture("m_length")
            wait_until(lambda: station.delivered(2 * JOBS))
            return True

        with closing(posts):
            assert made.run_until(happens)
        assert len(mute.requests) == 1, "the first reading back hangs still"
        assert slow.confirmation().confirmed == 0
    for thread in made._threads:
        thread.join(300)


# --- step by step ----------------------------------------------------------------------------------------------------


def test_where_the_address_is_not_known_nothing_is_read_back_and_status_says_so_and_an_address_helps(
    place: Place,
) -> None:
    apart = replace(place, station=replace(place.station, endpoint=f"{place.receiver.url}/custom/v1/log"))
    apart.capture()
    with working(apart) as made:
        deliver(made)
    assert apart.jobs("state = 'delivered' and confirm_ms is null and body_bytes = 0") == JOBS
    (note,) = apart.confirmation().notes
    assert note.startswith("off: ")
    assert "HELICONE_READBACK_URL" in note
    variables = {**apart.station.variables, "HELICONE_READBACK_URL": place.receiver.url}
    told = replace(apart, station=replace(apart.station, variables=variables), name="m_length")
    told.capture()
    with working(told) as made:
        deliver(made)
        told.pass_a_day()
        read_back(made)
    assert told.confirmation() == Confirmation(JOBS, 0, 0, 0, (), "")


def test_a_refused_reading_back_is_told_and_a_worker_that_starts_tries_at_once(place: Place) -> None:
    variables = {**place.station.variables, "HELICONE_READBACK_URL": f"{place.receiver.url}/nowhere"}
    wrong = replace(place, station=replace(place.station, variables=variables))
    wrong.capture()
    with working(wrong) as made:
        deliver(made)
        wrong.pass_a_day()
        read_back(made)
    told = wrong.confirmation()
    assert (told.waiting, told.confirmed) == (JOBS, 0)
    assert told.notes[0].startswith("paused: reading back was answered with 404")
    assert "404" in place.station.text("worker.log")
    with working(place) as made:
        made._confirm()
    assert place.confirmation() == Confirmation(JOBS, 0, 0, 0, (), "")


def test_flush_ends_the_pause_of_a_failed_reading_back(place: Place) -> None:
    place.capture()
    with working(place) as made:
        deliver(made)
        place.pass_a_day()
        place.receiver.fault({"route": "read", "blind": True})
        readback.note_found(made.db, made.target.id, readback.Control(uuid.uuid4(), 1, clock.now_ms()))
        read_back(made)
        read_back(made)  # it waits
        assert place.confirmation().confirmed == 0
        assert place.station.run("flush").returncode == 0
        read_back(made)
    assert place.confirmation().confirmed == JOBS


def test_a_worker_that_is_told_not_to_confirm_gives_up_what_waits_for_it_and_status_says_so(place: Place) -> None:
    place.capture()
    with working(place) as made:
        deliver(made)
    assert place.jobs("confirm_ms is not null") == JOBS
    off = replace(place, station=replace(place.station, variables={"OPENCODE_HELICONE_CONFIRM": "off"}))
    with working(off) as made:
        assert made._confirm() is None
    assert off.confirmation() == Confirmation(0, 0, 0, JOBS, ("off: confirm is off",), "")
