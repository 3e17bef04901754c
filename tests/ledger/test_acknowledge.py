"""What `ledger.acknowledge` leaves behind, column by column."""

from __future__ import annotations

import sqlite3

import pytest

from app.ledger import destinations, job
from app.ledger.job import Claim
from tests.support.ledger_bench import LEASE_MS, Desk, version


@pytest.fixture
def desk(db: sqlite3.Connection) -> Desk:
    return Desk(db)


def notes(desk: Desk) -> list[tuple[object, ...]]:
    rows = desk.db.execute("select turn_id, request_id, digest, acknowledged_ms from acknowledgement")
    return [tuple(row) for row in rows]


def put(desk: Desk) -> Claim:
    desk.put(version(), records=2)
    return desk.held()


def test_the_record_is_noted_and_the_job_counts_as_one_that_gets_on(desk: Desk) -> None:
    held = put(desk)
    desk.db.execute("update job set setbacks = 3, failures = 2, passes_seen = null")
    body = desk.left(held)[0]
    desk.now_ms += 500
    assert desk.acknowledge(held, body) is True
    assert notes(desk) == [(held.turn_id, body.request_id.bytes, body.digest, desk.now_ms)]
    row = desk.row()
    assert (row["lease_until_ms"], row["setbacks"], row["failures"]) == (desk.now_ms + LEASE_MS, 0, 0)
    assert row["passes_seen"] == passes(desk) == 1
    assert [one.request_id for one in desk.left(held)] != [body.request_id]


def passes(desk: Desk) -> int:
    return int(desk.db.execute("select passes from destination where id = ?", (desk.destination,)).fetchone()[0])


def test_a_record_that_is_acknowledged_again_has_the_last_bytes_and_time(desk: Desk) -> None:
    held = put(desk)
    first, second = desk.left(held)
    desk.acknowledge(held, first)
    desk.now_ms += 7
    changed = job.Body(first.request_id, second.body)
    assert desk.acknowledge(held, changed) is True
    assert notes(desk) == [(held.turn_id, first.request_id.bytes, changed.digest, desk.now_ms)]
    assert desk.row()["passes_seen"] == passes(desk) == 2


@pytest.mark.parametrize(
    "change",
    [
        "update job set attempt = attempt + 1",
        "update job set lease_until_ms = null, worker = null",
        "update job set state = 'dead', due_ms = null, finished_ms = 1",
    ],
    ids=["another attempt", "let go", "dead"],
)
def test_whoever_lost_the_claim_is_told_and_changes_no_job_and_the_note_stands(desk: Desk, change: str) -> None:
    held = put(desk)
    body = desk.left(held)[0]
    desk.db.execute("update job set setbacks = 3, failures = 2")
    desk.db.execute(change)
    before = tuple(desk.row())
    desk.now_ms += 500
    assert desk.acknowledge(held, body) is False
    assert tuple(desk.row()) == before
    assert [note[1] for note in notes(desk)] == [body.request_id.bytes]
    assert passes(desk) == 1


def test_another_job_and_another_destination_are_left_alone(desk: Desk) -> None:
    held = put(desk)
    desk.put(version("t2", session="ses_2"))
    other = destinations.destination(desk.db, "https://other.invalid", "f", 0).id
    before = tuple(desk.row(version("t2", session="ses_2")))
    desk.acknowledge(held, desk.left(held)[0])
    assert tuple(desk.row(version("t2", session="ses_2"))) == before
    assert desk.db.execute("select passes from destination where id = ?", (other,)).fetchone()[0] == 0
