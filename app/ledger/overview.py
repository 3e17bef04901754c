"""Overview: how sessions stand, and what was delivered last; found without looking at all jobs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from app.ledger import record_identity

SESSIONS_MAX = 10_000
"""Of sessions that wait or have dead jobs: so many are told apart, and more are told as that many."""
NEWEST = 2_000
"""Jobs among which that is looked for which was delivered last."""


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """Sessions of all destinations; subagents count with theirs."""

    delivered: int
    """Nothing of them waits, and nothing is dead."""
    waiting: int
    """Something of them waits, and nothing is dead."""
    dead: int
    """Something of them is dead."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivered job."""

    destination_id: int
    session: str
    """The session that it is shown in."""
    session_name: str
    """As Helicone shows it; '' where that is not known any more."""
    delivered_ms: int


_ROOTS = (
    "select distinct s.destination_id, s.root_name from (select distinct session_id from"
    " (select session_id from {} limit :limit)) found join session s on s.id = found.session_id"
)
_DEAD, _WAITING = _ROOTS.format("job where state = 'dead'"), _ROOTS.format("waiting")
_SESSION_COUNTS = (
    f"with dead as ({_DEAD}), waits as ({_WAITING})"
    " select (select count(*) from session where name = root_name) as known, (select count(*) from dead) as dead,"
    " (select count(*) from (select * from waits except select * from dead)) as waiting"
)


def session_counts(db: sqlite3.Connection) -> SessionCounts:
    row = db.execute(_SESSION_COUNTS, {"limit": SESSIONS_MAX}).fetchone()
    return SessionCounts(max(0, row["known"] - row["dead"] - row["waiting"]), row["waiting"], row["dead"])


_DELIVERED = (
    "select j.destination_id, j.session_id, j.finished_ms, s.root_name from job j join session s on s.id = j.session_id"
    " where j.id > :after and j.id <= :last and +j.state = 'delivered' order by j.finished_ms desc, j.id desc limit 1"
)


def last_delivery(db: sqlite3.Connection) -> Delivery | None:
    """The latest among the newest jobs; where none of these is delivered, among those before the ones that wait."""
    (newest,) = db.execute("select max(id) from job").fetchone()
    row = _delivered_before(db, newest or 0)
    if row is None and newest is not None:
        (oldest,) = db.execute("select min(id) from job where state = 'pending'").fetchone()
        row = None if oldest is None else _delivered_before(db, oldest)
    if row is None:
        return None
    (name,) = db.execute("select shown_name from session where id = ?", (row["session_id"],)).fetchone()
    shown = name or record_identity.session_name(db, row["session_id"]) or ""
    return Delivery(row["destination_id"], row["root_name"], shown, row["finished_ms"])


def _delivered_before(db: sqlite3.Connection, job_id: int) -> sqlite3.Row | None:
    found: sqlite3.Row | None = db.execute(_DELIVERED, {"after": job_id - NEWEST, "last": job_id}).fetchone()
    return found
