"""Which statements read all of a table that grows with the number of jobs.

SQLite plans without knowing how many rows there are (nobody runs `analyze`), so a plan is the same for ten jobs and
for 100,000. A statement is explained as it is, with its parameters: written out, they would make it fit indexes that it
does not fit.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterable
from types import FrameType

import pytest

from app.database.connection import Ledger

GROWING = ("job", "record", "bundle", "acknowledgement", "attempt", "turn", "session", "footprint", "waiting")
FEW = ("job_leased", "job_isolated", "job_failed", "job_dead", "job_dropped", "job_evicted", "job_confirm")
"""Indexes of what there are few of (in flight, failed, dropped, to be confirmed): to read all of these is meant."""
LISTED = {
    "adoption.adopt": "all that waits there moves",
    "adoption.adopt_rotated": "the sessions of a key that is refused",
    "adoption.give_up": "all that waits there is given up",
    "adoption.take_over": "one row is enough",
    "arrivals.arrivals": "asked at the centre alone, where an index of PostgreSQL's has turns by name",
    "arrivals.of_machine": "the same, of sessions by machine",
    "arrivals.by_machine": "a person's command, and metrics",
    "confirmations.give_up_confirmations": "where a folder has a limit of its own",
    "confirmations.look_back": "once, as bodies are found missing",
    "eviction.excess_of_folders": "where a folder has a limit of its own",
    "folders.had_jobs": "a person's command",
    "history.brought_along": "of a fork, whose turns may be copies of anything",
    "listing.jobs": "as many of the latest as are asked for",
    "listing.newest_sessions": "the same",
    "listing.watched": "the same",
    "history.compare_again": "a person's command",
    "history.exported_sessions": "a person's command about all sessions",
    "overview.last_delivery": "ids of what waits, where none of the newest jobs is delivered",
    "overview.session_counts": "sessions, a row each, where few wait; of those that wait 250 at most",
    "policy_enforcement.drop_looser": "once, as settings are changed",
    "policy_enforcement.held_folders": "once, as settings are changed",
    "policy_enforcement.hold_folder": "once, as settings are changed",
    "policy_enforcement.made_under": "once, as settings are changed",
    "pruning.drop_oversize": "where there is no room: nothing is dropped because of a sum that was kept",
    "record_identity.forget_record_identities": "the first rows of the table",
    "versions.place_under": "no look: SQLite plans one for constraints that are put off, and none is",
}
"""The ledger's functions that may, and why."""
FIRST_ROWS = (
    "order by j.enqueued_ms desc, j.id desc limit 1)",
    "(select min(enqueued_ms) from job where destination_id = d.id and state = 'pending')",
)
"""What is the first row of an index, or the last, though its plan reads as if all of a destination were read."""
_SEEN: set[str] = set()
_STEP = re.compile(r"(?P<how>SCAN|SEARCH) (?P<name>\w+)(?P<more>.*)")
_ALL_OF_A_DESTINATION = re.compile(r"\((destination_id=\? ?(AND )?)?(state=\?)?\)$")


def reads_all(db: sqlite3.Connection, sql: str, arguments: tuple[object, ...]) -> list[str]:
    """The steps of this statement that read all rows of a growing table, or all of a destination."""
    steps = sqlite3.Connection.execute(db, f"explain query plan {sql}", *arguments).fetchall()  # type: ignore[arg-type]
    return [row["detail"] for row in steps if _is_all(sql, row["detail"])]


def _is_all(sql: str, detail: str) -> bool:
    step = _STEP.match(detail)
    if step is None or any(f"INDEX {index}" in detail for index in FEW):
        return False
    name = step["name"]
    of = {name} | set(re.findall(rf"\b(\w+) (?:as )?{name}\b", sql))
    if not of & set(GROWING) or "VIRTUAL TABLE" in detail:
        return False
    return step["how"] == "SCAN" or _ALL_OF_A_DESTINATION.search(detail) is not None


def _caller(frame: FrameType | None) -> str | None:
    """The ledger's function that was called from outside of it; None where a statement is not the ledger's."""
    found = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith("app.ledger."):
            found = f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        elif found is not None or module.startswith("app."):
            return found
        frame = frame.f_back
    return found


def watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explain each statement of the ledger as a test in this process first comes to it."""
    execute, executemany = Ledger.execute, Ledger.executemany

    def look(db: Ledger, sql: str, arguments: tuple[object, ...]) -> None:
        if sql in _SEEN or sql.split(None, 1)[0] not in {"select", "with", "insert", "update", "delete"}:
            return
        caller = _caller(sys._getframe(2))
        if caller is not None:
            _SEEN.add(sql)
            found = reads_all(db, sql, arguments)
            is_listed = caller in LISTED or any(one in sql for one in FIRST_ROWS)
            assert not found or is_listed, f"{caller} reads all ({found}): {sql}"

    def explained(self: Ledger, sql: str, *arguments: object) -> sqlite3.Cursor:
        look(self, sql, arguments)
        return execute(self, sql, *arguments)

    def explained_many(self: Ledger, sql: str, rows: Iterable[object]) -> sqlite3.Cursor:
        rows = list(rows)
        if rows:
            look(self, sql, (rows[0],))
        return executemany(self, sql, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "execute", explained)
    monkeypatch.setattr(Ledger, "executemany", explained_many)
