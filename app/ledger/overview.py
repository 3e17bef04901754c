"""Overview: how sessions stand, and what was delivered last; found without looking at all jobs."""

from __future__ import annotations

from dataclasses import dataclass

from app.database.connection import Database, Row
from app.ledger import record_identity

LOOKED_AT_MAX = 250
"""Dead jobs, dropped ones, and sessions that wait, that are looked at to count sessions: where there are more, it is
told so."""
LOST = ("age", "size", "policy")
"""Why jobs are dropped without anybody having asked for it."""
NEWEST = 2_000
"""Jobs among which that is looked for which was delivered last."""


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """Sessions of all destinations; subagents count with theirs."""

    delivered: int | None
    """Nothing of them waits, is dead or was lost. None where so much did or was that not all of it was looked at: then
    the other numbers are the least that there are."""
    waiting: int
    """Something of them waits, and nothing is dead."""
    dead: int
    """Something of them is dead."""
    dropped: int
    """Something of them was dropped for one of the reasons in LOST; nothing waits, and nothing is dead."""


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
    "select s.destination_id, s.root_name from (select session_id from {} limit ?) found"
    " join session s on s.id = found.session_id"
)
_DEAD, _WAITING = _ROOTS.format("job where state = 'dead'"), _ROOTS.format("waiting")
_DROPPED = _ROOTS.format(f"job where state = 'dropped' and drop_reason in {LOST}")


def session_counts(db: Database) -> SessionCounts:
    dead = db.execute(_DEAD, (LOOKED_AT_MAX,)).fetchall()
    waiting = db.execute(_WAITING, (LOOKED_AT_MAX,)).fetchall()
    dropped = db.execute(_DROPPED, (LOOKED_AT_MAX,)).fetchall()
    delivered = None
    if max(len(dead), len(waiting), len(dropped)) < LOOKED_AT_MAX:
        (known,) = db.execute("select count(*) from session where name = root_name").fetchone()
        delivered = max(0, known - len({*dead, *waiting, *dropped}))
    lost = {*dropped} - {*waiting, *dead}
    return SessionCounts(delivered, len({*waiting} - {*dead}), len({*dead}), len(lost))


_DELIVERED = (
    "select j.destination_id, j.session_id, j.finished_ms, s.root_name from job j join session s on s.id = j.session_id"
    " where j.id > :after and j.id <= :last and +j.state = 'delivered' order by j.finished_ms desc, j.id desc limit 1"
)


def last_delivery(db: Database) -> Delivery | None:
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


def _delivered_before(db: Database, job_id: int) -> Row | None:
    found: Row | None = db.execute(_DELIVERED, {"after": job_id - NEWEST, "last": job_id}).fetchone()
    return found
