"""What triggers keep about the jobs: right after whatever happens to these, and made anew where it is not."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.database import derived
from app.database.connection import Ledger, connect
from app.database.open import inspect, open_ledger
from app.database.schema import migrate, migrations
from app.ledger import counts, eviction, incidents, maintenance, pruning
from tests.support.ledger_bench import LedgerBench, version
from tests.support.plans import reads_all

BEFORE = 7
"""The last version of the ledger that kept nothing about its jobs."""


def wrong(db: sqlite3.Connection) -> list[str]:
    return [table for table in derived.TABLES if not derived.is_right(db, table)]


def fill(bench: LedgerBench) -> None:
    for turn in ("t1", "t2", "t3"):
        bench.put(version(turn))
    bench.put(version(session="ses_2"))
    bench.deliver(version(session="ses_2"))
    bench.retry_later(bench.claimed(), due_ms=9_000)


@pytest.mark.parametrize(
    "damage",
    [
        "update tally set jobs = jobs + 1",
        "update tally set body_bytes = 1 << 60 where state = 'pending'",
        "delete from tally",
        "update waiting set due_ms = 1",
        "delete from waiting",
        "insert into waiting values (99, 0, 1, 5)",
    ],
)
def test_what_is_wrong_is_made_anew_by_who_inspects_the_ledger(db: Ledger, damage: str) -> None:
    fill(LedgerBench(db))
    inspect(db)
    assert incidents.incidents(db) == []
    db.execute(damage)
    assert len(wrong(db)) == 1
    inspect(db)
    assert wrong(db) == []
    [(told, times, _)] = incidents.incidents(db)
    assert (told.startswith("ledger: "), times) == (True, 1)


def test_nothing_is_dropped_because_of_a_sum_that_is_wrong(bench: LedgerBench) -> None:
    fill(bench)
    bench.db.execute("update tally set body_bytes = 1 << 60 where state = 'pending'")
    assert eviction.held_bytes(bench.db) > 1 << 50
    assert pruning.drop_oversize(bench.db, 2_000, 1 << 50) == 0


def test_a_ledger_of_before_is_counted_as_it_is_migrated(tmp_path: Path) -> None:
    scripts = migrations()
    with closing(connect(tmp_path / "ledger.db")) as db:
        migrate(db, scripts[:BEFORE])
        db.executescript(
            """
            insert into destination (id, endpoint, key_fingerprint, created_ms) values (1, 'https://e', 'f', 0);
            insert into session (id, destination_id, name, root_name, user_id, folder) values (1, 1, 's', 's', '', '');
            insert into turn (id, session_id, name) values (1, 1, 't1'), (2, 1, 't2'), (3, 1, 't3');
            """
        )
        states = (("pending", 7, None, 5), ("pending", 6, None, 0), ("delivered", None, 1, 0))
        for turn, (state, due_ms, finished_ms, body_bytes) in enumerate(states, 1):
            db.execute(
                "insert into job (destination_id, session_id, turn_id, key, state, facts_ms, enqueued_ms, due_ms,"
                " finished_ms, record_count, body_bytes) values (1, 1, ?, ?, ?, 1, 1, ?, ?, 1, ?)",
                (turn, f"{turn:064}", state, due_ms, finished_ms, body_bytes),
            )
        migrate(db, scripts)
        assert wrong(db) == []
        told = counts.counts(db, 1)
        assert (told.pending, told.delivered, told.body_bytes) == (2, 1, 5)
        assert eviction.without_bodies(db, 1) == 1
        assert maintenance.to_wake(db, 1, 6, 10) == [f"{2:064}"]


def test_a_recovered_ledger_counts_each_job_once(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        fill(LedgerBench(db))
        db.execute("update tally set jobs = 100")
        before = counts.pending_keys(db)
        db.execute("pragma wal_checkpoint(truncate)")
    data = bytearray((spool / "ledger.db").read_bytes())
    data[:16] = b"no database, or "
    (spool / "ledger.db").write_bytes(data)
    with closing(open_ledger(spool)) as db:
        assert counts.pending_keys(db) == before
        assert wrong(db) == []
        assert not [what for what, _, _ in incidents.incidents(db) if "tally" in what or "waiting" in what]


def test_triggers_look_at_no_more_than_one_session_and_one_row_of_it(db: Ledger) -> None:
    triggers = db.execute("select name, sql from sqlite_master where type = 'trigger'").fetchall()
    seen = 0
    for row in triggers:
        body = re.search(r"\bbegin\b(.*)end", row["sql"], re.DOTALL)
        assert body
        for statement in body[1].split(";"):
            if statement.strip():
                bound = re.sub(r"\b(?:new|old)\.(\w+)", "?", statement)
                arguments = (1,) * bound.count("?")
                assert reads_all(db, bound.strip(), (arguments,)) == [], statement
                steps = sqlite3.Connection.execute(db, f"explain query plan {bound}", arguments)
                assert not [one for one in steps if "job_next (session_id=?)" in one["detail"]], statement
                seen += 1
    assert (len(triggers), seen) == (4, 7)
