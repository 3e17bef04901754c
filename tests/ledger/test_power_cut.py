"""The machine loses its power: what SQLite had not flushed by then is gone, and costs no more than another sending."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.database.open import open_ledger
from app.ledger import claims
from tests.ledger.test_matrix import ARROWS, STATES, in_state
from tests.support.ledger_bench import LedgerBench, accepted, version

pytestmark = pytest.mark.sqlite  # it reads SQLite's own files, and asks what a commit of SQLite's has flushed
UNFLUSHED = {
    "acknowledge", "complete", "forget_acknowledged", "note_notice", "note_wait", "note_turns_read", "settle_notices",
}  # fmt: skip
"""Whose work may be lost: it is done again."""
RECORDS = 3
FRAME_HEAD_BYTES = 24


class Levels:
    """What `synchronous` was at each commit that wrote something."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.found: set[str] = set()
        self._db = db
        self._level = "full"
        self._is_open = False
        db.set_trace_callback(self._hear)

    def _hear(self, sql: str) -> None:
        words = sql.lower().split()
        if words[:2] == ["pragma", "synchronous"] and len(words) > 2:
            self._level = words[-1]
        elif words[0] == "begin":
            self._is_open = True
        elif words[0] in {"commit", "rollback"}:
            self._is_open = False
            self.found.add(self._level)
        elif words[0] in {"insert", "update", "delete"} and not self._is_open:
            self.found.add(self._level)

    def end(self) -> None:
        self._db.set_trace_callback(None)


@pytest.mark.parametrize("name", ARROWS)
def test_each_transition_is_on_the_disk_when_it_returns_but_for_those_that_may_be_lost(
    db: sqlite3.Connection, name: str
) -> None:
    act, arrows = ARROWS[name]
    function = name.replace(",", " ").split()[0]
    db.execute("pragma synchronous = off")
    for state in arrows or STATES:
        bench, claimed, due = in_state(db, state)
        db.execute("pragma synchronous = full")
        levels = Levels(db)
        act(bench, claimed, due)
        levels.end()
        assert levels.found <= ({"normal"} if function in UNFLUSHED else {"full"}), state
        db.execute("pragma synchronous = off")


def frames(wal: Path) -> Iterator[int]:
    """Where each frame of the log ends."""
    head = wal.read_bytes()[:32]
    step = FRAME_HEAD_BYTES + struct.unpack(">I", head[8:12])[0]
    yield from range(len(head) + step, wal.stat().st_size + 1, step)


def test_a_power_cut_during_a_delivery_loses_nothing_but_costs_another_sending(spool: Path, tmp_path: Path) -> None:
    with closing(open_ledger(spool)) as db:
        bench = LedgerBench(db)
        bench.put(version(), records=RECORDS)
        wal = spool / "ledger.db-wal"
        flushed = wal.stat().st_size
        claimed = bench.claimed()
        bodies = bench.left(claimed)
        taken = [accepted(db, claimed, body, bench.now_ms) for body in bodies]
        claims.acknowledge(db, claimed, taken[:2], now_ms=bench.now_ms, lease_ms=60_000)
        claims.complete(db, claimed, bench.now_ms, accepted=taken[2:])
        ends = [end for end in frames(wal) if end >= flushed]
        assert len(ends) > RECORDS
        left = set()
        for end in ends:
            copy = tmp_path / f"cut-{end}"
            shutil.copytree(spool, copy, ignore=shutil.ignore_patterns("*-shm"))
            with (copy / "ledger.db-wal").open("r+b") as file:
                file.truncate(end)
            left.add(came_back(copy))
    # Nothing of it, the claim, what was acknowledged first, all of it.
    assert left == {(0, RECORDS), (1, RECORDS), (1, 1), (0, 0)}


def came_back(spool: Path) -> tuple[int, int]:
    """(leased jobs, records to be sent again) after the cut; and all are delivered in the end."""
    with closing(open_ledger(spool)) as db:
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
        bench = LedgerBench(db)
        leased = db.execute("select count(lease_until_ms) from job").fetchone()[0]
        db.execute("update job set lease_until_ms = null, worker = null")
        again = 0
        if bench.state() == "pending":
            claimed = bench.claimed()
            bodies = bench.left(claimed)
            again = len(bodies)
            assert claims.complete(
                db, claimed, bench.now_ms, accepted=[accepted(db, claimed, body, bench.now_ms) for body in bodies]
            )
        assert bench.state() == "delivered"
    return leased, again
