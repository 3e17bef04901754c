"""The ledger is locked by somebody else when Helicone has just said yes. (In real time: `make locks`.)"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.backfill.import_files import import_files
from app.database.connection import PATIENT_MS, THREAD_LOCK_S
from app.delivery.deliver import LEASE_MS, UNNOTED_MS_MAX
from app.delivery.sender import ANSWERS, POST_S_MAX, SLOW_S, Sender
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File
from app.worker import CONSUMER, Worker
from tests.support.processes import Station
from tests.support.recorded import export_files
from tests.support.servers import Exchange, request_id_of, scripted, whole

RECORDS = 3
JOBS = 2


class Scene:
    """A worker whose ledger is locked from the first POST's arrival until `open`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.posted: list[str] = []
        self.lock: sqlite3.Connection | None = None
        self.is_over = False
        self.station: Station
        self.made: Worker

    def answer(self, exchange: Exchange) -> None:
        exchange.read_body()
        self.posted.append(request_id_of(exchange.heard.body))
        if self.lock is None:
            self.lock = sqlite3.connect(self.station.spool / "ledger.db", isolation_level=None, check_same_thread=False)
            self.lock.execute("begin immediate")
        exchange.send(whole(200, b"ok", {"helicone-id": self.posted[-1]}))

    def open(self) -> None:
        assert self.lock is not None
        self.lock.close()

    def end(self) -> None:
        """The worker ends."""
        if not self.is_over:
            self.is_over = True
            self.made.close()

    def rows(self) -> list[sqlite3.Row]:
        return list(self.made.db.execute("select * from job order by id"))

    def wake(self) -> None:
        for row in self.rows():
            self.made._answer(row["key"])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    with scripted(made.answer) as server, working(made, server.url):
        yield made


@contextmanager
def working(scene: Scene, url: str) -> Iterator[None]:
    scene.station = Station(scene.home, f"{url}/custom/v1/log")
    sources = Sources(scene.station.environ, scene.home, scene.home)
    files = [File(str(path)) for path in export_files("a_simple")]
    assert sum(one.new for one in import_files(files, sources)) == JOBS
    scene.made = Worker(sources)
    scene.made.announce()
    scene.made.huey.create_consumer(**CONSUMER)
    # No longer than it must: that a worker waits, and for how long, is another test's.
    scene.made.db.execute("pragma busy_timeout = 0")
    try:
        yield
    finally:
        scene.end()
        scene.made.queue.close()
        scene.made.db.close()


def test_a_worker_waits_for_a_lock_as_long_as_its_lease_allows(scene: Scene) -> None:
    with closing(Worker(Sources(scene.station.environ, scene.home, scene.home))) as fresh:
        assert fresh.db.execute("pragma busy_timeout").fetchone()[0] == PATIENT_MS
        fresh.queue.close()
        fresh.db.close()
    assert UNNOTED_MS_MAX + POST_S_MAX * 1000 + THREAD_LOCK_S * 1000 + PATIENT_MS < LEASE_MS


def test_what_could_not_be_acknowledged_is_given_back_uncharged_and_delivered(scene: Scene) -> None:
    scene.wake()
    assert len(scene.posted) == 1
    claimed = [row for row in scene.rows() if row["lease_until_ms"] is not None]
    assert len(claimed) == 1
    scene.open()
    scene.made.poll()
    (given_back,) = [row for row in scene.rows() if row["id"] == claimed[0]["id"]]
    assert (given_back["state"], given_back["lease_until_ms"], given_back["kills"]) == ("pending", None, 0)
    attempts = scene.made.db.execute(
        "select ended_ms, error from attempt where job_id = ?", (claimed[0]["id"],)
    ).fetchall()
    assert [row["ended_ms"] is not None for row in attempts] == [True]
    scene.made.db.execute("update job set due_ms = 1 where state = 'pending'")
    scene.wake()
    assert [(row["state"], row["kills"]) for row in scene.rows()] == JOBS * [("delivered", 0)]
    assert (len(scene.posted), len(set(scene.posted))) == (RECORDS + 1, RECORDS)


def test_a_worker_that_ends_gives_back_what_it_could_not_finish(scene: Scene) -> None:
    scene.wake()
    scene.open()
    scene.end()
    assert [(row["state"], row["lease_until_ms"]) for row in scene.rows()] == JOBS * [("pending", None)]


def test_an_answer_counts_though_its_route_could_not_be_noted(scene: Scene) -> None:
    # The lock goes after the route and before the acknowledgement.
    scene.made.db.set_trace_callback(lambda sql: scene.open() if scene.lock and sql == "begin immediate" else None)
    scene.wake()
    scene.made.db.set_trace_callback(None)
    assert [(row["state"], row["error"]) for row in scene.rows()] == JOBS * [("delivered", None)]
    assert len(scene.posted) == RECORDS


def sender_of(scene: Scene) -> Sender:
    assert scene.made._sender is not None
    return scene.made._sender


def test_records_are_posted_several_at_once_where_all_of_the_last_answers_took_long(scene: Scene) -> None:
    answers_s = sender_of(scene).answers_s
    assert sender_of(scene).at_once() == 1
    answers_s.extend([SLOW_S] * ANSWERS)
    assert sender_of(scene).at_once() == traits_of("helicone").RECORDS_AT_ONCE > 1
    # After a pause of the destination they are few on purpose.
    scene.made.db.execute("update destination set concurrency = 2")
    assert sender_of(scene).at_once() == 1
    scene.made.db.execute("update destination set concurrency = null")
    # One was quick: it is this machine that is busy.
    answers_s.append(SLOW_S / 2)
    assert sender_of(scene).at_once() == 1


def test_an_answer_in_another_thread_is_heard_and_leaves_no_connection_to_the_ledger(scene: Scene) -> None:
    opened = []

    def post() -> tuple[Outcome, int]:
        opened.append(scene.made.db)
        return Outcome("accepted", "ok", 200), 1

    assert sender_of(scene).beside(post).result(60)[1] == 1
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].total_changes  # noqa: B018 - what a closed connection says to everything

    def fail() -> tuple[Outcome, int]:
        raise ValueError("of the client")

    with pytest.raises(ValueError, match="of the client"):
        sender_of(scene).beside(fail).result(60)
