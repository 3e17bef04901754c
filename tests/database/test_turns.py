"""The threads of one process write one after another."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from app.database.connection import BUSY_TIMEOUT_MS, Ledger, transaction
from app.database.open import open_ledger


def level(db: Ledger) -> int:
    return int(db.execute("pragma busy_timeout").fetchone()[0])


class Other:
    """Another thread with a connection of its own, which wants to write."""

    def __init__(self, spool: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        self.heard: list[str] = []
        self.left_ms: int | None = None
        self.after_ms: int | None = None
        self.error: Exception | None = None
        self.asks = threading.Event()
        self._spool = spool
        self._busy_timeout_ms = busy_timeout_ms
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.asks.wait(60)

    def _run(self) -> None:
        with closing(open_ledger(self._spool)) as db:
            db.execute(f"pragma busy_timeout = {self._busy_timeout_ms}")
            db.set_trace_callback(self.heard.append)
            self.asks.set()
            try:
                with transaction(db):
                    self.left_ms = level(db)
            except sqlite3.OperationalError as error:
                self.error = error
            self.after_ms = level(db)


def test_a_thread_asks_sqlite_for_the_lock_when_the_one_before_has_ended(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        with transaction(db):
            other = Other(spool)
            other.thread.join(0.3)
            assert "begin immediate" not in other.heard
        other.thread.join(60)
    assert other.error is None
    # What it waited for its turn it does not wait for another process once more.
    assert other.left_ms is not None
    assert other.left_ms < BUSY_TIMEOUT_MS
    assert other.after_ms == BUSY_TIMEOUT_MS


def test_a_turn_that_does_not_come_is_a_ledger_that_is_locked(spool: Path) -> None:
    with closing(open_ledger(spool)) as db, transaction(db):
        other = Other(spool, busy_timeout_ms=0)
        other.thread.join(60)
        assert "locked" in str(other.error)
        assert "begin immediate" not in other.heard


def test_a_turn_ends_with_a_transaction_that_fails(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        with pytest.raises(ZeroDivisionError), transaction(db):
            _ = 1 / 0
        other = Other(spool)
        other.thread.join(60)
    assert other.error is None


def test_another_ledger_has_turns_of_its_own(spool: Path, tmp_path: Path) -> None:
    with closing(open_ledger(spool)) as db, transaction(db):
        other = Other(tmp_path / "another")
        other.thread.join(60)
    assert other.error is None
