"""Counts jobs by state, destination and folder, without changing any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from app.database.connection import Database
from app.ledger.claims import ISOLATED_KILLS


@dataclass(frozen=True, slots=True)
class Counts:
    """Jobs of one destination, by state and by why they wait or were dropped."""

    pending: int
    delivered: int
    dead: int
    superseded: int
    dropped: int
    dropped_by_reason: Mapping[str, int]
    in_flight: int
    retrying: int
    oldest_pending_ms: int | None
    body_bytes: int


def counts(db: Database, destination_id: int | None = None) -> Counts:
    """Counts of one destination, or of all."""
    arguments = {"destination": destination_id}
    jobs = dict.fromkeys(("pending", "delivered", "dead", "superseded", "dropped"), 0)
    dropped: Counter[str] = Counter()
    retrying = body_bytes = 0
    for row in db.execute("select * from tally where :destination is null or destination_id = :destination", arguments):
        jobs[row["state"]] += row["jobs"]
        dropped[row["reason"]] += row["jobs"] if row["state"] == "dropped" else 0
        retrying += row["jobs"] if row["is_retrying"] else 0
        body_bytes += row["body_bytes"]
    beside = db.execute(
        "select (select count(*) from job where lease_until_ms is not null and +state = 'pending'"
        "  and (:destination is null or +destination_id = :destination)) as in_flight,"
        " (select min((select min(enqueued_ms) from job where destination_id = d.id and state = 'pending'))"
        "  from destination d where :destination is null or d.id = :destination) as oldest_pending_ms",
        arguments,
    ).fetchone()
    return Counts(**jobs, dropped_by_reason=dict(+dropped), retrying=retrying, body_bytes=body_bytes, **dict(beside))


IN_BACKOFF_MAX = 10_000
"""What is in backoff changes with the time alone, so nobody keeps count of it."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of one destination's pending jobs."""

    in_backoff: int
    """Not tried before a time that is still to come; counted up to IN_BACKOFF_MAX."""
    isolated: int
    """Suspected of killing workers: tried alone."""


def conditions(db: Database, destination_id: int, now_ms: int) -> Conditions:
    row = db.execute(
        "select (select count(*) from (select 1 from job where destination_id = :destination and state = 'pending'"
        "  and due_ms > :now limit :most)) as in_backoff, (select count(*) from job where destination_id = :destination"
        f"  and state = 'pending' and kills >= {ISOLATED_KILLS}) as isolated",
        {"now": now_ms, "destination": destination_id, "most": IN_BACKOFF_MAX},
    ).fetchone()
    return Conditions(**dict(row))


def errors(db: Database, destination_id: int, limit: int = 5) -> list[tuple[str, str, int]]:
    """(state, error, jobs) of what is dead or waits after a failure, most frequent first."""
    rows = db.execute(
        "select state, reason as error, sum(jobs) as jobs from tally where destination_id = ? and reason <> ''"
        " and state in ('pending', 'dead') group by state, reason order by 3 desc, reason limit ?",
        (destination_id, limit),
    ).fetchall()
    return [(row["state"], row["error"], row["jobs"]) for row in rows]


def latest_ms(db: Database) -> int:
    """The latest time at which anything happened to a job, 0 when nothing ever did."""
    row = db.execute("select max(max(enqueued_ms, coalesce(attempted_ms, 0), coalesce(finished_ms, 0))) from job")
    return int(row.fetchone()[0] or 0)


def pending_keys(db: Database) -> set[str]:
    """Pending keys of all destinations; also of a ledger that was removed or replaced while it is open."""
    return {row["key"] for row in db.cursor().execute("select key from job where state = 'pending'")}


def is_pending(db: Database, destination_id: int) -> bool:
    """Whether anything waits, however long it will have to."""
    row = db.execute(
        "select 1 from tally where destination_id = ? and state = 'pending' limit 1", (destination_id,)
    ).fetchone()
    return row is not None


def is_history(db: Database, destination_id: int, key: str) -> bool:
    """Whether the job goes after what is live."""
    row = db.execute(
        "select is_history from job where destination_id = ? and key = ?", (destination_id, key)
    ).fetchone()
    return row is not None and bool(row["is_history"])


def sendable(db: Database, destination_id: int, now_ms: int) -> bool:
    """Whether a worker has something to do now or soon: a pending job, not held, at a destination not paused."""
    row = db.execute(
        "select 1 from tally j join destination d on d.id = j.destination_id where j.destination_id = ?"
        " and j.state = 'pending' and j.hold_reason = '' and (d.pause_reason is null or d.probe_ms <= ?) limit 1",
        (destination_id, now_ms),
    ).fetchone()
    return row is not None
