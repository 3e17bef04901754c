"""What `ledger.acknowledge` leaves behind, column by column."""

from __future__ import annotations

import sqlite3

import pytest

from app.ledger import destinations, job
from app.ledger.job import Claim
from tests.support.ledger_bench import LEASE_MS, LedgerBench, version


@pytest.fixture
def bench(db: sqlite3.Connection) -> LedgerBench:
    return LedgerBench(db)


def notes(bench: LedgerBench) -> list[tuple[object, ...]]:
    rows = bench.db.execute("select turn_id, request_id, digest, acknowledged_ms from acknowledgement")
    return [tuple(row) for row in rows]


def put(bench: LedgerBench) -> Claim:
    bench.put(version(), records=2)
    return bench.claimed()


def test_the_record_is_noted_and_the_job_counts_as_one_that_gets_on(bench: LedgerBench) -> None:
    claimed = put(bench)
    bench.db.execute("update job set setbacks = 3, failures = 2, passes_seen = null")
    body = bench.left(claimed)[0]
    bench.now_ms += 500
    assert bench.acknowledge(claimed, body) is True
    assert notes(bench) == [(claimed.turn_id, body.request_id.bytes, body.digest, bench.now_ms)]
    row = bench.row()
    assert (row["lease_until_ms"], row["setbacks"], row["failures"]) == (bench.now_ms + LEASE_MS, 0, 0)
    assert row["passes_seen"] == passes(bench) == 1
    assert [one.request_id for one in bench.left(claimed)] != [body.request_id]


def passes(bench: LedgerBench) -> int:
    return int(bench.db.execute("select passes from destination where id = ?", (bench.destination,)).fetchone()[0])


def test_a_record_that_is_acknowledged_again_has_the_last_bytes_and_time(bench: LedgerBench) -> None:
    claimed = put(bench)
    first, second = bench.left(claimed)
    bench.acknowledge(claimed, first)
    bench.now_ms += 7
    changed = job.Body(first.request_id, second.body)
    assert bench.acknowledge(claimed, changed) is True
    assert notes(bench) == [(claimed.turn_id, first.request_id.bytes, changed.digest, bench.now_ms)]
    assert bench.row()["passes_seen"] == passes(bench) == 2


@pytest.mark.parametrize(
    "change",
    [
        "update job set attempt = attempt + 1",
        "update job set lease_until_ms = null, worker = null",
        "update job set state = 'dead', due_ms = null, finished_ms = 1",
    ],
    ids=["another attempt", "let go", "dead"],
)
def test_whoever_lost_the_claim_is_told_and_changes_no_job_and_the_note_stands(bench: LedgerBench, change: str) -> None:
    claimed = put(bench)
    body = bench.left(claimed)[0]
    bench.db.execute("update job set setbacks = 3, failures = 2")
    bench.db.execute(change)
    before = tuple(bench.row())
    bench.now_ms += 500
    assert bench.acknowledge(claimed, body) is False
    assert tuple(bench.row()) == before
    assert [note[1] for note in notes(bench)] == [body.request_id.bytes]
    assert passes(bench) == 1


def test_another_job_and_another_destination_are_left_alone(bench: LedgerBench) -> None:
    claimed = put(bench)
    bench.put(version("t2", session="ses_2"))
    other = destinations.destination(bench.db, "https://other.invalid", "f", 0).id
    before = tuple(bench.row(version("t2", session="ses_2")))
    bench.acknowledge(claimed, bench.left(claimed)[0])
    assert tuple(bench.row(version("t2", session="ses_2"))) == before
    assert bench.db.execute("select passes from destination where id = ?", (other,)).fetchone()[0] == 0
